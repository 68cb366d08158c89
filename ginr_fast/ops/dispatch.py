"""How a backend is chosen for one call of an operator, and how the choice is explained.

An operator names its backends in order of preference and says of each whether it can serve the
call at hand: ``{"native": "needs float32", "blocked": None, "reference": None}`` maps a backend to
``None`` (it can) or to the reason why it cannot. :func:`choose` picks from that; nothing else in
the library decides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import forward_ad

BACKENDS = ("reference", "blocked", "native", "triton")
ENVIRONMENT_VARIABLE = "GINR_FAST_BACKEND"


class BackendError(RuntimeError):
    """A backend was forced that cannot serve the call."""


@dataclass(frozen=True)
class Plan:
    """What one operator call does: backend, foldings and cost.

    ``flops`` counts two for every multiply-add of the call as executed, ``naive_flops`` the same
    for the formula as published. ``refused`` maps the backends not available to the reason.
    """

    operator: str
    backend: str
    foldings: tuple[str, ...]
    flops: int
    naive_flops: int
    refused: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.operator}: backend {self.backend}"]
        lines += [f"  folding: {folding}" for folding in self.foldings] or ["  folding: none"]
        saving = self.naive_flops / self.flops if self.flops else 1.0
        lines.append(
            f"  FLOPs: {self.flops:.4g} against {self.naive_flops:.4g} of the naive formula "
            f"({saving:.2f}x fewer)"
        )
        lines += [f"  not {name}: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)


@dataclass
class Explanation:
    """The plans of every operator call that ran, in order; ``print`` it."""

    plans: list[Plan]

    def __str__(self) -> str:
        return "\n".join(str(plan) for plan in self.plans) or "no ginr_fast operator was called"


# Process-wide on purpose: plain module state is what torch.compile can guard on.
_forced: str | None = None
_recorder: list[Plan] | None = None


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force the backend of every operator called inside the ``with`` block.

    Args:
        name: ``"reference"``, ``"blocked"``, ``"native"`` or ``"triton"``.

    Raises:
        ValueError: ``name`` is no backend.
        BackendError: (at the operator call) the forced backend cannot serve it. There is no
            silent fallback.

    The setting is process-wide, takes precedence over ``GINR_FAST_BACKEND``, and holds for the
    backward of a call made inside the block, wherever that backward runs.

    Example:
        >>> import torch, ginr_fast
        >>> decoder = ginr_fast.LocalityAwareDecoder(token_dim=8, hidden_dim=16, feature_dim=16)
        >>> with ginr_fast.backend("reference"):
        ...     values = decoder(ginr_fast.grid(4, 4), torch.randn(2, 5, 8))
        >>> values.shape
        torch.Size([2, 4, 4, 3])
    """
    global _forced
    previous, _forced = _forced, _checked(name, "backend")
    try:
        yield
    finally:
        _forced = previous


def forced_backend() -> str | None:
    """The backend forced by :func:`backend` or by ``GINR_FAST_BACKEND``, or None."""
    if _forced is not None:
        return _forced
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    return _checked(name, ENVIRONMENT_VARIABLE) if name else None


def forward_mode() -> bool:
    """Whether forward-mode differentiation is under way, as in ``torch.func.jvp``."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def choose(operator: str, candidates: Mapping[str, str | None]) -> str:
    """The backend that serves a call of ``operator``.

    Forward-mode differentiation goes through the formula: PyTorch takes the result of an operator
    without a rule for it as a constant, without a word.

    Args:
        operator: its name, for the error.
        candidates: backend → ``None`` if it can serve the call, else the reason it cannot; in
            order of preference.

    Raises:
        BackendError: the forced backend cannot serve the call, or no backend can.
    """
    if forward_mode():
        formula = "forward-mode differentiation goes through the formula"
        candidates = {
            name: reason if name == "reference" else reason or formula
            for name, reason in candidates.items()
        }
    forced = forced_backend()
    if forced is not None:
        reason = candidates.get(forced, "this operator has no such backend")
        if reason is not None:
            raise BackendError(f"{operator}: backend {forced!r} was forced, but {reason}")
        return forced
    for name, reason in candidates.items():
        if reason is None:
            return name
    raise BackendError(f"{operator}: no backend can serve this call: {dict(candidates)}")


def recording() -> bool:
    """Whether :func:`explain` is listening, so that a plan is worth making."""
    return _recorder is not None


def record(plan: Plan) -> None:
    """Hand a plan to the :func:`explain` that is listening."""
    if _recorder is not None:
        _recorder.append(plan)


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Run ``function(*args, **kwargs)`` once and say how each operator call in it was served.

    Args:
        function: anything that ends in ginr_fast operators: a decoder, a whole model, an operator.

    Returns:
        An :class:`Explanation`: for each call its backend, its foldings, and its FLOPs against
        those of the naive formula.

    Example:
        >>> import torch, ginr_fast
        >>> decoder = ginr_fast.LocalityAwareDecoder(token_dim=8, hidden_dim=16, feature_dim=16)
        >>> print(ginr_fast.explain(decoder, ginr_fast.grid(8, 8), torch.randn(2, 5, 8)))
        locality_decode: backend ...
    """
    import torch

    global _recorder
    previous, _recorder = _recorder, []
    try:
        with torch.no_grad():
            function(*args, **kwargs)
        return Explanation(_recorder)
    finally:
        _recorder = previous
