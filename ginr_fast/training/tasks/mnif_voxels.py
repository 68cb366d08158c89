"""mNIF of voxel shapes as a task."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from ginr_fast.coords import grid
from ginr_fast.data.voxel_points import PointBatch, VoxelPoints
from ginr_fast.pictures import save_png
from ginr_fast.systems.fitted import Fitted, Part
from ginr_fast.systems.fitting import FittingOptions
from ginr_fast.systems.mnif_adaptation import AutoDecoder, PointSamples
from ginr_fast.training.images import comparison, shown
from ginr_fast.training.metrics import FieldScores, FieldSum
from ginr_fast.training.recipes import MnifVoxelsRecipe
from ginr_fast.training.tasks.base import DataOptions, EvaluationOptions, Table
from ginr_fast.training.tasks.made import made_shapes
from ginr_fast.training.tasks.mnif import (
    MnifBatch,
    MnifTask,
    evaluated_as,
    field_table,
    parts,
)

_MEAN_OF = 1024  # training shapes that the mean shape is taken over, at most
_SHOWN_VOXELS = 48
_SUFFIXES = (".hdf5", ".h5")


class VoxelData(NamedTuple):
    """Shapes to learn from and shapes to evaluate with."""

    train: VoxelPoints
    held_out: VoxelPoints


class MnifVoxelsTask(MnifTask):
    """Voxel shapes, known by points near their surfaces: -1 outside and 1 inside.

    Args:
        recipe: how it is trained.
        data: the shapes.
    """

    unit = "shapes"
    own_data = "made shapes"
    recipe: MnifVoxelsRecipe

    def __init__(self, recipe: MnifVoxelsRecipe, data: VoxelData) -> None:
        super().__init__(recipe)
        self.train_shapes, self.held_out = data
        held = self.train_shapes.points_per_shape
        if recipe.points > held:
            raise ValueError(
                f"points: expected at most {held}, as {self.train_shapes.path} holds, "
                f"got {recipe.points}"
            )
        self.evaluated = "held-out shapes" if self.meta_learning else "training shapes"

    @classmethod
    def open(cls, recipe: MnifVoxelsRecipe, options: DataOptions) -> VoxelData:
        """The files: a folder with one of each split, or the ones that the recipe makes."""
        if options.data is not None:
            train, test = _splits(options.data)
        elif recipe.made_shapes:
            train, test = made_shapes(recipe)
        else:
            raise ValueError(
                "data: this recipe trains on IM-Net's HDF5 files; name their folder with --data"
            )
        return VoxelData(*(VoxelPoints(path, recipe.resolution) for path in (train, test)))

    def fingerprint(self) -> str:
        return f"{self.train_shapes.fingerprint()} {self.held_out.fingerprint()}"

    @property
    def instances(self) -> int:
        return len(self.train_shapes)

    def batch(self, step: int, slots: range) -> MnifBatch:
        recipe = self.recipe
        found = self.train_shapes.batch(recipe.seed, step, recipe.batch_size, recipe.points, slots)
        return MnifBatch(found.shapes, (found.coords, found.occupancy))

    def samples(self, data: tuple[torch.Tensor, ...], step: int) -> PointSamples:
        coords, occupancy = data
        return PointSamples(coords, 2 * occupancy - 1)

    @cached_property
    def mean_shape(self) -> torch.Tensor:
        """The mean occupancy of training shapes, ``(D, H, W)``; of one voxel without voxels."""
        count = min(_MEAN_OF, self.instances)
        indices = range(count)
        if not self.train_shapes.has_voxels:
            found = self.train_shapes.shapes(torch.arange(count)).occupancy
            return found.mean().reshape(1, 1, 1).to(self.device)
        total = sum(
            self.train_shapes.voxels(torch.tensor(part)).float().sum(0)
            for part in parts(indices, 64)
        )
        assert isinstance(total, torch.Tensor)
        return (total / count).to(self.device)

    def _mean_at(self, coords: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor(self.mean_shape.shape, device=coords.device)
        where = ((coords + 1) / 2 * sizes).long().clamp(min=0).minimum(sizes - 1)
        return self.mean_shape[tuple(where.unbind(-1))][..., None]

    def _points(self, shapes: VoxelPoints, indices: list[int]) -> PointBatch:
        found = shapes.shapes(torch.tensor(indices, dtype=torch.int64))
        return PointBatch(*(part.to(self.device) for part in found))

    def _instances(
        self,
        points: PointBatch,
        indices: list[int],
        held_out: bool,
        steps: int | None = None,
        fitting: FittingOptions | None = None,
    ) -> Fitted:
        if not held_out:
            assert isinstance(self.model, AutoDecoder)
            return Fitted([Part(self.mnif, self.model.latents.weight[indices].detach())])
        samples = self.samples(points[1:], 0)
        latents = self.latents(samples, len(indices), steps)
        return self.instances_of(latents, samples, fitting)

    def _occupancy(self, coords: torch.Tensor, instances: Fitted) -> torch.Tensor:
        return (0.5 * instances.decode(coords) + 0.5).clamp(0, 1)

    def _sum(
        self,
        indices: range,
        held_out: bool,
        batch_size: int,
        steps: int | None = None,
        fitting: FittingOptions | None = None,
    ) -> FieldSum:
        total = FieldSum(self.device)
        for part in parts(indices, batch_size):
            points = self._points(self.held_out if held_out else self.train_shapes, part)
            instances = self._instances(points, part, held_out, steps, fitting)
            found = self._occupancy(points.coords, instances)
            total.update(found, points.occupancy, self._mean_at(points.coords), "points")
        return total

    def evaluate(self, rank: int, world: int) -> torch.Tensor:
        count = len(self.held_out)
        if not self.meta_learning:
            count = min(count, self.instances)
        mine = range(rank, count, world)
        return self._sum(mine, self.meta_learning, self.recipe.batch_size).sums

    def picture(self, step: int) -> Image.Image:
        titles = [self.evaluated, f"reconstructed after {step} steps"]
        return self._compared(self.meta_learning, titles)

    def _compared(self, held_out: bool, titles: list[str], steps: int | None = None) -> Image.Image:
        shapes = self.held_out if held_out else self.train_shapes
        indices = shown(len(shapes))
        points = self._points(shapes, indices)
        instances = self._instances(points, indices, held_out, steps)
        where = grid(*[_SHOWN_VOXELS] * 3, device=self.device).tensor()
        found = torch.cat([self._occupancy(where, one)[..., 0] for one in instances.split()])
        if shapes.has_voxels:
            truth = shapes.voxels(torch.tensor(indices)).float()
        else:
            truth = torch.stack([_gathered(*one) for one in zip(*points[1:], strict=True)])
        return comparison([_seen(truth), _seen(found)], titles)

    def table(self, options: EvaluationOptions) -> Table:
        scores: list[FieldScores] = []
        if not self.meta_learning:
            count = min(self.instances, options.instances or self.instances)
            found = self._sum(range(count), False, options.batch_size)
            scores.append(found.scores("training shapes"))
        count = min(len(self.held_out), options.instances or len(self.held_out))
        for fitting in options.fittings:
            found = self._sum(range(count), True, options.batch_size, options.fit_steps, fitting)
            scores.append(found.scores(evaluated_as("held-out shapes", fitting)))
        if options.picture is not None:
            titles = ["held-out shapes", "reconstructed"]
            save_png(self._compared(True, titles, options.fit_steps), options.picture)
        return field_table(scores)


def _splits(folder: Path) -> tuple[Path, Path]:
    """The training and the test file of a folder, by their names."""
    if not folder.is_dir():
        raise FileNotFoundError(f"data: {folder} is no folder")
    files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    found = []
    for split, words in (("train", ("train",)), ("test", ("test", "val"))):
        fitting = [path for path in files if any(word in path.stem for word in words)]
        if len(fitting) != 1:
            raise ValueError(
                f"data: expected one HDF5 file with {split} in its name in {folder}, "
                f"got {len(fitting)}"
            )
        found += fitting
    return found[0], found[1]


def _gathered(coords: torch.Tensor, occupancy: torch.Tensor) -> torch.Tensor:
    """Points inside as voxels."""
    voxels = torch.zeros([_SHOWN_VOXELS] * 3)
    inside = coords[occupancy[:, 0] > 0.5].cpu()
    where = ((inside + 1) / 2 * _SHOWN_VOXELS).long().clamp(0, _SHOWN_VOXELS - 1)
    voxels[tuple(where.unbind(-1))] = 1.0
    return voxels


def _seen(occupancy: torch.Tensor) -> torch.Tensor:
    """Voxels ``(B, X, Y, Z)`` seen along Z with Y upwards, nearer ones darker: ``(B, 3, Y, X)``."""
    solid = (occupancy > 0.5).cpu().flip(-1)
    depth = solid.float().argmax(-1) / solid.shape[-1]
    shade = torch.where(solid.any(-1), 0.1 + 0.7 * depth, 1.0)
    return shade.transpose(1, 2).flip(1)[:, None].expand(-1, 3, -1, -1)
