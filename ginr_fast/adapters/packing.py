"""Matrices as TransINR's and IPC's code keeps them, as rows for :func:`ginr_fast.field_mlp`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ginr_fast.ops.checks import PHASE_DTYPES, VALUE_DTYPES, autocasts


def serves(batch: int, tensors: Sequence[Tensor], matrices: Sequence[Tensor]) -> bool:
    """Whether fields of these matrices can be evaluated at these coordinates and directions.

    Where they cannot, the published code may still (broadcasting), or raises the error its user
    expects.

    Args:
        batch: B, instances.
        tensors: coordinates, and directions if there are, ``(B, ..., d)``.
        matrices: of each layer, ``(B or 1, fan_in (+ 1), fan_out)``, or without a batch.
    """
    first = matrices[0]
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.dtype not in PHASE_DTYPES or tensor.ndim < 2:
            return False
        if tensor.shape[0] != batch or tensor.device != first.device:
            return False
        if tensor.dtype != first.dtype and not (autocasts(tensor) and first.dtype in VALUE_DTYPES):
            return False
    return all(
        matrix.dtype == first.dtype
        and matrix.device == first.device
        and (matrix.ndim == 2 or (matrix.ndim == 3 and matrix.shape[0] in (1, batch)))
        for matrix in matrices
    )


def packed_rows(
    matrices: Sequence[Tensor], batch: int, bias: bool = True, out_bias: float = 0.0
) -> Tensor:
    """The matrices of B fields as packed rows, ``(B, P)``; differentiable.

    Args:
        matrices: of each layer in order, as in :func:`serves`; the bias is the last row.
        batch: B.
        bias: whether there is that last row.
        out_bias: a constant that is added to the last bias.
    """
    parts: list[Tensor] = []
    for matrix in matrices:
        weight = matrix[..., :-1, :] if bias else matrix
        parts.append(weight.transpose(-1, -2).flatten(-2).expand(batch, -1))
        if bias:
            parts.append(matrix[..., -1, :].expand(batch, -1))
    if bias and out_bias:
        parts[-1] = parts[-1] + out_bias
    return torch.cat(parts, dim=1)


def at_points(coords: Tensor) -> Tensor:
    """Coordinates ``(B, d)`` as ``(B, 1, d)``, which nobody takes for shared ones; else as is."""
    return coords.unsqueeze(1) if coords.ndim == 2 else coords
