"""PSNR and SSIM of reconstructions, by torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

# The Gaussian window of SSIM; smaller images have no SSIM.
_SSIM_WINDOW = 11


class Reconstructs(Protocol):
    """What :func:`evaluate` needs of a model."""

    def reconstruct(self, images: torch.Tensor, scale: float = 1.0) -> torch.Tensor: ...


@dataclass(frozen=True)
class Scores:
    """Means over images.

    Args:
        psnr: peak signal-to-noise ratio in dB, of each image, then averaged.
        ssim: structural similarity, in [-1, 1]; NaN for images below 11×11 pixels.
        images: how many.
    """

    psnr: float
    ssim: float
    images: int


class ScoreSum:
    """Scores summed over batches, so that sums of several processes can be added.

    Args:
        device: where the sums live.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # PSNR, SSIM, count
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def update(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch, both ``(B, C, H, W)`` in [0, 1]."""
        images, targets = images.float(), targets.float()
        with torch.autocast(images.device.type, enabled=False):  # SSIM's convolutions need float32
            psnr = peak_signal_noise_ratio(
                images, targets, data_range=1.0, reduction="none", dim=(1, 2, 3)
            )
            ssim = torch.full_like(psnr, float("nan"))
            if min(images.shape[-2:]) >= _SSIM_WINDOW:
                found = structural_similarity_index_measure(
                    images, targets, data_range=1.0, reduction="none"
                )
                assert isinstance(found, torch.Tensor)
                ssim = found.reshape(-1)
        self.sums += torch.stack(
            [psnr.double().sum(), ssim.double().sum(), psnr.new_tensor(len(images)).double()]
        )

    def scores(self) -> Scores:
        """The means so far.

        Raises:
            ValueError: there was no image.
        """
        psnr, ssim, count = self.sums.tolist()
        if not count:
            raise ValueError("images: expected at least one to evaluate with, got none")
        return Scores(psnr / count, ssim / count, int(count))


@torch.no_grad()
def score_views(
    model: Reconstructs,
    views: Sequence[torch.Tensor] | torch.utils.data.Dataset[torch.Tensor],
    indices: Sequence[int],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> ScoreSum:
    """Reconstruct views at their own resolution and compare.

    Args:
        model: reconstructs ``(B, 3, S, S)`` in [0, 1].
        views: uint8 ``(3, S, S)`` each.
        indices: which of them.
        batch_size: how many at a time.
        device: where the model is.
    """
    total = ScoreSum(device)
    for first in range(0, len(indices), batch_size):
        batch = [views[index] for index in indices[first : first + batch_size]]
        targets = torch.stack(batch).to(device).float() / 255
        total.update(model.reconstruct(targets), targets)
    return total
