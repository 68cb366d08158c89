"""The published formulation of low_rank_weights: multiply, normalise, repeat, concatenate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops.low_rank_weights.shared import flat, own_slot
from ginr_fast.ops.unit_rows import normalized, sum_dtype


def low_rank_weights(
    tensors: Sequence[Tensor], spec: FieldSpec, layer: int, normalize: bool
) -> Tensor:
    """W_b = U V_b for one layer, all else shared; any dtype and device.

    Args:
        tensors: patterns V, mixing U and the shared parameters, in one list.
        spec: the field.
        layer: whose weight is the product.
        normalize: whether rows of weights have unit length.

    Returns:
        ``(B, P)``.
    """
    patterns, mixing, *parameters = tensors
    dtype = sum_dtype(mixing.dtype)
    product = torch.matmul(mixing.to(dtype), patterns.to(dtype))
    if normalize:
        product = normalized(product)
    own = product.to(mixing.dtype).flatten(1)
    row, offset = flat(parameters, spec, layer, normalize), own_slot(spec, layer).offset
    shared = row.expand(patterns.shape[0], -1)
    return torch.cat((shared[:, :offset], own, shared[:, offset:]), dim=1)
