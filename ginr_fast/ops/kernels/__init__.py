"""Triton kernels of the token decoders, shared by ``locality_decode`` and ``anr_decode``.

Import this package only once a call is to run on them: without Triton it cannot be imported.
"""
