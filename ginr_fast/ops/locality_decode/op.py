"""``locality_decode``: contract, checks, dispatch, and the custom op with its autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ginr_fast.coords import CoordinateGrid
from ginr_fast.ops import dispatch, triton_backend
from ginr_fast.ops.checks import VALUE_DTYPES, autocasts, check_tensor
from ginr_fast.ops.coordinates import normalised, shared_if_repeated, written_out
from ginr_fast.ops.locality_decode import blocked, plan
from ginr_fast.ops.locality_decode.reference import locality_decode_reference
from ginr_fast.ops.locality_decode.weights import (
    LocalityWeights,
    check_weights,
)
from ginr_fast.profiling import annotate

# The op takes tensors only: these, then the parameters in the order of LocalityWeights. W_o is
# folded before the op, so its two places are not part of it.
_INPUTS = ("coords", "keys", "values", "logit_bias")
_PARAMETERS = tuple(
    name for name in LocalityWeights._fields if not name.startswith("attention_output")
)
_OPTIONAL = ("logit_bias", "projection_weight", "projection_bias", "modulation_weight")
_CONSTANT = ("query_frequencies", "band_frequencies")
_ARGUMENTS = _INPUTS + _PARAMETERS
_SETTINGS = "int[] grid_shape, bool modulation_relu, str backend"
_TENSORS = ", ".join(f"Tensor{'?' if n in _OPTIONAL else ''} {n}" for n in _ARGUMENTS)


def _backend(name: str) -> Any:
    """The module with ``forward`` and ``backward`` of a backend; Triton's is imported late."""
    if name == "triton":
        from ginr_fast.ops.locality_decode import kernels

        return kernels
    return blocked


def _weights(arguments: Sequence[Tensor | None]) -> LocalityWeights:
    named: dict[str, Any] = dict(zip(_PARAMETERS, arguments, strict=True))
    return LocalityWeights(attention_output_weight=None, attention_output_bias=None, **named)


@annotate("locality_decode")
def _forward(*arguments: Any) -> Tensor:
    *tensors, grid_shape, modulation_relu, backend = arguments
    coords, keys, values, logit_bias, *parameters = tensors
    weights = _weights(parameters)
    count = math.prod(grid_shape) if grid_shape else coords.shape[1]
    if keys.shape[0] * count == 0:
        return keys.new_empty(keys.shape[0], count, weights.out_dim)
    coords = shared_if_repeated(coords, grid_shape)
    with torch.autocast(keys.device.type, enabled=False):
        return _backend(backend).forward(
            coords, list(grid_shape), keys, values, logit_bias, weights, modulation_relu
        )


@annotate("locality_decode_backward")
def _backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    *tensors, grid_shape, modulation_relu, backend, needed = arguments
    coords, keys, values, logit_bias, *parameters = tensors
    named = dict(zip(_ARGUMENTS, tensors, strict=True))
    if grad.numel() == 0:
        return [named[name].new_zeros(named[name].shape) for name in needed]
    if "coords" not in needed:
        coords = shared_if_repeated(coords, grid_shape)
    with torch.autocast(keys.device.type, enabled=False):
        grads = _backend(backend).backward(
            grad,
            coords,
            list(grid_shape),
            keys,
            values,
            logit_bias,
            _weights(parameters),
            modulation_relu,
            needed,
        )
    return [grads[name].to(named[name].dtype).contiguous() for name in needed]


_forward_op = torch.library.custom_op(
    "ginr_fast::locality_decode",
    _forward,
    mutates_args=(),
    schema=f"({_TENSORS}, {_SETTINGS}) -> Tensor",
)
_backward_op = torch.library.custom_op(
    "ginr_fast::locality_decode_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}, {_SETTINGS}, str[] needed) -> Tensor[]",
)


@_forward_op.register_fake
def _(*arguments: Any) -> Tensor:
    coords, keys = arguments[:2]
    grid_shape = arguments[len(_ARGUMENTS)]
    count = math.prod(grid_shape) if grid_shape else coords.shape[1]
    out_dim = arguments[_ARGUMENTS.index("output_weight")].shape[1]
    return keys.new_empty(keys.shape[0], count, out_dim)


@_backward_op.register_fake
def _(grad: Tensor, *arguments: Any) -> list[Tensor]:
    named = dict(zip(_ARGUMENTS, arguments, strict=False))
    return [named[name].new_empty(named[name].shape) for name in arguments[-1]]


def _reference_on(arguments: Sequence[Any]) -> Tensor:
    """The reference formula on the op's own arguments."""
    *tensors, grid_shape, modulation_relu = arguments
    coords, keys, values, logit_bias, *parameters = tensors
    points, weights = written_out(coords, grid_shape), _weights(parameters)
    return locality_decode_reference(points, keys, values, logit_bias, weights, modulation_relu)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    tensors, ctx.settings = inputs[: len(_ARGUMENTS)], inputs[len(_ARGUMENTS) :]
    ctx.present = [tensor is not None for tensor in tensors]
    ctx.save_for_backward(*(tensor for tensor in tensors if tensor is not None))


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple:
    saved = iter(ctx.saved_tensors)
    tensors = [next(saved) if present else None for present in ctx.present]
    needed = [
        name
        for name, wanted in zip(_ARGUMENTS, ctx.needs_input_grad, strict=False)
        if wanted and name not in _CONSTANT
    ]
    if torch.is_grad_enabled():
        # create_graph: the gradient must itself be differentiable, which the formula is. Views,
        # because an argument may be a function of another, or the same tensor twice.
        views = {
            name: None if tensor is None else tensor.view_as(tensor)
            for name, tensor in zip(_ARGUMENTS, tensors, strict=True)
        }
        grads = torch.autograd.grad(
            _reference_on((*views.values(), *ctx.settings[:2])),
            [view for name, view in views.items() if name in needed and view is not None],
            grad,
            create_graph=True,
            allow_unused=True,  # the hidden weights of a single band
            materialize_grads=True,
        )
    else:
        grads = _backward_op(grad.contiguous(), *tensors, *ctx.settings, needed)
    found = dict(zip(needed, grads, strict=True))
    return (*(found.get(name) for name in _ARGUMENTS), *(None for _ in ctx.settings))


_forward_op.register_autograd(_autograd_backward, setup_context=_setup_context)


def sizes_of(
    coords: Tensor, grid_shape: list[int], keys: Tensor, values: Tensor, w: LocalityWeights
) -> plan.Sizes:
    """What the planner counts with."""
    batch, heads, tokens, key_dim = keys.shape
    return plan.Sizes(
        batch=batch,
        coordinates=math.prod(grid_shape) if grid_shape else coords.shape[1],
        tokens=tokens,
        heads=heads,
        key_dim=key_dim,
        value_dim=values.shape[-1],
        query_width=w.query_weight.shape[0],
        width=w.width,
        levels=w.levels,
        out_dim=w.out_dim,
        query_features=w.query_weight.shape[1],
        features=w.band_weight.shape[2],
        shared=bool(grid_shape) or coords.shape[0] == 1,
        grid_points=sum(grid_shape),
        coord_dim=len(grid_shape) or coords.shape[-1],
        projected=w.projection_weight is not None,
        modulated=w.modulation_weight is not None,
        attention_output=(
            0 if w.attention_output_weight is None else w.attention_output_weight.shape[0]
        ),
    )


def _open_ended(sizes: plan.Sizes) -> bool:
    """Whether ``torch.export`` left a size open: one program then serves all, so that what pays
    for some of them cannot be chosen. ``torch.compile`` chooses, and makes another program where
    another choice pays."""
    return any(isinstance(n, torch.SymInt) for n in (sizes.batch, sizes.coordinates, sizes.tokens))


def fold(
    keys: Tensor, values: Tensor, w: LocalityWeights, foldings: plan.Foldings
) -> tuple[Tensor, Tensor, Tensor | None, LocalityWeights]:
    """Apply the foldings with differentiable PyTorch: keys, values, logit bias, weights."""
    heads = keys.shape[1]
    logit_bias = None
    if w.attention_output_weight is not None and w.attention_output_bias is not None:
        assert w.modulation_weight is not None
        w = w._replace(
            modulation_weight=w.modulation_weight @ w.attention_output_weight,
            modulation_bias=w.modulation_bias
            + (w.modulation_weight @ w.attention_output_bias.unsqueeze(-1)).squeeze(-1),
            attention_output_weight=None,
            attention_output_bias=None,
        )
    if foldings.keys and w.projection_weight is not None and w.projection_bias is not None:
        bias = w.projection_bias.unflatten(0, (heads, 1, -1)).transpose(-1, -2)
        logit_bias = (keys @ bias).squeeze(-1)
        keys = keys @ w.projection_weight.unflatten(0, (heads, -1))
        w = w._replace(projection_weight=None, projection_bias=None)
    if foldings.values and w.modulation_weight is not None:
        by_head = w.modulation_weight.flatten(0, 1).t().unflatten(0, (heads, -1))
        values = values @ by_head
        w = w._replace(modulation_weight=None)
    return keys, values, logit_bias, w


def locality_decode(
    coords: Tensor | CoordinateGrid,
    keys: Tensor,
    values: Tensor,
    weights: LocalityWeights,
    *,
    scale: float | None = None,
    modulation_relu: bool = True,
) -> Tensor:
    """Decode coordinates by cross-attention over latent tokens and multi-band modulation.

    With γ_σ(v) = [cos(π ω_j v_i), sin(π ω_j v_i)]:

    ``q = ReLU(W_q γ(v) + b_q)``, ``m = W_o softmax(scale · Q Kᵀ) V + b_o`` with Q the projection of
    q; for every band ℓ ``m_ℓ = ReLU(ReLU(W_F γ_ℓ(v) + b_F) + W_m m + b_m)``; ``h_1 = m_1``,
    ``h_ℓ = ReLU(W (m_ℓ + h_{ℓ−1}) + b)``; the value is ``Σ_ℓ W_out h_ℓ + b_out``.

    Source: Locality-Aware Generalizable Implicit Neural Representation, arXiv 2310.05624, eq. 2–9.

    Args:
        coords: a :class:`~ginr_fast.CoordinateGrid`; or ``(..., c)`` shared by the whole batch; or
            ``(B, ..., c)``: three or more dimensions of which the first is B or 1. float32 or
            float64 (half precision cannot carry a Fourier phase). A batch that is expanded, or on
            a CPU merely repeated, is computed as shared; on a CPU a grid written
            out as a tensor, ``(n_1, …, n_c, c)``, is recognised as separable.
        keys: projected keys, ``(B, H, R, dq)``.
        values: projected values, ``(B, H, R, dv)``.
        weights: the parameters, see :class:`LocalityWeights`; in the dtype of keys and values
            unless autocast is on.
        scale: multiplies the logits; ``dq ** -0.5`` if None.
        modulation_relu: whether a ReLU follows feature + modulation, as published.

    Returns:
        ``(B, ..., d_out)`` in the dtype of ``keys``, or autocast's.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or device, by its name.
        BackendError: a forced backend cannot serve the call.

    Differentiable in everything but the frequencies, any number of times; only the gradients
    asked for are computed.
    """
    check_tensor("keys", keys, ("B", "H", "R", "dq"), dtypes=VALUE_DTYPES)
    batch, heads, tokens, key_dim = keys.shape
    if heads < 1 or tokens < 1 or key_dim < 1:
        raise ValueError(f"keys: expected at least one head, token and channel, got {keys.shape}")
    check_tensor("values", values, (batch, heads, tokens, "dv"), device=keys.device)
    if values.shape[-1] < 1:
        raise ValueError(f"values: expected at least one channel, got {tuple(values.shape)}")
    if not isinstance(scale, (int, float, torch.SymFloat, type(None))):
        raise TypeError(f"scale: expected a number, got {type(scale).__name__}")
    if not isinstance(weights, LocalityWeights):
        raise TypeError(f"weights: expected LocalityWeights, got {type(weights).__name__}")
    if autocasts(keys):
        dtype = torch.get_autocast_dtype(keys.device.type)
        keys, values, weights = keys.to(dtype), values.to(dtype), weights.to_dtype(dtype)
    check_tensor("values", values, values.shape, dtypes=(keys.dtype,))
    check_tensor(
        "weights.band_weight",
        weights.band_weight,
        ("L", "d", "F"),
        dtypes=(keys.dtype,),
        device=keys.device,
    )
    coords, grid_shape, shape = normalised(coords, batch, keys.device, keys.dtype)
    coord_dim = len(grid_shape) or coords.shape[-1]
    check_weights(weights, coord_dim, heads, key_dim, values.shape[-1])
    if keys.dtype == torch.float64:
        weights = weights._replace(
            query_frequencies=weights.query_frequencies.double(),
            band_frequencies=weights.band_frequencies.double(),
        )
    keys = keys * (key_dim**-0.5 if scale is None else scale)

    reason = triton_backend.refusal(coords, grid_shape, keys, values)
    if weights.modulation_weight is None:
        reason = reason or "the values carry the modulation weights"
    candidates = triton_backend.order(keys.device, reason)
    name = dispatch.choose("locality_decode", candidates)
    sizes = sizes_of(coords, grid_shape, keys, values, weights)
    if name == "reference":
        if dispatch.recording():
            naive = 2 * plan.naive_multiply_adds(sizes)
            dispatch.record(dispatch.Plan("locality_decode", name, (), naive, naive))
        coords = written_out(coords, grid_shape)
        out = locality_decode_reference(coords, keys, values, None, weights, modulation_relu)
        return out.reshape(*shape, weights.out_dim)
    # The kernels take keys and values a head at a time; only W_o is folded for them.
    if name == "triton" or _open_ended(sizes):
        foldings = plan.Foldings(False, False)
    else:
        foldings = plan.choose_foldings(sizes)
    if dispatch.recording():
        dispatch.record(
            dispatch.Plan(
                "locality_decode",
                name,
                plan.describe(sizes, foldings),
                2 * plan.executed_multiply_adds(sizes, foldings),
                2 * plan.naive_multiply_adds(sizes),
                {k: why for k, why in candidates.items() if why is not None},
            )
        )
    keys, values, logit_bias, weights = fold(keys, values, weights, foldings)
    tensors = {"coords": coords, "keys": keys, "values": values, "logit_bias": logit_bias}
    tensors.update(weights._asdict())
    out = _forward_op(*(tensors[n] for n in _ARGUMENTS), grid_shape, modulation_relu, name)
    return out.reshape(*shape, weights.out_dim)
