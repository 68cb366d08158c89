"""INRCT of images as a task: encoding and generation trained together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.data.icons import IconsConfig, icons
from ginr_fast.data.images import ImageFiles
from ginr_fast.data.views import HeldOutViews, TrainingViews
from ginr_fast.generation.consistency import losses, per_instance
from ginr_fast.generation.distances import frechet_distance
from ginr_fast.generation.features import SmallFeatures
from ginr_fast.generation.sampling import SamplingOptions, noise
from ginr_fast.pictures import save_png
from ginr_fast.systems.image_rendering import jitter_within
from ginr_fast.systems.inrct import Inrct
from ginr_fast.training.images import comparison
from ginr_fast.training.metrics import ImageScores, ScoreSum, score_views
from ginr_fast.training.recipes import as_plain
from ginr_fast.training.recipes.inrct import InrctRecipe
from ginr_fast.training.tasks.base import (
    DataOptions,
    EvaluationOptions,
    StepLoss,
    Table,
    step_loader,
)
from ginr_fast.training.tasks.consistency import ConsistencyTask
from ginr_fast.training.tasks.images import choose_coordinates, open_images, some_views

_NOISE_STREAM = 12
_JITTER_STREAM = 13
_STEPS = (1, 2)  # of the samples that are drawn at an evaluation
_SAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class InrctScores:
    """How held-out images are reconstructed and how samples compare with training images.

    Args:
        images: of the reconstructions at t = 0.
        distances: Fréchet distance of the small features, a number of steps each; may be empty.
        samples: how many they were computed from.
    """

    images: ImageScores
    distances: Mapping[int, float]
    samples: int

    @property
    def psnr(self) -> float:
        """The mean PSNR of the reconstructions in dB."""
        return self.images.psnr

    def summary(self) -> str:
        """One line for the user."""
        parts = [f"{value:.2f} in {steps}" for steps, value in self.distances.items()]
        if not parts:
            return self.images.summary()
        listed = ", ".join(parts)
        return f"{self.images.summary()}; distance of {self.samples} samples: {listed} step(s)"

    def values(self) -> dict[str, float]:
        """Numbers by name, for the log."""
        found = {f"distance_{steps}": value for steps, value in self.distances.items()}
        return {**self.images.values(), **found}


class InrctBatch(NamedTuple):
    """The instances of a step in its slots, with everything random about them but coordinates.

    Args:
        images: ``(B, 3, size, size)``, uint8.
        noise: z, the same shape, float32.
        t: levels, ``(B,)``.
        r: the levels before them, of those instances where they are above 0, ``(K,)``. Elsewhere
            the teacher would give the clean image: it need not be asked.
        rows: which instances these are, ``(K,)`` int64.
    """

    images: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    r: torch.Tensor
    rows: torch.Tensor


class InrctImagesTask(ConsistencyTask):
    """Consistency training of an INRCT on images.

    Args:
        recipe: how it is trained.
        files: the images.
    """

    own_data = "made pictures of coloured shapes"
    recipe: InrctRecipe
    model: Inrct

    def __init__(self, recipe: InrctRecipe, files: ImageFiles) -> None:
        self.recipe, self.files = recipe, files
        size = recipe.model.image_size
        self.views = TrainingViews(files, recipe.views, size, recipe.batch_size, recipe.seed)
        self.held_out = HeldOutViews(files, recipe.views, size)
        self.first_steps = recipe.first_steps(self.views.steps_per_epoch())
        self.features = SmallFeatures()
        self._real: torch.Tensor | None = None

    @classmethod
    def open(cls, recipe: InrctRecipe, options: DataOptions) -> ImageFiles:
        """The images: made ones if the recipe has such and no data is named."""
        size = recipe.model.image_size
        if options.data is None and recipe.made_images:
            return icons(IconsConfig(recipe.made_images, recipe.made_held_out), size)
        return open_images(recipe.views, size, options)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def steps_per_epoch(self) -> int:
        return self.views.steps_per_epoch()

    def place(self, device: torch.device) -> None:
        size = self.recipe.model.image_size
        self.device = device
        self.grid = grid(size, size, device=device)
        self.pixels = self.grid.tensor().reshape(-1, 2)
        self.features.to(device)

    def batches(
        self, first: int, last: int, slots: range, workers: int, pin_memory: bool
    ) -> Iterable[InrctBatch]:
        return step_loader(partial(self._batch, slots=slots), first, last, workers, pin_memory)

    def _batch(self, step: int, slots: range) -> InrctBatch:
        recipe, schedule = self.recipe, self.recipe.model.schedule
        images = torch.stack([self.views[step, slot] for slot in slots])
        numbers = [step * recipe.batch_size + slot for slot in slots]
        z = noise(images.shape[1:], numbers, recipe.seed, _NOISE_STREAM)
        t = schedule.draw(recipe.seed, step, slots, below=self.reconstructs(step))
        r = torch.zeros_like(t)
        if self.objective(step).generation:
            r = schedule.earlier(t, step - self.first_steps)
        rows = r.nonzero()[:, 0]
        return InrctBatch(images, z, t, r[rows], rows)

    def loss(
        self, forward: Callable[..., Any], batch: InrctBatch, step: int, slots: range
    ) -> StepLoss:
        images, z, t, r, rows = batch
        clean = images.float() / 127.5 - 1
        coords, chosen = self._coordinates(step)

        def there(images: torch.Tensor) -> torch.Tensor:
            values = images.flatten(2).transpose(1, 2)
            return values if chosen is None else values[:, chosen]

        noisy, earlier = clean + per_instance(t, clean) * z, None
        if len(rows):
            before = clean[rows] + per_instance(r, clean) * z[rows]
            earlier = (before, r, there(before))
        outputs = forward(noisy, t, coords, there(noisy), earlier)
        target = followed = there(clean)
        if earlier is not None:
            followed = target.index_copy(0, rows, outputs.followed.to(target))
        found = losses(
            self.objective(step),
            self.recipe.model.schedule,
            t,
            outputs.denoised,
            followed,
            outputs.signal,
            target,
        )
        shown = outputs.signal if self.reconstructs(step) else outputs.denoised
        error = (shown.float() - target).square().mean() / 4
        return StepLoss(found.total, error)

    def _coordinates(self, step: int) -> tuple[torch.Tensor | CoordinateGrid, torch.Tensor | None]:
        recipe, size = self.recipe, self.recipe.model.image_size
        count = recipe.coordinates or size**2
        chosen = None
        if count < size**2:
            chosen = choose_coordinates(recipe.seed, step, size**2, count).to(self.device)
        if chosen is None and not recipe.jitter:
            return self.grid, None
        coords = self.pixels if chosen is None else self.pixels[chosen]
        moves = jitter_within(count, recipe.jitter, (recipe.seed, step, _JITTER_STREAM))
        return coords + moves.to(self.device) * (2 / size), chosen

    def evaluate(self, rank: int, world: int) -> torch.Tensor:
        recipe = self.recipe
        mine = range(rank, len(self.held_out), world)
        scores = score_views(self.model, self.held_out, mine, recipe.batch_size, self.device)
        # Features of all samples, those of other processes left 0: their sum has all of them.
        width = self.features.num_features
        found = scores.sums.new_zeros(len(_STEPS), recipe.samples, width)
        for row, steps in enumerate(_STEPS):
            numbers = range(rank, recipe.samples, world)
            for first in range(0, len(numbers), _SAMPLES_AT_ONCE):
                part = numbers[first : first + _SAMPLES_AT_ONCE]
                described = self.features(self._samples(part, steps))
                found[row, list(part)] = described.to(found)
        return torch.cat([scores.sums, found.flatten()])

    def scores(self, sums: torch.Tensor) -> InrctScores:
        total = ScoreSum()
        total.sums = sums[:3]
        samples, distances = self.recipe.samples, {}
        if samples:
            found = sums[3:].view(len(_STEPS), samples, -1)
            real = self._real_features().to(found)
            distances = {
                steps: frechet_distance(found[row], real) for row, steps in enumerate(_STEPS)
            }
        return InrctScores(total.scores(), distances, samples)

    def _real_features(self) -> torch.Tensor:
        """Features of as many training images as samples are drawn, as they are trained on."""
        if self._real is None:
            batch, found = self.recipe.batch_size, []
            for first in range(0, self.recipe.samples, batch):
                slots = range(first, min(first + batch, self.recipe.samples))
                images = [self.views[divmod(slot, batch)] for slot in slots]
                found.append(self.features(torch.stack(images).to(self.device)))
            self._real = torch.cat(found).cpu()
        return self._real

    def _samples(self, numbers: Iterable[int], steps: int) -> torch.Tensor:
        drawn = self.model.draw(list(numbers), SamplingOptions(steps=steps))
        return self.model.render(drawn, self.grid)

    def picture(self, step: int) -> Image.Image:
        targets = some_views(self.held_out, len(self.held_out), self.device)
        rows = [targets, self.model.reconstruct(targets)]
        titles = ["held-out images", f"reconstructed after {step} steps"]
        for steps in _STEPS:
            rows.append(self._samples(range(len(targets)), steps))
            titles.append(f"samples of {steps} step(s)")
        return comparison(rows, titles)

    def metadata(self) -> dict[str, Any]:
        return {"recipe": as_plain(self.recipe)}

    def table(self, options: EvaluationOptions) -> Table:
        size, views = self.recipe.model.image_size, self.held_out
        indices = range(min(len(views), options.instances or len(views)))
        found = score_views(self.model, views, indices, options.batch_size, self.device).scores()
        if options.picture is not None:
            images = some_views(views, len(indices), self.device)
            titles = ["images", "reconstructed"]
            save_png(comparison([images, self.model.reconstruct(images)], titles), options.picture)
        row = (str(found.images), f"{size}x{size}", f"{found.psnr:.2f}", f"{found.ssim:.4f}")
        return Table(("images", "size", "PSNR (dB)", "SSIM"), [row])
