"""Latent diffusion as a task: denoising what a stage-1 model's latents were corrupted to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from ginr_fast.coords import grid
from ginr_fast.data.order import instance_order, spread
from ginr_fast.generation.averaging import average_decay, without_twins
from ginr_fast.generation.diffusion import training_noise
from ginr_fast.generation.distances import FeatureStatistics, frechet_distance
from ginr_fast.generation.evaluation import describe
from ginr_fast.generation.features import SmallFeatures
from ginr_fast.generation.latents import Latents
from ginr_fast.generation.sampling import SamplingOptions, noise
from ginr_fast.pictures import save_png
from ginr_fast.systems.latent_diffusion import GaussianLatents, LatentDiffusion, notes_from_bytes
from ginr_fast.training.images import enlarged, sheet
from ginr_fast.training.losses import psnr_of
from ginr_fast.training.recipes import LatentDiffusionRecipe, as_plain, from_plain
from ginr_fast.training.recipes.latent_diffusion import MnifDiffusionRecipe, TokenDiffusionRecipe
from ginr_fast.training.stage_one import build_stage
from ginr_fast.training.tasks.base import (
    DataOptions,
    EvaluationOptions,
    StepLoss,
    Table,
    Task,
    step_loader,
)
from ginr_fast.training.tasks.mnif import parts

if TYPE_CHECKING:
    from ginr_fast.training.checkpoints import Saved

LATENT_DIFFUSION_SYSTEMS: Mapping[str, type[LatentDiffusionRecipe]] = {
    kind.system: kind for kind in (MnifDiffusionRecipe, TokenDiffusionRecipe)
}
_HELD_OUT_SEED = 20231
_LEVELS = 10
_LEVEL_STREAM = 0
_SHOWN = 8
_SHOWN_PIXELS = 96  # of shapes and scenes
_SAMPLES = 1000  # scored by `table`, unless another number is asked for
_REFERENCES = 10000  # training latents, at most, whose pictures samples are compared with


class DiffusionBatch(NamedTuple):
    """Latents of one step and what corrupts them.

    Args:
        clean: ``(B, ...)``, standardised.
        epsilon: the same shape, standard normal.
        times: ``(B,)``, int64.
        labels: ``(B,)``, int64; what the network is told, which may be the null class. Zeros where
            there are no classes.
    """

    clean: torch.Tensor
    epsilon: torch.Tensor
    times: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class DenoisingScores:
    """How well latents are denoised that training left out.

    Args:
        error: the mean squared error of x̂₀, standardised, over ten timesteps spread over all.
        gaussian: that of the best denoiser of independent Gaussian elements, √ᾱ_t x_t.
        count: of latents.
    """

    error: float
    gaussian: float
    count: int

    @property
    def psnr(self) -> float:
        """−10 log₁₀ of the error: of standardised latents, not of what they stand for."""
        return psnr_of(self.error)

    def summary(self) -> str:
        """One line for the user."""
        return (
            f"held-out denoising error: {self.error:.4f}, {self.error / self.gaussian:.3f} of a "
            f"Gaussian denoiser's ({self.count} latents)"
        )

    def values(self) -> dict[str, float]:
        """Numbers by name, for the log."""
        return {"error": self.error, "gaussian_error": self.gaussian}


class LatentDiffusionTask(Task):
    """A diffusion model of latents that ``ginr-fast export-latents`` wrote.

    Args:
        recipe: how it is trained.
        latents: the file.

    Raises:
        ValueError: latents of a system that the recipe is not for, or fewer than two.
    """

    unit = "latents"
    own_data = "exported latents"
    recipe: LatentDiffusionRecipe
    model: LatentDiffusion

    def __init__(self, recipe: LatentDiffusionRecipe, latents: Latents) -> None:
        self.recipe, self.latents = recipe, latents
        if recipe.stages and latents.about.system not in recipe.stages:
            raise ValueError(
                f"data: expected latents of {' or '.join(recipe.stages)}, "
                f"{latents.path} holds those of {latents.about.system}"
            )
        if len(latents) < 2:
            raise ValueError(f"data: expected at least 2 latents, {latents.path} holds one")
        self.labels = latents.labels if recipe.conditional else None
        self.classes = latents.classes if recipe.conditional else 0
        order = np.random.default_rng(_HELD_OUT_SEED).permutation(len(latents))
        count = max(1, min(recipe.validation, len(latents) // 20))
        self.held_out, self.train = np.sort(order[:count]), np.sort(order[count:])

    @classmethod
    def open(cls, recipe: LatentDiffusionRecipe, options: DataOptions) -> Latents:
        """The file of latents.

        Raises:
            ValueError: none is named; the message says how to write one.
            FileNotFoundError, LatentsError: see :class:`~ginr_fast.generation.latents.Latents`.
        """
        if options.data is None:
            raise ValueError(
                "data: this recipe trains on exported latents; write them with ginr-fast "
                "export-latents CHECKPOINT --out latents.safetensors and name that with --data"
            )
        return Latents(options.data)

    def fingerprint(self) -> str:
        return self.latents.fingerprint()

    def steps_per_epoch(self) -> int:
        return max(1, len(self.train) // self.recipe.batch_size)

    def build(self) -> nn.Module:
        latents, about = self.latents, self.latents.about
        stage = build_stage(about.system, about.recipe, latents.stage)
        recipe: Any = self.recipe
        denoiser = recipe.denoiser.build(latents.shape, self.classes)
        denoiser.begin_training()
        self.model = LatentDiffusion(
            stage, denoiser, latents.mean, latents.std, recipe.diffusion, as_plain(about)
        )
        return self.model

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.denoiser.twin().parameters())}]

    def after_step(self, step: int) -> None:
        self.model.denoiser.average(average_decay(step, self.recipe.ema_decay))

    def exported(self) -> Mapping[str, torch.Tensor]:
        return without_twins(self.model)

    def batch(self, step: int, slots: range) -> DiffusionBatch:
        """The batch of some slots of a step, on the CPU."""
        recipe, latents = self.recipe, self.latents
        order = instance_order(recipe.seed, step, len(self.train), recipe.batch_size)
        rows = self.train[order[slots.start : slots.stop]]
        times, epsilon, dropped = training_noise(
            recipe.seed,
            step,
            slots,
            latents.shape,
            recipe.diffusion.timesteps,
            recipe.class_dropout,
        )
        labels = torch.zeros(len(slots), dtype=torch.int64)
        if self.labels is not None:
            labels = torch.where(dropped, self.classes, self.labels[rows])
        return DiffusionBatch(latents.standardised(rows), epsilon, times, labels)

    def batches(
        self, first: int, last: int, slots: range, workers: int, pin_memory: bool
    ) -> Iterable[DiffusionBatch]:
        return step_loader(partial(self.batch, slots=slots), first, last, workers, pin_memory)

    def loss(
        self, forward: Callable[..., Any], batch: DiffusionBatch, step: int, slots: range
    ) -> StepLoss:
        clean, epsilon, times, labels = batch
        noisy = self.recipe.diffusion.corrupt(clean, times, epsilon)
        found = forward(noisy, times, labels if self.classes else None)
        loss = (found.float() - clean).square().mean()
        return StepLoss(loss, loss)

    @torch.no_grad()
    def evaluate(self, rank: int, world: int) -> torch.Tensor:
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        mine = self.held_out[rank::world]
        for first in range(0, len(mine), self.recipe.batch_size):
            part = mine[first : first + self.recipe.batch_size]
            clean = self.latents.standardised(part).to(self.device)
            labels = None
            if self.labels is not None:
                labels = self.labels[part].to(self.device)
            for level in range(_LEVELS):
                error, gaussian = self._errors(clean, labels, part.tolist(), level)
                sums[0] += error / _LEVELS
                sums[1] += gaussian / _LEVELS
            sums[2] += len(part)
        return sums

    def _errors(
        self, clean: torch.Tensor, labels: torch.Tensor | None, numbers: list[int], level: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed errors of the average and of a Gaussian denoiser, at one level of noise."""
        diffusion = self.recipe.diffusion
        time = (2 * level + 1) * diffusion.timesteps // (2 * _LEVELS)
        times = torch.full((len(clean),), time, dtype=torch.int64, device=self.device)
        stream = _LEVEL_STREAM + level
        epsilon = noise(clean.shape[1:], numbers, 0, stream, self.device)
        noisy = diffusion.corrupt(clean, times, epsilon)
        found = self.model.denoiser(noisy, times, labels).float()
        best = noisy * diffusion.alphas()[time].sqrt().item()
        mine, gaussian = (
            (guess - clean).square().flatten(1).mean(1).double().sum() for guess in (found, best)
        )
        return mine, gaussian

    def scores(self, sums: torch.Tensor) -> DenoisingScores:
        error, gaussian, count = sums.tolist()
        return DenoisingScores(error / count, gaussian / count, int(count))

    def picture(self, step: int) -> Image.Image:
        drawn = self.model.draw(range(_SHOWN))
        gaussian = GaussianLatents(self.model).draw(range(_SHOWN))
        chosen = self.held_out[spread(len(self.held_out), _SHOWN)]
        known = self.latents.rows(chosen).to(self.device)
        titles = [f"samples after {step} steps", "from a Gaussian", "held-out latents"]
        side = max(_SHOWN_PIXELS, self.model.image_size or 0)
        rows = [
            [enlarged(picture, side, side) for picture in self._pictures(latents)]
            for latents in (drawn, gaussian, known)
        ]
        return sheet(rows, titles)

    def _pictures(self, latents: torch.Tensor) -> list[np.ndarray]:
        """What latents stand for, ``(size, size, 3)`` uint8 each."""
        # What draws pictures of every system knows the tasks.
        from ginr_fast.analysis.decoded import pictures_of
        from ginr_fast.analysis.pictures import CameraOptions

        size = self.model.image_size or _SHOWN_PIXELS
        return list(pictures_of(self.model, latents, size, CameraOptions()))

    def metadata(self) -> Mapping[str, Any]:
        return {"recipe": as_plain(self.recipe)}

    def table(self, options: EvaluationOptions) -> Table:
        """Samples, and those of Gaussians, against what training latents decode to."""
        count = min(options.instances or _SAMPLES, len(self.train))
        settings = SamplingOptions()
        rivals: list[tuple[str, LatentDiffusion | GaussianLatents]] = [
            (f"diffusion ({self.recipe.diffusion.sampler})", self.model),
            ("a Gaussian with independent elements", GaussianLatents(self.model)),
        ]
        full = GaussianLatents.fitted(self.model, self.latents, self.train)
        if full.factor is not None:
            rivals.append(("a Gaussian with their covariance", full))
        references = self.train[spread(len(self.train), _REFERENCES)]
        real = self._features(self._known(references, options.batch_size))
        rows = []
        for name, rival in rivals:
            drawn = (rival.draw(part, settings) for part in parts(range(count), options.batch_size))
            evaluations = str(rival.evaluations(settings))
            rows.append((name, count, evaluations, frechet_distance(self._features(drawn), real)))
        held_out = self._features(self._known(self.held_out, options.batch_size))
        rows.append(("held-out latents", held_out.count, "", frechet_distance(held_out, real)))
        if options.picture is not None:
            save_png(self.picture(self.recipe.steps or 0), options.picture)
        columns = ("latents from", "count", "network evaluations", "distance (small-1)")
        return Table(
            columns,
            [(name, str(n), evaluations, f"{far:.4f}") for name, n, evaluations, far in rows],
        )

    def _known(self, numbers: np.ndarray, size: int) -> Iterator[torch.Tensor]:
        for part in parts(range(len(numbers)), size):
            yield self.latents.rows(numbers[part]).to(self.device)

    def _features(self, latents: Iterable[torch.Tensor]) -> FeatureStatistics:
        """Of the pictures that latents decode to."""
        network = SmallFeatures().to(self.device)
        return describe(map(self._decoded, latents), network, classes=False).statistics

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """What latents stand for, ``(B, 3, H, W)``."""
        if self.model.modality == "image":
            size = self.model.image_size or _SHOWN_PIXELS
            return self.model.render(latents, grid(size, size, device=self.device))
        pictures = torch.from_numpy(np.stack(self._pictures(latents))).to(self.device)
        return pictures.permute(0, 3, 1, 2)


def load_latent_diffusion(saved: Saved) -> LatentDiffusion:
    """A trained model by itself: it holds its decoder and statistics, and needs no data.

    Args:
        saved: what its file holds.

    Returns:
        In evaluation mode, on the CPU; samples come from the average of the weights.

    Raises:
        CheckpointError: of another system, without the statistics of its latents, or damaged.
    """
    if saved.system not in LATENT_DIFFUSION_SYSTEMS:
        known = ", ".join(LATENT_DIFFUSION_SYSTEMS)
        raise saved.misfit(ValueError(f"expected one of {known}, got {saved.system}"))
    for name in ("mean", "std", "about"):
        if name not in saved.weights:
            raise saved.misfit(
                ValueError(f"holds no {name}: the statistics of its latents are missing")
            )
    kind: Any = LATENT_DIFFUSION_SYSTEMS[saved.system]
    mean, std, about = (saved.weights[name] for name in ("mean", "std", "about"))
    try:
        recipe: Any = from_plain(kind, {"steps": 1, **saved.recipe})
        plain = notes_from_bytes(about)
        stage = build_stage(plain["system"], plain["recipe"], None)
        classes = len(plain["classes"]) if recipe.conditional else 0
        denoiser = recipe.denoiser.build(tuple(mean.shape), classes)
        model = LatentDiffusion(stage, denoiser, mean, std, recipe.diffusion, plain)
    except (TypeError, ValueError, KeyError) as error:
        raise saved.misfit(error) from None
    saved.restore(model)
    return model.eval()
