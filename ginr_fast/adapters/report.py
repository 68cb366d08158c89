"""What :func:`ginr_fast.accelerate` did to a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Replaced(NamedTuple):
    """A module that was recognised and runs on ginr_fast now."""

    path: str
    """Its name in the model, "" for the model itself."""
    kind: str
    """The name of its class."""
    runs_on: str
    """What it runs on."""


class Left(NamedTuple):
    """A module whose class is known, and which was left alone."""

    path: str
    kind: str
    why: str


class Difference(NamedTuple):
    """How far the fast form of a module is from its own code, on random inputs.

    Both numbers are ‖fast − own‖ / ‖own‖, over all outputs and over the gradients of all inputs and
    parameters.
    """

    path: str
    method: str
    values: float
    gradients: float


@dataclass
class Report:
    """What was replaced in a model, what was left alone and why; ``print`` it.

    Args:
        replaced: modules that run on ginr_fast now.
        left: modules of a known class that do not, with the reason. Modules of other classes are
            not listed.
        verified: with ``verify=True``, how far each replaced module is from its own code.
    """

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    verified: list[Difference] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"replaced: {_place(path)} ({kind}): {runs_on}" for path, kind, runs_on in self.replaced
        ]
        lines += [f"left alone: {_place(path)} ({kind}): {why}" for path, kind, why in self.left]
        lines += [
            f"verified: {_place(path)}.{method}: values differ by {values:.1e}, "
            f"gradients by {gradients:.1e}"
            for path, method, values, gradients in self.verified
        ]
        return "\n".join(lines) or "nothing in the model was recognised"


def _place(path: str) -> str:
    return path or "the model"
