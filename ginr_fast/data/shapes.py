"""Voxel shapes in IM-Net's format, made on the spot: tables, chairs, stools, shelves and lamps.

A shape is a union of boxes, upright cylinders and ellipsoids in [−1, 1]³ with +y up, as ShapeNet's
shapes have it. Points are taken as IM-Net does: one fine voxel of the 256³ grid in each coarse
voxel at the surface first, then in others at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ginr_fast.data.making import differences
from ginr_fast.data.voxel_points import GRID
from ginr_fast.files import locked, replace_atomically

_VERSION = 1
_COARSE_POINTS = 4096  # of points_16 and points_32 in published files

# Kind, centre, half sizes: x, y, z.
Part = tuple[str, tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class ShapesConfig:
    """What is made.

    Args:
        shapes: how many.
        points: points of each at the finest resolution; published files have 16,384.
        resolution: voxels along an axis: 16, 32 or 64; the file has points for it and those below.
        seed: of the shapes and points.
    """

    shapes: int = 256
    points: int = 4096
    resolution: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shapes < 1 or self.points < 1:
            raise ValueError("shapes, points: expected positive integers")
        if self.resolution not in (16, 32, 64):
            raise ValueError(f"resolution: expected 16, 32 or 64, got {self.resolution}")
        if self.points > self.resolution**3:
            raise ValueError(
                f"points: expected at most one a voxel, {self.resolution**3}, got {self.points}"
            )
        if self.seed < 0:
            raise ValueError(f"seed: expected an integer of at least 0, got {self.seed}")


def make_shapes(
    out: Path | str,
    config: ShapesConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a file of shapes that :class:`ginr_fast.data.VoxelPoints` reads.

    The file appears whole or not at all. One that is there with the same settings is left alone; a
    second process that makes the same file waits for the first.

    Args:
        out: the HDF5 file.
        config: what to make; :class:`ShapesConfig`'s defaults if None.
        progress: called with the shapes done and the shapes to do.

    Returns:
        The file.

    Raises:
        ValueError: there is a file that holds something else or was made with other settings, which
            the message names; or h5py is not installed.
    """
    out, config = Path(out), config or ShapesConfig()
    try:
        import h5py
    except ModuleNotFoundError:
        raise ValueError(
            "out: voxel points are HDF5 files; install h5py or ginr-fast[train]"
        ) from None
    settings = {"kind": "shapes", "version": _VERSION, **asdict(config)}
    with locked(out.with_name(f".{out.name}.lock")):
        if out.exists():
            _check_same(out, settings)
            if progress is not None:
                progress(config.shapes, config.shapes)
            return out

        for abandoned in out.parent.glob(f".{out.name}.*.partial"):  # of a run that was killed
            abandoned.unlink()

        def write(temporary: Path) -> None:
            with h5py.File(temporary, "w") as file:
                file.attrs.update(settings)
                _fill(file, config, progress)

        replace_atomically(out, write)
    return out


def draw_shape(rng: np.random.Generator) -> list[Part]:
    """The parts of a random piece of furniture."""
    return _KINDS[rng.integers(len(_KINDS))](rng)


def occupied(parts: list[Part], points: np.ndarray) -> np.ndarray:
    """Which of ``(N, 3)`` points in [−1, 1]³ lie in a shape, ``(N,)`` bool."""
    inside = np.zeros(len(points), dtype=bool)
    for kind, center, half in parts:
        near = (points - np.array(center, dtype=np.float32)) / np.array(half, dtype=np.float32)
        if kind == "box":
            inside |= np.abs(near).max(axis=1) <= 1
        elif kind == "cylinder":
            inside |= (near[:, 0] ** 2 + near[:, 2] ** 2 <= 1) & (np.abs(near[:, 1]) <= 1)
        else:
            inside |= (near * near).sum(axis=1) <= 1
    return inside


def _check_same(out: Path, settings: dict[str, Any]) -> None:
    import h5py

    try:
        with h5py.File(out, "r") as file:
            made = {name: _plain(value) for name, value in file.attrs.items()}
    except OSError as error:
        raise ValueError(f"out: {out} is no readable HDF5 file ({error})") from None
    if made.get("kind") != "shapes":
        raise ValueError(f"out: {out} was not made by this program; name another file")
    different = differences(made, settings)
    if different:
        raise ValueError(f"out: {out} was made otherwise ({different}); name another file")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _fill(file: Any, config: ShapesConfig, progress: Callable[[int, int], None] | None) -> None:
    levels = [size for size in (16, 32, 64) if size <= config.resolution]
    numbers = {size: _COARSE_POINTS for size in levels} | {config.resolution: config.points}
    count, size = config.shapes, config.resolution
    voxels = file.create_dataset("voxels", (count, size, size, size, 1), "u1", compression=4)
    points = {
        level: file.create_dataset(f"points_{level}", (count, number, 3), "u1", compression=4)
        for level, number in numbers.items()
    }
    values = {
        level: file.create_dataset(f"values_{level}", (count, number, 1), "u1", compression=4)
        for level, number in numbers.items()
    }
    for index in range(count):
        rng = np.random.default_rng((config.seed, index))
        parts = draw_shape(rng)
        for level, number in numbers.items():
            grid = _voxels(parts, level)
            if level == size:
                voxels[index] = grid[..., None]
            points[level][index], values[level][index] = _points(parts, grid, number, rng)
        if progress is not None:
            progress(index + 1, count)


def _to_space(fine: np.ndarray) -> np.ndarray:
    """Coordinates of voxels of the 256³ grid."""
    return (fine.astype(np.float32) + 0.5) * (2 / GRID) - 1


def _voxels(parts: list[Part], size: int) -> np.ndarray:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size)) - 1
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    return occupied(parts, points).reshape(size, size, size)


def _points(
    parts: list[Part], grid: np.ndarray, number: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One fine voxel in each of ``number`` coarse ones, those at the surface first."""
    size = len(grid)
    flat = _at_surface(grid).ravel()
    surface, other = np.flatnonzero(flat), np.flatnonzero(~flat)
    chosen = np.concatenate([rng.permutation(surface), rng.permutation(other)])[:number]
    coarse = np.stack(np.unravel_index(chosen, grid.shape), axis=1)
    fine = coarse * (GRID // size) + rng.integers(GRID // size, size=coarse.shape)
    return fine.astype(np.uint8), occupied(parts, _to_space(fine)).astype(np.uint8)[:, None]


def _at_surface(grid: np.ndarray) -> np.ndarray:
    """Voxels among whose 26 neighbours and themselves some are full and some empty."""
    padded = np.pad(grid, 1)
    most, least = padded.copy(), padded.copy()
    for axis in range(3):
        shifted = [np.roll(most, step, axis) for step in (-1, 1)]
        most = most | shifted[0] | shifted[1]
        shifted = [np.roll(least, step, axis) for step in (-1, 1)]
        least = least & shifted[0] & shifted[1]
    return (most & ~least)[1:-1, 1:-1, 1:-1]


def _legs(rng: np.random.Generator, x: float, z: float, floor: float, top: float) -> list[Part]:
    """Four legs, or one column on a foot."""
    half = float(rng.uniform(0.05, 0.09))
    middle, tall = (floor + top) / 2, (top - floor) / 2
    if rng.random() < 0.25:
        foot = float(rng.uniform(0.5, 0.8))
        return [
            ("cylinder", (0.0, middle, 0.0), (1.4 * half, tall, 1.4 * half)),
            ("cylinder", (0.0, floor + 0.05, 0.0), (foot * x, 0.05, foot * z)),
        ]
    kind = "cylinder" if rng.random() < 0.4 else "box"
    return [
        (kind, (sx * (x - half), middle, sz * (z - half)), (half, tall, half))
        for sx in (-1, 1)
        for sz in (-1, 1)
    ]


def _table(rng: np.random.Generator) -> list[Part]:
    x, z = float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.35, 0.8))
    top, thick = float(rng.uniform(-0.1, 0.5)), float(rng.uniform(0.05, 0.09))
    kind = "cylinder" if rng.random() < 0.3 else "box"
    parts: list[Part] = [(kind, (0.0, top, 0.0), (x, thick, z))]
    inner = 0.65 if kind == "cylinder" else 1.0
    parts += _legs(rng, inner * x, inner * z, -0.75, top)
    if rng.random() < 0.3:
        parts.append(("box", (0.0, -0.4, 0.0), (0.85 * inner * x, 0.05, 0.85 * inner * z)))
    return parts


def _chair(rng: np.random.Generator) -> list[Part]:
    x, z = float(rng.uniform(0.36, 0.5)), float(rng.uniform(0.36, 0.5))
    seat, thick = float(rng.uniform(-0.25, 0.0)), float(rng.uniform(0.05, 0.1))
    back = float(rng.uniform(0.6, 0.85))
    parts: list[Part] = [("box", (0.0, seat, 0.0), (x, thick, z))]
    parts += _legs(rng, x, z, -0.85, seat)
    if rng.random() < 0.5:
        middle, tall = (seat + back) / 2, (back - seat) / 2
        parts.append(("box", (0.0, middle, 0.06 - z), (x, tall, 0.06)))
    else:  # slats between posts
        for side in (-1, 1):
            post = (side * (x - 0.06), (seat + back) / 2, 0.06 - z)
            parts.append(("box", post, (0.06, (back - seat) / 2, 0.06)))
        slats = int(rng.integers(2, 4))
        for slat in range(slats):
            height = back - 0.07 - slat * (back - seat) / (slats + 0.5)
            parts.append(("box", (0.0, height, 0.06 - z), (x, 0.07, 0.05)))
    if rng.random() < 0.4:
        arm = seat + float(rng.uniform(0.25, 0.35))
        for side in (-1, 1):
            parts.append(("box", (side * (x - 0.05), arm, 0.0), (0.05, 0.05, z)))
            front = (side * (x - 0.05), (arm + seat) / 2, z - 0.06)
            parts.append(("box", front, (0.05, (arm - seat) / 2, 0.06)))
    return parts


def _stool(rng: np.random.Generator) -> list[Part]:
    x, top = float(rng.uniform(0.3, 0.5)), float(rng.uniform(-0.1, 0.4))
    seat: Part = ("cylinder", (0.0, top, 0.0), (x, 0.08, x))
    if rng.random() < 0.5:
        seat = ("ellipsoid", (0.0, top, 0.0), (x, float(rng.uniform(0.12, 0.25)), x))
    return [seat, *_legs(rng, 0.72 * x, 0.72 * x, -0.8, top)]


def _shelf(rng: np.random.Generator) -> list[Part]:
    x, y, z = (float(rng.uniform(*bounds)) for bounds in ((0.4, 0.7), (0.6, 0.85), (0.2, 0.35)))
    parts: list[Part] = [("box", (side * (x - 0.05), 0.0, 0.0), (0.05, y, z)) for side in (-1, 1)]
    boards = int(rng.integers(3, 6))
    for height in np.linspace(0.05 - y, y - 0.05, boards):
        parts.append(("box", (0.0, float(height), 0.0), (x, 0.05, z)))
    if rng.random() < 0.6:
        parts.append(("box", (0.0, 0.0, 0.05 - z), (x, y, 0.05)))
    return parts


def _lamp(rng: np.random.Generator) -> list[Part]:
    foot, shade = float(rng.uniform(0.25, 0.4)), float(rng.uniform(0.3, 0.55))
    low, tall = float(rng.uniform(0.0, 0.3)), float(rng.uniform(0.18, 0.28))
    kind = "ellipsoid" if rng.random() < 0.5 else "cylinder"
    return [
        ("cylinder", (0.0, -0.8, 0.0), (foot, 0.07, foot)),
        ("cylinder", (0.0, (low - 0.8) / 2, 0.0), (0.07, (low + 0.8) / 2, 0.07)),
        (kind, (0.0, low + tall, 0.0), (shade, tall, shade)),
    ]


_KINDS: tuple[Callable[[np.random.Generator], list[Part]], ...] = (
    _table,
    _chair,
    _stool,
    _shelf,
    _lamp,
)
