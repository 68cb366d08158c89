"""Which cells of space a radiance field leaves empty, so that rays can skip them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops.checks import VALUE_DTYPES, check_tensor
from ginr_fast.ops.field_mlp.op import field_mlp
from ginr_fast.ops.volume_render import reference
from ginr_fast.ops.volume_render.convention import RenderConvention, convention_of

_FLOAT32_MAX = 3.4e38
# Points evaluated at a time.
_POINTS = 1 << 20


@dataclass(frozen=True)
class OccupancyGrid:
    """For each of B fields, the cells of a box that may hold something; made by :meth:`build`.

    Args:
        bits: ``(B, words)`` int32; cell (x, y, z) is bit ``(x·R + y)·R + z``.
        resolution: R, cells along each axis.
        low: the box's lower corner.
        high: its upper corner.
        stop: a ray ends where less than this share of the light passes.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range, by name.
    """

    bits: Tensor
    resolution: int
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    stop: float

    def __post_init__(self) -> None:
        _check_count("resolution", self.resolution, 512)
        _check_number("stop", self.stop)
        low, high = _corners(self.low, self.high)
        words = -(-(self.resolution**3) // 32)
        bits = check_tensor("bits", self.bits, ("B", words), dtypes=[torch.int32]).contiguous()
        for name, value in (("bits", bits), ("low", low), ("high", high)):
            object.__setattr__(self, name, value)

    @property
    def batch(self) -> int:
        """B, the number of fields."""
        return self.bits.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the bits are."""
        return self.bits.device

    @property
    def occupied(self) -> Tensor:
        """The share of occupied cells, ``(B,)``."""
        shifts = torch.arange(32, device=self.device, dtype=torch.int32)
        ones = ((self.bits.unsqueeze(-1) >> shifts) & 1).sum((1, 2))
        return ones / self.resolution**3

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        weights: Tensor,
        spec: FieldSpec,
        *,
        low: float | Sequence[float] = -1.0,
        high: float | Sequence[float] = 1.0,
        resolution: int = 128,
        threshold: float = 0.01,
        stop: float = 1e-3,
        points: int = 1,
        convention: str | RenderConvention = "mnif",
    ) -> OccupancyGrid:
        """Evaluate the fields and mark where their density reaches ``threshold``.

        A cell counts as occupied if the density reaches the threshold at one of ``points``³ places
        in it or in a cell beside it. Outside the box nothing is skipped. Skipping changes a ray's
        colour by at most ``threshold`` times the length skipped, ending it early by at most
        ``stop``, as far as the places tell.

        Args:
            weights: packed, ``(B, P)``.
            spec: what the fields are.
            low: lower corner of the box, one number or three.
            high: upper corner.
            resolution: R, 1 to 512.
            threshold: density, per unit of length as the convention counts it.
            stop: see above; 0 never ends a ray.
            points: places along each axis of a cell.
            convention: how the density comes from the field.

        Raises:
            TypeError, ValueError: an argument of the wrong kind or out of range, by name.
        """
        rule = convention_of(convention)
        if not isinstance(spec, FieldSpec):
            raise TypeError(f"spec: expected a FieldSpec, got {type(spec).__name__}")
        if spec.coord_dim != 3 or spec.view_dim:
            raise ValueError("spec: expected 3 coordinates and no view branch")
        check_tensor("weights", weights, ("B", spec.parameter_count), dtypes=VALUE_DTYPES)
        _check_count("resolution", resolution, 512)
        _check_count("points", points, 8)
        _check_number("threshold", threshold)
        _check_number("stop", stop)
        corners = _corners(low, high)
        densest = _densest(weights, spec, corners, resolution, points, rule)
        # NaN counts as occupied: it must show.
        occupied = ~(densest < threshold)
        occupied = F.max_pool3d(occupied.float().unsqueeze(1), 3, 1, 1).squeeze(1) > 0
        return cls(_packed(occupied.flatten(1)), resolution, *corners, float(stop))


def _check_count(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if not 1 <= value <= most:
        raise ValueError(f"{name}: expected an integer from 1 to {most}, got {value!r}")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a number from 0 up, got {value!r}")


Corner = tuple[float, float, float]


def _corner(name: str, value: object) -> Corner:
    numbers = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(numbers, (list, tuple)) or not all(
        isinstance(number, (int, float)) for number in numbers
    ):
        raise TypeError(f"{name}: expected a number or three, got {value!r}")
    found = [float(number) for number in numbers if abs(number) < _FLOAT32_MAX]
    if len(numbers) != 3 or len(found) != 3:
        raise ValueError(f"{name}: expected a finite number or three, got {value!r}")
    x, y, z = found
    return x, y, z


def _corners(low: object, high: object) -> tuple[Corner, Corner]:
    corners = _corner("low", low), _corner("high", high)
    if not all(bottom < top for bottom, top in zip(*corners, strict=True)):
        raise ValueError(f"high: expected above low {corners[0]}, got {corners[1]}")
    return corners


def _densest(
    weights: Tensor,
    spec: FieldSpec,
    corners: tuple[Sequence[float], Sequence[float]],
    resolution: int,
    points: int,
    convention: RenderConvention,
) -> Tensor:
    """The greatest density seen in each cell, ``(B, R, R, R)``."""
    fine = resolution * points
    dtype = torch.float64 if weights.dtype == torch.float64 else torch.float32
    axes = [
        bottom
        + (top - bottom) * (torch.arange(fine, dtype=dtype, device=weights.device) + 0.5) / fine
        for bottom, top in zip(*corners, strict=True)
    ]
    slabs = []
    step = max(1, _POINTS // (fine * fine * max(1, weights.shape[0])) // points) * points
    for first in range(0, fine, step):
        part = torch.meshgrid(axes[0][first : first + step], *axes[1:], indexing="ij")
        values = field_mlp(torch.stack(part, dim=-1), weights, spec)[..., -1]
        sigma = reference.densities(values.to(dtype), convention)
        slabs.append(F.max_pool3d(sigma.unsqueeze(1), points).squeeze(1))
    return torch.cat(slabs, dim=1)


def _packed(bits: Tensor) -> Tensor:
    """Booleans ``(B, n)`` as 32-bit words."""
    words = -(-bits.shape[1] // 32)
    padded = F.pad(bits, (0, 32 * words - bits.shape[1])).view(bits.shape[0], words, 32)
    values = (padded.long() << torch.arange(32, device=bits.device)).sum(-1)
    return torch.where(values >= 1 << 31, values - (1 << 32), values).to(torch.int32)
