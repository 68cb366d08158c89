"""Which latent tokens a coordinate looks at, as numbers and as pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ginr_fast.analysis.attention import token_attention
from ginr_fast.decoders.anr import AnrDecoder
from ginr_fast.decoders.locality_aware import LocalityAwareDecoder

_CELL = 10
_SIDE = 80  # of a head, at least
_GAP = 6
_SHOWN = 5
_NAMED = 0.005  # of the attention, at least
# From nothing to the strongest, evenly spaced; in between they are blended.
_COLORS = np.array([(13, 8, 48), (90, 20, 120), (190, 55, 90), (250, 140, 45), (252, 250, 190)])


class Looked(NamedTuple):
    """What one coordinate looks at.

    Args:
        heads: its attention, ``(heads, R)``; each row sums to 1, or to 0 if a threshold leaves
            nothing.
    """

    heads: Tensor

    @property
    def strongest(self) -> list[tuple[int, float]]:
        """Tokens and their attention, mean over the heads, the strongest first."""
        values, tokens = self.heads.mean(0).topk(min(_SHOWN, self.heads.shape[1]))
        return list(zip(tokens.tolist(), values.tolist(), strict=True))

    @property
    def effective(self) -> float:
        """exp(entropy), geometric mean over the heads: how many tokens are looked at."""
        return float(torch.special.entr(self.heads).sum(-1).mean().exp())


def attention_of(decoder: nn.Module) -> Callable[[Tensor, Tensor], Tensor] | None:
    """How a decoder's coordinates attend to tokens, for a viewer.

    Args:
        decoder: of tokens.

    Returns:
        Of coordinates ``(N, d)`` and tokens ``(1, R, token_dim)`` the attention ``(heads, N, R)``;
        None of a decoder that does not attend.
    """
    if isinstance(decoder, LocalityAwareDecoder | AnrDecoder):
        return lambda coords, tokens: token_attention(decoder, coords, tokens)[0]
    return None


def alike(attention: Tensor, looked: Looked) -> Tensor:
    """How much of their attention coordinates share with one.

    The sum over tokens of the smaller of both weights, mean over the heads: 1 where a coordinate
    looks at the same tokens to the same parts.

    Args:
        attention: ``(heads, N, R)``.
        looked: the one.

    Returns:
        ``(N,)``, in [0, 1].
    """
    return torch.minimum(attention, looked.heads[:, None]).sum(-1).mean(0)


def looked_at(
    attention: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, points: Tensor, point: Tensor
) -> tuple[Looked, Tensor]:
    """Attention of a point, and how much of it other points share.

    Args:
        attention: as :func:`attention_of` gives it.
        tokens: ``(1, R, token_dim)``.
        points: ``(H, W, d)``.
        point: ``(1, d)``.

    Returns:
        The point's attention, and what others share of it, ``(H, W)``.
    """
    looked = Looked(attention(point, tokens)[:, 0])
    shared = alike(attention(points.flatten(0, 1), tokens), looked)
    return looked, shared.view(points.shape[:2])


def heat(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as colours, dark to bright: ``(...)`` to ``(..., 3)`` uint8."""
    place = np.clip(values, 0, 1) * (len(_COLORS) - 1)
    low = np.minimum(place.astype(int), len(_COLORS) - 2)
    share = (place - low)[..., None]
    blended = (1 - share) * _COLORS[low] + share * _COLORS[low + 1]
    return np.rint(blended).astype(np.uint8)


def token_map(looked: Looked) -> np.ndarray:
    """The attention to all tokens: a square a head, with a cell a token, row by row from 0.

    Each head is shown relative to its own strongest token.

    Args:
        looked: what is shown.

    Returns:
        ``(H, W, 3)``, uint8: heads side by side, four in a row.
    """
    heads, tokens = looked.heads.shape
    side = math.ceil(math.sqrt(tokens))
    lines, cell = math.ceil(tokens / side), max(_CELL, _SIDE // side)
    blocks = []
    for weights in looked.heads.float().cpu().numpy():
        cells = np.zeros(lines * side)
        cells[:tokens] = weights / max(float(weights.max()), 1e-30)
        colors = heat(cells.reshape(lines, side))
        colors.reshape(-1, 3)[tokens:] = 255
        blocks.append(colors.repeat(cell, 0).repeat(cell, 1))
    across = min(4, heads)
    blocks += [np.full_like(blocks[0], 255)] * (-heads % across)
    gaps = ((0, _GAP), (0, _GAP), (0, 0))
    padded = [np.pad(block, gaps, constant_values=255) for block in blocks]
    rows = [np.concatenate(padded[i : i + across], 1) for i in range(0, len(padded), across)]
    return np.ascontiguousarray(np.concatenate(rows)[:-_GAP, :-_GAP])


def described(looked: Looked) -> str:
    """The strongest tokens in words."""
    named = [(token, value) for token, value in looked.strongest if value >= _NAMED]
    parts = ", ".join(f"{token} ({100 * value:.0f} %)" for token, value in named) or "none"
    total = looked.heads.shape[1]
    return f"Strongest tokens: {parts}. Looks at about {looked.effective:.1f} of {total}."
