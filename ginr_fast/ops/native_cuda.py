"""The compiled extension's door for fields on a GPU: evaluation, rendering, compositing.

What reaches it from here is checked and never empty; temporaries live in PyTorch's allocator, whose
streams keep them until the kernels are done with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ginr_fast import _C
from ginr_fast.fields import FieldSpec
from ginr_fast.ops import native

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_MOST_FIELDS = 65_535  # of a launch


def _operand(spec: FieldSpec, dtype: torch.dtype) -> int:
    """What matrix products multiply. The phases of sines need float16's longer mantissa."""
    code = _TYPES[dtype]
    return 1 if code == 2 and "sine" in (spec.activation, spec.out_activation) else code


def field_refusal(
    spec: FieldSpec, description: _C.Field, batch: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why a GPU cannot evaluate these fields, or None."""
    return _refusal("field_mlp_refusal_cuda", spec, description, batch, dtype, device)


def render_refusal(
    spec: FieldSpec, description: _C.Field, batch: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why a GPU cannot render these fields, or None."""
    if spec.out_dim != 4:
        return f"on CUDA it renders fields of 4 values, not {spec.out_dim}"
    return _refusal("volume_render_refusal_cuda", spec, description, batch, dtype, device)


def _refusal(
    name: str,
    spec: FieldSpec,
    description: _C.Field,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    reason = native.cuda_refusal(dtype, device)
    if reason is not None:
        return reason
    if batch > _MOST_FIELDS:
        return f"on CUDA it serves at most {_MOST_FIELDS} fields at a time"
    # Not traceable; a compiled call that the GPU cannot serve fails at the launch instead.
    if torch.compiler.is_compiling():
        return None
    ask: Callable[..., str] = getattr(_C, name)
    index = torch.cuda.current_device() if device.index is None else device.index
    return ask(description, _operand(spec, dtype), True, index) or None


def _launch(name: str, like: Tensor, *arguments: Any) -> None:
    with torch.cuda.device(like.device):
        stream = torch.cuda.current_stream(like.device).cuda_stream
        getattr(_C, name)(*arguments, like.device.index, stream)


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _new(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def field_forward(
    coords: Tensor, weights: Tensor, spec: FieldSpec, description: _C.Field
) -> Tensor:
    """``(B or 1, N, d)`` and ``(B, P)`` to ``(B, N, out)`` in the dtype of the weights."""
    coords, weights = coords.float().contiguous(), weights.contiguous()
    batch, count, shared = weights.shape[0], coords.shape[1], coords.shape[0] < weights.shape[0]
    out = _new(weights, batch, count, spec.out_dim)
    types = _TYPES[weights.dtype], _operand(spec, weights.dtype)
    where = _at(weights), _at(coords), _at(out)
    _launch("field_mlp_cuda", weights, description, *types, batch, count, shared, *where)
    return out.to(weights.dtype)


def field_backward(
    grad: Tensor,
    coords: Tensor,
    weights: Tensor,
    spec: FieldSpec,
    description: _C.Field,
    needed: Sequence[str],
) -> dict[str, Tensor]:
    """Float32 gradients for those of ``coords`` and ``weights`` that are needed."""
    grad, coords = grad.float().contiguous(), coords.float().contiguous()
    weights = weights.contiguous()
    batch, count, shared = weights.shape[0], coords.shape[1], coords.shape[0] < weights.shape[0]
    operand = _operand(spec, weights.dtype)
    parts, size = _C.field_mlp_backward_sizes_cuda(
        description, operand, batch, count, weights.device.index
    )
    workspace = torch.empty(size, dtype=torch.uint8, device=weights.device)
    partial = _new(weights, parts, batch, weights.shape[1]) if "weights" in needed else None
    of_coords = _new(weights, batch, count, spec.coord_dim) if "coords" in needed else None
    types = _TYPES[weights.dtype], operand
    where = [_at(t) for t in (weights, coords, grad, partial, of_coords, workspace)]
    sizes = batch, count, shared, parts
    _launch("field_mlp_backward_cuda", weights, description, *types, *sizes, *where)
    grads = {}
    if partial is not None:
        grads["weights"] = partial.sum(0)
    if of_coords is not None:
        grads["coords"] = of_coords.sum(0, keepdim=True) if shared else of_coords
    return grads


def render_forward(
    origins: Tensor,
    directions: Tensor,
    weights: Tensor,
    spec: FieldSpec,
    description: _C.Field,
    rendering: _C.Rendering,
    occupancy: _C.Occupancy,
    first_rays: Tensor | None,
    values: Tensor | None = None,
) -> Tensor:
    """``(B, N, 3)`` rays to ``(B, N, 5)`` float32; fills ``values``, ``(B, N, S, 4)``, if given."""
    origins, directions = origins.float().contiguous(), directions.float().contiguous()
    weights = weights.contiguous()
    batch, rays = origins.shape[:2]
    out = _new(weights, batch, rays, 5)
    types = _TYPES[weights.dtype], _operand(spec, weights.dtype)
    where = [_at(t) for t in (first_rays, weights, origins, directions, out, values)]
    settings = description, rendering, occupancy
    _launch("volume_render_cuda", weights, *settings, *types, batch, rays, *where)
    return out


def render_backward(
    grad: Tensor,
    origins: Tensor,
    directions: Tensor,
    weights: Tensor,
    spec: FieldSpec,
    description: _C.Field,
    rendering: _C.Rendering,
    occupancy: _C.Occupancy,
    first_rays: Tensor | None,
    samples: int,
) -> Tensor:
    """The gradient of the packed weights, ``(B, P)`` float32."""
    grad, origins = grad.float().contiguous(), origins.float().contiguous()
    directions, weights = directions.float().contiguous(), weights.contiguous()
    batch, rays = origins.shape[:2]
    values = _new(weights, batch, rays, samples, 4)
    settings = description, rendering
    described = spec, *settings, occupancy
    render_forward(origins, directions, weights, *described, first_rays, values=values)
    operand = _operand(spec, weights.dtype)
    parts, size = _C.volume_render_backward_sizes_cuda(
        *settings, operand, batch, rays, weights.device.index
    )
    workspace = torch.empty(size, dtype=torch.uint8, device=weights.device)
    partial = _new(weights, parts, batch, weights.shape[1])
    of_values = torch.empty_like(values)
    types = _TYPES[weights.dtype], operand
    inputs = first_rays, weights, origins, directions, values, grad
    where = [_at(tensor) for tensor in (*inputs, of_values, partial, workspace)]
    _launch("volume_render_backward_cuda", weights, *settings, *types, batch, rays, parts, *where)
    return partial.sum(0)


def composite(values: Tensor, t: Tensor, scale: Tensor, rendering: _C.Rendering) -> Tensor:
    """``(R, S, 4)``, ``(R, S)`` and ``(R,)`` to ``(R, 5)``."""
    values, t, scale = values.contiguous(), t.contiguous(), scale.contiguous()
    out = _new(values, values.shape[0], 5)
    where = [_at(tensor) for tensor in (values, t, scale, out)]
    _launch("composite_cuda", values, rendering, values.shape[0], *where)
    return out


def composite_backward(
    grad: Tensor, values: Tensor, t: Tensor, scale: Tensor, rendering: _C.Rendering
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for values, t and scale."""
    grad, values = grad.contiguous(), values.contiguous()
    t, scale = t.contiguous(), scale.contiguous()
    grads = torch.empty_like(values), torch.empty_like(t), torch.empty_like(scale)
    where = [_at(tensor) for tensor in (values, t, scale, grad, *grads)]
    _launch("composite_backward_cuda", values, rendering, values.shape[0], *where)
    return grads
