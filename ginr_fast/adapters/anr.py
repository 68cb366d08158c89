"""ANR's published code on the operators of this library (github.com/Roninton/ANR).

``ANR`` is a cross-attention from encoded coordinates to tokens, then an MLP: here
:func:`ginr_fast.anr_decode`, with the parameters where they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ginr_fast.adapters.cross_attention import by_head, is_linear, linear_of
from ginr_fast.adapters.frame import Adapter, Match
from ginr_fast.adapters.probes import Probe, drawn
from ginr_fast.decoders.anr import anr_weights
from ginr_fast.ops.anr_decode.op import anr_decode
from ginr_fast.ops.anr_decode.weights import AnrWeights
from ginr_fast.ops.checks import autocasts


@dataclass(frozen=True)
class AnrSettings:
    """What an ``ANR`` computes.

    Args:
        coord_dim: c, coordinates of a point.
        frequencies: n, Fourier frequencies a coordinate.
        bandwidth: σ, the highest of them; the lowest is 1.
        activation: between the layers of the MLP, "relu" or "mish".
    """

    coord_dim: int
    frequencies: int
    bandwidth: float
    activation: str


def settings_of(module: nn.Module) -> AnrSettings | str:
    """What an ``ANR`` computes, or why this library cannot."""
    if not getattr(module, "use_pe", False):
        return "it does not encode its coordinates"
    attention, layers = getattr(module, "attn", None), getattr(module, "mlp", None)
    if not isinstance(attention, nn.Module) or not isinstance(layers, nn.Sequential):
        return "it has no attn, or its mlp is not a sequence"
    for name in ("to_q", "to_k", "to_v"):
        if not _is_linear(getattr(attention, name, None), bias=False):
            return f"its attn.{name} is not a linear map without bias"
    if not _is_linear(linear_of(getattr(attention, "to_out", None)), bias=True):
        return "its attn.to_out is not a linear map with bias"
    coord_dim, encoding, bandwidth = (
        getattr(module, name, None) for name in ("in_dim", "pe_dim", "pe_sigma")
    )
    if not isinstance(coord_dim, int) or not isinstance(encoding, int):
        return "its in_dim or pe_dim is not an integer"
    if not isinstance(bandwidth, (int, float)) or not 0 < bandwidth < math.inf:
        return f"its pe_sigma is {bandwidth!r}"
    *inner, last = layers
    if not _is_linear(last, bias=True):
        return "its last layer is not a linear map with bias"
    activations = {_activation_of(layer) for layer in inner}
    if None in activations or len(activations) > 1:
        return "its hidden layers are not linear maps followed by ReLU or Mish"
    query: Any = attention.to_q
    features, count = query.in_features, encoding // 2
    padding = getattr(module, "res_dim", 0)
    if count < 1 or features != 2 * coord_dim * count + padding:
        return f"its attn.to_q takes {features} features, of {2 * coord_dim * count}"
    activation = activations.pop() if activations else "relu"
    assert activation is not None
    return AnrSettings(coord_dim, count, float(bandwidth), activation)


def _is_linear(layer: object, bias: bool) -> bool:
    return is_linear(layer) and (layer.bias is not None) == bias


def _activation_of(layer: nn.Module) -> str | None:
    """The activation of (linear, activation); None for anything else."""
    if not isinstance(layer, nn.Sequential) or len(layer) != 2:
        return None
    names = {"ReLU": "relu", "Mish": "mish"}
    return names.get(type(layer[1]).__name__) if _is_linear(layer[0], bias=True) else None


def evaluate(module: nn.Module, settings: AnrSettings, x: Tensor, **ignored: Any) -> Tensor | None:
    """``ANR.forward``.

    Args:
        module: the ``ANR``, its ``params["dtoken"]`` ``(B, R, width)`` set.
        settings: what it computes.
        x: coordinates, ``(B, ..., c)``.
        ignored: as published.

    Returns:
        ``(B, ..., out)``; None for inputs that the operator does not take.
    """
    anr: Any = module
    params = anr.params
    tokens = params["dtoken"] if params is not None else None
    if not isinstance(x, Tensor) or not isinstance(tokens, Tensor) or tokens.ndim != 3:
        return None
    weight, threshold = anr.attn.to_q.weight, anr.attn.att_threshold
    if x.ndim < 3 or x.shape[0] != tokens.shape[0] or x.shape[-1] != settings.coord_dim:
        return None
    if x.dtype != torch.get_default_dtype() or weight.dtype != x.dtype:
        return None  # as published: the frequencies are of the default dtype
    if tokens.dtype != x.dtype and not autocasts(weight):
        return None
    if threshold is not None and not 0 <= threshold < 1:
        return None
    return anr_decode(
        x,
        by_head(anr.attn.to_k(tokens), anr.attn.n_head),
        by_head(anr.attn.to_v(tokens), anr.attn.n_head),
        weights_of(module, settings),
        threshold=threshold or 0.0,
        activation=settings.activation,
        scale=anr.attn.scale,
    )


def frequencies(bandwidth: float, count: int, device: torch.device | None = None) -> Tensor:
    """ω of an ``ANR``'s encoding, ``(count,)``, as published number by number: at σ = 1024 a
    rounding of ω shows in the phase.

    Args:
        bandwidth: σ, the highest; the lowest is 1.
        count: n.
        device: of the result.
    """
    return torch.linspace(0, math.log(bandwidth), count, device=device).exp()


def output_map(scale: float, bias: float, rescale: bool) -> tuple[float, float]:
    """What the output of an ``ANR`` is multiplied by, and what is then added.

    Args:
        scale: its ``out_scale``.
        bias: its ``out_bias``.
        rescale: whether the result goes from [0, 1] to [-1, 1].
    """
    return (2 * scale, 2 * bias - 1) if rescale else (scale, bias)


def weights_of(module: nn.Module, settings: AnrSettings) -> AnrWeights:
    """The parameters of an ``ANR`` as those of :func:`ginr_fast.anr_decode`, differentiable; the
    scale and bias of its output, and its rescaling to [-1, 1], are in the last layer."""
    anr: Any = module
    out, query = linear_of(anr.attn.to_out), anr.attn.to_q.weight
    assert out is not None
    scale, bias = output_map(anr.out_scale, anr.out_bias, anr.rescale)
    omega = frequencies(settings.bandwidth, settings.frequencies, query.device)
    query = query[:, : 2 * settings.coord_dim * settings.frequencies]
    *inner, last = anr.mlp
    return anr_weights(omega, query, out, [*(layer[0] for layer in inner), last], scale, bias)


def _match(module: nn.Module) -> Match | str:
    settings = settings_of(module)
    if isinstance(settings, str):
        return settings

    def forward(module: nn.Module, original: Any, *args: Any, **kwargs: Any) -> Tensor:
        # An option or a layer may have been changed since.
        if settings_of(module) != settings:
            return original(*args, **kwargs)
        values = evaluate(module, settings, *args, **kwargs)
        return original(*args, **kwargs) if values is None else values

    attention: Any = module.attn
    weight = attention.to_k.weight
    # Few tokens, so that some attention is above the threshold: else the published code gives NaN.
    tokens = drawn(2, 2, weight.shape[1], like=weight)
    probe = Probe(
        arguments=(drawn(2, 3, settings.coord_dim, seed=1, scale=0.5, like=weight),),
        attributes={"params": {"dtoken": tokens}},
    )
    layers: Any = module.mlp
    width = layers[-1].in_features
    runs_on = f"anr_decode: {attention.n_head} heads, {len(layers)} layers of width {width}"
    return Match(runs_on, {"forward": forward}, (probe,))


ADAPTER = Adapter("ANR", ("ANR",), _match, relies_on=("forward", "convert_posenc"))
"""Recognises ``ANR``."""
