"""LA-GINR, TransINR and IPC of images as a task: images reconstructed from their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.data.cifar import SIZE as CIFAR_SIZE
from ginr_fast.data.cifar import cifar, is_cifar
from ginr_fast.data.folder import folder
from ginr_fast.data.images import ImageFiles
from ginr_fast.data.photos import photos
from ginr_fast.data.views import HeldOutViews, TrainingViews, ViewConfig, training_batches
from ginr_fast.pictures import save_png
from ginr_fast.systems.fit_instances import fit_images
from ginr_fast.systems.fitting import FittingOptions, FittingTarget
from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.systems.image_rendering import output_size
from ginr_fast.training.images import comparison, shown
from ginr_fast.training.losses import reconstruction_loss
from ginr_fast.training.metrics import ImageScores, ScoreSum, score_views
from ginr_fast.training.recipes import ImagesRecipe, as_plain
from ginr_fast.training.tasks.base import (
    TTO_COLUMN,
    DataOptions,
    EvaluationOptions,
    StepLoss,
    Table,
    Task,
)

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
    """The shipped photographs, CIFAR's images, or those of a folder that are large enough.

    Raises:
        FileNotFoundError, ValueError: see :func:`ginr_fast.data.folder` and
            :func:`ginr_fast.data.cifar.cifar`; or no folder is named for views that photographs are
            too few for, or CIFAR's images are too small for crops.
    """
    if options.data is None:
        if views.kind == "whole":
            raise ValueError("data: this recipe trains on a folder of images; name it with --data")
        return photos()
    smallest = size if views.kind == "crops" else 1
    if is_cifar(options.data):
        if smallest > CIFAR_SIZE:
            raise ValueError(
                f"data: {options.data} has {CIFAR_SIZE}x{CIFAR_SIZE} pixels an image, too few for "
                f"crops of {size}x{size}"
            )
        return cifar(options.data)
    return folder(options.data, options.held_out, options.strict, smallest)


def some_views(views: HeldOutViews, count: int, device: torch.device) -> torch.Tensor:
    """A few of the first ``count`` views for a picture, ``(n, 3, H, W)`` float32 in [0, 1]."""
    images = torch.stack([views[index] for index in shown(count)])
    return images.to(device).float() / 255


class ImagesTask(Task):
    """Reconstruction of images from latent tokens.

    Args:
        recipe: how it is trained.
        files: the images.
    """

    tto_targets: ClassVar[tuple[FittingTarget, ...]] = ("tokens", "weights", "decoder")
    model: ImageInr

    def __init__(self, recipe: ImagesRecipe, files: ImageFiles) -> None:
        self.recipe, self.files = recipe, files
        size = recipe.model.image_size
        self.views = TrainingViews(files, recipe.views, size, recipe.batch_size, recipe.seed)
        self.held_out = HeldOutViews(files, recipe.views, size)

    @classmethod
    def open(cls, recipe: ImagesRecipe, options: DataOptions) -> ImageFiles:
        """The images."""
        return open_images(recipe.views, recipe.model.image_size, options)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def steps_per_epoch(self) -> int:
        return self.views.steps_per_epoch()

    def build(self) -> nn.Module:
        self.model = self.recipe.build()
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
        targets = some_views(self.held_out, len(self.held_out), self.device)
        titles = ["held-out images", f"reconstructed after {step} steps"]
        return comparison([targets, self.model.reconstruct(targets)], titles)

    def metadata(self) -> dict[str, Any]:
        return {"recipe": as_plain(self.recipe)}

    def table(self, options: EvaluationOptions) -> Table:
        files, size = self.files, self.recipe.model.image_size
        if options.all_images:
            files = replace(files, held_out=tuple(sorted((*files.train, *files.held_out))))
        views = HeldOutViews(files, self.recipe.views, size)
        indices = range(min(len(views), options.instances or len(views)))
        rows, titles = [], ["images"]
        pictures = [some_views(views, len(indices), self.device)]
        for fitting in options.fittings:
            model = self.model if fitting is None else FittedImages(self.model, fitting)
            found = score_views(model, views, indices, options.batch_size, self.device).scores()
            scores = (f"{size}x{size}", f"{found.psnr:.2f}", f"{found.ssim:.4f}")
            rows.append((str(found.images), *scores, *options.noted(fitting)))
            if options.picture is not None:
                pictures.append(model.reconstruct(pictures[0]))
                titles.append("reconstructed" if fitting is None else fitting.described)
        if options.picture is not None:
            save_png(comparison(pictures, titles), options.picture)
        columns = ("views", "size", "PSNR (dB)", "SSIM")
        return Table((*columns, TTO_COLUMN) if options.tto else columns, rows)


class FittedImages:
    """A model that reconstructs images after test-time optimisation on their pixels.

    Args:
        model: of images.
        options: how.
    """

    def __init__(self, model: ImageInr, options: FittingOptions) -> None:
        self.model, self.options = model, options

    def reconstruct(self, images: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """As :meth:`ImageInr.reconstruct`."""
        size = output_size(self.model.config.image_size, scale)
        fitted = fit_images(self.model, images, self.options)
        return fitted.images(grid(size, size, device=images.device))
