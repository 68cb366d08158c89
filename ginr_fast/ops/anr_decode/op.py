"""``anr_decode``: contract, checks, dispatch, and the custom op with its autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ginr_fast.coords import CoordinateGrid
from ginr_fast.ops import dispatch, triton_backend
from ginr_fast.ops.anr_decode import blocked, plan
from ginr_fast.ops.anr_decode.reference import ACTIVATIONS, anr_decode_reference
from ginr_fast.ops.anr_decode.weights import AnrWeights, check_weights
from ginr_fast.ops.checks import VALUE_DTYPES, autocasts, check_tensor
from ginr_fast.ops.coordinates import normalised, shared_if_repeated, written_out
from ginr_fast.profiling import annotate

# The op takes tensors only: these, then the parameters in the order of AnrWeights. W_o is folded
# before the op, so its two places are not part of it.
_INPUTS = ("coords", "keys", "values")
_PARAMETERS = tuple(name for name in AnrWeights._fields if not name.startswith("attention_output"))
_OPTIONAL = ("first_weight", "first_bias")
_ARGUMENTS = _INPUTS + _PARAMETERS
_TENSORS = ", ".join(f"Tensor{'?' if n in _OPTIONAL else ''} {n}" for n in _ARGUMENTS)
_SETTINGS = "int[] grid_shape, float threshold, str activation, str backend"


def _backend(name: str) -> Any:
    """The module with ``forward`` and ``backward`` of a backend; Triton's is imported late."""
    if name == "triton":
        from ginr_fast.ops.anr_decode import kernels

        return kernels
    return blocked


def _weights(arguments: Sequence[Tensor | None]) -> AnrWeights:
    named: dict[str, Any] = dict(zip(_PARAMETERS, arguments, strict=True))
    return AnrWeights(attention_output_weight=None, attention_output_bias=None, **named)


@annotate("anr_decode")
def _forward(*arguments: Any) -> Tensor:
    *tensors, grid_shape, threshold, activation, backend = arguments
    coords, keys, values, *parameters = tensors
    weights = _weights(parameters)
    count = math.prod(grid_shape) if grid_shape else coords.shape[1]
    if keys.shape[0] * count == 0:
        return keys.new_empty(keys.shape[0], count, weights.out_dim)
    coords = shared_if_repeated(coords, grid_shape)
    with torch.autocast(keys.device.type, enabled=False):
        return _backend(backend).forward(
            coords, list(grid_shape), keys, values, weights, threshold, activation
        )


@annotate("anr_decode_backward")
def _backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    *tensors, grid_shape, threshold, activation, backend, needed = arguments
    coords, keys, values, *parameters = tensors
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
            _weights(parameters),
            threshold,
            activation,
            needed,
        )
    return [grads[name].to(named[name].dtype).contiguous() for name in needed]


_forward_op = torch.library.custom_op(
    "ginr_fast::anr_decode",
    _forward,
    mutates_args=(),
    schema=f"({_TENSORS}, {_SETTINGS}) -> Tensor",
)
_backward_op = torch.library.custom_op(
    "ginr_fast::anr_decode_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}, {_SETTINGS}, str[] needed) -> Tensor[]",
)


@_forward_op.register_fake
def _(*arguments: Any) -> Tensor:
    coords, keys = arguments[:2]
    grid_shape = arguments[len(_ARGUMENTS)]
    count = math.prod(grid_shape) if grid_shape else coords.shape[1]
    out_dim = arguments[_ARGUMENTS.index("output_weight")].shape[0]
    return keys.new_empty(keys.shape[0], count, out_dim)


@_backward_op.register_fake
def _(grad: Tensor, *arguments: Any) -> list[Tensor]:
    named = dict(zip(_ARGUMENTS, arguments, strict=False))
    return [named[name].new_empty(named[name].shape) for name in arguments[-1]]


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
        if wanted and name != "frequencies"
    ]
    if torch.is_grad_enabled():
        # create_graph: the gradient must itself be differentiable, which the formula is. Views,
        # because an argument may be a function of another, or the same tensor twice.
        views = {
            name: None if tensor is None else tensor.view_as(tensor)
            for name, tensor in zip(_ARGUMENTS, tensors, strict=True)
        }
        coords, keys, values, *parameters = views.values()
        grid_shape, threshold, activation, _ = ctx.settings
        assert coords is not None and keys is not None and values is not None
        grads = torch.autograd.grad(
            anr_decode_reference(
                written_out(coords, grid_shape),
                keys,
                values,
                _weights(parameters),
                threshold,
                activation,
            ),
            [view for name, view in views.items() if name in needed and view is not None],
            grad,
            create_graph=True,
            allow_unused=True,  # the hidden weights of a shallow MLP
            materialize_grads=True,
        )
    else:
        grads = _backward_op(grad.contiguous(), *tensors, *ctx.settings, needed)
    found = dict(zip(needed, grads, strict=True))
    return (*(found.get(name) for name in _ARGUMENTS), *(None for _ in ctx.settings))


_forward_op.register_autograd(_autograd_backward, setup_context=_setup_context)


def _sizes(
    coords: Tensor, grid_shape: list[int], keys: Tensor, values: Tensor, w: AnrWeights
) -> plan.Sizes:
    batch, heads, tokens, key_dim = keys.shape
    return plan.Sizes(
        batch=batch,
        coordinates=math.prod(grid_shape) if grid_shape else coords.shape[1],
        tokens=tokens,
        heads=heads,
        key_dim=key_dim,
        value_dim=values.shape[-1],
        width=w.hidden_weight.shape[-1],
        depth=w.depth,
        out_dim=w.out_dim,
        features=w.query_weight.shape[1],
        shared=bool(grid_shape) or coords.shape[0] == 1,
        grid_points=sum(grid_shape),
        coord_dim=len(grid_shape) or coords.shape[-1],
        attention_output=(
            0 if w.attention_output_weight is None else w.attention_output_weight.shape[0]
        ),
    )


def fold(w: AnrWeights) -> AnrWeights:
    """Take W_o, b_o into the layer after them, with differentiable PyTorch."""
    if w.attention_output_weight is None or w.attention_output_bias is None:
        return w
    folded = w._replace(attention_output_weight=None, attention_output_bias=None)
    if w.first_weight is not None and w.first_bias is not None:
        return folded._replace(
            first_weight=w.first_weight @ w.attention_output_weight,
            first_bias=w.first_bias + w.first_weight @ w.attention_output_bias,
        )
    return folded._replace(
        output_weight=w.output_weight @ w.attention_output_weight,
        output_bias=w.output_bias + w.output_weight @ w.attention_output_bias,
    )


def anr_decode(
    coords: Tensor | CoordinateGrid,
    keys: Tensor,
    values: Tensor,
    weights: AnrWeights,
    *,
    threshold: float = 0.0,
    activation: str = "relu",
    scale: float | None = None,
) -> Tensor:
    """Decode coordinates by thresholded cross-attention over latent tokens, then an MLP.

    With γ(v) = [cos(π ω_j v_i), sin(π ω_j v_i)] and ``Q = W_q γ(v)``, for every head
    ``p = softmax(scale · Q_h K_hᵀ)``; with a threshold τ > 0, ``u = max(p − τ, 0)`` and
    ``w = u / Σu`` (all 0, with zero gradient, in a row where no p exceeds τ), without one
    ``w = p``. ``m = W_o [w_h V_h] + b_o`` goes through ``depth`` linear layers with the activation
    between them.

    Source: Attention Beats Linear for Fast Implicit Neural Representation Generation (ANR, ECCV
    2024), a localized attention layer and then an MLP, as INRCT: An End-to-End Framework for
    Encoding and Generating Implicit Neural Representation uses it.

    Args:
        coords: a :class:`~ginr_fast.CoordinateGrid`; or ``(..., c)`` shared by the whole batch; or
            ``(B, ..., c)``: three or more dimensions of which the first is B or 1. float32 or
            float64 (half precision cannot carry a Fourier phase). A batch that is expanded, or on
            a CPU merely repeated, is computed as shared; on a CPU a grid written
            out as a tensor, ``(n_1, …, n_c, c)``, is recognised as separable.
        keys: projected keys, ``(B, H, R, dq)``.
        values: projected values, ``(B, H, R, dv)``.
        weights: the parameters, see :class:`AnrWeights`; in the dtype of keys and values unless
            autocast is on.
        threshold: τ, 0 ≤ τ < 1; 0 is plain softmax attention.
        activation: between the layers, ``"relu"`` or ``"mish"``.
        scale: multiplies the logits; ``dq ** -0.5`` if None.

    Returns:
        ``(B, ..., d_out)`` in the dtype of ``keys``, or autocast's.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, device or range, by its
            name.
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
    check_threshold(threshold)
    check_activation(activation)
    if not isinstance(scale, (int, float, torch.SymFloat, type(None))):
        raise TypeError(f"scale: expected a number, got {type(scale).__name__}")
    if not isinstance(weights, AnrWeights):
        raise TypeError(f"weights: expected AnrWeights, got {type(weights).__name__}")
    if autocasts(keys):
        dtype = torch.get_autocast_dtype(keys.device.type)
        keys, values, weights = keys.to(dtype), values.to(dtype), weights.to_dtype(dtype)
    check_tensor("values", values, values.shape, dtypes=(keys.dtype,))
    check_tensor(
        "weights.query_weight",
        weights.query_weight,
        (None, None),
        dtypes=(keys.dtype,),
        device=keys.device,
    )
    coords, grid_shape, shape = normalised(coords, batch, keys.device, keys.dtype)
    coord_dim = len(grid_shape) or coords.shape[-1]
    check_weights(weights, coord_dim, heads, key_dim, values.shape[-1])
    if keys.dtype == torch.float64:
        weights = weights._replace(frequencies=weights.frequencies.double())
    keys = keys * (key_dim**-0.5 if scale is None else scale)

    reason = triton_backend.refusal(coords, grid_shape, keys, values)
    candidates = triton_backend.order(keys.device, reason)
    name = dispatch.choose("anr_decode", candidates)
    sizes = _sizes(coords, grid_shape, keys, values, weights)
    reference = name == "reference"
    if dispatch.recording():
        naive = 2 * plan.naive_multiply_adds(sizes)
        flops = naive if reference else 2 * plan.executed_multiply_adds(sizes)
        refused = {k: why for k, why in candidates.items() if why is not None}
        foldings = () if reference else plan.describe(sizes)
        dispatch.record(dispatch.Plan("anr_decode", name, foldings, flops, naive, refused))
    if reference:
        points = written_out(coords, grid_shape)
        out = anr_decode_reference(points, keys, values, weights, threshold, activation)
        return out.reshape(*shape, weights.out_dim)
    weights = fold(weights)
    tensors = {"coords": coords, "keys": keys, "values": values, **weights._asdict()}
    out = _forward_op(
        *(tensors[n] for n in _ARGUMENTS), grid_shape, float(threshold), activation, name
    )
    return out.reshape(*shape, weights.out_dim)


def check_threshold(threshold: object) -> None:
    """Raise a TypeError or ValueError unless 0 ≤ ``threshold`` < 1."""
    if not isinstance(threshold, (int, float, torch.SymFloat)):
        raise TypeError(f"threshold: expected a number, got {type(threshold).__name__}")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold: expected 0 <= threshold < 1, got {threshold!r}")


def check_activation(activation: object) -> None:
    """Raise a ValueError unless ``activation`` is the name of one."""
    if activation not in tuple(ACTIVATIONS):
        raise ValueError(f"activation: expected {' or '.join(ACTIVATIONS)}, got {activation!r}")
