"""low_rank_weights straight into the packed rows, an instance at a time: any device.

With δ = ∂W, or ∂v of its rows where they were normalised: ∂V_b = Uᵀ δ_b and ∂U = Σ_b δ_b V_bᵀ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec, ParameterSlot
from ginr_fast.ops.blocks import settle_allocator
from ginr_fast.ops.low_rank_weights import shared
from ginr_fast.ops.low_rank_weights.shared import MIXING, PATTERNS
from ginr_fast.ops.unit_rows import gradient, lengths_of, sum_dtype


def forward(
    tensors: Sequence[Tensor], spec: FieldSpec, layer: int, normalize: bool
) -> tuple[Tensor, Tensor]:
    """The packed weights ``(B, P)`` and the lengths of the product's rows, none if not wanted."""
    settle_allocator()
    patterns, mixing, *parameters = tensors
    slot, dtype, batch = shared.own_slot(spec, layer), sum_dtype(mixing.dtype), patterns.shape[0]
    packed = mixing.new_empty(batch, spec.parameter_count)
    lengths = mixing.new_empty(batch, shared.row_count(spec, layer, normalize), dtype=dtype)
    shared.write(packed, parameters, spec, layer, normalize)
    mixing = mixing.to(dtype)
    for instance, (pattern, own) in enumerate(zip(patterns, _own(packed, slot), strict=True)):
        if not normalize and own.dtype == dtype:
            torch.mm(mixing, pattern, out=own)
            continue
        product = torch.mm(mixing, pattern.to(dtype))
        if normalize:
            length = lengths_of(product)
            lengths[instance] = length.squeeze(-1)
            product *= length.reciprocal()
        own.copy_(product)
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
    settle_allocator()
    patterns, mixing, *parameters = tensors
    slot, dtype = shared.own_slot(spec, layer), lengths.dtype
    found = shared.gradients(grad, parameters, wanted, spec, layer, normalize)
    if PATTERNS not in wanted and MIXING not in wanted:
        return found
    of_patterns = torch.empty_like(patterns, dtype=dtype)
    of_mixing = torch.zeros_like(mixing, dtype=dtype)
    mixing, of_weight, rows = mixing.to(dtype), _own(grad, slot), _own(packed, slot)
    for instance, delta in enumerate(of_weight):
        delta = delta.to(dtype)
        if normalize:
            delta = gradient(delta, rows[instance].to(dtype), lengths[instance].unsqueeze(-1))
        if PATTERNS in wanted:
            torch.mm(mixing.t(), delta, out=of_patterns[instance])
        if MIXING in wanted:
            of_mixing.addmm_(delta, patterns[instance].to(dtype).t())
    return {**found, PATTERNS: of_patterns, MIXING: of_mixing}


def _own(packed: Tensor, slot: ParameterSlot) -> Tensor:
    """The low-rank weight in packed rows, (B, fan out, fan in), a view."""
    return packed[:, slot.offset : slot.offset + slot.size].unflatten(1, slot.shape)
