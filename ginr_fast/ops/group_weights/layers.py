"""The layers of a field as ``group_weights`` makes them, cut out of its flat list of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ginr_fast.fields import FieldSpec


@dataclass(frozen=True)
class Layer:
    """One layer: its tensors, and their places in the operator's list and in a packed row."""

    index: int
    """Of the layer, and of its groups in the list."""
    base_index: int
    bias_index: int
    groups: Tensor
    """u, (B, G, fan in)."""
    base: Tensor
    """w̄, (fan out, fan in)."""
    bias: Tensor | None
    rows: slice
    """Its rows among those of all layers."""
    weights: slice
    biases: slice
    """Columns of a packed row."""

    def members(self, rows: Tensor, layout: str) -> Tensor:
        """``rows`` (..., fan out, n) as (..., G, k, n), a view: the k rows of each group."""
        count = self.groups.shape[1]
        if layout == "blocks":
            return rows.unflatten(-2, (count, -1))
        return rows.unflatten(-2, (-1, count)).transpose(-2, -3)


def row_count(spec: FieldSpec, layout: str) -> int:
    """How many rows, each with a length, the layers have."""
    return sum(fan_out for fan_out, _ in spec.layer_shapes)


def layers(tensors: Sequence[Tensor], spec: FieldSpec) -> list[Layer]:
    """The layers of groups, bases and, if the spec has any, biases, in one list."""
    count, found, row, column = spec.layers, [], 0, 0
    for index, (fan_out, fan_in) in enumerate(spec.layer_shapes):
        base_index, bias_index = count + index, 2 * count + index
        end = column + fan_out * fan_in
        found.append(
            Layer(
                index,
                base_index,
                bias_index,
                tensors[index],
                tensors[base_index],
                tensors[bias_index] if spec.bias else None,
                slice(row, row + fan_out),
                slice(column, end),
                slice(end, end + fan_out * spec.bias),
            )
        )
        row, column = row + fan_out, end + fan_out * spec.bias
    return found
