"""Places spread over an image, where patches and tokens that start as a function of place lie."""

from __future__ import annotations

import math

import torch

from ginr_fast.ops.checks import check_count


def lattice_places(count: int) -> torch.Tensor:
    """``count`` places spread over the square [-1, 1]², ``(count, 2)`` float32, row and column.

    Args:
        count: on a square lattice if it is a square number, else evenly along the rows of the next
            larger one.

    Raises:
        ValueError: not even one.
    """
    check_count("count", count)
    rows = math.isqrt(count - 1) + 1
    nodes = (torch.arange(count) * (rows * rows) / count).floor()
    places = torch.stack([nodes // rows, nodes % rows], -1)
    return (places + 0.5) / rows * 2 - 1


def lattice_embedding(count: int, dim: int, side: float) -> torch.Tensor:
    """Sines and cosines of ``count`` places spread over a square, ``(count, dim)`` float32.

    Args:
        count: places, see :func:`lattice_places`.
        dim: width of the embedding.
        side: places along a side that the highest frequency tells apart.
    """
    places = lattice_places(count)
    frequencies = math.pi / 2 * torch.logspace(0, math.log2(max(side / 2, 1)), -(-dim // 4), base=2)
    phases = (places[:, :, None] * frequencies).flatten(1)
    return torch.cat([phases.sin(), phases.cos()], -1)[:, :dim]
