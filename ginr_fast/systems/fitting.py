"""Test-time optimisation: gradient steps on what represents one instance, or on its own decoder.

A trained model's answer is where the steps start; what is known of the instance (its pixels, the
rays of its support views) is what they are taken on. The model itself is never touched: the steps
work on a view of it that shares its parameters and asks gradients of none but those to be fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ginr_fast.systems.fitted import Fitted, Part, packed_view, view_of
from ginr_fast.systems.samples import PointSamples, RaySamples, Samples, instance_errors

FittingTarget = Literal["tokens", "weights", "decoder"]

# Best after 100 steps on small models of photographs, or near it.
DEFAULT_RATES: dict[str, float] = {"tokens": 3e-2, "weights": 1e-3, "decoder": 5e-4}


@dataclass(frozen=True)
class FittingOptions:
    """How instances are fitted.

    Args:
        steps: of Adam.
        target: tokens: what represents an instance, with the decoder as it is; weights: the packed
            weights of its field, for systems that have such; decoder: all parameters of the
            decoder, each instance having a copy of its own, with the tokens as they are.
        learning_rate: of Adam; None takes the target's: 3e-2 for tokens, 1e-3 for weights and 5e-4
            for a decoder; of views 3e-3, 1e-4 and 1e-4.
        points: pixels, samples or rays a step, drawn anew in each; all of an image or a clip, and
            1,024 rays of views, if None.
        seed: of these draws.

    Raises:
        TypeError, ValueError: a value of the wrong kind or out of range, by name.
    """

    steps: int = 100
    target: FittingTarget = "tokens"
    learning_rate: float | None = None
    points: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target not in get_args(FittingTarget):
            names = ", ".join(get_args(FittingTarget))
            raise ValueError(f"target: expected one of {names}, got {self.target!r}")
        for name, least in (("steps", 1), ("points", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name == "points":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected above 0, got {self.learning_rate}")

    @property
    def described(self) -> str:
        """In words."""
        return f"{self.steps} steps on {self.target}"

    @property
    def rate(self) -> float:
        """The learning rate, that of the target if none is given."""
        return self.learning_rate or DEFAULT_RATES[self.target]


OnStep = Callable[[int, Fitted], bool | None]
"""Called after each step with the number of steps done and the instances as they are then (with a
decoder for each, one instance at a time). True ends the fit there (of that instance)."""

Errors = Callable[[Any, Tensor, Samples], Tensor]


def fit(
    model: Any,
    instances: Tensor,
    draw: Callable[[int], Samples],
    options: FittingOptions,
    on_step: OnStep | None = None,
    decoder: Sequence[str] = ("decoder",),
    errors: Errors = instance_errors,
) -> Fitted:
    """Fit instances to what is known of them: Adam on Σ_i L_i, the sum of mean squared errors.

    The sum keeps instances apart: what one ends with does not depend on what else is in the batch
    (up to rounding). Only the gradients of what is fitted are computed.

    Args:
        model: decodes instances at points or along rays, see
            :func:`ginr_fast.systems.samples.predict`.
        instances: ``(B, ...)``, where the steps start: what the model's encoder gives.
        draw: what all B instances are known by, for each step; a pure function of the step.
        options: how.
        on_step: sees every step.
        decoder: the model's children whose parameters make up its decoder.
        errors: of a model, instances and samples: the error of each instance, ``(b,)``.

    Returns:
        The fitted instances; the model is as it was.

    Raises:
        ValueError: a target that the model does not have.
    """
    if options.target == "decoder" and len(instances):
        parts: list[Part] = []
        for index in range(len(instances)):
            part = Part(view_of(model, decoder), instances[index : index + 1].detach())
            variables = [each for each in part.model.parameters() if each.requires_grad]
            _run(part, variables, _only(draw, index), errors, options, on_step)
            part.model.requires_grad_(False)
            parts.append(part)
        return Fitted(parts)
    packed = options.target == "weights"
    start = packed_view(model, instances) if packed else Part(view_of(model), instances)
    leaf = start.instances.detach().clone().requires_grad_()
    _run(Part(start.model, leaf), [leaf], draw, errors, options, on_step)
    return Fitted([Part(start.model, leaf.detach())])


def _run(
    part: Part,
    variables: Sequence[Tensor],
    draw: Callable[[int], Samples],
    errors: Errors,
    options: FittingOptions,
    on_step: OnStep | None,
) -> None:
    def of_step(step: int) -> Tensor:
        return errors(part.model, part.instances, draw(step))

    def after(step: int) -> bool:
        if on_step is None:
            return False
        with torch.no_grad():
            return bool(on_step(step, Fitted([Part(part.model, part.instances.detach())])))

    minimise(variables, of_step, options.steps, options.rate, after)


def minimise(
    variables: Iterable[Tensor],
    errors: Callable[[int], Tensor],
    steps: int,
    learning_rate: float,
    on_step: Callable[[int], bool] | None = None,
) -> None:
    """Adam on the sum of several instances' errors, in place.

    Args:
        variables: leaves that ask for a gradient.
        errors: of the number of a step, from 0: the error of each instance, ``(B,)``.
        steps: how many.
        learning_rate: of Adam.
        on_step: called after each step with the number of steps done; True ends it there.
    """
    # The fused update is one pass over the variables on every device.
    optimizer = torch.optim.Adam(variables, lr=learning_rate, fused=True)
    for step in range(steps):
        with torch.enable_grad():
            loss = errors(step).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if on_step is not None and on_step(step + 1):
            return


def _only(draw: Callable[[int], Samples], index: int) -> Callable[[int], Samples]:
    """The samples of one instance."""

    def of(tensor: Any, batched: bool) -> Any:
        return tensor[index : index + 1] if batched else tensor

    def one(step: int) -> Samples:
        samples = draw(step)
        if isinstance(samples, RaySamples):
            return RaySamples(*(of(each, True) for each in samples))
        coords, values = samples
        own = isinstance(coords, Tensor) and coords.ndim > 2 and len(coords) == len(values)
        return PointSamples(of(coords, own), of(values, True))

    return one
