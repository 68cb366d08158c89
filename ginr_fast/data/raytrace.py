"""A small ray tracer: convex solids under one light, everything from a camera computed at once.

A solid is the convex hull of points, kept as half-spaces ``n·x ≤ c``. A ray meets it between the
last half-space it enters and the first it leaves, so that a view is a few matrix products. Shading
is Lambert's with ambient light: the colour of a point does not depend on where it is seen from,
as in the radiance fields that are to be fitted to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ginr_fast.rays import camera_rays

_PARALLEL = 1e-9
_COPLANAR = 4  # decimals to which normals and offsets of one face agree

Paint = Callable[["Hits"], torch.Tensor]


@dataclass(frozen=True)
class Hits:
    """Where rays meet a solid.

    Args:
        points: ``(N, 3)``.
        normals: ``(N, 3)``, of the faces met, outwards, unit length.
        inset: ``(N,)``, distance from the plane of the nearest other face: how far from an edge.
    """

    points: torch.Tensor
    normals: torch.Tensor
    inset: torch.Tensor


@dataclass(frozen=True)
class Solid:
    """A convex solid and its paint.

    Args:
        normals: ``(P, 3)``, unit normals of its faces, outwards.
        offsets: ``(P,)``; the solid is ``normals @ x <= offsets``.
        center: ``(3,)``, of a sphere around it.
        radius: of that sphere.
        paint: gives the colours ``(N, 3)`` in [0, 1] of points on it.
        rounding: width over which shading blends neighbouring faces, as if edges were round.
    """

    normals: torch.Tensor
    offsets: torch.Tensor
    center: torch.Tensor
    radius: float
    paint: Paint
    rounding: float


@dataclass(frozen=True)
class Light:
    """One light, infinitely far away, and light from everywhere.

    Args:
        direction: towards the light; any length.
        ambient: part of the light that comes from everywhere, from 0 to 1.
    """

    direction: tuple[float, float, float] = (0.35, -0.5, 0.8)
    ambient: float = 0.5


def hull(points: np.ndarray, paint: Paint, rounding: float = 0.0) -> Solid:
    """The convex hull of ``(V, 3)`` points as a solid.

    Args:
        points: at least four that do not lie in a plane.
        paint: see :class:`Solid`.
        rounding: see :class:`Solid`.

    Raises:
        ValueError: fewer points, or all in a plane.
    """
    from scipy.spatial import ConvexHull, QhullError

    try:
        equations = ConvexHull(points).equations  # one a triangle
    except (QhullError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"points: expected points around a volume ({reason})") from None
    faces = np.unique(equations.round(_COPLANAR) + 0.0, axis=0)
    length = np.linalg.norm(faces[:, :3], axis=1, keepdims=True)
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    return Solid(
        torch.from_numpy((faces[:, :3] / length).astype(np.float32)),
        torch.from_numpy((-faces[:, 3] / length[:, 0]).astype(np.float32)),
        torch.from_numpy(center.astype(np.float32)),
        float(np.linalg.norm(points - center, axis=1).max()) * 1.001,
        paint,
        rounding,
    )


def trace(
    solids: Sequence[Solid],
    origin: torch.Tensor,
    directions: torch.Tensor,
    light: Light,
    background: float = 1.0,
) -> torch.Tensor:
    """What is seen along rays from one point outside all solids.

    Args:
        solids: in any order; they may overlap.
        origin: ``(3,)``, float32.
        directions: ``(N, 3)``, float32, not zero.
        light: see :class:`Light`.
        background: the grey level in [0, 1] seen where a ray meets nothing.

    Returns:
        ``(N, 3)``, float32 in [0, 1].
    """
    colors, hit = _traced(solids, origin, directions, light)
    return torch.where(hit[:, None], colors, background)


def _traced(
    solids: Sequence[Solid], origin: torch.Tensor, directions: torch.Tensor, light: Light
) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours ``(N, 3)``, black where a ray meets nothing, and whether it meets something."""
    count = directions.shape[0]
    nearest = torch.full((count,), torch.inf)
    owner = torch.full((count,), -1, dtype=torch.int64)
    squared = (directions * directions).sum(-1)
    for index, solid in enumerate(solids):
        rays = _near_sphere(origin, directions, squared, solid)
        enter = _enter(solid, origin, directions[rays])
        closer = enter < nearest[rays]
        nearest[rays[closer]] = enter[closer]
        owner[rays[closer]] = index
    colors = torch.zeros(count, 3)
    toward = torch.nn.functional.normalize(torch.tensor(light.direction), dim=0)
    for index, solid in enumerate(solids):
        rays = (owner == index).nonzero()[:, 0]
        if len(rays):
            points = origin + nearest[rays, None] * directions[rays]
            colors[rays] = _shaded(solid, points, toward, light.ambient)
    return colors, owner >= 0


def render(
    solids: Sequence[Solid],
    pose: torch.Tensor,
    size: int,
    focal: float,
    light: Light,
    supersample: int = 2,
) -> np.ndarray:
    """A square view of solids on white.

    Args:
        solids: see :func:`trace`.
        pose: ``(4, 4)``, camera-to-world with OpenGL axes, float32.
        size: height and width, in pixels.
        focal: in pixels.
        light: see :class:`Light`.
        supersample: s × s rays a pixel are averaged.

    Returns:
        ``(size, size, 3)``, uint8.
    """
    origin, directions = _fine_rays(pose, size, focal, supersample)
    colors = trace(solids, origin, directions, light)
    return _bytes(_averaged(colors, size, supersample))


def render_rgba(
    solids: Sequence[Solid],
    pose: torch.Tensor,
    size: int,
    focal: float,
    light: Light,
    supersample: int = 2,
) -> np.ndarray:
    """A square view of solids on nothing; over white it is what :func:`render` gives.

    Args:
        solids: see :func:`trace`.
        pose: ``(4, 4)``, camera-to-world with OpenGL axes, float32.
        size: height and width, in pixels.
        focal: in pixels.
        light: see :class:`Light`.
        supersample: s × s rays a pixel are averaged.

    Returns:
        ``(size, size, 4)``, uint8: the mean colour of what a pixel sees of the solids, black where
        it sees nothing of them, and the part of it that they cover.
    """
    origin, directions = _fine_rays(pose, size, focal, supersample)
    colors, hit = _traced(solids, origin, directions, light)
    cells = _averaged(torch.cat([colors, hit[:, None].float()], dim=1), size, supersample)
    coverage = cells[..., 3:]
    seen = cells[..., :3] / coverage.clamp(min=1 / (2 * supersample**2))
    return _bytes(torch.cat([seen, coverage], dim=-1))


def _fine_rays(
    pose: torch.Tensor, size: int, focal: float, supersample: int
) -> tuple[torch.Tensor, torch.Tensor]:
    fine = size * supersample
    origins, directions = camera_rays(pose, fine, fine, focal * supersample)
    return origins[0, 0].clone(), directions.reshape(-1, 3)


def _averaged(values: torch.Tensor, size: int, supersample: int) -> torch.Tensor:
    """The means over the rays of each pixel, ``(size, size, channels)``."""
    return values.view(size, supersample, size, supersample, -1).mean(dim=(1, 3))


def _bytes(values: torch.Tensor) -> np.ndarray:
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _near_sphere(
    origin: torch.Tensor, directions: torch.Tensor, squared: torch.Tensor, solid: Solid
) -> torch.Tensor:
    """Indices of the rays that meet the sphere around a solid."""
    to_center = solid.center - origin
    along = directions @ to_center
    missed_by = to_center @ to_center - along * along / squared
    return ((missed_by <= solid.radius**2) & (along > 0)).nonzero()[:, 0]


def _enter(solid: Solid, origin: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Where each ray enters a solid; infinity where it misses."""
    steepness = solid.normals @ directions.T
    steepness = torch.where(steepness.abs() < _PARALLEL, _PARALLEL, steepness)
    crossing = (solid.offsets - solid.normals @ origin)[:, None] / steepness
    inwards = steepness < 0
    enter = torch.where(inwards, crossing, -torch.inf).amax(0)
    leave = torch.where(inwards, torch.inf, crossing).amin(0)
    return torch.where((enter < leave) & (enter > 0), enter, torch.inf)


def _shaded(
    solid: Solid, points: torch.Tensor, toward: torch.Tensor, ambient: float
) -> torch.Tensor:
    depth = points @ solid.normals.T - solid.offsets  # (N, P), zero on the face met
    top, faces = depth.topk(2, dim=1)
    colors = solid.paint(Hits(points, solid.normals[faces[:, 0]], top[:, 0] - top[:, 1]))
    normals = solid.normals[faces[:, 0]]
    if solid.rounding > 0:
        weights = torch.softmax((depth - top[:, :1]) / solid.rounding, dim=1)
        normals = torch.nn.functional.normalize(weights @ solid.normals, dim=1)
    diffuse = (normals @ toward).clamp(min=0)
    return colors * (ambient + (1 - ambient) * diffuse)[:, None]
