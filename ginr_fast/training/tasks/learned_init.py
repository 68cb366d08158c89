"""What the Learned Init tasks of images and scenes share: the outer loop's loss, and reports."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ginr_fast.ops.volume_render.random import Seed
from ginr_fast.systems.learned_init import LearnedInit
from ginr_fast.systems.samples import Samples
from ginr_fast.training.metrics import FieldScores, FieldSum
from ginr_fast.training.recipes import LearnedInitRecipe, as_plain
from ginr_fast.training.tasks.base import StepLoss, Task


class LearnedInitTask(Task):
    """A meta-learned initialisation.

    Args:
        recipe: how it is trained.
    """

    model: LearnedInit
    recipe: LearnedInitRecipe

    evaluated: str
    """What is scored, in words."""

    def __init__(self, recipe: LearnedInitRecipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def samples(self, batch: Any, step: int) -> list[Samples]:
        """What a batch is known by in each inner step, then in the outer loss if there is one."""

    def jitter(self, samples: Samples, step: int, slots: range) -> Seed | None:
        """The seed of a step's jitter along rays; None where there is none."""
        return None

    def build(self) -> nn.Module:
        self.model = LearnedInit(self.recipe.model)
        return self.model

    def loss(self, forward: Callable[..., Any], batch: Any, step: int, slots: range) -> StepLoss:
        samples = self.samples(batch, step)
        objective, errors = forward(samples, samples[-1], self.jitter(samples[0], step, slots))
        return StepLoss(objective.mean(), errors.mean())

    def scores(self, sums: torch.Tensor) -> FieldScores:
        total = FieldSum()
        total.sums = sums
        return total.scores(self.evaluated)

    def metadata(self) -> dict[str, Any]:
        return {"recipe": as_plain(self.recipe)}
