"""Waveforms: how well they are reconstructed, in numbers and as a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ginr_fast.training.images import sheet

# Mean squared rounding error of 16-bit samples: no recording is better than that, and the PSNR of
# a silent clip that is reconstructed exactly stays a number (101 dB).
_ROUNDING = (1 / 32768) ** 2 / 12
_HEIGHT, _WIDTH = 72, 240
_AXIS, _WAVE, _ERROR = (210, 210, 210), (31, 91, 165), (190, 60, 40)


def waveform_psnr(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """``-10·log10(MSE)`` of each clip in dB, ``(B,)``.

    The convention of IPC's published code: the peak is 1, the largest magnitude, though samples lie
    in [-1, 1]; a peak-to-peak range of 2 would give 6.02 dB more.

    Args:
        values: ``(B, samples)``, in [-1, 1].
        targets: the same shape.
    """
    mse = (values.float() - targets.float()).square().mean(-1)
    return -10 * torch.log10(mse.clamp(min=_ROUNDING))


@dataclass(frozen=True)
class AudioScores:
    """Means over held-out clips.

    Args:
        psnr: PSNR in dB, of peak 1 (see :func:`waveform_psnr`), of each, then averaged.
        silence_psnr: what silence in their place scores.
        clips: how many.
    """

    psnr: float
    silence_psnr: float
    clips: int

    def summary(self) -> str:
        """One line for the user."""
        return (
            f"held-out clips: PSNR (peak 1) {self.psnr:.2f} dB ({self.clips}); "
            f"silence: {self.silence_psnr:.2f} dB"
        )

    def values(self) -> dict[str, float]:
        """Numbers by name, for the log."""
        return {"psnr": self.psnr, "silence_psnr": self.silence_psnr}


def audio_sums(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """PSNR, silence's PSNR and number of clips, summed over a batch: ``(3,)``, float64."""
    each = [
        waveform_psnr(values, targets),
        waveform_psnr(torch.zeros_like(targets), targets),
        targets.new_ones(len(targets)),
    ]
    return torch.stack(each).double().sum(1)


def audio_scores(sums: torch.Tensor) -> AudioScores:
    """The scores that belong to the sums of all batches and processes.

    Raises:
        ValueError: there was no clip.
    """
    psnr, silence, count = sums.tolist()
    if not count:
        raise ValueError("clips: expected at least one to evaluate with, got none")
    return AudioScores(psnr / count, silence / count, int(count))


def drawn(wave: torch.Tensor, peak: float, color: tuple[int, int, int] = _WAVE) -> np.ndarray:
    """A waveform over time, ``(72, 240, 3)`` uint8: a column spans the samples that fall in it.

    Args:
        wave: ``(samples,)``.
        peak: the magnitude that reaches the edge.
        color: of the curve.
    """
    values = wave.detach().float().cpu().numpy() / max(peak, 1e-9)
    rows = (_HEIGHT - 1) / 2 * (1 - values.clip(-1, 1))
    canvas = np.full((_HEIGHT, _WIDTH, 3), 255, dtype=np.uint8)
    canvas[round((_HEIGHT - 1) / 2)] = _AXIS
    edges = np.linspace(0, len(rows), _WIDTH + 1)
    for column in range(_WIDTH):
        # One sample more on the right joins a column to the next.
        part = rows[int(edges[column]) : int(edges[column + 1]) + 1]
        canvas[round(float(part.min())) : round(float(part.max())) + 1, column] = color
    return canvas


def waveform_comparison(
    waves: torch.Tensor, found: torch.Tensor, titles: tuple[str, str, str]
) -> Image.Image:
    """Clips, their reconstructions and the errors one below the other, each at the clip's scale.

    Args:
        waves: ``(N, samples)``.
        found: the same shape.
        titles: of the three rows.
    """
    rows: list[list[np.ndarray]] = [[], [], []]
    for wave, other in zip(waves, found.to(waves), strict=True):
        peak = float(wave.abs().max())
        rows[0].append(drawn(wave, peak))
        rows[1].append(drawn(other, peak))
        rows[2].append(drawn(other - wave, peak, _ERROR))
    return sheet(rows, titles)
