"""Coordinates as the token decoders' operators take them: shared sets and grids recognised."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ginr_fast.coords import CoordinateGrid, recognise_grid
from ginr_fast.ops.checks import PHASE_DTYPES, check_tensor


def shared_if_repeated(coords: Tensor, grid_shape: Sequence[int]) -> Tensor:
    """Per-instance coordinates that are all the same become one set; looked at on a CPU only."""
    if grid_shape or coords.shape[0] <= 1:
        return coords
    repeated = coords.stride(0) == 0 or (
        coords.device.type == "cpu" and torch.equal(coords[:1].expand_as(coords), coords)
    )
    return coords[:1] if repeated else coords


def normalised(
    coords: Tensor | CoordinateGrid, batch: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, list[int], tuple[int, ...]]:
    """Coordinates as the op takes them, the grid shape (or none), and the output's shape."""
    if isinstance(coords, CoordinateGrid):
        if coords.device != device:
            raise ValueError(f"coords: expected device {device}, got {coords.device}")
        if dtype == torch.float64:
            coords = coords.to(dtype=dtype)
        shape = (batch, *coords.shape)
        if any(axis.requires_grad for axis in coords.axes):
            return coords.tensor().reshape(1, -1, coords.coord_dim), [], shape
        return torch.cat(coords.axes), list(coords.shape), shape
    if not isinstance(coords, Tensor):
        raise TypeError(f"coords: expected a tensor or CoordinateGrid, got {type(coords).__name__}")
    check_tensor("coords", coords, ("...",) * coords.ndim, dtypes=PHASE_DTYPES, device=device)
    if coords.ndim < 1 or coords.shape[-1] < 1:
        raise ValueError(f"coords: expected shape (..., c), got {tuple(coords.shape)}")
    if dtype == torch.float64:
        coords = coords.double()
    coord_dim = coords.shape[-1]
    if coords.ndim >= 3 and coords.shape[0] in (1, batch):
        shape = (batch, *coords.shape[1:-1])
        coords = coords.reshape(coords.shape[0], math.prod(coords.shape[1:-1]), coord_dim)
    else:
        shape = (batch, *coords.shape[:-1])
        coords = coords.reshape(1, math.prod(coords.shape[:-1]), coord_dim)
    if coords.requires_grad or torch.compiler.is_compiling():
        return coords, [], shape
    coords = shared_if_repeated(coords, ())
    if coords.device.type == "cpu" and coords.shape[0] == 1:
        found = recognise_grid(coords.view(*shape[1:], coord_dim))
        if found is not None:
            return torch.cat(found.axes), list(found.shape), shape
    return coords, [], shape


def written_out(coords: Tensor, grid_shape: Sequence[int]) -> Tensor:
    """The points of :func:`normalised` coordinates: the concatenated axes of a grid become
    ``(1, N, c)``, points stay as they are."""
    if not grid_shape:
        return coords
    axes = tuple(coords.flatten().split(list(grid_shape)))
    return CoordinateGrid(axes).tensor().reshape(1, -1, len(grid_shape))
