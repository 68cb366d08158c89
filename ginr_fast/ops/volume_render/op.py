"""``volume_render``: contract, checks, dispatch, and the custom ops with their autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops import dispatch, native_render
from ginr_fast.ops.checks import PHASE_DTYPES, VALUE_DTYPES, Size, autocasts, check_tensor
from ginr_fast.ops.field_mlp import blocked as field
from ginr_fast.ops.volume_render import blocked, reference
from ginr_fast.ops.volume_render.convention import (
    RenderConvention,
    RenderedRays,
    Rendering,
    convention_of,
)
from ginr_fast.ops.volume_render.occupancy import OccupancyGrid
from ginr_fast.ops.volume_render.random import RaySeed, Seed
from ginr_fast.profiling import annotate

_ARGUMENTS = ("origins", "directions", "weights")
_TENSORS = "Tensor origins, Tensor directions, Tensor weights, Tensor? first_rays"
_INPUTS = 4
_SETTINGS = (
    "str spec, str convention, float near, float far, SymInt samples, SymInt? seed, str backend"
)
# Positions are float32.
_LARGEST = torch.finfo(torch.float32).max


def volume_render(
    origins: Tensor,
    directions: Tensor,
    weights: Tensor,
    spec: FieldSpec,
    *,
    near: float,
    far: float,
    samples: int,
    convention: str | RenderConvention = "mnif",
    seed: Seed | None = None,
    occupancy: OccupancyGrid | None = None,
) -> RenderedRays:
    """March rays through B radiance fields.

    Samples at ``o + t_k d``, t from ``near`` to ``far`` in equal steps, both ends included, are
    evaluated and composited as :class:`RenderConvention` says; nothing of size rays × samples ×
    width is ever in memory. Sources: NeRF (arXiv 2003.08934), and the renderers of mNIF, Functa and
    TransINR.

    Args:
        origins: o, ``(B, ..., 3)``; float32 or float64.
        directions: d, the same shape. Lengths matter: t counts in units of d.
        weights: packed, ``(B, P)``; see :func:`field_mlp`.
        spec: what the fields are: 3 coordinates to colour components, then one density.
        near: t of the first sample.
        far: t of the last one, above ``near``.
        samples: S, evaluations of the field along a ray.
        convention: a :class:`RenderConvention`, or "mnif", "functa", "trans_inr" or "nerf".
        seed: with an integer from 0 up, samples are moved at random as the convention says: the
            same numbers for the same seed on any device and any number of threads, of ray n of
            instance b those of ray ``b·N + n``. A :class:`RaySeed` gives the rays numbers that do
            not depend on what else a call renders. None: not moved.
        occupancy: what may be skipped; for inference only: the result has no gradient.

    Returns:
        :class:`RenderedRays` of float32 (float64 for float64 weights): color ``(B, ..., C)``, not
        clamped, opacity ``(B, ...)``, depth ``(B, ...)``. Differentiable in origins, directions and
        weights, any number of times.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or device, by its name.
        BackendError: a forced backend cannot serve the call.

    Example:
        >>> import torch, ginr_fast
        >>> spec = ginr_fast.FieldSpec(coord_dim=3, out_dim=4, hidden_dim=16, hidden_layers=1)
        >>> weights = torch.randn(2, spec.parameter_count)
        >>> rays = torch.zeros(2, 5, 3), torch.randn(2, 5, 3)
        >>> ginr_fast.volume_render(*rays, weights, spec, near=0.5, far=2.0, samples=8).color.shape
        torch.Size([2, 5, 3])
    """
    if not isinstance(spec, FieldSpec):
        raise TypeError(f"spec: expected a FieldSpec, got {type(spec).__name__}")
    if spec.coord_dim != 3 or spec.out_dim < 2:
        raise ValueError(
            f"spec: expected 3 coordinates and at least 2 values (colour, density), got "
            f"{spec.coord_dim} and {spec.out_dim}"
        )
    check_tensor("weights", weights, ("B", spec.parameter_count), dtypes=VALUE_DTYPES)
    if autocasts(weights):
        weights = weights.to(torch.get_autocast_dtype(weights.device.type))
    number, first_rays = _checked_seed(seed, weights)
    rendering = Rendering(
        convention_of(convention), *checked_range(near, far), checked_samples(samples), number
    )
    batch, shape = weights.shape[0], _checked_rays(origins, directions, weights)
    dtype = torch.float64 if weights.dtype == torch.float64 else torch.float32
    count = math.prod(shape)
    flat_origins = origins.to(dtype).reshape(batch, count, 3)
    flat_directions = directions.to(dtype).reshape(batch, count, 3)
    tensors = flat_origins, flat_directions, weights
    if occupancy is not None:
        _check_occupancy(occupancy, batch, weights, (origins, directions, weights))
    refused = {
        "native": native_render.refusal(spec, batch, weights.dtype, weights.device),
        "blocked": _without(occupancy),
        "reference": _without(occupancy),
    }
    # Of float32 fields the fused native renderer stays the faster one, or close to it.
    coarse = weights.dtype == torch.bfloat16 and occupancy is None
    if coarse and field.outruns_native(spec, count * samples, weights.dtype, weights.device):
        refused = {"blocked": None, **refused}
    backend = dispatch.choose("volume_render", refused)
    if dispatch.recording():
        multiply_adds = sum(rows * columns for rows, columns in spec.layer_shapes)
        flops = 2 * batch * count * samples * multiply_adds
        reasons = {name: reason for name, reason in refused.items() if reason is not None}
        dispatch.record(dispatch.Plan("volume_render", backend, (), flops, flops, reasons))
    if occupancy is not None:
        with torch.no_grad():
            out = _sparse(*tensors, spec, rendering, first_rays, occupancy)
    elif backend == "reference":
        out = reference.volume_render(*tensors, spec, rendering, first_rays)
    else:
        out = _forward_op(
            *tensors,
            first_rays,
            spec.key,
            rendering.convention.key,
            rendering.near,
            rendering.far,
            samples,
            number,
            backend,
        )
    color, opacity, depth = out.split((spec.out_dim - 1, 1, 1), dim=-1)
    return RenderedRays(
        color.reshape(batch, *shape, spec.out_dim - 1),
        opacity.reshape(batch, *shape),
        depth.reshape(batch, *shape),
    )


def _without(occupancy: OccupancyGrid | None) -> str | None:
    return None if occupancy is None else "it has no occupancy grid"


def checked_range(near: float, far: float) -> tuple[float, float]:
    for name, value in (("near", near), ("far", far)):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{name}: expected a number, got {value!r}")
        if not abs(value) <= _LARGEST:
            raise ValueError(f"{name}: expected a finite number, got {value}")
    if not near < far:
        raise ValueError(f"far: expected above near ({near}), got {far}")
    return float(near), float(far)


def checked_samples(samples: int) -> int:
    if not isinstance(samples, int) or isinstance(samples, bool):
        raise TypeError(f"samples: expected an integer, got {samples!r}")
    if not 1 <= samples <= 1 << 20:
        raise ValueError(f"samples: expected 1 to {1 << 20}, got {samples}")
    return samples


def _checked_seed(seed: Seed | None, weights: Tensor) -> tuple[int | None, Tensor | None]:
    """A seed's number, and the numbers of the first rays if it has them, where the weights are."""
    if seed is None:
        return None, None
    number = seed.seed if isinstance(seed, RaySeed) else seed
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"seed: expected an integer, a RaySeed or None, got {number!r}")
    if not 0 <= number < 1 << 63:
        raise ValueError(f"seed: expected 0 to 2^63 - 1, got {number}")
    if not isinstance(seed, RaySeed):
        return number, None
    first_rays = seed.first_rays
    check_tensor("first_rays", first_rays, (weights.shape[0],), dtypes=(torch.int64,))
    if first_rays.device.type != "cpu":
        check_tensor("first_rays", first_rays, ("B",), device=weights.device)
    elif not torch.compiler.is_compiling() and (first_rays < 0).any():
        raise ValueError(f"first_rays: expected 0 up, got {int(first_rays.min())}")
    return number, first_rays.to(weights.device).contiguous()


def _checked_rays(origins: Tensor, directions: Tensor, weights: Tensor) -> tuple[int, ...]:
    """The shape of the rays without batch and components."""
    between = origins.ndim - 2 if isinstance(origins, Tensor) else 1
    wanted: list[Size] = [weights.shape[0], *["..."] * max(between, 0), 3]
    check_tensor("origins", origins, wanted, dtypes=PHASE_DTYPES, device=weights.device)
    wanted = list(origins.shape)
    check_tensor("directions", directions, wanted, dtypes=PHASE_DTYPES, device=weights.device)
    return tuple(origins.shape[1:-1])


def _check_occupancy(
    occupancy: OccupancyGrid, batch: int, weights: Tensor, inputs: Sequence[Tensor]
) -> None:
    if not isinstance(occupancy, OccupancyGrid):
        raise TypeError(f"occupancy: expected an OccupancyGrid, got {type(occupancy).__name__}")
    if occupancy.batch != batch or occupancy.device != weights.device:
        raise ValueError(
            f"occupancy: expected a grid of {batch} instances on {weights.device}, got "
            f"{occupancy.batch} on {occupancy.device}"
        )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        raise ValueError("occupancy: expected None where gradients are wanted; it is for inference")


@annotate("volume_render")
def _sparse(
    origins: Tensor,
    directions: Tensor,
    weights: Tensor,
    spec: FieldSpec,
    rendering: Rendering,
    first_rays: Tensor | None,
    occupancy: OccupancyGrid,
) -> Tensor:
    if origins.numel() == 0:
        return _empty(origins, spec.key)
    given = origins, directions, weights, spec, rendering, first_rays
    return native_render.forward(*given, occupancy)


def _empty(origins: Tensor, spec: str) -> Tensor:
    channels = FieldSpec.from_key(spec).out_dim - 1
    return origins.new_empty(*origins.shape[:2], channels + 2)


def _described(
    spec: str, convention: str, near: float, far: float, samples: int, seed: int | None
) -> tuple[FieldSpec, Rendering]:
    """What the settings of the custom ops mean."""
    rule = RenderConvention.from_key(convention)
    return FieldSpec.from_key(spec), Rendering(rule, near, far, samples, seed)


@annotate("volume_render")
def _forward(*arguments: Any) -> Tensor:
    origins, directions, weights, first_rays, *settings, backend = arguments
    if origins.numel() == 0:
        return _empty(origins, settings[0])
    given = origins, directions, weights, *_described(*settings), first_rays
    with torch.autocast(weights.device.type, enabled=False):
        if backend == "native":
            return native_render.forward(*given, None)
        return blocked.forward(*given)


@annotate("volume_render_backward")
def _backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    origins, directions, weights, first_rays, *settings, backend, needed = arguments
    named = dict(zip(_ARGUMENTS, (origins, directions, weights), strict=True))
    if grad.numel() == 0:
        return [torch.zeros_like(named[name]) for name in needed]
    given = origins, directions, weights, *_described(*settings), first_rays
    # On a GPU the kernels have no gradient for the rays themselves.
    native = backend == "native" and (weights.device.type == "cpu" or needed == ["weights"])
    run = native_render.backward if native else blocked.backward
    with torch.autocast(weights.device.type, enabled=False):
        grads = run(grad, *given, needed)
    return [grads[name].to(named[name].dtype).contiguous() for name in needed]


_forward_op = torch.library.custom_op(
    "ginr_fast::volume_render",
    _forward,
    mutates_args=(),
    schema=f"({_TENSORS}, {_SETTINGS}) -> Tensor",
)
_backward_op = torch.library.custom_op(
    "ginr_fast::volume_render_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}, {_SETTINGS}, str[] needed) -> Tensor[]",
)


@_forward_op.register_fake
def _(*arguments: Any) -> Tensor:
    return _empty(arguments[0], arguments[_INPUTS])


@_backward_op.register_fake
def _(grad: Tensor, *arguments: Any) -> list[Tensor]:
    named = dict(zip(_ARGUMENTS, arguments, strict=False))
    return [named[name].new_empty(named[name].shape) for name in arguments[-1]]


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.settings = inputs[_INPUTS:]
    ctx.save_for_backward(*inputs[:_INPUTS])


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple:
    needed = [n for n, wanted in zip(_ARGUMENTS, ctx.needs_input_grad, strict=False) if wanted]
    if torch.is_grad_enabled():
        # create_graph: the gradient must itself be differentiable, which the formula is. Views,
        # because an argument may be a function of another, or the same tensor twice.
        *tensors, first_rays = ctx.saved_tensors
        origins, directions, weights = views = [t.view_as(t) for t in tensors]
        spec, rendering = _described(*ctx.settings[:-1])
        grads = torch.autograd.grad(
            reference.volume_render(origins, directions, weights, spec, rendering, first_rays),
            [view for view, name in zip(views, _ARGUMENTS, strict=True) if name in needed],
            grad,
            create_graph=True,
        )
    else:
        grads = _backward_op(grad.contiguous(), *ctx.saved_tensors, *ctx.settings, needed)
    found = dict(zip(needed, grads, strict=True))
    return (*(found.get(name) for name in _ARGUMENTS), None, *(None for _ in ctx.settings))


_forward_op.register_autograd(_autograd_backward, setup_context=_setup_context)
