"""Per-coordinate cross-attention over latent tokens and multi-band feature modulation (LA-GINR).

``weights.py`` the parameters and their shapes · ``reference.py`` the formula · ``plan.py`` which
exact foldings pay · ``blocked.py`` the fast PyTorch backend · ``op.py`` the public function.
"""
