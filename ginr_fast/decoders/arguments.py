"""Checks of what the token decoders are made with and called with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ginr_fast.coords import CoordinateGrid
from ginr_fast.ops.checks import autocasts, check_count, check_tensor


def check_sizes(sizes: Mapping[str, object]) -> None:
    """Raise a ValueError naming the first that is no positive integer."""
    for name, size in sizes.items():
        check_count(name, size)


def check_inputs(
    coords: object, tokens: object, parameter: Tensor, coord_dim: int, token_dim: int
) -> None:
    """Raise a ValueError or TypeError naming ``coords`` or ``tokens`` where they do not fit a
    decoder with this ``parameter``; the operator checks the rest."""
    tokens = check_tensor("tokens", tokens, ("B", "R", token_dim))
    if tokens.device != parameter.device:
        raise ValueError(f"tokens: expected device {parameter.device}, got {tokens.device}")
    if tokens.shape[1] < 1:
        raise ValueError("tokens: expected at least one token an instance, got 0")
    castable = tokens.is_floating_point() and autocasts(tokens)
    if tokens.dtype != parameter.dtype and not castable:
        raise TypeError(f"tokens: expected dtype {parameter.dtype}, got {tokens.dtype}")
    if isinstance(coords, (Tensor, CoordinateGrid)):
        dims = coords.coord_dim if isinstance(coords, CoordinateGrid) else coords.shape[-1:]
        if dims not in (coord_dim, (coord_dim,)):
            raise ValueError(
                f"coords: expected {coord_dim} coordinates a point, got "
                f"{dims if isinstance(dims, int) else tuple(coords.shape)}"
            )
