"""The seam between the training loop and the systems it trains.

The loop (:mod:`ginr_fast.training.loop`) knows steps, devices, checkpoints and reports. A task
knows one system: its data, its model, what a step minimises and how the result is scored. To train
another system, write a recipe and a task and name them in :mod:`ginr_fast.training.tasks`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ginr_fast.systems.fitting import FittingOptions, FittingTarget


@dataclass(frozen=True)
class DataOptions:
    """Which data a run is for.

    Args:
        data: a folder or file; without it, what the recipe ships or makes.
        held_out: fraction of the folder's images to hold out, unless it has train and val
            subfolders.
        strict: refuse broken and non-image files instead of skipping them with a warning.
    """

    data: Path | None = None
    held_out: float = 0.1
    strict: bool = False


TTO_COLUMN = "test-time optimisation"
"""Of a table with rows without and with it."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How a trained model is evaluated.

    Args:
        all_images: evaluate on every image of the folder, not only on the held-out ones.
        batch_size: instances at a time.
        fit_steps: gradient steps that fit a latent to a held-out instance, where the system needs
            them; the recipe's number if None.
        fit_views: views of a held-out scene its latent is fitted to; the others are scored.
        support_views: (view synthesis) score every number of support views from 1 to this one; the
            recipe's number alone if None.
        instances: evaluate at most this many instances of a kind.
        picture: write reconstructions beside their targets to this PNG.
        tto: steps of test-time optimisation, whose scores are then printed too; none if None.
        tto_target: what these steps are taken on: the tokens (or latent) of an instance, the packed
            weights of its field, or a decoder of its own.
        tto_rate: their learning rate; one that suits the target if None.
        tto_points: pixels, points, samples or rays that each of them sees; if None all of an image,
            a shape or a clip, 1,024 rays of support views, and of an mNIF's scene as many rays as
            in training.
    """

    all_images: bool = False
    batch_size: int = 16
    fit_steps: int | None = None
    fit_views: int = 8
    support_views: int | None = None
    instances: int | None = None
    picture: Path | None = None
    tto: int | None = None
    tto_target: FittingTarget = "tokens"
    tto_rate: float | None = None
    tto_points: int | None = None

    def __post_init__(self) -> None:
        counts = ("batch_size", "fit_views", "fit_steps", "support_views", "instances")
        for name in (*counts, "tto", "tto_points"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value}")
        if self.tto_rate is not None and not 0 < self.tto_rate < math.inf:
            raise ValueError(f"tto_rate: expected above 0, got {self.tto_rate}")

    @property
    def fittings(self) -> list[FittingOptions | None]:
        """Without test-time optimisation, and with it if it is asked for."""
        if self.tto is None:
            return [None]
        return [None, FittingOptions(self.tto, self.tto_target, self.tto_rate, self.tto_points)]

    def noted(self, fitting: FittingOptions | None) -> tuple[str, ...]:
        """What a row of a table says of test-time optimisation: nothing if none is asked for."""
        if self.tto is None:
            return ()
        return ("none" if fitting is None else fitting.described,)


class Scores(Protocol):
    """What an evaluation found."""

    @property
    def psnr(self) -> float:
        """The mean PSNR in dB."""
        ...

    def summary(self) -> str:
        """One line for the user."""
        ...

    def values(self) -> dict[str, float]:
        """Numbers by name, for the log."""
        ...


class StepLoss(NamedTuple):
    """What one step gives.

    Args:
        total: scalar, what is minimised.
        error: scalar, the mean squared error of the reconstructions, of values in [0, 1].
    """

    total: torch.Tensor
    error: torch.Tensor


class Table(NamedTuple):
    """What ``ginr-fast eval`` prints: names of columns, and rows of text."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


class Task(ABC):
    """One system with its data.

    Args:
        recipe: how it is trained.
        data: what :meth:`open` gave.

    Attributes:
        model: what is trained, after :meth:`build`; its ``state_dict`` is what checkpoints hold.
        device: where the model is, after :meth:`place`.
    """

    unit: ClassVar[str] = "images"
    """What a batch consists of, for the throughput."""

    own_data: ClassVar[str] = "photographs of scikit-image"
    """What :meth:`open` gives if no data is named."""

    tto_targets: ClassVar[tuple[FittingTarget, ...]] = ()
    """What test-time optimisation can be of, for :attr:`EvaluationOptions.tto_target`."""

    recipe: Any
    model: nn.Module
    device: torch.device = torch.device("cpu")

    @classmethod
    @abstractmethod
    def open(cls, recipe: Any, options: DataOptions) -> Any:
        """The data a recipe is for."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of the data: a run refuses to go on with other data."""

    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Steps in which every training instance is seen about once; at least one."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the model, from the global random state, and keep it as ``model``."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser; a group's ``lr_scale`` multiplies the recipe's rate."""
        return [{"params": list(self.model.parameters())}]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """What takes the steps: Adam with the recipe's rate and betas.

        Args:
            groups: of :meth:`parameter_groups`.
        """
        # The fused update is one pass over the weights on every device.
        recipe = self.recipe
        return torch.optim.Adam(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)

    def after_step(self, step: int) -> None:  # noqa: B027  # most tasks have nothing to do
        """Called after each step of the optimiser, before the step is counted: for averages of
        weights, which must be part of the model's state.

        Args:
            step: from 0.
        """

    def exported(self) -> Mapping[str, torch.Tensor]:
        """The weights that are exported at the end, on the CPU or not: all of the model's."""
        return self.model.state_dict()

    def place(self, device: torch.device) -> None:
        """Called when the model has been moved to a device."""
        self.device = device

    @abstractmethod
    def batches(
        self, first: int, last: int, slots: range, workers: int, pin_memory: bool
    ) -> Iterable[Any]:
        """The batches of the steps ``first … last − 1``: the ``slots`` of this process only.

        A batch must be a pure function of (recipe.seed, step, slots).
        """

    @abstractmethod
    def loss(self, forward: Callable[..., Any], batch: Any, step: int, slots: range) -> StepLoss:
        """What a step minimises, a mean over the batch.

        Args:
            forward: the model, wrapped for the devices; called once.
            batch: of :meth:`batches`, on the device.
            step: from 0.
            slots: those of this process.
        """

    @abstractmethod
    def evaluate(self, rank: int, world: int) -> torch.Tensor:
        """Sums over this process's share of what is evaluated during training."""

    @abstractmethod
    def scores(self, sums: torch.Tensor) -> Scores:
        """The scores that belong to the sums of all processes."""

    @abstractmethod
    def picture(self, step: int) -> Image.Image:
        """Reconstructions beside their targets."""

    @abstractmethod
    def metadata(self) -> Mapping[str, Any]:
        """What exported weights need beside them to be loaded again."""

    @abstractmethod
    def table(self, options: EvaluationOptions) -> Table:
        """A full evaluation of the trained model."""


class StepData(Dataset[Any]):
    """Batches indexed by step.

    Args:
        make: the batch of a step.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Any:
        return self.make(step)


class _Range(Sampler[int]):
    def __init__(self, first: int, last: int) -> None:
        self.steps = range(first, last)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Any:
        return iter(self.steps)


def step_loader(
    make: Callable[[int], Any], first: int, last: int, workers: int, pin_memory: bool
) -> DataLoader[Any]:
    """Batches of the steps ``first … last − 1``, prepared ahead by ``workers`` processes."""
    return DataLoader(
        StepData(make),
        batch_size=None,
        sampler=_Range(first, last),
        num_workers=workers,
        pin_memory=pin_memory,
    )
