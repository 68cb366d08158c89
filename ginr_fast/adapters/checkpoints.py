"""Checkpoints of published code bases: read without running code in them, and renamed."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ginr_fast.decoders.anr import AnrDecoder

ANR_SYSTEM = "anr-decoder"
"""What exported weights of an AnrDecoder alone say that they are."""

# Where checkpoints keep the state dict of their model, and under which names the decoder in it.
_HOLDERS = ("state_dict", "model_state_dict", "model", "sd")
_AVERAGED = "state_dict_ema"
# A tensor that only models of that code have.
_MARKS = {
    "mnif": re.compile(r"model_param\.net\.0\.0\.weight"),
    "anr": re.compile(r"attn\.to_q\.weight"),
    "trans-inr": re.compile(r"base_params\.wb0"),
    "ginr-ipc": re.compile(r"hyponet\.params_dict\.linear_wb0"),
}
# IPC's code leaves its whole configuration in the state of its optimiser, as objects of its own.
_CONFIGURATION = re.compile(
    r"(omegaconf|models|utils|typing)\..+|collections\.defaultdict"
    r"|builtins\.(dict|list|tuple|str|int|float|bool)"
)
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
    content = _content_of(path)
    if averaged and not isinstance(content.get(_AVERAGED), Mapping):
        raise ValueError(f"{path}: holds no {_AVERAGED}, but {', '.join(list(content)[:5])}")
    state = _tensors_in(path, content[_AVERAGED] if averaged else content)
    for kind, name in _MARKS.items():
        matches = [match for key in state if (match := re.search(rf"(?:^|\.){name.pattern}$", key))]
        if len(matches) != 1:
            continue
        prefix = matches[0].string[: -len(matches[0][0].lstrip("."))]
        found = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
        beside = tuple(key for key in state if not key.startswith(prefix))
        return Published(kind, found, beside, content)
    some = ", ".join(list(state)[:5])
    raise ValueError(
        f"{path}: holds no decoder of mNIF or ANR, and no model of trans-inr or ginr-ipc, but "
        f"{some or 'no tensor'} …"
    )


def _content_of(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} does not exist")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: truncated or corrupt ({error})") from None
    try:
        with torch.serialization.safe_globals(_inert_classes(path)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: holds more than tensors, and code in it would run if it were read; in the "
            "code that wrote it: torch.save(model.state_dict(), path)"
        ) from None
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: truncated or corrupt ({reason})") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a state dict, got {type(content).__name__}")
    return content


class _Inert:
    """What is read in the place of an object that is of no use here: it takes all and does
    nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __class_getitem__(cls, _: object) -> type[_Inert]:
        return cls


def _inert_classes(path: Path) -> list[Any]:
    """Classes that pass for those of a configuration in a file, by their modules and names."""
    if not zipfile.is_zipfile(path):
        return []
    named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    parts = [name.rpartition(".") for name in named if _CONFIGURATION.fullmatch(name)]
    return [type(own, (_Inert,), {"__module__": module}) for module, _, own in parts]


def _tensors_in(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    while not _is_state(content):
        inner = [content[name] for name in _HOLDERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = inner[0]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _is_state(content: Mapping[str, Any]) -> bool:
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
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


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
    query, key = _wanted(state, "attn.to_q.weight"), _wanted(state, "attn.to_k.weight")
    inner, hidden_dim = query.shape
    if inner % options.heads:
        raise ValueError(f"heads: {options.heads} do not divide the {inner} rows of attn.to_q")
    # An encoding narrower than the layers is padded with zeros.
    frequencies = hidden_dim // options.coord_dim // 2
    scale, bias = options.out_scale, options.out_bias
    if options.rescale:
        scale, bias = 2 * scale, 2 * bias - 1
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
        "feature_dim": 2 * options.coord_dim * frequencies,
        "output_scale": scale,
        "output_bias": bias,
    }


def anr_decoder(state: Mapping[str, Tensor], options: AnrOptions | None = None) -> AnrDecoder:
    """The decoder of ANR's code as an :class:`~ginr_fast.AnrDecoder`.

    Args:
        state: of the ``ANR``, see :func:`read_published`.
        options: what the tensors do not say.

    Raises:
        ValueError: a tensor is missing, does not fit, or has no place in one.
    """
    options = options or AnrOptions()
    decoder = AnrDecoder(**anr_arguments(state, options))
    count = decoder.frequencies.shape[0]
    # As published, number by number: at σ = 1024 a rounding of ω shows in the phase.
    frequencies = torch.linspace(0, math.log(options.bandwidth), count).exp()
    found: dict[str, Tensor] = {"frequencies": frequencies}
    for name, value in state.items():
        ours = _ANR_NAMES.get(name)
        layer = _ANR_LAYER.fullmatch(name)
        if layer is not None:
            ours = f"layers.{layer[1]}.{layer[2]}"
        if ours is None:
            raise ValueError(f"state: {name} is not of an ANR")
        found[ours] = value
    query = found["query_projection.weight"]
    found["query_projection.weight"] = query[:, : decoder.query_projection.in_features]
    try:
        decoder.load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(f"state: {' '.join(str(error).split())}") from None
    return decoder.eval()


def anr_published(decoder: AnrDecoder) -> dict[str, Tensor]:
    """An :class:`~ginr_fast.AnrDecoder` as the state dict of an ``ANR``.

    Its ``pe_sigma``, ``att_threshold``, ``out_scale`` and the like are arguments of the class, and
    not in it.
    """
    width = decoder.hidden_dim
    query = decoder.query_projection.weight.detach()
    state = {"attn.to_q.weight": query.new_zeros(query.shape[0], width)}
    state["attn.to_q.weight"][:, : query.shape[1]] = query
    for theirs, ours in _ANR_NAMES.items():
        if theirs not in state and ".0." not in theirs:
            state[theirs] = decoder.get_parameter(ours).detach()
    for index in range(decoder.depth):
        name = f"mlp.{index}" + (".0" if index < decoder.depth - 1 else "")
        for part in ("weight", "bias"):
            state[f"{name}.{part}"] = decoder.get_parameter(f"layers.{index}.{part}").detach()
    return state


def load_anr(path: Path | str) -> AnrDecoder:
    """The decoder that ``ginr-fast convert`` made of a checkpoint of ANR's code.

    Args:
        path: the ``.safetensors`` file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, or something else.
    """
    from ginr_fast.training.checkpoints import CheckpointError, load_saved

    saved = load_saved(path)
    if saved.system != ANR_SYSTEM:
        raise CheckpointError(f"{saved.path}: holds {saved.system}; expected {ANR_SYSTEM}")
    decoder = AnrDecoder(**saved.recipe)
    saved.restore(decoder)
    return decoder.eval()


def _wanted(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"state: expected {name}, got {', '.join(state)}")
    return state[name]


def _anr_layers(state: Mapping[str, Tensor]) -> list[Tensor]:
    """The weights of the MLP, in order."""
    found = {
        int(match[1]): value
        for name, value in state.items()
        if (match := _ANR_LAYER.fullmatch(name)) and match[2] == "weight"
    }
    if not found or sorted(found) != list(range(len(found))):
        raise ValueError(f"state: expected mlp.0 …, all of them, got mlp.{sorted(found)}")
    return [found[index] for index in range(len(found))]
