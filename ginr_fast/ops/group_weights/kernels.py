"""group_weights by Triton kernels: a launch a layer forward, three backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops.group_weights.layers import layers, row_count
from ginr_fast.ops.kernels import unit_rows
from ginr_fast.ops.unit_rows import sum_dtype


def forward(tensors: Sequence[Tensor], spec: FieldSpec, layout: str) -> tuple[Tensor, Tensor]:
    """The packed weights ``(B, P)`` and the lengths of their rows before normalisation."""
    batch, first = tensors[0].shape[0], tensors[0]
    packed = first.new_empty(batch, spec.parameter_count)
    lengths = first.new_empty(batch, row_count(spec, layout), dtype=sum_dtype(first.dtype))
    if batch == 0:
        return packed, lengths
    for layer in layers([tensor.contiguous() for tensor in tensors], spec):
        unit_rows.group_weights(
            layer.groups,
            layer.base,
            layer.bias,
            packed[:, layer.weights.start :],
            lengths[:, layer.rows.start :],
            layout == "tiled",
        )
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
    if grad.numel() == 0:
        return {index: torch.zeros_like(tensors[index]) for index in wanted}
    found: dict[int, Tensor] = {}
    grad, tiled, dots = grad.contiguous(), layout == "tiled", torch.empty_like(lengths)
    for layer in layers([tensor.contiguous() for tensor in tensors], spec):
        if layer.bias_index in wanted:
            found[layer.bias_index] = grad[:, layer.biases].sum(0, dtype=lengths.dtype)
        if layer.index not in wanted and layer.base_index not in wanted:
            continue
        column, row = layer.weights.start, layer.rows.start
        rows = grad[:, column:], packed[:, column:], lengths[:, row:], dots[:, row:]
        fan_out, fan_in = layer.base.shape
        unit_rows.row_dots(*rows, (fan_out, fan_in))
        if layer.index in wanted:
            found[layer.index] = torch.empty_like(layer.groups)
            unit_rows.group_gradient(*rows, layer.base, found[layer.index], tiled)
        if layer.base_index in wanted:
            found[layer.base_index] = torch.empty_like(layer.base)
            unit_rows.group_base_gradient(*rows, layer.groups, found[layer.base_index], tiled)
    return found
