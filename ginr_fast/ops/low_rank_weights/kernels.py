"""low_rank_weights by Triton kernels; ∂V and ∂U are library products of all instances at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops.kernels import unit_rows
from ginr_fast.ops.low_rank_weights import shared
from ginr_fast.ops.low_rank_weights.shared import MIXING, PATTERNS
from ginr_fast.ops.unit_rows import sum_dtype


def forward(
    tensors: Sequence[Tensor], spec: FieldSpec, layer: int, normalize: bool
) -> tuple[Tensor, Tensor]:
    """The packed weights ``(B, P)`` and the lengths of the product's rows, none if not wanted."""
    patterns, mixing, *parameters = tensors
    slot, batch = shared.own_slot(spec, layer), patterns.shape[0]
    packed = mixing.new_empty(batch, spec.parameter_count)
    rows = shared.row_count(spec, layer, normalize)
    lengths = mixing.new_empty(batch, rows, dtype=sum_dtype(mixing.dtype))
    if batch == 0:
        return packed, lengths
    shared.write(packed, parameters, spec, layer, normalize)
    unit_rows.low_rank(
        mixing.contiguous(),
        patterns.contiguous(),
        packed[:, slot.offset :],
        lengths if normalize else None,
    )
    return packed, lengths


def backward(
    grad: Tensor,
    tensors: Sequence[Tensor],
    packed: Tensor,
    lengths: Tensor,
    wanted: Sequence[int],
    spec: FieldSpec,
    layer: int,
    normalize: bool,
) -> dict[int, Tensor]:
    """The gradients of the tensors ``wanted``."""
    if grad.numel() == 0:
        return {index: torch.zeros_like(tensors[index]) for index in wanted}
    patterns, mixing, *parameters = tensors
    slot = shared.own_slot(spec, layer)
    found = shared.gradients(grad, parameters, wanted, spec, layer, normalize)
    if PATTERNS not in wanted and MIXING not in wanted:
        return found
    fan_out, fan_in = slot.shape
    grad, batch = grad.contiguous(), grad.shape[0]
    if normalize:
        first = slot.offset
        rows = grad[:, first:], packed[:, first:], lengths, torch.empty_like(lengths)
        unit_rows.row_dots(*rows, (fan_out, fan_in))
        delta = unit_rows.low_rank_rows(*rows, (fan_out, fan_in))
    else:
        delta = grad[:, slot.offset : slot.offset + slot.size].unflatten(1, slot.shape)
    # Instances side by side, (fan out, B·fan in): each gradient is one product.
    side_by_side = delta.transpose(0, 1).reshape(fan_out, batch * fan_in)
    if PATTERNS in wanted:
        product = mixing.t() @ side_by_side
        found[PATTERNS] = product.unflatten(1, (batch, fan_in)).transpose(0, 1)
    if MIXING in wanted:
        found[MIXING] = side_by_side @ patterns.transpose(1, 2).reshape(batch * fan_in, -1)
    return found
