"""mixture_average and its two gradients as one matrix product a parameter: any device and dtype.

Bases are ``(M, size)`` here; the products read and write the packed rows in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def average(coefficients: torch.Tensor, bases: Sequence[torch.Tensor]) -> torch.Tensor:
    """``(B, L, M)`` and one ``(M, size)`` a parameter -> ``(B, P)``."""
    per_layer = len(bases) // coefficients.shape[1]
    sizes = [base.shape[1] for base in bases]
    out = coefficients.new_empty(coefficients.shape[0], sum(sizes))
    for index, (base, columns) in enumerate(zip(bases, out.split(sizes, dim=1), strict=True)):
        torch.mm(coefficients[:, index // per_layer], base, out=columns)
    return out


def grad_coefficients(
    grad: torch.Tensor, bases: Sequence[torch.Tensor], layers: int
) -> torch.Tensor:
    """``(B, P)`` and one ``(M, size)`` a parameter -> ``(B, L, M)``."""
    per_layer = len(bases) // layers
    columns = grad.split([base.shape[1] for base in bases], dim=1)
    rows = []
    for first in range(0, len(bases), per_layer):
        total = columns[first] @ bases[first].t()
        for index in range(first + 1, first + per_layer):
            total.addmm_(columns[index], bases[index].t())
        rows.append(total)
    return torch.stack(rows, dim=1)


def grad_bases(
    grad: torch.Tensor, coefficients: torch.Tensor, sizes: Sequence[int], wanted: Sequence[int]
) -> list[torch.Tensor]:
    """``(B, P)`` and ``(B, L, M)`` -> ``(M, size)`` for each parameter of ``wanted``."""
    per_layer = len(sizes) // coefficients.shape[1]
    columns = grad.split(list(sizes), dim=1)
    return [coefficients[:, index // per_layer].t() @ columns[index] for index in wanted]
