"""Cameras: poses around an object, and the rays through the pixels of a view.

A pose is a camera-to-world matrix ``(4, 4)`` with OpenGL axes: the camera looks along its −z axis,
+x is right and +y up in the picture. The world's up is +z, as in SRN's scenes. The pixel in a row
and column covers ``[column, column + 1] × [row, row + 1]``, so that its centre is at +½.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch

from ginr_fast.ops.checks import check_count

Focal = float | tuple[float, float]

_FLOATS = (torch.float32, torch.float64)


def camera_rays(
    poses: torch.Tensor,
    height: int,
    width: int,
    focal: Focal,
    center: tuple[float, float] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rays through the pixel centres of pinhole cameras.

    The ray of the pixel in row r and column c points, in camera coordinates, along
    ``((c + ½ − cx)/fx, −(r + ½ − cy)/fy, −1)``. It is not normalised: a point at parameter t lies
    at depth t before the camera, as the published renderers (NeRF, Functa, mNIF) have it.

    Args:
        poses: ``(..., 4, 4)``, camera-to-world, float32 or float64.
        height: rows of a view, in pixels.
        width: columns of a view, in pixels.
        focal: focal length in pixels, or ``(fx, fy)``.
        center: principal point ``(cx, cy)`` in pixels; the middle of the view if None.

    Returns:
        Origins and directions, ``(..., height, width, 3)`` each, in world coordinates. The origins
        are a view of one point a pose.

    Raises:
        TypeError: poses is no tensor or of another dtype; focal or center are no numbers.
        ValueError: wrong shape of poses, a size or a focal length that is not positive.

    Example:
        >>> from ginr_fast.rays import camera_rays, orbit_poses
        >>> poses = orbit_poses(4, radius=1.3, elevation=20)
        >>> origins, directions = camera_rays(poses, 32, 32, focal=32.8)
        >>> directions.shape
        torch.Size([4, 32, 32, 3])
    """
    for name, size in (("height", height), ("width", width)):
        check_count(name, size)
    poses = _check_poses(poses)
    rows, columns = torch.meshgrid(
        torch.arange(height, device=poses.device),
        torch.arange(width, device=poses.device),
        indexing="ij",
    )
    middle = (width / 2, height / 2) if center is None else center
    origins, directions = pixel_rays(poses, rows.flatten(), columns.flatten(), focal, middle)
    shape = (*poses.shape[:-2], height, width, 3)
    return origins.unflatten(-2, (height, width)), directions.reshape(shape)


def pixel_rays(
    poses: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    focal: Focal,
    center: tuple[float, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rays through chosen pixels: :func:`camera_rays` without the rays nobody asked for.

    Args:
        poses: ``(..., 4, 4)``, camera-to-world, float32 or float64.
        rows: ``(..., N)`` or ``(N,)``, rows of the pixels; fractions are allowed.
        columns: their columns, of the same shape.
        focal: focal length in pixels, or ``(fx, fy)``.
        center: principal point ``(cx, cy)`` in pixels.

    Returns:
        Origins and directions, ``(..., N, 3)`` each.

    Raises:
        TypeError: an argument that is no tensor, or no number.
        ValueError: shapes that do not fit, a focal length that is not positive.
    """
    poses = _check_poses(poses)
    fx, fy = _pair("focal", focal)
    cx, cy = _pair("center", center)
    if not (fx > 0 and fy > 0 and math.isfinite(fx) and math.isfinite(fy)):
        raise ValueError(f"focal: expected positive numbers of pixels, got {focal!r}")
    for name, index in (("rows", rows), ("columns", columns)):
        if not isinstance(index, torch.Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(index).__name__}")
        if index.ndim < 1 or index.shape[:-1] not in ((), poses.shape[:-2]):
            batch = tuple(poses.shape[:-2])
            raise ValueError(
                f"{name}: expected shape (N,) or {(*batch, 'N')}, got {tuple(index.shape)}"
            )
    if rows.shape != columns.shape:
        raise ValueError(
            f"columns: expected the shape of rows {tuple(rows.shape)}, got {tuple(columns.shape)}"
        )
    x = (columns.to(poses.dtype) + (0.5 - cx)) / fx
    y = ((cy - 0.5) - rows.to(poses.dtype)) / fy
    # No matrix product: autocast would round it, and its sums may depend on the number of rays.
    right, up, back = poses[..., None, :3, :3].unbind(-1)
    directions = x.unsqueeze(-1) * right + y.unsqueeze(-1) * up - back
    return poses[..., None, :3, 3].expand_as(directions), directions


def scale_focal(focal: Focal, size: tuple[int, int], new_size: tuple[int, int]) -> Focal:
    """A camera's focal length in the pixels of another resolution of the same view.

    Args:
        focal: focal length in pixels, or ``(fx, fy)``.
        size: ``(height, width)`` that it belongs to.
        new_size: ``(height, width)`` wanted.

    Returns:
        A number if ``focal`` is one and the aspect stays, else ``(fx, fy)``.

    Raises:
        ValueError: a size that is not positive.
    """
    if min(*size, *new_size) < 1:
        raise ValueError(f"size, new_size: expected positive integers, got {size}, {new_size}")
    fx, fy = _pair("focal", focal)
    fx, fy = fx * new_size[1] / size[1], fy * new_size[0] / size[0]
    if isinstance(focal, Real) and new_size[0] * size[1] == new_size[1] * size[0]:
        return fy
    return fx, fy


def look_at(
    eye: torch.Tensor | Sequence[float],
    target: torch.Tensor | Sequence[float] = (0.0, 0.0, 0.0),
    up: torch.Tensor | Sequence[float] = (0.0, 0.0, 1.0),
) -> torch.Tensor:
    """The pose of a camera at ``eye`` that looks at ``target`` with ``up`` upwards in the picture.

    Args:
        eye: ``(..., 3)``.
        target: ``(..., 3)``; not where the eye is.
        up: ``(..., 3)``. A camera that looks straight along it is turned so that the world's +y (+x
            if that is ``up``) is upwards.

    Returns:
        ``(..., 4, 4)``, camera-to-world, OpenGL axes; float32 unless an argument is float64.

    Raises:
        ValueError: a last dimension that is not 3.
    """
    given = {"eye": eye, "target": target, "up": up}
    tensors = {name: torch.as_tensor(value) for name, value in given.items()}
    for name, value in tensors.items():
        if value.ndim < 1 or value.shape[-1] != 3:
            raise ValueError(f"{name}: expected shape (..., 3), got {tuple(value.shape)}")
    double = any(
        isinstance(value, torch.Tensor) and value.dtype == torch.float64 for value in given.values()
    )
    dtype = torch.float64 if double else torch.float32
    device = tensors["eye"].device
    points = torch.broadcast_tensors(*(value.to(device, dtype) for value in tensors.values()))
    backward = _unit(points[0] - points[1])
    upward = _unit(points[2])
    y, x = torch.eye(3, dtype=dtype, device=device)[[1, 0]]
    other = torch.where((upward @ y).abs()[..., None] > 0.9, x, y)
    along = (upward * backward).sum(-1, keepdim=True).abs() > 1 - 1e-6
    right = _unit(torch.linalg.cross(torch.where(along, other, upward), backward))
    columns = [right, torch.linalg.cross(backward, right), backward, points[0]]
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=dtype, device=device)
    top = torch.stack(columns, dim=-1)
    return torch.cat([top, last.expand(*top.shape[:-2], 1, 4)], dim=-2)


def _sphere_positions(
    azimuth: torch.Tensor, elevation: torch.Tensor, radius: float
) -> torch.Tensor:
    """Points on a sphere about the origin, ``(..., 3)``.

    Args:
        azimuth: angles about +z from +x, in radians.
        elevation: angles above the xy plane, in radians.
        radius: of the sphere.
    """
    flat = torch.cos(elevation)
    point = [flat * torch.cos(azimuth), flat * torch.sin(azimuth), torch.sin(elevation)]
    return radius * torch.stack(point, dim=-1)


def orbit_poses(
    count: int,
    radius: float,
    elevation: float = 20.0,
    *,
    start: float = 0.0,
    target: Sequence[float] = (0.0, 0.0, 0.0),
) -> torch.Tensor:
    """Poses on a circle around an object, evenly spaced; frame ``count`` would be frame 0 again.

    Args:
        count: the number of poses.
        radius: distance to the target, positive.
        elevation: degrees above the xy plane, from −90 to 90.
        start: azimuth of the first pose, degrees from +x towards +y.
        target: the point looked at.

    Returns:
        ``(count, 4, 4)``, float32.

    Raises:
        ValueError: a count or radius that is not positive, an elevation out of range.
    """
    _check_cameras(count, radius)
    if not -90 <= elevation <= 90:
        raise ValueError(f"elevation: expected degrees from -90 to 90, got {elevation}")
    turn = torch.arange(count, dtype=torch.float64) / count
    azimuth = math.radians(start) + 2 * math.pi * turn
    height = torch.full_like(azimuth, math.radians(elevation))
    middle = torch.tensor(list(target), dtype=torch.float64)
    return look_at(middle + _sphere_positions(azimuth, height, radius), middle).float()


def spiral_poses(count: int, radius: float, turns: float | None = None) -> torch.Tensor:
    """Poses on a spiral from the horizon to nearly the zenith, looking at the origin.

    The views that SRN's test split has of every car lie on such a spiral over the upper hemisphere
    (251 of them). Here both arms and steps are evenly spaced: each stands for the same area.

    Args:
        count: the number of poses.
        radius: distance to the origin, positive.
        turns: how often the spiral goes around; √(π·count/8) if None, which leaves poses about as
            far from those of the next turn as from their neighbours.

    Returns:
        ``(count, 4, 4)``, float32.

    Raises:
        ValueError: a count or radius that is not positive.
    """
    _check_cameras(count, radius)
    turns = math.sqrt(math.pi * count / 8) if turns is None else turns
    along = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    elevation = torch.asin(along)
    positions = _sphere_positions(4 * turns * elevation, elevation, radius)
    return look_at(positions).float()


def random_poses(count: int, radius: float, seed: int | Sequence[int]) -> torch.Tensor:
    """Poses spread evenly at random over a sphere, looking at the origin.

    Args:
        count: the number of poses.
        radius: distance to the origin, positive.
        seed: the same seed gives the same poses.

    Returns:
        ``(count, 4, 4)``, float32.

    Raises:
        ValueError: a count or radius that is not positive.
    """
    import numpy as np

    _check_cameras(count, radius)
    draws = torch.from_numpy(np.random.default_rng(seed).random((2, count)))
    positions = _sphere_positions(2 * math.pi * draws[0], torch.asin(2 * draws[1] - 1), radius)
    return look_at(positions).float()


def plucker(origins: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Plücker coordinates of rays: the unit direction d and the moment o × d.

    They do not depend on which point of the ray is its origin, nor on the direction's length.

    Args:
        origins: ``(..., 3)``.
        directions: ``(..., 3)``, not zero.

    Returns:
        ``(..., 6)``.

    Raises:
        TypeError: not floating-point tensors of one dtype.
        ValueError: a last dimension that is not 3.
    """
    for name, value in (("origins", origins), ("directions", directions)):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {_described(value)}")
        if value.ndim < 1 or value.shape[-1] != 3:
            raise ValueError(f"{name}: expected shape (..., 3), got {tuple(value.shape)}")
    if origins.dtype != directions.dtype:
        raise TypeError(f"directions: expected {origins.dtype}, got {directions.dtype}")
    origins, directions = torch.broadcast_tensors(origins, directions)
    unit = _unit(directions)
    return torch.cat([unit, torch.linalg.cross(origins, unit)], dim=-1)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


def _described(value: object) -> str:
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def _check_poses(poses: torch.Tensor) -> torch.Tensor:
    if not isinstance(poses, torch.Tensor) or poses.dtype not in _FLOATS:
        raise TypeError(f"poses: expected a float32 or float64 tensor, got {_described(poses)}")
    if poses.ndim < 2 or poses.shape[-2:] != (4, 4):
        raise ValueError(f"poses: expected shape (..., 4, 4), got {tuple(poses.shape)}")
    return poses


def _check_cameras(count: int, radius: float) -> None:
    check_count("count", count)
    if not radius > 0:
        raise ValueError(f"radius: expected a positive number, got {radius}")


def _pair(name: str, value: object) -> tuple[float, float]:
    if isinstance(value, Real):
        return float(value), float(value)
    if (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(number, Real) for number in value)
    ):
        return float(value[0]), float(value[1])
    raise TypeError(f"{name}: expected a number or a pair of numbers, got {value!r}")
