"""Random numbers that depend on (seed, ray, sample) alone, the same on every device.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), the seed as key,
(ray, sample // 4) as counter. The twin of csrc/volume_render/formula.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def _high_low(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    product = multiplier * word  # wraps around in 64 bits; the bits are right
    return (product >> 32) & _WORD, product & _WORD


def uniform(seed: int, rays: int, samples: int, device: torch.device) -> Tensor:
    """Numbers in [0, 1) of 24 bits, ``(rays, samples)`` float32."""
    groups = (samples + 3) // 4
    ray = torch.arange(rays, device=device).unsqueeze(1).expand(rays, groups)
    c0, c1 = ray & _WORD, ray >> 32
    c2 = torch.arange(groups, device=device).expand(rays, groups)
    c3 = torch.zeros_like(c2)
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        high0, low0 = _high_low(_MULTIPLIERS[0], c0)
        high1, low1 = _high_low(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    words = torch.stack((c0, c1, c2, c3), dim=-1).flatten(1)[:, :samples]
    return (words >> 8).float() * 2.0**-24
