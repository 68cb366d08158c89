"""Coordinates: regular grids that stay separable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from numbers import Real

import torch


@dataclass(frozen=True, eq=False)
class CoordinateGrid:
    """A regular grid of coordinates, kept as its axes.

    Point ``(i_1, …, i_d)`` has the coordinate ``(axes[0][i_1], …, axes[d-1][i_d])``. Operators
    use the separability: a linear map of per-axis features is a sum of per-axis tables.

    Args:
        axes: one 1-D float32 or float64 tensor an axis; same dtype and device.
    """

    axes: tuple[torch.Tensor, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.axes, tuple) or not self.axes:
            raise TypeError("axes: expected a non-empty tuple of 1-D tensors")
        for index, axis in enumerate(self.axes):
            if not isinstance(axis, torch.Tensor) or axis.ndim != 1:
                raise TypeError(f"axes[{index}]: expected a 1-D tensor")
            if axis.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"axes[{index}]: expected float32 or float64, got {axis.dtype}")
            if axis.dtype != self.axes[0].dtype or axis.device != self.axes[0].device:
                raise ValueError(f"axes[{index}]: expected the dtype and device of axes[0]")

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of points along each axis."""
        return tuple(axis.shape[0] for axis in self.axes)

    @property
    def numel(self) -> int:
        """The number of points."""
        return prod(self.shape)

    @property
    def coord_dim(self) -> int:
        """The number of coordinates of a point, d."""
        return len(self.axes)

    @property
    def dtype(self) -> torch.dtype:
        return self.axes[0].dtype

    @property
    def device(self) -> torch.device:
        return self.axes[0].device

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> CoordinateGrid:
        """The same grid on another device or in another precision."""
        return CoordinateGrid(tuple(axis.to(device=device, dtype=dtype) for axis in self.axes))

    def tensor(self) -> torch.Tensor:
        """The grid as a plain tensor, ``(*shape, d)``."""
        return torch.stack(torch.meshgrid(*self.axes, indexing="ij"), dim=-1)


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(number, Real) for number in value)
    )


def grid(
    *shape: int,
    bounds: tuple[float, float] | Sequence[tuple[float, float]] = (-1.0, 1.0),
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> CoordinateGrid:
    """A grid of pixel centres: n points of an axis sit at ``low + (i + ½)·(high − low)/n``.

    Args:
        shape: points along each axis, e.g. ``height, width``.
        bounds: ``(low, high)`` of every axis, or one pair an axis.
        device: where the axes live.
        dtype: float32 or float64.

    Raises:
        TypeError: dtype is neither float32 nor float64.
        ValueError: no axis, a negative size, or a number of bounds that is not the number of axes.

    Example:
        >>> import ginr_fast
        >>> ginr_fast.grid(4, 6).tensor().shape
        torch.Size([4, 6, 2])
        >>> ginr_fast.grid(4).axes[0]
        tensor([-0.7500, -0.2500,  0.2500,  0.7500])
    """
    if not shape:
        raise ValueError("shape: expected at least one axis")
    if any(not isinstance(size, int) or size < 0 for size in shape):
        raise ValueError(f"shape: expected non-negative integers, got {shape}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
    pairs: list[tuple[float, float]]
    if _is_pair(bounds):
        pairs = [bounds] * len(shape)  # type: ignore[list-item]
    elif isinstance(bounds, (tuple, list)) and all(map(_is_pair, bounds)):
        pairs = list(bounds)
    else:
        raise ValueError(f"bounds: expected (low, high) or a sequence of such, got {bounds!r}")
    if len(pairs) != len(shape):
        raise ValueError(f"bounds: expected 1 or {len(shape)} pairs, got {len(pairs)}")
    axes = []
    for size, (low, high) in zip(shape, pairs, strict=True):
        centres = (torch.arange(size, dtype=torch.float64) + 0.5) / max(size, 1)
        axes.append((low + (high - low) * centres).to(device=device, dtype=dtype))
    return CoordinateGrid(tuple(axes))


def recognise_grid(points: torch.Tensor) -> CoordinateGrid | None:
    """The grid that points ``(n_1, …, n_d, d)`` form to the last bit, or None.

    Looks at every value, so it is for CPU tensors: on a GPU it would wait for the device.
    """
    coord_dim = points.shape[-1]
    if points.ndim != coord_dim + 1 or points.numel() == 0:
        return None
    axes = []
    for index in range(coord_dim):
        place: list[int | slice] = [0] * coord_dim
        place[index] = slice(None)
        axis = points[..., index][tuple(place)]
        column = axis.view([-1 if other == index else 1 for other in range(coord_dim)])
        if not torch.equal(points[..., index], column.expand(points.shape[:-1])):
            return None
        axes.append(axis.contiguous())
    return CoordinateGrid(tuple(axes))
