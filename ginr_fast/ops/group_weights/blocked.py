"""group_weights straight into the packed rows, some instances of a layer at a time: any device.

The product, its lengths and the division pass over a block that stays in cache; so do the steps of
the backward, which reads the unit rows back from the packed weights:

    ∂v = (g − w (w·g)) / n,   ∂u_g = Σ_{i in g} ∂v_i ⊙ w̄_i,   ∂w̄_i = Σ_b ∂v_i ⊙ u_{g(i)}
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops.blocks import settle_allocator
from ginr_fast.ops.group_weights.layers import Layer, layers, row_count
from ginr_fast.ops.unit_rows import gradient, instance_blocks, lengths_of, sum_dtype


def forward(tensors: Sequence[Tensor], spec: FieldSpec, layout: str) -> tuple[Tensor, Tensor]:
    """The packed weights ``(B, P)`` and the lengths of their rows before normalisation."""
    settle_allocator()
    batch, first = tensors[0].shape[0], tensors[0]
    packed = first.new_empty(batch, spec.parameter_count)
    lengths = first.new_empty(batch, row_count(spec, layout), dtype=sum_dtype(first.dtype))
    for layer in layers(tensors, spec):
        base = layer.members(layer.base.to(lengths.dtype), layout)
        groups = layer.groups.to(lengths.dtype).unsqueeze(2)
        out, length = _members(packed, layer, layout), _lengths(lengths, layer, layout)
        product = groups.new_empty(0)
        for block in instance_blocks(batch, layer.base.numel(), first.device):
            product = torch.mul(groups[block], base, out=_reused(product, out[block]))
            scale = lengths_of(product, out=length[block]).reciprocal()
            torch.mul(product, scale, out=out[block])
        if layer.bias is not None:
            packed[:, layer.biases] = layer.bias
    return packed, lengths


def backward(
    grad: Tensor,
    tensors: Sequence[Tensor],
    packed: Tensor,
    lengths: Tensor,
    wanted: Sequence[int],
    spec: FieldSpec,
    layout: str,
) -> dict[int, Tensor]:
    """The gradients of the tensors ``wanted``."""
    settle_allocator()
    found: dict[int, Tensor] = {}
    for layer in layers(tensors, spec):
        if layer.index in wanted or layer.base_index in wanted:
            of_groups, of_base = _gradients(grad, packed, lengths, layer, layout, wanted)
            if of_groups is not None:
                found[layer.index] = of_groups
            if of_base is not None:
                found[layer.base_index] = of_base
        if layer.bias_index in wanted:
            found[layer.bias_index] = grad[:, layer.biases].sum(0, dtype=lengths.dtype)
    return found


def _gradients(
    grad: Tensor,
    packed: Tensor,
    lengths: Tensor,
    layer: Layer,
    layout: str,
    wanted: Sequence[int],
) -> tuple[Tensor | None, Tensor | None]:
    """∂u and ∂w̄ of a layer, those that are wanted."""
    dtype = lengths.dtype
    base = layer.members(layer.base.to(dtype), layout)
    groups = layer.groups.to(dtype).unsqueeze(2)
    of_rows, rows = _members(grad, layer, layout), _members(packed, layer, layout)
    length = _lengths(lengths, layer, layout)
    of_groups = torch.empty_like(groups) if layer.index in wanted else None
    of_base = layer.base.new_zeros(layer.base.shape, dtype=dtype)
    delta = groups.new_empty(0)
    for block in instance_blocks(grad.shape[0], layer.base.numel(), grad.device):
        delta = _reused(delta, of_rows[block])
        gradient(of_rows[block].to(dtype), rows[block].to(dtype), length[block], out=delta)
        if layer.base_index in wanted:
            total = layer.members(of_base, layout)
            for instance, group in zip(delta, groups[block], strict=True):
                total.addcmul_(instance, group)
        if of_groups is not None:
            delta *= base
            torch.sum(delta, dim=2, keepdim=True, out=of_groups[block])
    return (
        None if of_groups is None else of_groups.squeeze(2),
        of_base if layer.base_index in wanted else None,
    )


def _members(packed: Tensor, layer: Layer, layout: str) -> Tensor:
    """A layer's weights in packed rows as (B, G, k, fan in), a view."""
    return layer.members(packed[:, layer.weights].unflatten(1, layer.base.shape), layout)


def _lengths(lengths: Tensor, layer: Layer, layout: str) -> Tensor:
    """The lengths of a layer's rows as (B, G, k, 1), a view."""
    return layer.members(lengths[:, layer.rows].unsqueeze(-1), layout)


def _reused(scratch: Tensor, like: Tensor) -> Tensor:
    """``scratch`` if it has the shape of ``like``, else another: a fresh block is a cold one."""
    return scratch if scratch.shape == like.shape else scratch.new_empty(like.shape)
