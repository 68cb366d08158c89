"""LA-GINR's formula with the parameters of somebody else's decoder."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ginr_fast.adapters.cross_attention import (
    Affine,
    applied,
    by_head,
    linear_of,
    projections_of,
    scale_of,
)
from ginr_fast.adapters.la_ginr_layout import LocalityLayout, Source, Variant
from ginr_fast.ops.locality_decode.op import locality_decode
from ginr_fast.ops.locality_decode.weights import LocalityWeights


def attribute(module: nn.Module, source: Source) -> Any:
    """An attribute by its name, None if there is none; or what the function gives."""
    if callable(source):
        return source(module)
    found: Any = module
    for name in source.split("."):
        found = getattr(found, name, None)
    return found


def as_bands(value: Any) -> Tensor:
    """Frequencies as one tensor, whether they come as one or as a sequence of them."""
    return value if isinstance(value, Tensor) else torch.stack(list(value))


def evaluate(
    module: nn.Module, layout: LocalityLayout, variant: Variant, coords: Tensor, tokens: Tensor
) -> Tensor | None:
    """What a decoder of a layout computes.

    Args:
        module: the decoder.
        layout: where its parts are.
        variant: what it computes.
        coords: ``(B, ..., c)``.
        tokens: ``(B, R, width)``.

    Returns:
        ``(B, ..., out)``; None for inputs that the operator does not take.
    """
    if not isinstance(coords, Tensor) or not isinstance(tokens, Tensor) or tokens.ndim != 3:
        return None
    if coords.ndim < 3 or coords.shape[0] != tokens.shape[0] or tokens.shape[1] == 0:
        return None
    attention = attribute(module, layout.attention)
    projections = projections_of(attention)
    if projections is None or coords.shape[-1] != variant.coord_dim:
        return None
    if coords.dtype != projections.query.weight.dtype:
        return None
    # A phase needs float32 whatever the parameters are.
    points = coords.float() if coords.dtype in (torch.float16, torch.bfloat16) else coords
    return locality_decode(
        points[:1] if variant.shared else points,
        by_head(applied(projections.key, tokens), variant.heads),
        by_head(applied(projections.value, tokens), variant.heads),
        weights_of(module, layout, variant),
        scale=scale_of(attention, projections.key.weight.shape[0] // variant.heads),
        modulation_relu=variant.modulation_relu,
    )


def weights_of(module: nn.Module, layout: LocalityLayout, variant: Variant) -> LocalityWeights:
    """The parameters of a decoder as those of :func:`ginr_fast.locality_decode`, differentiable."""
    projections = projections_of(attribute(module, layout.attention))
    assert projections is not None
    query = _affine(attribute(module, layout.query_feature))
    device, width = query.weight.device, query.weight.shape[0]

    def frequencies(source: Source) -> Tensor:
        found = as_bands(attribute(module, source)).to(device)
        found = found if found.dtype in (torch.float32, torch.float64) else found.float()
        return found * (variant.phase / math.pi)

    def bias_of(affine: Affine) -> Tensor:
        weight = affine.weight
        return weight.new_zeros(weight.shape[0]) if affine.bias is None else affine.bias

    def stacked(name: str) -> tuple[Tensor, Tensor]:
        layers = [_affine(layer) for layer in attribute(module, name)]
        if not layers:
            return query.weight.new_empty(0, width, width), query.weight.new_empty(0, width)
        return (
            torch.stack([layer.weight for layer in layers]),
            torch.stack([bias_of(layer) for layer in layers]),
        )

    projection, projection_bias = projections.query.weight, bias_of(projections.query)
    if layout.query_linear is not None:
        extra = _affine(attribute(module, layout.query_linear))
        projection_bias = projection_bias + projection @ bias_of(extra)
        projection = projection @ extra.weight
    band_weight, band_bias = stacked(layout.band_features)
    modulation_weight, modulation_bias = stacked(layout.modulations)
    hidden_weight, hidden_bias = stacked(layout.hidden)
    output_weight, output_bias = stacked(layout.outputs)
    output = projections.output
    return LocalityWeights(
        query_frequencies=frequencies(layout.query_frequencies),
        query_weight=_canonical(query.weight, variant),
        query_bias=bias_of(query),
        projection_weight=projection,
        projection_bias=projection_bias,
        attention_output_weight=None if output is None else output.weight,
        attention_output_bias=None if output is None else bias_of(output),
        band_frequencies=frequencies(layout.band_frequencies),
        band_weight=_canonical(band_weight, variant),
        band_bias=band_bias,
        modulation_weight=modulation_weight,
        modulation_bias=modulation_bias,
        hidden_weight=hidden_weight,
        hidden_bias=hidden_bias,
        output_weight=output_weight,
        output_bias=output_bias.sum(0),
    )


def _affine(layer: nn.Module) -> Affine:
    linear = linear_of(layer)
    assert linear is not None
    return Affine(linear.weight, linear.bias)


def _canonical(weight: Tensor, variant: Variant) -> Tensor:
    """A weight ``(..., F)`` whose features are in a variant's order, in the order of the operator:
    cosines before sines, then by coordinate, then by frequency."""
    sizes = [2, variant.coord_dim, weight.shape[-1] // (2 * variant.coord_dim)]
    axes = weight.unflatten(-1, [sizes[axis] for axis in variant.order])
    leading = range(weight.ndim - 1)
    axes = axes.permute(*leading, *(weight.ndim - 1 + variant.order.index(k) for k in range(3)))
    return (axes.flip(-3) if variant.sine_first else axes).flatten(-3)
