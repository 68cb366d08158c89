"""What the mNIF tasks of images, voxels and scenes share: latents, losses, reports."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from ginr_fast.ops.volume_render.random import RaySeed, Seed
from ginr_fast.systems.fit_instances import fit_fields
from ginr_fast.systems.fitted import Fitted, Part
from ginr_fast.systems.fitting import FittingOptions, FittingTarget
from ginr_fast.systems.mnif import Mnif
from ginr_fast.systems.mnif_adaptation import AutoDecoder, Cavia, Samples, fit_latents
from ginr_fast.training.metrics import FieldScores, FieldSum
from ginr_fast.training.recipes import MnifRecipe, as_plain
from ginr_fast.training.tasks.base import StepLoss, Table, Task, step_loader

_LATENT_STREAM = 4
_JITTER_STREAM = 5


class MnifBatch(NamedTuple):
    """Training instances of one step.

    Args:
        indices: ``(B,)``, int64, which instances.
        data: what the task's ``samples`` makes samples of.
    """

    indices: torch.Tensor
    data: tuple[torch.Tensor, ...]


class MnifTask(Task):
    """An mNIF trained by CAVIA or auto-decoding.

    Args:
        recipe: how it is trained.
    """

    tto_targets: ClassVar[tuple[FittingTarget, ...]] = ("tokens", "weights", "decoder")
    model: Cavia | AutoDecoder
    recipe: MnifRecipe

    value_range: float = 2.0
    """The width of the values' range: what turns their squared error into one of [0, 1]."""

    evaluated: str
    """What is scored during training, in words."""

    def __init__(self, recipe: MnifRecipe) -> None:
        self.recipe = recipe

    @property
    @abstractmethod
    def instances(self) -> int:
        """The number of training instances that auto-decoding has latents for."""

    @abstractmethod
    def batch(self, step: int, slots: range) -> MnifBatch:
        """The instances of a step, a pure function of (recipe.seed, step, slots)."""

    @abstractmethod
    def samples(self, data: tuple[torch.Tensor, ...], step: int) -> Samples:
        """The samples of a batch, on its device."""

    @property
    def mnif(self) -> Mnif:
        """The model proper."""
        return self.model.model

    @property
    def meta_learning(self) -> bool:
        """Whether latents are found by CAVIA."""
        return self.recipe.adaptation == "cavia"

    def build(self) -> nn.Module:
        mnif = Mnif(self.recipe.model)
        if self.meta_learning:
            self.model = Cavia(mnif, self.recipe.cavia)
        else:
            self.model = AutoDecoder(mnif, self.instances, self.recipe.latent_std)
        return self.model

    def parameter_groups(self) -> list[dict[str, Any]]:
        recipe = self.recipe
        groups: list[dict[str, Any]] = [{"params": list(self.model.parameters())}]

        def apart(parameters: list[nn.Parameter], scale: float) -> None:
            if scale != 1:
                names = {id(parameter) for parameter in parameters}
                rest = [each for each in groups[0]["params"] if id(each) not in names]
                groups[0]["params"] = rest
                groups.append({"params": parameters, "lr_scale": scale})

        apart(list(self.mnif.bases)[-2:], recipe.output_learning_rate)
        if isinstance(self.model, AutoDecoder):
            apart([self.model.latents.weight], recipe.auto_decoding.learning_rate)
        return groups

    def steps_per_epoch(self) -> int:
        return max(1, self.instances // self.recipe.batch_size)

    def batches(
        self, first: int, last: int, slots: range, workers: int, pin_memory: bool
    ) -> Iterable[MnifBatch]:
        return step_loader(partial(self.batch, slots=slots), first, last, workers, pin_memory)

    def loss(
        self, forward: Callable[..., Any], batch: MnifBatch, step: int, slots: range
    ) -> StepLoss:
        samples = self.samples(batch.data, step)
        seed = self.jitter(samples, step, slots)
        if self.meta_learning:
            errors = forward(samples, self.initial(step, slots), seed)
            total = errors.mean()
        else:
            errors, penalty = forward(samples, batch.indices, seed)
            total = errors.mean() + self.recipe.auto_decoding.weight_decay * penalty.mean()
        return StepLoss(total, errors.detach().mean() / self.value_range**2)

    def jitter(self, samples: Samples, step: int, slots: range) -> Seed | None:
        """The seed of a step's jitter along rays; None where there is none."""
        return None

    def initial(self, step: int, slots: range) -> torch.Tensor:
        """Where the inner loop of a training step starts, ``(len(slots), context_dim)``."""
        rng = np.random.default_rng((self.recipe.seed, step, _LATENT_STREAM))
        shape = (self.recipe.batch_size, self.mnif.config.context_dim)
        noise = rng.standard_normal(shape, dtype=np.float32)[slots.start : slots.stop]
        latents = self.mnif.initial_latents(torch.from_numpy(noise), self.recipe.latent_std)
        return latents.to(self.device)

    def latents(
        self, samples: Samples | Callable[[int], Samples], count: int, steps: int | None = None
    ) -> torch.Tensor:
        """Latents of instances that training had none for.

        Args:
            samples: what they are known by; or what gives it for each gradient step, of which the
                inner loop sees the first.
            count: how many instances.
            steps: (auto-decoding) gradient steps; the recipe's number if None.

        Returns:
            ``(count, context_dim)``: by the inner loop from the mean latent, or by fitting, from
            the mean of the trained ones.
        """
        width = self.mnif.config.context_dim
        draw = samples if callable(samples) else lambda step: samples
        if isinstance(self.model, Cavia):
            zeros = torch.zeros(count, width, device=self.device)
            return self.model.adapt(draw(0), self.mnif.initial_latents(zeros, 0.0)).detach()
        settings = self.recipe.auto_decoding
        return fit_latents(
            self.mnif,
            draw,
            self.model.latents.weight.mean(0).expand(count, width),
            steps or settings.fit_steps,
            settings.fit_learning_rate,
            settings.weight_decay,
        )

    def instances_of(
        self,
        latents: torch.Tensor,
        samples: Samples | Callable[[int], Samples],
        fitting: FittingOptions | None,
    ) -> Fitted:
        """Instances ready to be decoded, after test-time optimisation if there shall be one.

        Args:
            latents: ``(B, context_dim)``.
            samples: what the instances are known by, see :meth:`latents`.
            fitting: how to go on from the latents; None leaves them.
        """
        if fitting is None:
            return Fitted([Part(self.mnif, latents)])
        return fit_fields(self.mnif, latents, samples, fitting)

    def scores(self, sums: torch.Tensor) -> FieldScores:
        total = FieldSum()
        total.sums = sums
        return total.scores(self.evaluated)

    def metadata(self) -> dict[str, Any]:
        return {"recipe": as_plain(self.recipe)}


def jitter_seed(seed: int, step: int, slots: range, origins: torch.Tensor) -> RaySeed:
    """What the jitter of one step is drawn from, for any share of its batch.

    A pure function of seed and step, with rays numbered through the batch that all processes share:
    ray n of slot s is s·N + n.

    Args:
        seed: the recipe's.
        step: which.
        slots: the share.
        origins: of its rays, ``(len(slots), ..., 3)``, N of each slot.
    """
    # With the 0 one process draws what it always has.
    state = np.random.SeedSequence((seed, step, 0, _JITTER_STREAM)).generate_state(1, np.uint32)
    numbers = torch.arange(slots.start, slots.stop, device=origins.device)
    return RaySeed(int(state[0]) >> 1, numbers * math.prod(origins.shape[1:-1]))


def parts(indices: range, size: int) -> list[list[int]]:
    """``indices`` in lists of ``size``."""
    return [list(indices[first : first + size]) for first in range(0, len(indices), size)]


def evaluated_as(what: str, fitting: FittingOptions | None) -> str:
    """What is scored, in words, after test-time optimisation if there was one."""
    return what if fitting is None else f"{what}, {fitting.described}"


def field_table(scores: Iterable[FieldScores]) -> Table:
    """Field scores as ``ginr-fast eval`` prints them."""
    scores = list(scores)
    extra = [
        name
        for name in ("ssim", "accuracy", "iou")
        if getattr(scores[0], name) == getattr(scores[0], name)
    ]
    titles = {"ssim": "SSIM", "accuracy": "accuracy", "iou": "IoU"}
    columns = (
        "what",
        "count",
        "PSNR (dB)",
        "MSE",
        *(titles[name] for name in extra),
        "PSNR of the training mean (dB)",
    )
    rows = [
        (
            found.what,
            str(found.count),
            f"{found.psnr:.2f}",
            f"{found.mse:.5f}",
            *(f"{getattr(found, name):.4f}" for name in extra),
            f"{found.baseline_psnr:.2f}",
        )
        for found in scores
    ]
    return Table(columns, rows)
