"""Per-coordinate cross-attention over latent tokens with a threshold, then an MLP (ANR, INRCT).

``weights.py`` the parameters and their shapes · ``reference.py`` the formula · ``plan.py`` what it
costs · ``blocked.py`` the fast PyTorch backend · ``op.py`` the public function.
"""
