"""Checkpoints of published code bases: read without running code in them, and renamed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ginr_fast.adapters.anr import frequencies, output_map
from ginr_fast.adapters.published_files import content_of
from ginr_fast.adapters.published_tensors import Tensors, some
from ginr_fast.decoders.anr import AnrDecoder
from ginr_fast.ops.checks import check_count
from ginr_fast.systems.published import check_published

if TYPE_CHECKING:  # needs what comes with [train] only
    from ginr_fast.training.checkpoints import Saved

ANR_SYSTEM = "anr-decoder"
"""What exported weights of an AnrDecoder alone say that they are."""

# Where checkpoints keep the state dict of their model, and under which names the decoder in it.
_HOLDERS = ("state_dict", "model_state_dict", "model", "sd")
_AVERAGED = "state_dict_ema"
# A tensor that only models of that code have.
_MARKS = {
    "mnif": "model_param.net.0.0.weight",
    "anr": "attn.to_q.weight",
    "trans-inr": "base_params.wb0",
    "ginr-ipc": "hyponet.params_dict.linear_wb0",
}
_ANR_LAYER = re.compile(r"mlp\.(\d+)(?:\.0)?\.(weight|bias)")
_ANR_NAMES = {
    "attn.to_q.weight": "query_projection.weight",
    "attn.to_k.weight": "key_projection.weight",
    "attn.to_v.weight": "value_projection.weight",
    "attn.to_out.weight": "output_projection.weight",
    "attn.to_out.bias": "output_projection.bias",
    "attn.to_out.0.weight": "output_projection.weight",
    "attn.to_out.0.bias": "output_projection.bias",
}


class Published(NamedTuple):
    """The model, or the decoder, in a published checkpoint."""

    kind: str
    """Whose code it is, "mnif", "anr", "trans-inr" or "ginr-ipc"."""
    state: dict[str, Tensor]
    """Its tensors, by their names in its class."""
    beside: tuple[str, ...]
    """The names of other tensors in the file, of an encoder say."""
    content: Mapping[str, Any]
    """The file as it is: what lies beside the state dict."""


def read_published(path: Path | str, averaged: bool = False) -> Published:
    """Find the model in a checkpoint of TransINR's, IPC's, mNIF's or ANR's code.

    Args:
        path: what ``torch.save`` wrote there, or safetensors. Code in it is never run.
        averaged: take the moving average of the weights that IPC's code may keep.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds more than tensors and plain values, or no such model.
    """
    path = Path(path)
    content = content_of(path)
    if averaged and not isinstance(content.get(_AVERAGED), Mapping):
        raise ValueError(f"{path}: holds no {_AVERAGED}, but {', '.join(list(content)[:5])}")
    state = _tensors_in(content[_AVERAGED] if averaged else content)
    found = {kind: _prefixes(state, mark) for kind, mark in _MARKS.items()}
    for kind, prefixes in found.items():
        if len(prefixes) != 1:
            continue
        prefix = prefixes[0]
        inner = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
        beside = tuple(key for key in state if not key.startswith(prefix))
        return Published(kind, inner, beside, content)
    for kind, prefixes in found.items():
        if prefixes:
            names = some([repr(prefix) for prefix in prefixes])
            raise ValueError(
                f"{path}: holds several models of {kind}, under the prefixes {names}; expected one"
            )
    raise ValueError(
        f"{path}: holds no decoder of mNIF or ANR, and no model of trans-inr or ginr-ipc, but "
        f"{some(list(state)) or 'no tensor'}"
    )


def _prefixes(state: Mapping[str, Tensor], mark: str) -> list[str]:
    """Where in a state dict a model lies that has a tensor of this name."""
    ends = (key for key in state if key == mark or key.endswith(f".{mark}"))
    return [key.removesuffix(mark) for key in ends]


def _tensors_in(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    for _ in _HOLDERS:  # as deep as they can lie in each other; a mapping may hold itself
        inner = [content[name] for name in _HOLDERS if isinstance(content.get(name), Mapping)]
        if _is_state(content) or not inner:
            break
        content = inner[0]
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


@dataclass(frozen=True)
class AnrOptions:
    """What the tensors of an ``ANR`` do not say; the defaults are those of its class.

    Args:
        coord_dim: ``in_dim``.
        heads: ``n_head``.
        bandwidth: ``pe_sigma``.
        threshold: ``att_threshold``, 0 for None.
        activation: "relu" or "mish".
        out_scale: of the output.
        out_bias: of the output.
        rescale: whether the output is taken from [0, 1] to [-1, 1].

    Raises:
        ValueError: a number of coordinates or heads below 1.
    """

    coord_dim: int = 2
    heads: int = 6
    bandwidth: float = 1024.0
    threshold: float = 0.0
    activation: str = "relu"
    out_scale: float = 1.0
    out_bias: float = 0.0
    rescale: bool = False

    def __post_init__(self) -> None:
        for name in ("coord_dim", "heads"):
            check_count(name, getattr(self, name))


def anr_arguments(state: Mapping[str, Tensor], options: AnrOptions | None = None) -> dict[str, Any]:
    """The arguments of the :class:`~ginr_fast.AnrDecoder` that computes what an ``ANR`` does.

    Args:
        state: of the ``ANR``.
        options: what the tensors do not say.

    Raises:
        ValueError: a tensor is missing or does not fit.
    """
    options = options or AnrOptions()
    layers = _anr_layers(state)
    query, key = _matrix(state, "attn.to_q.weight"), _matrix(state, "attn.to_k.weight")
    inner, hidden_dim = query.shape
    if inner % options.heads:
        raise ValueError(f"heads: {options.heads} do not divide the {inner} rows of attn.to_q")
    # An encoding narrower than the layers is padded with zeros.
    encoded = hidden_dim // options.coord_dim // 2
    scale, bias = output_map(options.out_scale, options.out_bias, options.rescale)
    return {
        "coord_dim": options.coord_dim,
        "out_dim": layers[-1].shape[0],
        "token_dim": key.shape[1],
        "hidden_dim": hidden_dim,
        "heads": options.heads,
        "head_dim": inner // options.heads,
        "depth": len(layers),
        "max_frequency": options.bandwidth,
        "threshold": options.threshold,
        "activation": options.activation,
        "feature_dim": 2 * options.coord_dim * encoded,
        "output_scale": scale,
        "output_bias": bias,
    }


@torch.no_grad()
def anr_decoder(state: Mapping[str, Tensor], options: AnrOptions | None = None) -> AnrDecoder:
    """The decoder of ANR's code as an :class:`~ginr_fast.AnrDecoder`.

    Args:
        state: of the ``ANR``, see :func:`read_published`.
        options: what the tensors do not say.

    Raises:
        ValueError: a tensor is missing, does not fit, or has no place in one, by name.
    """
    options = options or AnrOptions()
    decoder = AnrDecoder(**anr_arguments(state, options))
    decoder.frequencies.copy_(frequencies(options.bandwidth, len(decoder.frequencies)))
    names = _anr_names(decoder.depth) | {
        ours: name for name in state if (ours := _anr_name(name)) is not None
    }
    tensors = Tensors(state)
    for ours, parameter in decoder.named_parameters():
        rows, *columns = parameter.shape
        if ours == "query_projection.weight":
            columns = [decoder.hidden_dim]
        value = tensors.take(names[ours], (rows, *columns))
        parameter.copy_(value[:, : parameter.shape[1]] if columns else value)
    unused = tensors.finish()
    if unused:
        raise ValueError(f"state: {some(unused)} is not of an ANR")
    return decoder.eval()


def anr_published(decoder: AnrDecoder) -> dict[str, Tensor]:
    """An :class:`~ginr_fast.AnrDecoder` as the state dict of an ``ANR``.

    Its ``pe_sigma``, ``att_threshold``, ``out_scale`` and the like are arguments of the class, and
    not in it.
    """
    names = _anr_names(decoder.depth)
    state = {names[ours]: value.detach() for ours, value in decoder.named_parameters()}
    query = state["attn.to_q.weight"]
    padded = query.new_zeros(query.shape[0], decoder.hidden_dim)
    padded[:, : query.shape[1]] = query
    return {**state, "attn.to_q.weight": padded}


def load_anr(path: Path | str) -> AnrDecoder:
    """The decoder that ``ginr-fast convert`` made of a checkpoint of ANR's code.

    Args:
        path: the ``.safetensors`` file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, or something else.
    """
    from ginr_fast.training.checkpoints import load_saved

    return anr_of(load_saved(path))


def anr_of(saved: Saved) -> AnrDecoder:
    """The decoder in what :func:`~ginr_fast.training.checkpoints.load_saved` gave.

    Raises:
        CheckpointError: something else, or it does not fit.
    """
    from ginr_fast.training.checkpoints import CheckpointError

    if saved.system != ANR_SYSTEM:
        raise CheckpointError(f"{saved.path}: holds {saved.system}; expected {ANR_SYSTEM}")
    try:
        decoder = AnrDecoder(**saved.recipe)
    except (TypeError, ValueError) as error:
        raise saved.misfit(error) from None
    saved.restore(decoder)
    return decoder.eval()


def _anr_name(name: str) -> str | None:
    """Our name of a tensor of an ``ANR``; None for another one's."""
    layer = _ANR_LAYER.fullmatch(name)
    return f"layers.{layer[1]}.{layer[2]}" if layer is not None else _ANR_NAMES.get(name)


def _anr_names(depth: int) -> dict[str, str]:
    """The names of an ``ANR``'s tensors, by ours."""
    names = {ours: theirs for theirs, ours in _ANR_NAMES.items() if ".0." not in theirs}
    for index in range(depth):
        layer = f"mlp.{index}" + (".0" if index < depth - 1 else "")
        names |= {f"layers.{index}.{part}": f"{layer}.{part}" for part in ("weight", "bias")}
    return names


def _matrix(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"state: expected {name}, got {some(list(state))}")
    return check_published(name, state[name], (None, None))


def _anr_layers(state: Mapping[str, Tensor]) -> list[Tensor]:
    """The weights of the MLP, in order."""
    found = {
        int(match[1]): _matrix(state, name)
        for name in state
        if (match := _ANR_LAYER.fullmatch(name)) and match[2] == "weight"
    }
    if not found or sorted(found) != list(range(len(found))):
        raise ValueError(f"state: expected mlp.0 …, all of them, got mlp.{sorted(found)}")
    return [found[index] for index in range(len(found))]
