"""The published formulation of mixture_average: broadcast, multiply, sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def mixture_average(coefficients: torch.Tensor, bases: Sequence[torch.Tensor]) -> torch.Tensor:
    """θ̄⁽ⁱ⁾ = Σ_m α_m⁽ⁱ⁾ θ_m⁽ⁱ⁾, parameter by parameter, any dtype and device.

    Args:
        coefficients: α, ``(B, layers, M)``.
        bases: one ``(M, ...)`` a parameter in layer order, as many in each layer as in any other.

    Returns:
        ``(B, P)``.
    """
    per_layer = len(bases) // coefficients.shape[1]
    averages = []
    for index, base in enumerate(bases):
        weight = coefficients[:, index // per_layer]
        weight = weight.reshape(*weight.shape, *[1] * (base.ndim - 1))
        averages.append((weight * base).sum(dim=1).flatten(1))
    return torch.cat(averages, dim=1)
