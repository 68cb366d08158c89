"""``composite``: samples along rays to what the rays see, for any field."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ginr_fast.ops import dispatch, native_render
from ginr_fast.ops.checks import VALUE_DTYPES, check_tensor
from ginr_fast.ops.volume_render import blocked, reference
from ginr_fast.ops.volume_render.convention import (
    RenderConvention,
    RenderedRays,
    convention_of,
)
from ginr_fast.profiling import annotate


def composite(
    values: Tensor,
    t: Tensor,
    directions: Tensor,
    convention: str | RenderConvention = "mnif",
) -> RenderedRays:
    """Composite the samples of rays, whatever field they come from.

    Activations, intervals and weights are those of :class:`RenderConvention`.

    Args:
        values: what the field gave, before activations: ``(..., S, C + 1)``, colours and then the
            density; float32, float64, float16 or bfloat16.
        t: positions of the samples along the rays, ascending, ``(..., S)``, or ``(S,)`` for all.
        directions: ``(..., 3)``; their length scales the intervals where the convention says so.
        convention: a :class:`RenderConvention`, or "mnif", "functa", "trans_inr" or "nerf".

    Returns:
        :class:`RenderedRays` of float32 (float64 for float64 values): color ``(..., C)``, opacity
        and depth ``(...)``. Differentiable in values, t and directions, any number of times.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or device, by its name.
        BackendError: a forced backend cannot serve the call.

    Example:
        >>> import torch, ginr_fast
        >>> values, t = torch.randn(7, 16, 4), torch.linspace(0.8, 1.8, 16)
        >>> ginr_fast.composite(values, t, torch.randn(7, 3)).color.shape
        torch.Size([7, 3])
    """
    rule = convention_of(convention)
    if not isinstance(values, Tensor):
        raise TypeError(f"values: expected a tensor, got {type(values).__name__}")
    if values.ndim < 2 or values.shape[-2] < 1 or values.shape[-1] < 2:
        raise ValueError(f"values: expected shape (..., S, C + 1), got {tuple(values.shape)}")
    check_tensor("values", values, values.shape, dtypes=VALUE_DTYPES)
    rays, samples = values.shape[:-2], values.shape[-2]
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    check_tensor(
        "t",
        t,
        (samples,) if _is_vector(t) else values.shape[:-1],
        dtypes=VALUE_DTYPES,
        device=values.device,
    )
    check_tensor("directions", directions, (*rays, 3), dtypes=VALUE_DTYPES, device=values.device)
    count, channels = math.prod(rays), values.shape[-1] - 1
    flat = values.to(dtype).reshape(count, samples, channels + 1)
    where = t.to(dtype).expand(*rays, samples).reshape(count, samples)
    if rule.scale_by_norm:
        scale = directions.to(dtype).norm(dim=-1).reshape(count)
    else:
        scale = flat.new_ones(count)
    refused = {
        "native": native_render.composite_refusal(dtype, channels, values.device),
        "blocked": None,
        "reference": None,
    }
    backend = dispatch.choose("composite", refused)
    if dispatch.recording():
        flops = count * samples * (2 * channels + 12)
        reasons = {name: reason for name, reason in refused.items() if reason is not None}
        dispatch.record(dispatch.Plan("composite", backend, (), flops, flops, reasons))
    if backend == "reference":
        out = reference.composite(flat, where, scale, rule)
    else:
        out = _forward_op(flat, where, scale, rule.key, backend)
    color, opacity, depth = out.split((channels, 1, 1), dim=-1)
    return RenderedRays(color.reshape(*rays, channels), opacity.reshape(rays), depth.reshape(rays))


def _is_vector(t: object) -> bool:
    return isinstance(t, Tensor) and t.ndim == 1


@annotate("composite")
def _forward(values: Tensor, t: Tensor, scale: Tensor, convention: str, backend: str) -> Tensor:
    if values.numel() == 0:
        return values.new_empty(values.shape[0], values.shape[2] + 1)
    if backend == "native":
        return native_render.composite(values, t, scale, RenderConvention.from_key(convention))
    return reference.composite(values, t, scale, RenderConvention.from_key(convention))


@annotate("composite_backward")
def _backward(
    grad: Tensor, values: Tensor, t: Tensor, scale: Tensor, convention: str, backend: str
) -> list[Tensor]:
    if values.numel() == 0:
        return [torch.zeros_like(part) for part in (values, t, scale)]
    run = native_render.composite_backward if backend == "native" else blocked.composite_backward
    return list(run(grad, values, t, scale, RenderConvention.from_key(convention)))


_TENSORS = "Tensor values, Tensor t, Tensor scale, str convention, str backend"
_forward_op = torch.library.custom_op(
    "ginr_fast::composite", _forward, mutates_args=(), schema=f"({_TENSORS}) -> Tensor"
)
_backward_op = torch.library.custom_op(
    "ginr_fast::composite_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}) -> Tensor[]",
)


@_forward_op.register_fake
def _(values: Tensor, t: Tensor, scale: Tensor, convention: str, backend: str) -> Tensor:
    return values.new_empty(values.shape[0], values.shape[2] + 1)


@_backward_op.register_fake
def _(
    grad: Tensor, values: Tensor, t: Tensor, scale: Tensor, convention: str, backend: str
) -> list[Tensor]:
    return [part.new_empty(part.shape) for part in (values, t, scale)]


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.convention, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple:
    if not torch.is_grad_enabled():
        grads = _backward_op(grad.contiguous(), *ctx.saved_tensors, ctx.convention, ctx.backend)
        return (*grads, None, None)
    # create_graph: the gradient must itself be differentiable, which the formula is.
    values, t, scale = views = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
    asked = [index for index in range(len(views)) if ctx.needs_input_grad[index]]
    found = torch.autograd.grad(
        reference.composite(values, t, scale, RenderConvention.from_key(ctx.convention)),
        [views[index] for index in asked],
        grad,
        create_graph=True,
    )
    places = dict(zip(asked, found, strict=True))
    return (*(places.get(index) for index in range(len(views))), None, None)


_forward_op.register_autograd(_autograd_backward, setup_context=_setup_context)
