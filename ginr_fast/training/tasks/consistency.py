"""What tasks of consistency training have in common: the optimiser, the average, the stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ginr_fast.generation.averaging import AveragedModel, average_decay
from ginr_fast.generation.consistency import Objective
from ginr_fast.training.tasks.base import Task


class ConsistencyTask(Task):
    """A task whose recipe is a :class:`ginr_fast.training.recipes.ConsistencyRecipe`.

    Attributes:
        model: in training, with its twin.
        first_steps: steps of the first stage, which trains reconstructions alone.
    """

    model: AveragedModel
    first_steps: int

    def build(self) -> nn.Module:
        self.model = self.recipe.build()
        self.model.begin_training()
        return self.model

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.twin().parameters())}]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.RAdam(groups, lr=self.recipe.learning_rate, betas=self.recipe.betas)

    def after_step(self, step: int) -> None:
        """Average the weights; while only reconstructions are trained, copy them (B.3)."""
        since, highest = step - self.first_steps, self.recipe.averaging
        self.model.average(0.0 if self.reconstructs(step) else average_decay(since, highest))

    def exported(self) -> Mapping[str, torch.Tensor]:
        return self.model.own_state()

    def reconstructs(self, step: int) -> bool:
        """Whether a step trains reconstructions alone."""
        return step < self.first_steps or self.recipe.objective.reconstructs_only

    def objective(self, step: int) -> Objective:
        """What a step minimises."""
        objective: Objective = self.recipe.objective
        return objective.reconstruction_alone() if self.reconstructs(step) else objective
