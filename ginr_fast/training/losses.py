"""What training minimises."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def reconstruction_loss(values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over a batch of decoded coordinates, in float32.

    Args:
        values: decoded, ``(B, ..., channels)``, any floating dtype.
        target: the same shape, in [0, 1].

    Returns:
        A scalar.
    """
    return F.mse_loss(values.float(), target.float())


def psnr_of(mean_squared_error: float) -> float:
    """The PSNR in dB that belongs to a mean squared error of values in [0, 1]."""
    if math.isnan(mean_squared_error):
        return math.nan
    return -10 * math.log10(mean_squared_error) if mean_squared_error > 0 else math.inf
