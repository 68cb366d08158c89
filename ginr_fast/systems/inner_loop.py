"""Gradient steps from a shared start to each instance: the inner loop of meta-learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

Order = Literal["second", "first", "reptile"]


def inner_loop(
    errors: Callable[[torch.Tensor, int], torch.Tensor],
    rates: Callable[[torch.Tensor], torch.Tensor | float],
    start: torch.Tensor,
    steps: int,
    order: Order,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``θ ← θ − r(θ) ∇_θ Σ_i L_i(θ_i)``, ``steps`` times.

    Args:
        errors: L: of rows ``(B, P)`` and the number of the step from 0, ``(B,)``; an instance's
            depends on its own row only.
        rates: r: of rows, what their gradients are multiplied by.
        start: where the rows start, ``(B, P)``.
        steps: how many.
        order: what the result's gradient is. second: exact, through the steps' gradients (MAML,
            arXiv:1703.03400); first: gradients and r are taken for constants in θ; reptile: none,
            the whole loop is a constant (arXiv:1803.02999).

    Returns:
        Rows ``(B, P)``, and the errors before the last step ``(B,)``, without gradient; 0 if there
        was no step.

    Raises:
        ValueError: a negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"steps: expected at least 0, got {steps}")
    rows = start.detach() if order == "reptile" else start
    last = rows.new_zeros(len(rows))
    for step in range(steps):
        point = rows if order == "second" else rows.detach()
        with torch.enable_grad():
            if not point.requires_grad:
                point.requires_grad_()
            last = errors(point, step)
            (gradient,) = torch.autograd.grad(last.sum(), point, create_graph=order == "second")
        rows = rows - rates(point if order == "second" else point.detach()) * gradient
    return rows, last.detach()
