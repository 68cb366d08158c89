"""Fourier frequencies of the token decoders: how they are spaced, and that they stay precise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self


def log_spaced_frequencies(count: int, bandwidth: float, lowest: float = 1.0) -> Tensor:
    """ω_j = lowest·(σ/lowest)^{j/(n−1)}, j = 0..n−1: ``(n,)`` float64; as LA-GINR with lowest 1."""
    exponents = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
    return lowest * (bandwidth / lowest) ** exponents


def given_frequencies(argument: str, frequencies: object) -> Tensor:
    """Frequencies of a band as given by a user: ``(n,)`` float64."""
    band = torch.as_tensor(frequencies, dtype=torch.float64)
    if band.ndim != 1 or not len(band):
        raise ValueError(f"{argument}: expected 1-D, not empty, got shape {tuple(band.shape)}")
    return band


class PreciseFrequencies(nn.Module):
    """A module whose buffers named ``*frequencies`` are never below float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Half precision would destroy the phases: the frequencies move, but keep their dtype.
        kept = {n: b for n, b in self.named_buffers(recurse=False) if n.endswith("frequencies")}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = getattr(self, name)
            if after.dtype not in (torch.float32, torch.float64):
                setattr(self, name, before.to(after.device))
        return self
