"""What every recipe has, and recipes as plain values."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ginr_fast.ops.checks import check_count

Precision = Literal["32-true", "bf16-mixed"]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Recipe:
    """How a system is trained: what the loop itself needs to know.

    Args:
        epochs: passes over the training instances.
        steps: optimiser steps; takes precedence over the epochs.
        batch_size: instances a step, over all devices.
        learning_rate: of Adam, at its highest.
        betas: of Adam.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        schedule: the learning rate afterwards: constant, along a cosine down to 0, or a tenth
            after four fifths of the steps.
        gradient_clip: the gradient's norm is cut to this; None leaves it.
        precision: 32-true, or bf16-mixed (autocast to bfloat16; weights stay float32).
        seed: of the initial weights and of everything drawn at random.

    Raises:
        ValueError: a value out of range, or neither ``epochs`` nor ``steps``.
    """

    system: ClassVar[str]

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 16
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "step"] = "constant"
    gradient_clip: float | None = None
    precision: Precision = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            raise ValueError("steps, epochs: expected one of the two")
        for name in ("epochs", "steps", "batch_size"):
            check_count(name, getattr(self, name), optional=name != "batch_size")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected above 0, got {self.learning_rate}")
        if self.warmup_steps < 0 or self.seed < 0:
            raise ValueError("warmup_steps, seed: expected non-negative integers")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip: expected above 0, got {self.gradient_clip}")
        if self.schedule not in ("constant", "cosine", "step"):
            raise ValueError(
                f"schedule: expected 'constant', 'cosine' or 'step', got {self.schedule!r}"
            )
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(
                f"precision: expected '32-true' or 'bf16-mixed', got {self.precision!r}"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch

    def learning_rate_at(self, step: int, total: int) -> float:
        """The learning rate of one step, ``0 ≤ step < total``."""
        rate = self.learning_rate
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / total))
        if self.schedule == "step" and step >= 0.8 * total:
            rate *= 0.1
        return rate * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else rate


def differences(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two nested mappings of plain values differ: ``"name: left against right"`` each."""
    found = []
    for key in sorted(left.keys() | right.keys()):
        mine, other = left.get(key), right.get(key)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            found += differences(mine, other, f"{prefix}{key}.")
        elif mine != other:
            found.append(f"{prefix}{key}: {mine} against {other}")
    return found


def as_plain(value: Any) -> dict[str, Any]:
    """A dataclass as nested dicts of JSON values."""
    plain = dataclasses.asdict(value)

    def listed(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: listed(part) for key, part in item.items()}
        return [listed(part) for part in item] if isinstance(item, (list, tuple)) else item

    return listed(plain)


def from_plain(kind: type[Kind], plain: Mapping[str, Any]) -> Kind:
    """The dataclass that :func:`as_plain` wrote; what is absent takes its default.

    Raises:
        TypeError, ValueError: names or values that ``kind`` does not have.
    """
    hints = get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    unknown = plain.keys() - known
    if unknown:
        raise TypeError(f"{kind.__name__}: no {', '.join(sorted(unknown))}")
    return kind(**{name: _restored(hints[name], value) for name, value in plain.items()})


def _restored(hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        nested = [kind for kind in get_args(hint) if dataclasses.is_dataclass(kind)]
        hint = nested[0] if nested else hint
    if isinstance(value, Mapping) and dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value)
    return tuple(value) if isinstance(value, list) else value
