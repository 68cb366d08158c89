"""What all instances share: every parameter but the low-rank weight, and its two column spans."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec, ParameterSlot
from ginr_fast.ops.unit_rows import gradient, lengths_of, normalized, sum_dtype

PATTERNS, MIXING, FIRST_PARAMETER = 0, 1, 2
"""Places in the operator's list of tensors."""


def own_slot(spec: FieldSpec, layer: int) -> ParameterSlot:
    """The slot of the low-rank weight."""
    return next(s for s in spec.slots if s.layer == layer and s.kind == "weight")


def shared_slots(spec: FieldSpec, layer: int) -> list[ParameterSlot]:
    """The other slots, in order: those of ``parameters``."""
    return [s for s in spec.slots if s.layer != layer or s.kind != "weight"]


def row_count(spec: FieldSpec, layer: int, normalize: bool) -> int:
    """How many rows of the low-rank weight have a length."""
    return spec.layer_shapes[layer][0] if normalize else 0


def flat(parameters: Sequence[Tensor], spec: FieldSpec, layer: int, normalize: bool) -> Tensor:
    """The shared parameters in a row, (P − size of the low-rank weight,), by the formula."""
    parts = []
    for slot, parameter in zip(shared_slots(spec, layer), parameters, strict=True):
        if normalize and slot.kind == "weight":
            dtype = parameter.dtype
            parameter = normalized(parameter.to(sum_dtype(dtype))).to(dtype)
        parts.append(parameter.flatten())
    return torch.cat(parts)


def write(
    packed: Tensor, parameters: Sequence[Tensor], spec: FieldSpec, layer: int, normalize: bool
) -> None:
    """Copy the shared parameters into every row of ``packed``."""
    row, slot = flat(parameters, spec, layer, normalize), own_slot(spec, layer)
    packed[:, : slot.offset] = row[: slot.offset]
    packed[:, slot.offset + slot.size :] = row[slot.offset :]


def gradients(
    grad: Tensor,
    parameters: Sequence[Tensor],
    wanted: Sequence[int],
    spec: FieldSpec,
    layer: int,
    normalize: bool,
) -> dict[int, Tensor]:
    """The gradients of the parameters ``wanted``, by their index in the operator's list."""
    dtype, found = sum_dtype(grad.dtype), {}
    for index, slot in enumerate(shared_slots(spec, layer), FIRST_PARAMETER):
        if index in wanted:
            columns = grad[:, slot.offset : slot.offset + slot.size]
            total = columns.sum(0, dtype=dtype).view(slot.shape)
            if normalize and slot.kind == "weight":
                rows = parameters[index - FIRST_PARAMETER].to(dtype)
                length = lengths_of(rows)
                total = gradient(total, rows / length, length)
            found[index] = total
    return found
