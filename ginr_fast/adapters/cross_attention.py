"""The projections of a cross-attention module, however its code names and fuses them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

_HEADS = ("heads", "n_head", "n_heads", "num_heads")
_QUERY = ("to_q", "q_proj")
_KEY = ("to_k", "k_proj")
_VALUE = ("to_v", "v_proj")
_BOTH = ("to_kv", "kv_proj")
_OUTPUT = ("to_out", "out_proj")


class Affine(NamedTuple):
    """A linear map."""

    weight: Tensor
    """(out, in)."""
    bias: Tensor | None
    """(out,), or None."""


class Projections(NamedTuple):
    """The linear maps of a cross-attention with H heads: its parameters, or views of them."""

    query: Affine
    """(H·dq, d)."""
    key: Affine
    """(H·dq, token width)."""
    value: Affine
    """(H·dv, token width)."""
    output: Affine | None
    """(d_o, H·dv), or None without one."""


def heads_of(attention: nn.Module) -> int | None:
    """H, if the module says."""
    found = _first(attention, _HEADS)
    return found if isinstance(found, int) and found > 0 else None


def scale_of(attention: nn.Module, head_dim: int) -> float:
    """What multiplies the logits: the module's ``scale``, else dq to the power -½."""
    scale = getattr(attention, "scale", None)
    return float(scale) if isinstance(scale, (int, float)) else head_dim**-0.5


def projections_of(attention: nn.Module) -> Projections | None:
    """The linear maps, or None for a layout that is not known.

    Known are ``torch.nn.MultiheadAttention``, in training if its dropout is 0; and ``to_q`` or
    ``q_proj`` with ``to_k`` and ``to_v`` (``k_proj``, ``v_proj``), or with one ``to_kv``
    (``kv_proj``) that gives the keys and then the values; and ``to_out`` (``out_proj``), or none,
    alone or before a dropout of 0.
    """
    if isinstance(attention, nn.MultiheadAttention):
        return _of_multihead(attention)
    query, output = _linear(attention, _QUERY), _linear(attention, _OUTPUT)
    if query is None or (output is None and _first(attention, _OUTPUT) is not None):
        return None
    both = _linear(attention, _BOTH)
    if both is not None:
        key, value = _split(both)
        return Projections(query, key, value, output)
    keys, values = _linear(attention, _KEY), _linear(attention, _VALUE)
    if keys is None or values is None:
        return None
    return Projections(query, keys, values, output)


def _of_multihead(attention: nn.MultiheadAttention) -> Projections | None:
    if attention.bias_k is not None or attention.add_zero_attn:
        return None
    if attention.dropout and attention.training:
        return None
    out: Any = attention.out_proj
    biases: Any = [None] * 3
    if attention.in_proj_bias is not None:
        biases = attention.in_proj_bias.chunk(3)
    weights: Any = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.chunk(3)
    query, key, value = (Affine(w, b) for w, b in zip(weights, biases, strict=True))
    return Projections(query, key, value, Affine(out.weight, out.bias))


def _split(both: Affine) -> tuple[Affine, Affine]:
    """Keys, then values."""
    key, value = both.weight.chunk(2)
    if both.bias is None:
        return Affine(key, None), Affine(value, None)
    key_bias, value_bias = both.bias.chunk(2)
    return Affine(key, key_bias), Affine(value, value_bias)


def _first(module: nn.Module, names: tuple[str, ...]) -> Any:
    found = (getattr(module, name, None) for name in names)
    return next((part for part in found if part is not None), None)


def _linear(module: nn.Module, names: tuple[str, ...]) -> Affine | None:
    layer = linear_of(_first(module, names))
    return None if layer is None else Affine(layer.weight, layer.bias)


def own_forward(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of a module is that of a class of PyTorch: some subclasses (LoRA's linear
    layers) and patched instances compute something else from the same parameters."""
    return type(module).forward is kind.forward and "forward" not in vars(module)


def is_linear(layer: object) -> TypeGuard[nn.Linear]:
    """Whether it computes what ``torch.nn.Linear`` does, by its call too."""
    return isinstance(layer, nn.Linear) and own_forward(layer, nn.Linear)


def linear_of(layer: object) -> nn.Linear | None:
    """A linear layer, alone or before nothing but dropouts of 0; None for anything else."""
    if isinstance(layer, nn.Sequential) and len(layer) > 0:
        idle = all(isinstance(part, nn.Dropout) and part.p == 0 for part in list(layer)[1:])
        layer = layer[0] if idle else None
    return layer if is_linear(layer) else None


def by_head(projected: Tensor, heads: int) -> Tensor:
    """``(B, R, H·w)`` as ``(B, H, R, w)``."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def applied(affine: Affine, x: Tensor) -> Tensor:
    """``W x + b`` over the last dimension."""
    return torch.nn.functional.linear(x, affine.weight, affine.bias)
