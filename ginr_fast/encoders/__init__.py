"""Encoders: from an instance to latent tokens."""

from ginr_fast.encoders.tokenizer import PatchTokenizer
from ginr_fast.encoders.transformer import LatentEncoder, TransformerBlock
from ginr_fast.encoders.views import ViewTokenizer

__all__ = ["LatentEncoder", "PatchTokenizer", "TransformerBlock", "ViewTokenizer"]
