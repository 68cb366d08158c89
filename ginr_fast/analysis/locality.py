"""How local what a latent token says is: one token is zeroed, and what changes is looked at.

Figure 5 of LA-GINR (arXiv 2310.05624), with numbers beside the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ginr_fast.data.order import spread

_SILENT = 1e-6  # root mean square of a change of values about [0, 1] that is rounding


class Locality(NamedTuple):
    """How local changes are, each a mean over those that are more than rounding.

    With e(v) the squared change at pixel v, summed over channels:

    Args:
        area: (Σ e)² / (N Σ e²), the part of the N pixels over which the change is spread: k/N for
            one that is even over k pixels, and 1 for one that is even everywhere.
        concentration: the part of Σ e inside a square window around the centre of mass of e, moved
            into the picture where it would stick out.
        window: height and width of that window, in pixels.
        even: the concentration of a change that is even everywhere, window² / N.
        tokens: changes that were averaged over.
        silent: further ones, with a root mean square below 1e-6.
    """

    area: float
    concentration: float
    window: int
    even: float
    tokens: int
    silent: int


def evenly_chosen(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the numbers from 0 to ``count - 1``, evenly spread, in order.

    Raises:
        ValueError: ``wanted`` is not positive.
    """
    if wanted < 1:
        raise ValueError(f"count: expected a positive integer, got {wanted}")
    return spread(count, wanted)


def some_tokens(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` tokens, at random, always the same, in order.

    Tokens often lie on a lattice over the image; evenly spaced ones would be one column of it.
    """
    chosen = np.random.default_rng(0).choice(count, min(count, wanted), replace=False)
    return sorted(chosen.tolist())


def check_tokens(chosen: Sequence[int], count: int) -> None:
    """Refuse numbers that none of ``count`` tokens has.

    Raises:
        ValueError: names the first, or that there is none.
    """
    if not chosen:
        raise ValueError("tokens: expected at least one")
    for number in chosen:
        if not 0 <= number < count:
            raise ValueError(f"tokens: expected 0 to {count - 1}, got {number}")


@torch.no_grad()
def zeroed_differences(
    decode: Callable[[Tensor], Tensor], tokens: Tensor, chosen: Sequence[int], at_once: int = 8
) -> Tensor:
    """What zeroing one token at a time changes.

    Args:
        decode: from tokens ``(n, R, D)`` to values ``(n, ...)``; not clamped, or changes would be
            hidden.
        tokens: of one instance, ``(1, R, D)``.
        chosen: numbers of tokens, from 0.
        at_once: how many are decoded at a time.

    Returns:
        Values without the token minus values with all, ``(len(chosen), ...)``.

    Raises:
        ValueError: tokens of another shape, or a number that no token has.
    """
    if tokens.ndim != 3 or tokens.shape[0] != 1:
        raise ValueError(f"tokens: expected shape (1, R, D), got {tuple(tokens.shape)}")
    check_tokens(chosen, tokens.shape[1])
    whole = decode(tokens)
    found = []
    for first in range(0, len(chosen), at_once):
        part = torch.tensor(chosen[first : first + at_once], device=tokens.device)
        without = tokens.repeat(len(part), 1, 1)
        without[torch.arange(len(part), device=tokens.device), part] = 0
        found.append(decode(without) - whole)
    return torch.cat(found)


def locality(differences: Tensor, window: int | None = None) -> Locality:
    """How local changes of images are, see :class:`Locality`.

    Args:
        differences: of :func:`zeroed_differences`, ``(n, H, W, C)``.
        window: height and width of the window, in pixels; a quarter of the shorter side if None.

    Raises:
        ValueError: another shape, a window that does not fit, or no change anywhere.
    """
    if differences.ndim != 4:
        raise ValueError(f"differences: expected (n, H, W, C), got {tuple(differences.shape)}")
    energy = differences.double().square().sum(-1)
    height, width = energy.shape[1:]
    window = max(1, min(height, width) // 4) if window is None else window
    if not 1 <= window <= min(height, width):
        raise ValueError(f"window: expected 1 to {min(height, width)}, got {window}")
    total = energy.sum((1, 2))
    loud = (total / differences[0].numel()).sqrt() > _SILENT
    if not loud.any():
        raise ValueError("tokens: none of them changes anything")
    energy = energy[loud] / total[loud, None, None]
    pixels = height * width
    area = 1 / (pixels * energy.square().sum((1, 2)))
    inside = [_around_centre(one, window) for one in energy]
    return Locality(
        float(area.mean()),
        float(torch.stack(inside).mean()),
        window,
        window**2 / pixels,
        len(inside),
        int((~loud).sum()),
    )


def _around_centre(energy: Tensor, window: int) -> Tensor:
    """The part of ``(H, W)`` energy, which sums to 1, in a window around its centre of mass."""
    place = []
    for axis, length in enumerate(energy.shape):
        centre = float(energy.sum(1 - axis) @ torch.arange(length).to(energy))
        first = round(centre - (window - 1) / 2)
        place.append(min(max(first, 0), length - window))
    top, left = place
    return energy[top : top + window, left : left + window].sum()
