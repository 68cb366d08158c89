"""Waveforms to patch tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ginr_fast.ops.checks import check_tensor


class AudioTokenizer(nn.Module):
    """Cut waveforms into patches and embed each as one token.

    ``token_p = W · patch_p + b + position_p``, with a learned position embedding, as for images
    (IPC, arXiv:2211.13223: one second at 16 kHz in patches of 200 samples gives 80 tokens). A clip
    whose length is no multiple of the patch is followed by zeros up to the next one.

    Args:
        length: samples of a clip.
        patch_size: samples of a patch.
        dim: width of the tokens.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> import torch
        >>> from ginr_fast.encoders.audio import AudioTokenizer
        >>> AudioTokenizer(length=16000, patch_size=200, dim=64)(torch.zeros(2, 16000)).shape
        torch.Size([2, 80, 64])
    """

    def __init__(self, length: int, patch_size: int, dim: int = 768) -> None:
        super().__init__()
        for name, size in {"length": length, "patch_size": patch_size, "dim": dim}.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size!r}")
        self.length, self.patch_size = length, patch_size
        self.count = -(-length // patch_size)
        self.pad = self.count * patch_size - length
        self.embed = nn.Linear(patch_size, dim)
        self.position = nn.Parameter(torch.empty(self.count, dim))
        nn.init.normal_(self.position, std=0.02)

    def patches(self, waves: torch.Tensor) -> torch.Tensor:
        """The patches as rows, ``(B, length) -> (B, tokens, patch_size)``, in order of time."""
        return F.pad(waves, (0, self.pad)).reshape(-1, self.count, self.patch_size)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        """Tokens of waveforms.

        Args:
            waves: ``(B, length)``, floating point.

        Returns:
            ``(B, tokens, dim)`` with ``tokens = ⌈length / patch_size⌉``.

        Raises:
            TypeError: not a tensor. ValueError: another shape.
        """
        check_tensor("waves", waves, ("B", self.length))
        return self.embed(self.patches(waves)) + self.position
