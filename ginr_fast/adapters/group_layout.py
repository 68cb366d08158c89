"""Groups of neighbouring columns as groups of every so-many-th: the same fields, reordered."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ginr_fast.decoders.token_field import GroupedFieldDecoder
from ginr_fast.fields import VIEW_COMPONENTS, FieldSpec


@torch.no_grad()
def tiled(decoder: GroupedFieldDecoder) -> GroupedFieldDecoder:
    """A decoder of layout ``"tiled"``, the published code's, that makes the same fields.

    The order of hidden units means nothing: with them in the order of their groups' turns, what
    lay in blocks is tiled.

    Args:
        decoder: of either layout; left as it is.

    Raises:
        ValueError: outputs of the field share groups without all sharing one.
    """
    decoder = copy.deepcopy(decoder)
    if decoder.layout == "tiled":
        return decoder
    spec = decoder.spec
    orders = [
        _turns(rows, groups)
        for (rows, _), groups in zip(spec.layer_shapes, decoder.groups, strict=True)
    ]
    for layer in _output_layers(spec):
        if decoder.groups[layer] not in (1, len(orders[layer])):
            raise ValueError(
                f"groups: {decoder.groups[layer]} groups of the {len(orders[layer])} outputs in "
                "layout 'blocks'; the published code has another order"
            )
    for layer, (rows, columns) in enumerate(zip(orders, _inputs(spec, orders), strict=True)):
        decoder.bases[layer].copy_(decoder.bases[layer][rows][:, columns])
        if spec.bias:
            decoder.biases[layer].copy_(decoder.biases[layer][rows])
        linear = decoder.heads[layer].get_submodule("1")
        for parameter in linear.parameters():  # a row for each of the layer's inputs
            parameter.copy_(parameter[columns])
    decoder.layout = "tiled"
    return decoder


def _turns(rows: int, groups: int) -> Tensor:
    """Rows in blocks, in the order of their groups' turns: the first of each, the second …"""
    return torch.arange(rows).view(groups, -1).t().flatten()


def _output_layers(spec: FieldSpec) -> tuple[int, ...]:
    last = spec.layers - 1
    return (last - 2, last) if spec.view_dim else (last,)


def _inputs(spec: FieldSpec, orders: list[Tensor]) -> list[Tensor]:
    """In which order each layer has its inputs, given that of every layer's outputs."""
    first = torch.arange(spec.layer_shapes[0][1])
    trunk = orders[: spec.hidden_layers + 1]
    if not spec.view_dim:
        return [first, *trunk]
    view, _, color, _ = orders[len(trunk) :]
    both = torch.cat((trunk[-1], spec.hidden_dim + view))
    return [first, *trunk[:-1], torch.arange(VIEW_COMPONENTS), trunk[-1], both, color]
