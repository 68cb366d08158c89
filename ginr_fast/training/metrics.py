"""PSNR, SSIM and agreement of reconstructions, by torchmetrics where it has them."""

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
    """What :func:`score_views` needs of a model."""

    def reconstruct(self, images: torch.Tensor, scale: float = 1.0) -> torch.Tensor: ...


@dataclass(frozen=True)
class ImageScores:
    """Means over held-out images.

    Args:
        psnr: peak signal-to-noise ratio in dB, of each image, then averaged.
        ssim: structural similarity, in [-1, 1]; NaN for images below 11×11 pixels.
        images: how many.
    """

    psnr: float
    ssim: float
    images: int

    def summary(self) -> str:
        """One line for the user."""
        return f"held-out PSNR: {self.psnr:.2f} dB, SSIM: {self.ssim:.4f} ({self.images} images)"

    def values(self) -> dict[str, float]:
        """Numbers by name, for the log."""
        return {"psnr": self.psnr, "ssim": self.ssim}


def psnr_each(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The PSNR of each instance in dB, ``(B,)``.

    Args:
        values: ``(B, ...)``, in [0, 1].
        targets: the same shape.
    """
    axes = tuple(range(1, values.ndim))
    values, targets = values.float(), targets.float()
    return peak_signal_noise_ratio(values, targets, data_range=1.0, reduction="none", dim=axes)


def ssim_each(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The SSIM of each image, ``(B,)``; NaN for images below 11×11 pixels.

    Args:
        images: ``(B, C, H, W)``, in [0, 1].
        targets: the same shape.
    """
    images, targets = images.float(), targets.float()
    if min(images.shape[-2:]) < _SSIM_WINDOW:
        return images.new_full(images.shape[:1], float("nan"))
    with torch.autocast(images.device.type, enabled=False):  # its convolutions need float32
        found = structural_similarity_index_measure(
            images, targets, data_range=1.0, reduction="none"
        )
    assert isinstance(found, torch.Tensor)
    return found.reshape(-1)


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
        psnr, ssim = psnr_each(images, targets), ssim_each(images, targets)
        self.sums += torch.stack(
            [psnr.double().sum(), ssim.double().sum(), psnr.new_tensor(len(images)).double()]
        )

    def scores(self) -> ImageScores:
        """The means so far.

        Raises:
            ValueError: there was no image.
        """
        psnr, ssim, count = self.sums.tolist()
        if not count:
            raise ValueError("images: expected at least one to evaluate with, got none")
        return ImageScores(psnr / count, ssim / count, int(count))


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


@dataclass(frozen=True)
class FieldScores:
    """Means over reconstructed instances or views, beside what their training mean would score.

    Args:
        what: what was reconstructed, in words.
        psnr: PSNR in dB of values in [0, 1], of each, then averaged.
        mse: mean squared error of these values.
        baseline_psnr: PSNR of the mean of the training data in their place.
        count: how many.
        ssim: (images) structural similarity; NaN where it has no meaning.
        accuracy: (voxels) fraction of points on the right side of ½.
        iou: (voxels) intersection over union of the points inside.
    """

    what: str
    psnr: float
    mse: float
    baseline_psnr: float
    count: int
    ssim: float = float("nan")
    accuracy: float = float("nan")
    iou: float = float("nan")

    def summary(self) -> str:
        """One line for the user."""
        parts = [f"{self.what}: PSNR {self.psnr:.2f} dB"]
        parts += [f"{name} {value:.4f}" for name, value in self._extra().items()]
        parts += [f"MSE {self.mse:.5f} ({self.count})"]
        return ", ".join(parts) + f"; their mean in training: {self.baseline_psnr:.2f} dB"

    def values(self) -> dict[str, float]:
        """Numbers by name, for the log."""
        extra = {name.lower(): value for name, value in self._extra().items()}
        basic = {"psnr": self.psnr, "mse": self.mse, "baseline_psnr": self.baseline_psnr}
        return {**basic, **extra}

    def _extra(self) -> dict[str, float]:
        extra = {"SSIM": self.ssim, "accuracy": self.accuracy, "IoU": self.iou}
        return {name: value for name, value in extra.items() if value == value}


class FieldSum:
    """Field scores summed over batches, so that sums of several processes can be added.

    Args:
        device: where the sums live.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # PSNR, MSE, baseline PSNR, SSIM, accuracy, IoU, count
        self.sums = torch.zeros(7, dtype=torch.float64, device=device)

    def update(
        self, values: torch.Tensor, targets: torch.Tensor, baseline: torch.Tensor, kind: str
    ) -> None:
        """Add a batch.

        Args:
            values: ``(B, ...)``, in [0, 1]; ``(B, C, H, W)`` for images.
            targets: the same shape.
            baseline: what the mean of the training data gives, expandable to that shape.
            kind: images (with SSIM), or points (with accuracy and IoU).
        """
        nothing = values.new_full(values.shape[:1], float("nan"))
        ssim, accuracy, iou = nothing, nothing, nothing
        if kind == "images":
            ssim = ssim_each(values, targets)
        else:
            found, wanted = (side.flatten(1) > 0.5 for side in (values, targets))
            accuracy = (found == wanted).float().mean(1)
            union = (found | wanted).sum(1)
            iou = torch.where(union > 0, (found & wanted).sum(1) / union.clamp(min=1), 1.0)
        each = [
            psnr_each(values, targets),
            (values - targets).square().flatten(1).mean(1),
            psnr_each(baseline.expand_as(targets), targets),
            ssim,
            accuracy,
            iou,
            torch.ones_like(nothing),
        ]
        self.sums += torch.stack(each).double().sum(1)

    def scores(self, what: str) -> FieldScores:
        """The means so far.

        Args:
            what: what was reconstructed, in words.

        Raises:
            ValueError: there was nothing.
        """
        *sums, count = self.sums.tolist()
        if not count:
            raise ValueError(f"{what}: expected at least one to evaluate with, got none")
        psnr, mse, baseline, ssim, accuracy, iou = (value / count for value in sums)
        return FieldScores(what, psnr, mse, baseline, int(count), ssim, accuracy, iou)
