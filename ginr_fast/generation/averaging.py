"""Models that are the running average of a twin in training."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from torch import nn

Kind = TypeVar("Kind", bound="AveragedModel")
TWIN = "online"


class AveragedModel(nn.Module):
    """A model whose own weights are an average of those of its twin, ``online``, while it trains.

    What is evaluated, sampled from and exported is the average (the teacher θ⁻ of consistency
    training); gradients and the optimiser see the twin alone. Both are in ``state_dict``, the
    twin's names after ``online.``, so that a checkpoint resumes exactly. A model that was never put
    into training has no twin and ignores one in the weights it loads; one in training that loads
    weights without a twin is out of training.
    """

    online: AveragedModel | None

    def __init__(self) -> None:
        super().__init__()
        self.register_module(TWIN, None)
        self.register_load_state_dict_pre_hook(_match_twin)

    def begin_training(self) -> None:
        """Make the twin, equal to the model, and stop the model's own gradients.

        Raises:
            ValueError: the model is in training already.
        """
        if self.online is not None:
            raise ValueError("model: is in training already")
        twin = copy.deepcopy(self)
        self.requires_grad_(False)
        self.online = twin

    def twin(self: Kind) -> Kind:
        """What is trained.

        Raises:
            ValueError: the model is not in training.
        """
        if self.online is None:
            raise ValueError("model: expected one in training, see begin_training")
        return cast(Kind, self.online)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """own ← decay·own + (1 − decay)·twin; 0 copies the twin.

        Args:
            decay: μ, in [0, 1].

        Raises:
            ValueError: another decay, or a model that is not in training.
        """
        if not 0 <= decay <= 1:
            raise ValueError(f"decay: expected from 0 to 1, got {decay}")
        twin = dict(self.twin().named_parameters())
        own = {name: value for name, value in self.named_parameters() if name in twin}
        torch._foreach_lerp_(list(own.values()), [twin[name] for name in own], 1 - decay)

    def own_state(self) -> dict[str, torch.Tensor]:
        """``state_dict`` without the twin: what is exported."""
        return without_twins(self)


def without_twins(model: nn.Module) -> dict[str, torch.Tensor]:
    """``state_dict`` without the twins of averaged models in it, or of itself."""
    parts = model.named_modules()
    averaged = [name for name, part in parts if isinstance(part, AveragedModel)]
    twins = tuple(f"{name}.{TWIN}.".lstrip(".") for name in averaged)
    state = model.state_dict()
    return {name: state[name] for name in state if not name.startswith(twins)}


def _match_twin(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any, **__: Any) -> None:
    inner = f"{prefix}{TWIN}."
    names = [name for name in state if name.startswith(inner)]
    assert isinstance(module, AveragedModel)
    if module.online is not None and not names:
        # Out of training: gradients are wanted again of what the twin has them of.
        wanted = {name: value.requires_grad for name, value in module.online.named_parameters()}
        module.online = None
        for name, value in module.named_parameters():
            value.requires_grad_(wanted[name])
    if module.online is None:
        for name in names:
            del state[name]


def average_decay(step: int, highest: float) -> float:
    """μ of a step: min(highest, (1 + step) / (10 + step)), so that the start is soon forgotten.

    Args:
        step: from 0, counted from where averaging begins.
        highest: μ after the first steps.
    """
    return min(highest, (1 + step) / (10 + step))
