"""LA-GINR as a task: images reconstructed from their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.data.folder import folder
from ginr_fast.data.images import ImageFiles
from ginr_fast.data.photos import photos
from ginr_fast.data.views import HeldOutViews, TrainingViews, ViewConfig, training_batches
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.training.images import comparison
from ginr_fast.training.losses import reconstruction_loss
from ginr_fast.training.metrics import ImageScores, ScoreSum, score_views
from ginr_fast.training.recipes import LaGinrRecipe, as_plain
from ginr_fast.training.tasks.base import DataOptions, EvaluationOptions, StepLoss, Table, Task

_COORDINATE_STREAM = 1
_OFFSET_STREAM = 3


def choose_coordinates(seed: int, step: int, pixels: int, count: int) -> torch.Tensor:
    """``count`` different pixels of ``pixels``, int64, a pure function of the arguments."""
    rng = np.random.default_rng((seed, step, _COORDINATE_STREAM, pixels))
    return torch.from_numpy(rng.choice(pixels, count, replace=False, shuffle=False))


def choose_offsets(seed: int, step: int, count: int) -> torch.Tensor:
    """Places within pixels, ``(count, 2)`` float32 in [-½, ½), a pure function of the arguments."""
    rng = np.random.default_rng((seed, step, _OFFSET_STREAM))
    return torch.from_numpy(rng.random((count, 2), dtype=np.float32) - 0.5)


def interpolated(images: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    """Images at coordinates shared by the batch, by bicubic interpolation.

    Args:
        images: ``(B, C, H, W)``.
        coords: ``(N, 2)``, (row, column) in [-1, 1].

    Returns:
        ``(B, N, C)``.
    """
    where = coords.flip(-1).expand(images.shape[0], 1, -1, -1)  # grid_sample wants (x, y)
    found = F.grid_sample(images, where, "bicubic", "border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)


def open_images(views: ViewConfig, size: int, options: DataOptions) -> ImageFiles:
    """The shipped photographs, or the images of a folder that are large enough.

    Raises:
        FileNotFoundError, ValueError: see :func:`ginr_fast.data.folder`; or no folder is named for
            views that photographs are too few for.
    """
    if options.data is None:
        if views.kind == "whole":
            raise ValueError("data: this recipe trains on a folder of images; name it with --data")
        return photos()
    smallest = size if views.kind == "crops" else 1
    return folder(options.data, options.held_out, options.strict, smallest)


class LaGinrTask(Task):
    """Reconstruction of images by an LA-GINR.

    Args:
        recipe: how it is trained.
        files: the images.
    """

    model: LaGinr

    def __init__(self, recipe: LaGinrRecipe, files: ImageFiles) -> None:
        self.recipe, self.files = recipe, files
        size = recipe.model.image_size
        self.views = TrainingViews(files, recipe.views, size, recipe.batch_size, recipe.seed)
        self.held_out = HeldOutViews(files, recipe.views, size)

    @classmethod
    def open(cls, recipe: LaGinrRecipe, options: DataOptions) -> ImageFiles:
        """The images."""
        return open_images(recipe.views, recipe.model.image_size, options)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def steps_per_epoch(self) -> int:
        return self.views.steps_per_epoch()

    def build(self) -> nn.Module:
        self.model = LaGinr(self.recipe.model)
        return self.model

    def place(self, device: torch.device) -> None:
        size = self.recipe.model.image_size
        self.device = device
        self.grid = grid(size, size, device=device)
        self.pixels = self.grid.tensor().reshape(-1, 2)

    def batches(
        self, first: int, last: int, slots: range, workers: int, pin_memory: bool
    ) -> Iterable[torch.Tensor]:
        return training_batches(self.views, first, last, slots, workers, pin_memory)

    def loss(
        self, forward: Callable[..., Any], batch: torch.Tensor, step: int, slots: range
    ) -> StepLoss:
        images = batch.float() / 255
        coords, target = self._targets(images, step)
        loss = reconstruction_loss(forward(images, coords), target)
        return StepLoss(loss, loss)

    def _targets(
        self, images: torch.Tensor, step: int
    ) -> tuple[torch.Tensor | CoordinateGrid, torch.Tensor]:
        recipe, size = self.recipe, self.recipe.model.image_size
        count = recipe.coordinates or size**2
        if count == size**2 and not recipe.subpixel:
            return self.grid, images.permute(0, 2, 3, 1)
        chosen = choose_coordinates(recipe.seed, step, size**2, count).to(images.device)
        if not recipe.subpixel:
            return self.pixels[chosen], images.flatten(2)[:, :, chosen].transpose(1, 2)
        offsets = choose_offsets(recipe.seed, step, count).to(images.device)
        coords = self.pixels[chosen] + offsets * (2 / size)
        return coords, interpolated(images, coords)

    def evaluate(self, rank: int, world: int) -> torch.Tensor:
        mine = range(rank, len(self.held_out), world)
        return score_views(
            self.model, self.held_out, mine, self.recipe.batch_size, self.device
        ).sums

    def scores(self, sums: torch.Tensor) -> ImageScores:
        total = ScoreSum()
        total.sums = sums
        return total.scores()

    def picture(self, step: int) -> Image.Image:
        count = min(8, len(self.held_out))
        indices = np.linspace(0, len(self.held_out) - 1, count, dtype=int)
        images = torch.stack([self.held_out[int(index)] for index in indices])
        targets = images.to(self.device).float() / 255
        titles = ["held-out images", f"reconstructed after {step} steps"]
        return comparison([targets, self.model.reconstruct(targets)], titles)

    def metadata(self) -> dict[str, Any]:
        return {"config": as_plain(self.recipe.model), "views": as_plain(self.recipe.views)}

    def table(self, options: EvaluationOptions) -> Table:
        files, size = self.files, self.recipe.model.image_size
        if options.all_images:
            files = replace(files, held_out=tuple(sorted((*files.train, *files.held_out))))
        views = HeldOutViews(files, self.recipe.views, size)
        indices = range(min(len(views), options.instances or len(views)))
        scores = score_views(self.model, views, indices, options.batch_size, self.device).scores()
        columns = ("views", "size", "PSNR (dB)", "SSIM")
        row = (
            str(scores.images),
            f"{size}x{size}",
            f"{scores.psnr:.2f}",
            f"{scores.ssim:.4f}",
        )
        return Table(columns, [row])
