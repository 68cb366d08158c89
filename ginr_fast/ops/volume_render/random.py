"""Random numbers that depend on (seed, ray, sample) alone, the same on every device.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), the seed as key,
(ray, sample // 4) as counter. The twin of csrc/volume_render/formula.h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


class RaySeed(NamedTuple):
    """A seed of the jitter along rays, with numbers of the rays.

    What moves sample k of ray n of instance b is the number ``u(seed, first_rays[b] + n, k)`` in
    [0, 1), a pure function of its arguments (Philox4x32-10, Salmon et al. 2011: word k mod 4 of key
    ``seed`` and counter ``(ray, ⌊k/4⌋)``). A call that renders part of a batch, some of its
    instances or some rays of each, gives what one call with all of it gives if its rays keep their
    numbers: ``b·N + n`` are those of a plain seed, N the rays of an instance.

    Args:
        seed: from 0 up.
        first_rays: ``(B,)``, int64, from 0 up: the number of each instance's first ray; on the CPU
            or on the device of the weights, where negative ones are not looked for.

    Example:
        >>> import torch, ginr_fast
        >>> spec = ginr_fast.FieldSpec(coord_dim=3, out_dim=4, hidden_dim=16, hidden_layers=1)
        >>> weights, ways = torch.randn(2, spec.parameter_count), torch.randn(2, 5, 3)
        >>> def color(ways, weights, seed):
        ...     settings = {"near": 0.5, "far": 2.0, "samples": 8, "seed": seed}
        ...     rays = torch.zeros_like(ways), ways
        ...     return ginr_fast.volume_render(*rays, weights, spec, **settings).color
        >>> last = ginr_fast.RaySeed(7, torch.tensor([1 * 5]))
        >>> torch.allclose(color(ways[1:], weights[1:], last), color(ways, weights, 7)[1:])
        True
    """

    seed: int
    first_rays: Tensor

    def of(self, instances: Tensor | slice) -> RaySeed:
        """The same for some of the instances."""
        return RaySeed(self.seed, self.first_rays[instances])


Seed = int | RaySeed
"""What jitter along rays is drawn from: a plain seed numbers the rays of a call through."""


def later(seed: Seed | None, steps: int) -> Seed | None:
    """The seed of a later step of the same instances; None of None."""
    if isinstance(seed, RaySeed):
        return seed._replace(seed=seed.seed + steps)
    return None if seed is None else seed + steps


def _high_low(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    product = multiplier * word  # wraps around in 64 bits; the bits are right
    return (product >> 32) & _WORD, product & _WORD


def uniform(seed: int, rays: Tensor, samples: int) -> Tensor:
    """Numbers in [0, 1) of 24 bits, ``(R, samples)`` float32, of R rays by their int64 numbers."""
    groups = (samples + 3) // 4
    ray = rays.unsqueeze(1).expand(-1, groups)
    c0, c1 = ray & _WORD, (ray >> 32) & _WORD
    c2 = torch.arange(groups, device=rays.device).expand_as(ray)
    c3 = torch.zeros_like(c2)
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        high0, low0 = _high_low(_MULTIPLIERS[0], c0)
        high1, low1 = _high_low(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    words = torch.stack((c0, c1, c2, c3), dim=-1).flatten(1)[:, :samples]
    return (words >> 8).float() * 2.0**-24
