"""Images to patch tokens."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ginr_fast.ops.checks import check_tensor

Padding = Literal["zeros", "replicate"]


class PatchTokenizer(nn.Module):
    """Cut images into patches and embed each as one token.

    ``token_p = W · patch_p + b + position_p``, with a learned position embedding (LA-GINR,
    arXiv:2310.05624, Appendix A.1; TransINR, ECCV 2022). An image whose size is no multiple of the
    patch is padded evenly on both sides to the next one: 178 with patch 9 gains one pixel a side
    and gives 20×20 = 400 tokens, 1024 with patch 48 gives 22×22 = 484, as published.

    Args:
        image_size: height and width of the images, in pixels.
        patch_size: height and width of a patch, in pixels.
        channels: colour channels of the images.
        dim: width of the tokens.
        padding: ``"zeros"`` (as published) or ``"replicate"``, which repeats the border.

    Raises:
        ValueError: a size below 1, or an unknown padding.

    Example:
        >>> import torch
        >>> from ginr_fast.encoders import PatchTokenizer
        >>> PatchTokenizer(image_size=178, patch_size=9, dim=64)(torch.rand(2, 3, 178, 178)).shape
        torch.Size([2, 400, 64])
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        channels: int = 3,
        dim: int = 768,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        sizes = {
            "image_size": image_size,
            "patch_size": patch_size,
            "channels": channels,
            "dim": dim,
        }
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size!r}")
        if padding not in ("zeros", "replicate"):
            raise ValueError(f"padding: expected 'zeros' or 'replicate', got {padding!r}")
        self.image_size, self.patch_size, self.channels = image_size, patch_size, channels
        self.side = -(-image_size // patch_size)
        missing = self.side * patch_size - image_size
        self.pad = (missing // 2, missing - missing // 2)
        self.padding = padding
        self.embed = nn.Linear(channels * patch_size**2, dim)
        self.position = nn.Parameter(torch.empty(self.side**2, dim))
        nn.init.normal_(self.position, std=0.02)

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """The patches as rows, ``(B, C, H, W) -> (B, tokens, C·patch²)``, row by row."""
        if any(self.pad):
            mode = "constant" if self.padding == "zeros" else "replicate"
            images = F.pad(images, (*self.pad, *self.pad), mode=mode)
        batch, channels = images.shape[:2]
        side, patch = self.side, self.patch_size
        cut = images.reshape(batch, channels, side, patch, side, patch)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, side**2, channels * patch**2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens of images.

        Args:
            images: ``(B, channels, image_size, image_size)``, floating point.

        Returns:
            ``(B, tokens, dim)`` with ``tokens = ⌈image_size / patch_size⌉²``.

        Raises:
            TypeError: not a tensor. ValueError: another shape.
        """
        check_tensor("images", images, ("B", self.channels, self.image_size, self.image_size))
        return self.embed(self.patches(images)) + self.position
