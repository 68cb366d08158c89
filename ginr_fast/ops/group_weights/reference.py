"""The published formulation of group_weights: repeat, multiply, normalise, concatenate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops.group_weights.layers import layers
from ginr_fast.ops.unit_rows import normalized, sum_dtype


def group_weights(tensors: Sequence[Tensor], spec: FieldSpec, layout: str) -> Tensor:
    """w_i = normalize(u_{g(i)} · w̄_i), layer by layer, any dtype and device.

    Args:
        tensors: groups, bases and biases of every layer, in one list.
        spec: the field.
        layout: ``"blocks"`` or ``"tiled"``.

    Returns:
        ``(B, P)``.
    """
    parts = []
    for layer in layers(tensors, spec):
        dtype = sum_dtype(layer.base.dtype)
        groups, base = layer.groups.to(dtype), layer.base.to(dtype)
        members = base.shape[0] // groups.shape[1]
        if layout == "blocks":
            own = groups.repeat_interleave(members, dim=1)
        else:
            own = groups.repeat(1, members, 1)
        parts.append(normalized(own * base).to(layer.base.dtype).flatten(1))
        if layer.bias is not None:
            parts.append(layer.bias.expand(groups.shape[0], -1))
    return torch.cat(parts, dim=1)
