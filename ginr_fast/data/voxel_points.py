"""Points of voxel shapes in IM-Net's HDF5 format (Chen and Zhang, CVPR 2019).

A file holds, for n shapes, ``voxels`` ``(n, 64, 64, 64, 1)`` and, for the sampling resolutions 16,
32 and 64, ``points_R`` ``(n, N, 3)`` and ``values_R`` ``(n, N, 1)``, all uint8 (ShapeNet's have
N = 4096, 4096, 16384). Points are indices into the 256³ grid that the shape was sampled from, taken
near its surface first; a value is 1 inside the shape. Rendered pictures may come with it, as
``pixels``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ginr_fast.data.order import instance_order

GRID = 256


class BrokenVoxelsError(ValueError):
    """A file that is no HDF5, is truncated, or lacks a data set of the right shape."""


class PointBatch(NamedTuple):
    """Points of several shapes and whether they lie inside.

    Args:
        shapes: ``(B,)``, int64, indices of the shapes.
        coords: ``(B, N, 3)``, float32 in [−1, 1].
        occupancy: ``(B, N, 1)``, float32, 0 or 1.
    """

    shapes: torch.Tensor
    coords: torch.Tensor
    occupancy: torch.Tensor


def to_coords(points: torch.Tensor, grid: int = GRID, offset: float = 0.5) -> torch.Tensor:
    """Coordinates in [−1, 1] of voxel indices p: ``2·(p + offset)/grid − 1``.

    Args:
        points: indices, of any shape.
        grid: voxels along an axis.
        offset: ½ for the centres of voxels, as in IM-Net; GEM's code, and mNIF's after it, take 1.
    """
    return (points.float() + offset) * (2 / grid) - 1


class VoxelPoints:
    """The shapes of one file; their points are held in memory, as bytes.

    Args:
        path: the HDF5 file.
        resolution: which points, ``points_<resolution>``: 16, 32 or 64 in published files.
        max_shapes: use only the first ones.
        grid: voxels along an axis of the grid that the points are indices of.
        offset: see :func:`to_coords`; 1 for checkpoints trained with the published code of mNIF.

    Raises:
        FileNotFoundError: no such file.
        BrokenVoxelsError: names the file, the data set and what is wrong with it.
        ValueError: a number that is not positive, or h5py is not installed.
    """

    def __init__(
        self,
        path: Path | str,
        resolution: int = 64,
        max_shapes: int | None = None,
        grid: int = GRID,
        offset: float = 0.5,
    ) -> None:
        for name, value in (("resolution", resolution), ("max_shapes", max_shapes), ("grid", grid)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value}")
        if not 0 <= offset <= 1:
            raise ValueError(f"offset: expected a number from 0 to 1, got {offset}")
        self.path, self.resolution, self.grid, self.offset = Path(path), resolution, grid, offset
        points, values = f"points_{resolution}", f"values_{resolution}"
        with _Opened(self.path) as file:
            self._points = file.bytes(points, (None, None, 3), max_shapes)
            count, number = self._points.shape[:2]
            if not count or not number:
                raise BrokenVoxelsError(f"{self.path}: {points} is empty")
            shapes = file.shape(points)[0]
            if file.shape(values)[:1] != (shapes,):
                got = file.shape(values)[0]
                raise BrokenVoxelsError(
                    f"{self.path}: {values} has {got} shapes, {points} {shapes}"
                )
            self._values = file.bytes(values, (None, number, 1), max_shapes)
            self.has_voxels = "voxels" in file
        if self._values.max() > 1:
            found = int(self._values.max())
            raise BrokenVoxelsError(f"{self.path}: expected 0 and 1 in {values}, found {found}")
        if self._points.max() >= grid:
            found = int(self._points.max())
            raise BrokenVoxelsError(
                f"{self.path}: expected indices below {grid} in {points}, found {found}"
            )

    def __len__(self) -> int:
        return len(self._points)

    @property
    def points_per_shape(self) -> int:
        """N, the number of points of each shape."""
        return int(self._points.shape[1])

    def shapes(self, indices: torch.Tensor) -> PointBatch:
        """All points of some shapes.

        Args:
            indices: ``(B,)``, integers.

        Raises:
            IndexError: no such shape.
        """
        chosen = self._check(indices)
        values = torch.from_numpy(self._values[chosen]).float()
        return PointBatch(torch.from_numpy(chosen), self._coords(self._points[chosen]), values)

    def batch(
        self,
        seed: int,
        step: int,
        shapes_per_batch: int,
        points: int,
        slots: range | None = None,
    ) -> PointBatch:
        """What a training step sees, a pure function of (seed, step); mNIF takes 4,096 points.

        Shapes go by :func:`ginr_fast.data.instance_order`; the points of a shape are drawn without
        repetition.

        Args:
            seed: the same seed and step give the same points.
            step: from 0.
            shapes_per_batch: B, over all processes.
            points: points of each shape.
            slots: which of the B slots to make, for one of several processes; all if None.

        Raises:
            ValueError: a number out of range.
        """
        if shapes_per_batch < 1:
            raise ValueError(
                f"shapes_per_batch: expected a positive integer, got {shapes_per_batch}"
            )
        if not 1 <= points <= self.points_per_shape:
            raise ValueError(f"points: expected 1 to {self.points_per_shape}, got {points}")
        if slots is not None and not len(slots):
            raise ValueError("slots: expected at least one")
        slots = range(shapes_per_batch) if slots is None else slots
        order = instance_order(seed, step, len(self), shapes_per_batch)[list(slots)]
        rows = []
        for slot in slots:
            rng = np.random.default_rng((seed, step, slot))
            rows.append(rng.choice(self.points_per_shape, points, replace=False))
        chosen = np.stack(rows)
        coords = self._coords(self._points[order[:, None], chosen])
        values = torch.from_numpy(self._values[order[:, None], chosen]).float()
        return PointBatch(torch.from_numpy(order), coords, values)

    def voxels(self, indices: torch.Tensor) -> torch.Tensor:
        """Whole voxel grids, read from the file.

        Args:
            indices: ``(B,)``, integers.

        Returns:
            ``(B, D, H, W)``, bool; axes in the order of the points' coordinates.

        Raises:
            IndexError: no such shape.
            BrokenVoxelsError: the file holds no voxels, or cannot be read.
        """
        chosen = self._check(indices)
        with _Opened(self.path) as file:
            shape = file.shape("voxels")
            if len(shape) != 5 or shape[-1] != 1:
                raise BrokenVoxelsError(
                    f"{self.path}: expected voxels (n, D, H, W, 1), got {shape}"
                )
            grids = [file.read("voxels", int(index)) for index in chosen]
        stacked = np.stack(grids) if grids else np.zeros((0, *shape[1:]), dtype=np.uint8)
        return torch.from_numpy(stacked[..., 0] > 0)

    def fingerprint(self) -> str:
        """A digest of the points and values that are used."""
        digest = hashlib.sha256(f"{self.resolution}\0{self.grid}\0{self.offset}\n".encode())
        digest.update(self._points.data)
        digest.update(self._values.data)
        return digest.hexdigest()

    def _coords(self, points: np.ndarray) -> torch.Tensor:
        return to_coords(torch.from_numpy(points), self.grid, self.offset)

    def _check(self, indices: torch.Tensor) -> np.ndarray:
        if (
            not isinstance(indices, torch.Tensor)
            or indices.ndim != 1
            or indices.dtype not in (torch.int64, torch.int32)
        ):
            raise TypeError("indices: expected a 1-D tensor of int64 or int32")
        chosen = indices.cpu().numpy().astype(np.int64)
        if ((chosen < 0) | (chosen >= len(self))).any():
            raise IndexError(f"indices: expected 0 to {len(self) - 1}")
        return chosen


class _Opened:
    """An HDF5 file whose errors name it."""

    def __init__(self, path: Path) -> None:
        try:
            import h5py
        except ModuleNotFoundError:
            raise ValueError(
                "data: voxel points are HDF5 files; install h5py or ginr-fast[train]"
            ) from None
        if not path.is_file():
            raise FileNotFoundError(f"data: {path} does not exist")
        self.path = path
        try:
            self.file = h5py.File(path, "r")
        except OSError as error:
            raise BrokenVoxelsError(f"{path}: no readable HDF5 file ({error})") from None

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __contains__(self, name: str) -> bool:
        return name in self.file

    def shape(self, name: str) -> tuple[int, ...]:
        data = self.file.get(name)
        shape = getattr(data, "shape", None)
        if shape is None:
            held = ", ".join(sorted(self.file)) or "nothing"
            raise BrokenVoxelsError(f"{self.path}: lacks the data set {name}; it holds {held}")
        return tuple(shape)

    def read(self, name: str, where: Any) -> np.ndarray:
        try:
            return np.asarray(self.file[name][where])
        except OSError as error:
            raise BrokenVoxelsError(f"{self.path}: {name} cannot be read ({error})") from None

    def bytes(self, name: str, shape: tuple[int | None, ...], at_most: int | None) -> np.ndarray:
        got = self.shape(name)
        if len(got) != len(shape) or any(
            want is not None and want != have for want, have in zip(shape, got, strict=True)
        ):
            raise BrokenVoxelsError(
                f"{self.path}: expected {name} of shape "
                f"({', '.join('any' if size is None else str(size) for size in shape)}), got {got}"
            )
        if self.file[name].dtype != np.uint8:
            kind = self.file[name].dtype
            raise BrokenVoxelsError(f"{self.path}: expected uint8 in {name}, got {kind}")
        return np.ascontiguousarray(self.read(name, slice(at_most)))
