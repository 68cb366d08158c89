"""``field_mlp``: contract, checks, dispatch, and the custom ops with their autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ginr_fast.coords import CoordinateGrid
from ginr_fast.fields import VIEW_COMPONENTS, FieldSpec
from ginr_fast.ops import dispatch, native_field, triton_backend
from ginr_fast.ops.checks import PHASE_DTYPES, VALUE_DTYPES, autocasts, check_tensor
from ginr_fast.ops.coordinates import normalised, shared_if_repeated, written_out
from ginr_fast.ops.field_mlp import blocked, reference
from ginr_fast.profiling import annotate

_ARGUMENTS = ("coords", "weights", "directions")
_SETTINGS = "int[] grid, str spec, str backend"
_TENSORS = "Tensor coords, Tensor weights, Tensor? directions"
_COORDS = 1  # place of the coordinates among the arguments of the backward


def field_mlp(
    coords: Tensor | CoordinateGrid,
    weights: Tensor,
    spec: FieldSpec,
    directions: Tensor | None = None,
) -> Tensor:
    """Evaluate B fields, small MLPs with packed weights, at coordinates.

    ``h ← f(W h + b)`` layer by layer as :class:`FieldSpec` says, with f the identity, ReLU or
    ``sin(w0 ·)``; the first layer takes the coordinate or its Fourier features. Sources: SIREN
    (arXiv 2006.09661), TransINR (arXiv 2208.02801), mNIF (NeurIPS 2023).

    Args:
        coords: a :class:`~ginr_fast.CoordinateGrid`; or ``(..., d)`` shared by the whole batch; or
            ``(B, ..., d)``: three or more dimensions of which the first is B or 1. float32 or
            float64: half precision cannot carry a phase.
        weights: packed, ``(B, P)`` with P = ``spec.parameter_count``; float32, float64, float16 or
            bfloat16. Under autocast they are converted to its dtype.
        spec: what the fields are.
        directions: viewing directions, ``(..., 3)`` like ``coords``; for a spec with ``view_dim``
            and no other. They are normalised.

    Returns:
        ``(B, ..., out_dim)`` in the dtype of ``weights``, or autocast's. Sums are accumulated, and
        phases formed, in float32 at least.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or device, by its name.
        BackendError: a forced backend cannot serve the call.

    Differentiable in coords, weights and directions, any number of times; only the gradients asked
    for are computed.

    Example:
        >>> import torch, ginr_fast
        >>> spec = ginr_fast.FieldSpec(coord_dim=2, out_dim=3, hidden_dim=16, hidden_layers=1)
        >>> weights = torch.randn(8, spec.parameter_count)
        >>> ginr_fast.field_mlp(ginr_fast.grid(4, 5), weights, spec).shape
        torch.Size([8, 4, 5, 3])
    """
    if not isinstance(spec, FieldSpec):
        raise TypeError(f"spec: expected a FieldSpec, got {type(spec).__name__}")
    check_tensor("weights", weights, ("B", spec.parameter_count), dtypes=VALUE_DTYPES)
    if autocasts(weights):
        weights = weights.to(torch.get_autocast_dtype(weights.device.type))
    batch = weights.shape[0]
    points, grid_shape, shape = normalised(coords, batch, weights.device, weights.dtype)
    coord_dim = len(grid_shape) or points.shape[-1]
    if coord_dim != spec.coord_dim:
        raise ValueError(f"coords: expected {spec.coord_dim} components, got {coord_dim}")
    views = _checked_directions(directions, spec, shape, weights)
    refused = {
        "native": native_field.refusal(spec, batch, weights.dtype, weights.device),
        **triton_backend.order(
            weights.device, triton_backend.field_refusal(spec, weights.dtype, weights.device)
        ),
    }
    count = math.prod(grid_shape) if grid_shape else points.shape[1]
    if blocked.outruns_native(spec, count, weights.dtype, weights.device):
        refused = {"blocked": None, **refused}
    backend = dispatch.choose("field_mlp", refused)
    grid: list[int] = []
    if (
        backend == "native"
        and not torch.compiler.is_compiling()
        and native_field.takes_grid(spec, grid_shape, weights)
    ):
        grid = grid_shape
    else:
        points = written_out(points, grid_shape)
    if weights.dtype != torch.float64:
        points = points.float()
    if dispatch.recording():
        layers = [rows * columns for rows, columns in spec.layer_shapes]
        naive = flops = 2 * batch * count * sum(layers)
        if grid:  # the first layer at the places of every axis, each with its part of the columns
            flops -= 2 * batch * layers[0] * (count - sum(grid) // len(grid))
        reasons = {name: reason for name, reason in refused.items() if reason is not None}
        folded = ("first layer",) if grid else ()
        dispatch.record(dispatch.Plan("field_mlp", backend, folded, flops, naive, reasons))
    if backend == "reference":
        out = reference.field_mlp(points, weights, spec, views)
    else:
        out = _forward_op(points, weights, views, grid, spec.key, backend)
    return out.reshape(*shape, spec.out_dim)


def _checked_directions(
    directions: Tensor | None, spec: FieldSpec, shape: Sequence[int], weights: Tensor
) -> Tensor | None:
    """Directions as ``(B or 1, N, 3)``, or None for a field without a view branch."""
    if not spec.view_dim:
        if directions is not None:
            raise ValueError("directions: expected None, as the spec has no view_dim")
        return None
    if not isinstance(directions, Tensor):
        raise TypeError(f"directions: expected a tensor, got {type(directions).__name__}")
    check_tensor(
        "directions",
        directions,
        (*("...",) * (directions.ndim - 1), VIEW_COMPONENTS),
        dtypes=PHASE_DTYPES,
        device=weights.device,
    )
    shared = (*shape[1:], VIEW_COMPONENTS)
    if tuple(directions.shape) not in (shared, (1, *shared), (shape[0], *shared)):
        raise ValueError(
            f"directions: expected shape {(shape[0], *shared)} or {shared}, as the coordinates "
            f"have, got {tuple(directions.shape)}"
        )
    count = math.prod(shape[1:])
    views = (
        directions.reshape(-1, count, VIEW_COMPONENTS) if count else directions.new_zeros(1, 0, 3)
    )
    return views.double() if weights.dtype == torch.float64 else views.float()


def _empty(weights: Tensor, coords: Tensor, grid: Sequence[int], spec: FieldSpec) -> Tensor:
    count = math.prod(grid) if grid else coords.shape[1]
    return weights.new_empty(weights.shape[0], count, spec.out_dim)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # no gradient is asked for what is not there
    return tensor


@annotate("field_mlp")
def _forward(
    coords: Tensor,
    weights: Tensor,
    directions: Tensor | None,
    grid: Sequence[int],
    spec: str,
    backend: str,
) -> Tensor:
    field = FieldSpec.from_key(spec)
    empty = _empty(weights, coords, grid, field)
    if empty.shape[0] * empty.shape[1] == 0:
        return empty
    coords = shared_if_repeated(coords, grid)
    with torch.autocast(weights.device.type, enabled=False):
        if backend == "native":
            return native_field.forward(coords, weights, field, grid)
        if backend == "triton":
            from ginr_fast.ops.field_mlp import kernels

            return kernels.forward(coords, weights, field)
        return blocked.forward(coords, weights, field, directions)


@annotate("field_mlp_backward")
def _backward(
    grad: Tensor,
    coords: Tensor,
    weights: Tensor,
    directions: Tensor | None,
    grid: Sequence[int],
    spec: str,
    backend: str,
    needed: Sequence[str],
) -> list[Tensor]:
    named = dict(zip(_ARGUMENTS, (coords, weights, directions), strict=True))
    field = FieldSpec.from_key(spec)
    if grad.numel() == 0:
        return [torch.zeros_like(_present(named[name])) for name in needed]
    if "coords" not in needed:
        coords = shared_if_repeated(coords, grid)
    with torch.autocast(weights.device.type, enabled=False):
        if backend == "native":
            grads = native_field.backward(grad, coords, weights, field, needed, grid)
        elif backend == "triton":
            from ginr_fast.ops.field_mlp import kernels

            grads = kernels.backward(grad, coords, weights, field, needed)
        else:
            grads = blocked.backward(grad, coords, weights, field, directions, needed)
    return [grads[name].to(_present(named[name]).dtype).contiguous() for name in needed]


@annotate("field_mlp_second")
def _second(
    along: Tensor, grad: Tensor, coords: Tensor, weights: Tensor, spec: str
) -> list[Tensor]:
    """The gradient of Σ along · ∂weights: in grad and in weights."""
    if grad.numel() == 0:
        return [torch.zeros_like(grad), torch.zeros_like(weights)]
    coords = shared_if_repeated(coords, ())
    parts = native_field.second(along, grad, coords, weights, FieldSpec.from_key(spec))
    return [part.to(like.dtype) for part, like in zip(parts, (grad, weights), strict=True)]


_forward_op = torch.library.custom_op(
    "ginr_fast::field_mlp",
    _forward,
    mutates_args=(),
    schema=f"({_TENSORS}, {_SETTINGS}) -> Tensor",
)
_backward_op = torch.library.custom_op(
    "ginr_fast::field_mlp_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}, {_SETTINGS}, str[] needed) -> Tensor[]",
)


_second_op = torch.library.custom_op(
    "ginr_fast::field_mlp_second",
    _second,
    mutates_args=(),
    schema="(Tensor along, Tensor grad, Tensor coords, Tensor weights, str spec) -> Tensor[]",
)


@_forward_op.register_fake
def _(
    coords: Tensor,
    weights: Tensor,
    directions: Tensor | None,
    grid: Sequence[int],
    spec: str,
    backend: str,
) -> Tensor:
    return _empty(weights, coords, grid, FieldSpec.from_key(spec))


@_backward_op.register_fake
def _(
    grad: Tensor,
    coords: Tensor,
    weights: Tensor,
    directions: Tensor | None,
    grid: Sequence[int],
    spec: str,
    backend: str,
    needed: Sequence[str],
) -> list[Tensor]:
    named = dict(zip(_ARGUMENTS, (coords, weights, directions), strict=True))
    return [torch.empty_like(_present(named[name]).contiguous()) for name in needed]


@_second_op.register_fake
def _(along: Tensor, grad: Tensor, coords: Tensor, weights: Tensor, spec: str) -> list[Tensor]:
    return [grad.new_empty(grad.shape), weights.new_empty(weights.shape)]


def _setup_forward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.grid, ctx.spec, ctx.backend = inputs
    _save(ctx, tensors)


def _setup_backward(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    *tensors, ctx.grid, ctx.spec, ctx.backend, ctx.needed = inputs
    _save(ctx, tensors)


def _save(ctx: Any, tensors: Sequence[Tensor | None]) -> None:
    ctx.present = [tensor is not None for tensor in tensors]
    ctx.save_for_backward(*(tensor for tensor in tensors if tensor is not None))


def _saved(ctx: Any) -> list[Any]:
    saved = iter(ctx.saved_tensors)
    return [next(saved) if present else None for present in ctx.present]


def _forward_autograd(ctx: Any, grad: Tensor) -> tuple:
    needed = [n for n, wanted in zip(_ARGUMENTS, ctx.needs_input_grad, strict=False) if wanted]
    settings = ctx.grid, ctx.spec, ctx.backend
    grads = _backward_op(grad.contiguous(), *_saved(ctx), *settings, needed)
    found = dict(zip(needed, grads, strict=True))
    return (*(found.get(name) for name in _ARGUMENTS), None, None, None)


def _backward_autograd(ctx: Any, tangents: Sequence[Tensor | None]) -> tuple:
    """The gradients' own gradient, by the formula: that of Σ tangent · gradient."""
    asked = [
        index for index, wanted in enumerate(ctx.needs_input_grad[: len(ctx.present)]) if wanted
    ]
    # An empty list is taken for one of tensors.
    of_settings: tuple = (None if ctx.grid else [], None, None, None)
    if (
        ctx.backend == "native"
        and ctx.needed == ["weights"]
        and _COORDS not in asked
        and not torch.is_grad_enabled()
        and tangents[0] is not None
        and tangents[0].device.type == "cpu"
    ):
        grad, coords, weights, _ = _saved(ctx)
        coords = written_out(coords, ctx.grid)
        of_grad, of_weights = _second_op(tangents[0], grad, coords, weights, ctx.spec)
        return (of_grad, None, of_weights, None, *of_settings)
    with torch.enable_grad():
        # Views, because an argument may be a function of another, or the same tensor twice.
        views: list[Any] = [None if t is None else t.view_as(t) for t in _saved(ctx)]
        for view in views:
            if view is not None and not view.requires_grad:
                view.requires_grad_()
        grad, coords, weights, directions = views
        points = written_out(coords, ctx.grid)
        values = reference.field_mlp(points, weights, FieldSpec.from_key(ctx.spec), directions)
        named = dict(zip(_ARGUMENTS, views[1:], strict=True))
        gradients = torch.autograd.grad(
            values, [named[name] for name in ctx.needed], grad, create_graph=True
        )
        pairs = [(g, t) for g, t in zip(gradients, tangents, strict=True) if t is not None]
    seconds = torch.autograd.grad(
        [gradient for gradient, _ in pairs],
        [views[index] for index in asked],
        [tangent for _, tangent in pairs],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )
    found = dict(zip(asked, seconds, strict=True))
    return (*(found.get(index) for index in range(len(views))), *of_settings)


_forward_op.register_autograd(_forward_autograd, setup_context=_setup_forward)
_backward_op.register_autograd(_backward_autograd, setup_context=_setup_backward)
