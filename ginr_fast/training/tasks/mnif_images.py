"""mNIF of images as a task."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from PIL import Image

from ginr_fast.coords import grid
from ginr_fast.data.images import ImageFiles
from ginr_fast.data.order import instance_order
from ginr_fast.data.views import HeldOutViews, TrainingViews
from ginr_fast.pictures import save_png
from ginr_fast.systems.fitted import Fitted, Part
from ginr_fast.systems.fitting import FittingOptions
from ginr_fast.systems.mnif_adaptation import AutoDecoder, PointSamples
from ginr_fast.training.images import comparison, shown
from ginr_fast.training.metrics import FieldScores, FieldSum
from ginr_fast.training.recipes import MnifImagesRecipe
from ginr_fast.training.tasks.base import DataOptions, EvaluationOptions, Table
from ginr_fast.training.tasks.images import choose_coordinates, open_images
from ginr_fast.training.tasks.mnif import (
    MnifBatch,
    MnifTask,
    evaluated_as,
    field_table,
    parts,
)

_MEAN_OF = 1024  # training views that the mean image is taken over, at most


class MnifImagesTask(MnifTask):
    """Images: meta-learning sees a stream of views, auto-decoding a fixed set of them.

    Args:
        recipe: how it is trained.
        files: the images.
    """

    recipe: MnifImagesRecipe

    def __init__(self, recipe: MnifImagesRecipe, files: ImageFiles) -> None:
        super().__init__(recipe)
        self.files, size = files, recipe.image_size
        self.stream = TrainingViews(files, recipe.views, size, recipe.batch_size, recipe.seed)
        fixed = replace(recipe.views, held_out_views=recipe.training_views)
        if recipe.views.kind == "whole":
            fixed = replace(fixed, held_out_views=max(1, len(files.train)))
        self.fixed = HeldOutViews(replace(files, held_out=files.train), fixed, size)
        self.held_out = HeldOutViews(files, recipe.views, size)
        self.evaluated = "held-out images" if self.meta_learning else "training images"

    @classmethod
    def open(cls, recipe: MnifImagesRecipe, options: DataOptions) -> ImageFiles:
        """The images."""
        return open_images(recipe.views, recipe.image_size, options)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    @property
    def instances(self) -> int:
        return len(self.fixed)

    def steps_per_epoch(self) -> int:
        return self.stream.steps_per_epoch() if self.meta_learning else super().steps_per_epoch()

    def batch(self, step: int, slots: range) -> MnifBatch:
        recipe = self.recipe
        if self.meta_learning:
            images = torch.stack([self.stream[step, slot] for slot in slots])
            return MnifBatch(torch.full((len(slots),), -1), (images,))
        order = instance_order(recipe.seed, step, self.instances, recipe.batch_size)
        indices = order[slots.start : slots.stop]
        images = torch.stack([self.fixed[int(index)] for index in indices])
        return MnifBatch(torch.from_numpy(indices), (images,))

    def place(self, device: torch.device) -> None:
        super().place(device)
        self.grid = grid(self.recipe.image_size, self.recipe.image_size, device=device)
        self.pixels = self.grid.tensor().reshape(-1, 2)

    def samples(self, data: tuple[torch.Tensor, ...], step: int) -> PointSamples:
        size, count = self.recipe.image_size, self.recipe.coordinates
        if count is None:
            return self._all_pixels(data[0])
        chosen = choose_coordinates(self.recipe.seed, step, size**2, count).to(self.device)
        values = data[0].flatten(2)[:, :, chosen].transpose(1, 2)
        return PointSamples(self.pixels[chosen], values.float() / 127.5 - 1)

    def _all_pixels(self, images: torch.Tensor) -> PointSamples:
        return PointSamples(self.grid, images.permute(0, 2, 3, 1).float() / 127.5 - 1)

    @cached_property
    def mean_image(self) -> torch.Tensor:
        """The mean of training views, ``(3, H, W)`` in [0, 1]."""
        count = min(_MEAN_OF, len(self.fixed))
        total = torch.zeros(3, self.recipe.image_size, self.recipe.image_size)
        for index in range(count):
            total += self.fixed[index].float() / 255
        return (total / count).to(self.device)

    def reconstruct(
        self,
        images: torch.Tensor,
        steps: int | None = None,
        fitting: FittingOptions | None = None,
    ) -> torch.Tensor:
        """Images as the latents that represent them give them back.

        Args:
            images: ``(B, 3, H, W)``, uint8, on the model's device.
            steps: (auto-decoding) gradient steps on a latent.
            fitting: test-time optimisation that goes on from there; None for none.

        Returns:
            The same shape, in [0, 1].
        """
        samples = self._all_pixels(images)
        latents = self.latents(samples, len(images), steps)
        return self._decoded(self.instances_of(latents, samples, fitting))

    def _decoded(self, instances: Fitted) -> torch.Tensor:
        values = instances.decode(self.grid).permute(0, 3, 1, 2)
        return (0.5 * values + 0.5).clamp(0, 1)

    def _trained(self, indices: list[int]) -> torch.Tensor:
        assert isinstance(self.model, AutoDecoder)
        return self._decoded(Fitted([Part(self.mnif, self.model.latents.weight[indices].detach())]))

    def _views(self, views: HeldOutViews, indices: list[int]) -> torch.Tensor:
        return torch.stack([views[index] for index in indices]).to(self.device)

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
            images = self._views(self.held_out if held_out else self.fixed, part)
            found = self.reconstruct(images, steps, fitting) if held_out else self._trained(part)
            total.update(found, images.float() / 255, self.mean_image, "images")
        return total

    def evaluate(self, rank: int, world: int) -> torch.Tensor:
        count = len(self.held_out)
        if not self.meta_learning:
            count = min(count, self.instances)
        mine = range(rank, count, world)
        return self._sum(mine, self.meta_learning, self.recipe.batch_size).sums

    def picture(self, step: int) -> Image.Image:
        held_out = self.meta_learning
        views = self.held_out if held_out else self.fixed
        indices = shown(len(views))
        images = self._views(views, indices)
        found = self.reconstruct(images) if held_out else self._trained(indices)
        titles = [self.evaluated, f"reconstructed after {step} steps"]
        return comparison([images.float() / 255, found], titles)

    def table(self, options: EvaluationOptions) -> Table:
        scores: list[FieldScores] = []
        if not self.meta_learning:
            count = min(self.instances, options.instances or self.instances)
            found = self._sum(range(count), False, options.batch_size)
            scores.append(found.scores("training images"))
        if options.all_images:
            files = replace(
                self.files, held_out=tuple(sorted((*self.files.train, *self.files.held_out)))
            )
            self.held_out = HeldOutViews(files, self.recipe.views, self.recipe.image_size)
        count = min(len(self.held_out), options.instances or len(self.held_out))
        what = "all images" if options.all_images else "held-out images"
        for fitting in options.fittings:
            found = self._sum(range(count), True, options.batch_size, options.fit_steps, fitting)
            scores.append(found.scores(evaluated_as(what, fitting)))
        if options.picture is not None:
            images = self._views(self.held_out, shown(count))
            rows, titles = [images.float() / 255], ["images"]
            for fitting in options.fittings:
                rows.append(self.reconstruct(images, options.fit_steps, fitting))
                titles.append(evaluated_as("reconstructed", fitting))
            save_png(comparison(rows, titles), options.picture)
        return field_table(scores)
