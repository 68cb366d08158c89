"""Tensors of published Transformers that make fields, from their names to ours and back.

TransINR's code (github.com/yinboc/trans-inr) and IPC's (github.com/kakaobrain/ginr-ipc) have the
same parts under other names. Three mean something else: the bias of a layer of the field is the
last row of its matrix; the output has a constant of its own; and images go in as they are, while
the systems here centre them and take origins in units of the camera's distance. An embedding is
linear, so all that goes into its weights, and what is between an image and its padding into the
positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ginr_fast.adapters.group_layout import tiled
from ginr_fast.adapters.published_tensors import Tensors
from ginr_fast.decoders.token_field import GroupedFieldDecoder, PatternFieldDecoder
from ginr_fast.encoders.audio import AudioTokenizer
from ginr_fast.encoders.tokenizer import PatchTokenizer
from ginr_fast.systems.audio_inr import AudioIpc
from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.systems.ipc import Ipc
from ginr_fast.systems.radiance_views import IpcViews, RadianceViews, TransInrViews
from ginr_fast.systems.trans_inr import TransInr

TokenModel = TransInr | Ipc | TransInrViews | IpcViews | AudioIpc

_CENTRE = 0.5  # what image systems add to their output
_COLORS, _ORIGINS, _DIRECTIONS = 3, 3, 3


@dataclass(frozen=True)
class Names:
    """What a code base calls the tensors of such a model.

    Args:
        embed: of the patches.
        position: of the patches; None where they have none.
        blocks: of the Transformer.
        parts: our names of a block's parts but one, to theirs.
        qkv: the maps to queries, keys and values in this order, and how many of them each is.
        latents: the tokens that the field's weights are made from.
        heads: of each layer, from such tokens to columns.
        matrices: of each layer, with the bias in the last row.
        layers: of the field, in order.
        mixing: (one modulated layer) what columns are mixed with, ``(1, R, fan_out)``.
        leading: dimensions of length 1 before those of the positions.
    """

    embed: str
    position: str | None
    blocks: str
    parts: Mapping[str, str]
    qkv: tuple[tuple[str, int], ...]
    latents: str
    heads: str
    matrices: str
    layers: Sequence[str]
    mixing: str = ""
    leading: tuple[int, ...] = ()


@torch.no_grad()
def fill(model: TokenModel, tensors: Tensors, names: Names, out_bias: float) -> None:
    """Give a model what a published state dict holds.

    Args:
        model: of the sizes of the checkpoint; a TransINR of layout ``"tiled"``.
        tensors: of the checkpoint.
        names: of its code base.
        out_bias: the constant that code adds to the output.

    Raises:
        ValueError: a tensor of another shape.
    """
    decoder = model.decoder
    for name, parameter in _renamed(model, decoder, names):
        parameter.copy_(tensors.take(name, parameter.shape))
    for name, part in _projections(model, names):
        part.copy_(tensors.take(name, part.shape))
    _fill_embedding(model, tensors, names)
    shift = out_bias - _own_out_bias(model)
    for name, layer in zip(names.layers, _layers(decoder), strict=True):
        matrix = tensors.take(f"{names.matrices}.{name}", (layer.columns + 1, len(layer.bias)))
        if layer.weight is not None:
            layer.weight.copy_(matrix[:-1].t())
        layer.bias.copy_(matrix[-1] + (shift if name == names.layers[-1] else 0.0))
    if isinstance(decoder, PatternFieldDecoder):
        rows, rank = decoder.mixing.shape
        mixing = tensors.take(_mixing(decoder, names), (1, rank, rows))
        decoder.mixing.copy_(mixing[0].t())


@torch.no_grad()
def published_state(
    model: TokenModel, names: Names, out_bias: float, views: int = 1
) -> dict[str, Tensor]:
    """A model's tensors under published names, the inverse of :func:`fill`.

    Args:
        model: the model; a TransINR of either layout.
        names: of the code base.
        out_bias: the constant that code adds to the output.
        views: how often a table of positions is repeated.

    Raises:
        ValueError: groups that only this library has, see :func:`tiled`.
    """
    decoder = model.decoder
    if isinstance(decoder, GroupedFieldDecoder):
        decoder = tiled(decoder)
    state = {name: value.detach().clone() for name, value in _renamed(model, decoder, names)}
    state |= {name: part.clone() for name, part in _projections(model, names)}
    state |= _published_embedding(model, names, views)
    shift = _own_out_bias(model) - out_bias
    for name, layer in zip(names.layers, _layers(decoder), strict=True):
        bias = layer.bias + (shift if name == names.layers[-1] else 0.0)
        weight = layer.weight
        if weight is None:  # there in published checkpoints too, without a use
            weight = bias.new_zeros(len(bias), layer.columns)
        state[f"{names.matrices}.{name}"] = torch.cat((weight.t(), bias.unsqueeze(0)))
    if isinstance(decoder, PatternFieldDecoder):
        state[_mixing(decoder, names)] = decoder.mixing.t().unsqueeze(0).clone()
    return state


def _renamed(
    model: TokenModel, decoder: nn.Module, names: Names
) -> Iterator[tuple[str, nn.Parameter]]:
    """What is the same tensor on both sides, by its published name."""
    yield names.latents, model.encoder.latents
    for index, block in enumerate(model.encoder.blocks):
        for ours, theirs in names.parts.items():
            for kind, parameter in block.get_submodule(ours).named_parameters():
                yield f"{names.blocks}.{index}.{theirs}.{kind}", parameter
    heads: dict[str, nn.Module]
    if isinstance(decoder, GroupedFieldDecoder):
        heads = dict(zip(names.layers, decoder.heads, strict=True))
    else:
        assert isinstance(decoder, PatternFieldDecoder)
        heads = {names.layers[decoder.layer]: decoder.head}
    for name, head in heads.items():
        for kind, parameter in head.named_parameters():
            yield f"{names.heads}.{name}.{kind}", parameter


def _projections(model: TokenModel, names: Names) -> Iterator[tuple[str, Tensor]]:
    """The parts of every block's queries, keys and values, as views, by their published names."""
    for index, block in enumerate(model.encoder.blocks):
        for kind, parameter in block.get_submodule("qkv").named_parameters():
            rows = [parameter.shape[0] // 3 * count for _, count in names.qkv]
            for (name, _), part in zip(names.qkv, parameter.detach().split(rows), strict=True):
                yield f"{names.blocks}.{index}.{name}.{kind}", part


class _Layer(NamedTuple):
    """A layer's parameters that all instances share; no weight where it is a product."""

    weight: Tensor | None
    bias: Tensor
    columns: int


def _layers(decoder: nn.Module) -> list[_Layer]:
    if isinstance(decoder, GroupedFieldDecoder):
        parts = zip(decoder.bases, decoder.biases, decoder.spec.layer_shapes, strict=True)
        return [_Layer(base, bias, columns) for base, bias, (_, columns) in parts]
    assert isinstance(decoder, PatternFieldDecoder)
    shared, found = iter(decoder.shared), []
    for layer, (_, columns) in enumerate(decoder.spec.layer_shapes):
        weight = None if layer == decoder.layer else next(shared)
        found.append(_Layer(weight, next(shared), columns))
    return found


def _mixing(decoder: PatternFieldDecoder, names: Names) -> str:
    return f"{names.mixing}.{names.layers[decoder.layer]}"


def _own_out_bias(model: TokenModel) -> float:
    return _CENTRE if isinstance(model, ImageInr) else 0.0


class _Inputs(NamedTuple):
    """What a patch is on both sides: theirs = scale · ours + shift where ``inside``, else 0."""

    scale: Tensor
    """Of each number of a patch."""
    shift: Tensor
    inside: Tensor
    """1 in the image and 0 in its padding, of each patch and number."""


def _patches(model: TokenModel) -> PatchTokenizer | AudioTokenizer:
    return model.tokenizer.patch_tokenizer if isinstance(model, RadianceViews) else model.tokenizer


def _inputs(model: TokenModel) -> _Inputs:
    patches = _patches(model)
    if isinstance(patches, AudioTokenizer):
        inside = patches.patches(torch.ones(1, patches.length, dtype=torch.float64))[0]
        each = patches.patch_size
        return _Inputs(inside.new_ones(each), inside.new_zeros(each), inside)
    size, channels = patches.image_size, patches.channels
    inside = patches.patches(torch.ones(1, channels, size, size, dtype=torch.float64))[0]
    scale, shift = [0.5] * channels, [0.5] * channels
    if isinstance(model, RadianceViews):
        distance = model.config.camera_distance
        scale = [0.5] * _COLORS + [distance] * _ORIGINS + [1.0] * _DIRECTIONS
        shift = [0.5] * _COLORS + [0.0] * (_ORIGINS + _DIRECTIONS)
    each = patches.patch_size**2
    of_each = [inside.new_tensor(numbers).repeat_interleave(each) for numbers in (scale, shift)]
    return _Inputs(of_each[0], of_each[1], inside)


def _fill_embedding(model: TokenModel, tensors: Tensors, names: Names) -> None:
    patches, inputs = _patches(model), _inputs(model)
    weight = tensors.take(f"{names.embed}.weight", patches.embed.weight.shape).double()
    bias = tensors.take(f"{names.embed}.bias", patches.embed.bias.shape).double()
    patches.embed.weight.copy_(weight * inputs.scale)
    patches.embed.bias.copy_(bias + weight @ inputs.shift)
    table = patches.position
    position = torch.zeros(table.shape, dtype=torch.float64)
    if names.position is not None:
        found = tensors.take(names.position, (*names.leading, *table.shape))
        position = found.double().reshape(table.shape)
    padded = (1 - inputs.inside) * inputs.shift
    table.copy_((position.unflatten(0, (-1, len(padded))) - padded @ weight.t()).flatten(0, 1))


def _published_embedding(model: TokenModel, names: Names, views: int) -> dict[str, Tensor]:
    patches, inputs = _patches(model), _inputs(model)
    embed, table = patches.embed, patches.position
    weight = embed.weight.double() / inputs.scale
    state = {
        f"{names.embed}.weight": weight.to(embed.weight.dtype),
        f"{names.embed}.bias": (embed.bias.double() - weight @ inputs.shift).to(embed.bias.dtype),
    }
    if names.position is not None:
        padded = (1 - inputs.inside) * inputs.shift
        position = table.double().unflatten(0, (-1, len(padded))) + padded @ weight.t()
        position = position.flatten(0, 1).repeat(views, 1).to(table.dtype)
        state[names.position] = position.reshape(*names.leading, *position.shape)
    return state
