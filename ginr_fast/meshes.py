"""Surfaces of fields: marching cubes, mesh files, and a shaded picture of a mesh."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ginr_fast.coords import grid
from ginr_fast.decoders.field import FieldDecoder
from ginr_fast.decoders.streaming import MAX_POINTS, stream
from ginr_fast.fields import FieldSpec
from ginr_fast.files import replace_atomically

SUFFIXES = (".ply", ".obj", ".stl")
VISIBLE = 1.25
"""Half the side of what a picture shows: all of the cube but, turned, its edges."""

_OVERSAMPLING = 2
_SPLATS = 1 << 21
_PAINT = np.array([0.62, 0.72, 0.85])


class EmptySurfaceError(ValueError):
    """A field that has no surface: all of it lies on one side of the level."""


class Mesh(NamedTuple):
    """A triangle mesh, its faces counter-clockwise seen from outside.

    Args:
        vertices: ``(V, 3)``, float32, in the field's coordinates.
        faces: ``(F, 3)``, int64, indices of vertices.
        normals: ``(V, 3)``, float32, of unit length, outwards.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray


def extract_mesh(
    weights: torch.Tensor,
    spec: FieldSpec,
    resolution: int = 128,
    level: float = 0.0,
    bounds: tuple[float, float] = (-1.0, 1.0),
    max_points: int = MAX_POINTS,
) -> Mesh:
    """The surface of one field by marching cubes (Lewiner's, scikit-image).

    The field is evaluated at the centres of resolution³ voxels, in slabs. Outside the box counts as
    outside the surface, so that the mesh is closed.

    Args:
        weights: packed, ``(1, P)``.
        spec: of a field of 3 coordinates and one value, which is above the level inside.
        resolution: voxels along an axis, at least 2.
        level: the value on the surface; 0 for mNIF, whose values are -1 outside and 1 inside.
        bounds: of the box, along each axis.
        max_points: voxels evaluated at a time; at least one slab.

    Raises:
        ValueError: another kind of field, more than one, or a resolution below 2.
        EmptySurfaceError: the field is below the level, or above it, everywhere.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.meshes import extract_mesh
        >>> spec = ginr_fast.FieldSpec(coord_dim=3, out_dim=1, hidden_dim=2, hidden_layers=0)
        >>> weights = torch.tensor([[1., 0, 0, -1, 0, 0, 0, 0, -1, -1, 0.5]])  # 0.5 - |x|
        >>> mesh = extract_mesh(weights, spec, resolution=16)
        >>> round(float(abs(mesh.vertices[:, 0]).max()), 3)
        0.5
    """
    if spec.coord_dim != 3 or spec.out_dim != 1 or spec.view_dim:
        raise ValueError(
            f"spec: expected 3 coordinates and 1 value, got {spec.coord_dim} and {spec.out_dim}"
        )
    if weights.ndim != 2 or weights.shape[0] != 1:
        raise ValueError(f"weights: expected shape (1, P), got {tuple(weights.shape)}")
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 2:
        raise ValueError(f"resolution: expected an integer of at least 2, got {resolution!r}")
    voxels = grid(*[resolution] * 3, bounds=bounds, device=weights.device)
    volume = np.zeros([resolution + 2] * 3, dtype=np.float32)
    inner = volume[1:-1, 1:-1, 1:-1]
    for slab, values in stream(FieldDecoder(spec), voxels, weights, max_points):
        inner[slab] = values[0, ..., 0].float().cpu().numpy()
    return _surface(volume, level, bounds)


def mesh_of(
    values: np.ndarray, level: float = 0.0, bounds: tuple[float, float] = (-1.0, 1.0)
) -> Mesh:
    """The surface of a grid of values by marching cubes, as :func:`extract_mesh` finds it.

    Args:
        values: at the centres of voxels, ``(D, H, W)``, above the level inside; as many along each
            axis.
        level: the value on the surface.
        bounds: of the box, along each axis.

    Raises:
        ValueError: another shape.
        EmptySurfaceError: all values are below the level, or above it.
    """
    if values.ndim != 3 or len(set(values.shape)) != 1:
        raise ValueError(f"values: expected shape (D, D, D), got {tuple(values.shape)}")
    return _surface(np.pad(values.astype(np.float32), 1), level, bounds)


def _surface(volume: np.ndarray, level: float, bounds: tuple[float, float]) -> Mesh:
    """The surface of values with one more voxel all around, which is overwritten."""
    from skimage.measure import marching_cubes

    inner = volume[1:-1, 1:-1, 1:-1]
    low, high = float(inner.min()), float(inner.max())
    if not low < level < high:
        raise EmptySurfaceError(
            f"level: expected between the field's values, {low:.3g} to {high:.3g}, got {level:g}"
        )
    # One more voxel all around, as far below the level as its neighbour is from it: where the shape
    # reaches the box, the surface then lies on the box.
    for axis in range(3):
        sides = volume.swapaxes(0, axis)
        for shell, neighbour in ((0, 1), (-1, -2)):
            sides[shell] = level - np.abs(sides[neighbour] - level)
    places, faces, normals, _ = marching_cubes(volume, level)
    step = (bounds[1] - bounds[0]) / len(inner)
    # Voxel i + 1 of the padded volume is voxel i, whose centre lies at i + 1/2.
    vertices = (places - 0.5) * step + bounds[0]
    # Its triangles come clockwise.
    outwards = np.ascontiguousarray(faces[:, ::-1], dtype=np.int64)
    return Mesh(vertices.astype(np.float32), outwards, normals.astype(np.float32))


def save_mesh(mesh: Mesh, path: Path | str) -> Path:
    """Write a mesh file, replaced atomically.

    Args:
        mesh: the mesh.
        path: ``.ply`` (binary), ``.obj`` or ``.stl`` (binary); its folder is made if need be.

    Raises:
        ValueError: another suffix.
        ModuleNotFoundError: without trimesh (``pip install 'ginr-fast[train]'``).
    """
    import trimesh

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"path: expected one of {', '.join(SUFFIXES)}, got {path.name!r}")
    made = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals, process=False)

    def write(temporary: Path) -> None:
        made.export(str(temporary), file_type=suffix.removeprefix("."))

    replace_atomically(path, write)
    return path


def shaded(
    mesh: Mesh, size: int = 256, azimuth: float = 35.0, elevation: float = 20.0
) -> np.ndarray:
    """A picture of a mesh in the cube [-1, 1]³, on white, without perspective.

    Args:
        mesh: the mesh.
        size: height and width, in pixels.
        azimuth: degrees that the camera goes around +y, from +z towards +x.
        elevation: degrees above the xz plane.

    Returns:
        ``(size, size, 3)``, uint8.

    Raises:
        ValueError: a size that is not positive.
    """
    if size < 1:
        raise ValueError(f"size: expected a positive integer, got {size}")
    fine = size * _OVERSAMPLING
    turn, tilt = math.radians(azimuth), math.radians(elevation)
    towards = np.array(
        [math.sin(turn) * math.cos(tilt), math.sin(tilt), math.cos(turn) * math.cos(tilt)]
    )
    right = np.array([math.cos(turn), 0.0, -math.sin(turn)])
    axes = np.stack([right, -np.cross(towards, right), towards], axis=1)
    places = mesh.vertices @ axes  # column, row, nearness
    places[:, :2] = (places[:, :2] / VISIBLE + 1) * (fine / 2)
    light = axes @ np.array([-0.45, -0.6, 0.66])  # from the upper left, behind the viewer
    shades = 0.25 + 0.75 * (0.5 + 0.5 * mesh.normals @ light)
    picture = np.ones((fine * fine, 3))
    nearest = np.full(fine * fine, -np.inf)
    corners = places[mesh.faces]
    edges = corners[:, [1, 2], :2] - corners[:, :1, :2]
    # Rows run downwards, which turns what faces the camera clockwise.
    front = edges[:, 0, 0] * edges[:, 1, 1] < edges[:, 0, 1] * edges[:, 1, 0]
    corners, shade = corners[front], shades[mesh.faces[front]]
    longest = np.abs(corners - np.roll(corners, 1, axis=1))[..., :2].max((1, 2), initial=0.0)
    divisions = np.ceil(2 * longest).astype(int) + 1  # points half a pixel apart leave no holes
    for count in np.unique(divisions):
        which = np.flatnonzero(divisions == count)
        points = _barycentric(int(count))
        for part in np.array_split(which, math.ceil(len(which) * len(points) / _SPLATS)):
            splats = (points @ corners[part]).reshape(-1, 3)
            _splat(picture, nearest, fine, splats, (shade[part] @ points.T).reshape(-1))
    smooth = picture.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3).mean((1, 3))
    return (smooth * 255).round().clip(0, 255).astype(np.uint8)


def _barycentric(divisions: int) -> np.ndarray:
    """Points of a triangle, evenly spaced, ``divisions + 1`` along each side: ``(n, 3)``."""
    first, second = np.mgrid[: divisions + 1, : divisions + 1]
    inside = first + second <= divisions
    pair = np.stack([first[inside], second[inside]], axis=1) / divisions
    return np.concatenate([1 - pair.sum(1, keepdims=True), pair], axis=1)


def _splat(
    picture: np.ndarray, nearest: np.ndarray, side: int, splats: np.ndarray, shade: np.ndarray
) -> None:
    """Paint points ``(n, 3)`` (column, row, nearness) that lie in front of what is there."""
    column, row = np.floor(splats[:, 0]).astype(int), np.floor(splats[:, 1]).astype(int)
    seen = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    pixel, near, shade = (row * side + column)[seen], splats[seen, 2], shade[seen]
    seen = near > nearest[pixel]
    pixel, near, shade = pixel[seen], near[seen], shade[seen]
    # Of several points in a pixel the last one assigned stays: the nearest.
    order = np.argsort(near)
    pixel = pixel[order]
    nearest[pixel] = near[order]
    picture[pixel] = shade[order, None] * _PAINT
