"""Learned Init of images as a task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import torch
from PIL import Image

from ginr_fast.coords import grid
from ginr_fast.data.images import ImageFiles
from ginr_fast.data.views import HeldOutViews, TrainingViews, training_batches
from ginr_fast.pictures import save_png
from ginr_fast.systems.samples import PointSamples, Samples
from ginr_fast.training.images import comparison, shown
from ginr_fast.training.metrics import FieldSum
from ginr_fast.training.recipes import LearnedInitImagesRecipe
from ginr_fast.training.tasks.base import DataOptions, EvaluationOptions, Table
from ginr_fast.training.tasks.images import choose_coordinates, open_images
from ginr_fast.training.tasks.learned_init import LearnedInitTask
from ginr_fast.training.tasks.mnif import field_table, parts

_MEAN_OF = 256  # training views that the mean image is taken over


class LearnedInitImagesTask(LearnedInitTask):
    """Images, each fitted by the inner loop.

    Args:
        recipe: how the initialisation is trained.
        files: the images.
    """

    recipe: LearnedInitImagesRecipe

    evaluated = "held-out images"

    def __init__(self, recipe: LearnedInitImagesRecipe, files: ImageFiles) -> None:
        super().__init__(recipe)
        self.files, size = files, recipe.image_size
        self.stream = TrainingViews(files, recipe.views, size, recipe.batch_size, recipe.seed)
        self.held_out = HeldOutViews(files, recipe.views, size)

    @classmethod
    def open(cls, recipe: LearnedInitImagesRecipe, options: DataOptions) -> ImageFiles:
        """The images."""
        return open_images(recipe.views, recipe.image_size, options)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def steps_per_epoch(self) -> int:
        return self.stream.steps_per_epoch()

    def place(self, device: torch.device) -> None:
        super().place(device)
        size = self.recipe.image_size
        self.pixels = grid(size, size, device=device).tensor().reshape(-1, 2)

    def batches(
        self, first: int, last: int, slots: range, workers: int, pin_memory: bool
    ) -> Iterable[torch.Tensor]:
        return training_batches(self.stream, first, last, slots, workers, pin_memory)

    def samples(self, batch: torch.Tensor, step: int) -> list[Samples]:
        images, count = batch.float() / 255, self.recipe.coordinates
        if count is None:
            return [self.model.image_samples(images)]
        chosen = choose_coordinates(self.recipe.seed, step, len(self.pixels), count)
        values = images.flatten(2)[:, :, chosen.to(self.device)].transpose(1, 2)
        return [PointSamples(self.pixels[chosen.to(self.device)], values)]

    @cached_property
    def mean_image(self) -> torch.Tensor:
        """The mean of training views, ``(3, H, W)`` in [0, 1]."""
        size = self.recipe.batch_size
        where = [divmod(index, size) for index in range(_MEAN_OF)]
        views = torch.stack([self.stream[place] for place in where])
        return (views.float().mean(0) / 255).to(self.device)

    def _images(self, indices: list[int]) -> torch.Tensor:
        views = torch.stack([self.held_out[index] for index in indices])
        return views.to(self.device).float() / 255

    def _sum(self, indices: range, batch_size: int, steps: int | None = None) -> FieldSum:
        total = FieldSum(self.device)
        for part in parts(indices, batch_size):
            images = self._images(part)
            found = self.model.reconstruct(images, steps=steps)
            total.update(found, images, self.mean_image, "images")
        return total

    def evaluate(self, rank: int, world: int) -> torch.Tensor:
        return self._sum(range(rank, len(self.held_out), world), self.recipe.batch_size).sums

    def picture(self, step: int) -> Image.Image:
        return self._compared(len(self.held_out), None, f"after {step} steps")

    def _compared(self, count: int, steps: int | None, when: str) -> Image.Image:
        images = self._images(shown(count))
        start = self.model.reconstruct(images, steps=0)
        fitted = self.model.reconstruct(images, steps=steps)
        titles = [self.evaluated, f"initialisation {when}".strip(), f"fitted {when}".strip()]
        return comparison([images, start, fitted], titles)

    def table(self, options: EvaluationOptions) -> Table:
        if options.all_images:
            files = replace(
                self.files, held_out=tuple(sorted((*self.files.train, *self.files.held_out)))
            )
            self.held_out = HeldOutViews(files, self.recipe.views, self.recipe.image_size)
            self.evaluated = "all images"
        count = min(len(self.held_out), options.instances or len(self.held_out))
        found = self._sum(range(count), options.batch_size, options.fit_steps)
        if options.picture is not None:
            save_png(self._compared(count, options.fit_steps, ""), options.picture)
        return field_table([self.scores(found.sums)])
