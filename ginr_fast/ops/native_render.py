"""The compiled extension's door for volume rendering and compositing."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ginr_fast import _C
from ginr_fast.fields import FieldSpec
from ginr_fast.ops import native, native_cuda, native_field
from ginr_fast.ops.native_field import address, plain
from ginr_fast.ops.volume_render.convention import RenderConvention, Rendering

if TYPE_CHECKING:
    from ginr_fast.ops.volume_render.occupancy import OccupancyGrid

_COLORS = {"none": 0, "sigmoid": 1}
_DENSITIES = {"relu": 0, "shifted_elu": 1, "none": 2}
_JITTERS = {"midpoints": 1, "forward": 2}


def refusal(spec: FieldSpec, batch: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the extension cannot render fields of a spec, or None if it can."""
    if spec.view_dim or device.type == "cpu":
        return native_field.refusal(spec, batch, dtype, device)
    return native_cuda.render_refusal(spec, native_field.field(spec), batch, dtype, device)


def composite_refusal(dtype: torch.dtype, channels: int, device: torch.device) -> str | None:
    """Why the extension cannot composite samples of some colour channels, or None if it can."""
    if dtype != torch.float32:
        return f"it serves float32, not {str(dtype).removeprefix('torch.')}"
    if device.type == "cpu":
        return None
    if channels != 3:
        return f"on CUDA it serves 3 colour channels, not {channels}"
    return native.cuda_refusal(dtype, device)


@functools.lru_cache(maxsize=64)
def _rendering(rendering: Rendering) -> _C.Rendering:
    convention = rendering.convention
    return _C.Rendering(
        samples=rendering.samples,
        near=rendering.near,
        far=rendering.far,
        color=_COLORS[convention.color],
        density=_DENSITIES[convention.density],
        last_interval=convention.last_interval,
        scale_by_norm=convention.scale_by_norm,
        white_background=convention.white_background,
        epsilon=convention.epsilon,
        jitter=0 if rendering.seed is None else _JITTERS[convention.jitter],
        seed=rendering.seed or 0,
    )


def _occupancy(grid: OccupancyGrid | None) -> _C.Occupancy:
    if grid is None:
        return _C.Occupancy(bits=0, resolution=1, low=[0.0] * 3, high=[1.0] * 3, stop=0.0)
    return _C.Occupancy(
        bits=address(grid.bits),
        resolution=grid.resolution,
        low=list(grid.low),
        high=list(grid.high),
        stop=grid.stop,
    )


def forward(
    origins: Tensor,
    directions: Tensor,
    weights: Tensor,
    spec: FieldSpec,
    rendering: Rendering,
    first_rays: Tensor | None,
    occupancy: OccupancyGrid | None,
) -> Tensor:
    """``(B, N, 3)`` rays through ``(B, P)`` fields, none of them empty, to ``(B, N, C + 2)``."""
    if weights.is_cuda:
        settings = native_field.field(spec), _rendering(rendering), _occupancy(occupancy)
        return native_cuda.render_forward(origins, directions, weights, spec, *settings, first_rays)
    origins, directions, weights = plain(origins), plain(directions), plain(weights)
    batch, rays = origins.shape[:2]
    out = origins.new_empty(batch, rays, spec.out_dim + 1)
    _C.volume_render_cpu_float32(
        native_field.field(spec),
        _rendering(rendering),
        _occupancy(occupancy),
        batch,
        rays,
        address(first_rays),
        address(weights),
        address(origins),
        address(directions),
        address(out),
        torch.get_num_threads(),
    )
    return out


def backward(
    grad: Tensor,
    origins: Tensor,
    directions: Tensor,
    weights: Tensor,
    spec: FieldSpec,
    rendering: Rendering,
    first_rays: Tensor | None,
    needed: Sequence[str],
) -> dict[str, Tensor]:
    """Gradients for those of ``origins``, ``directions`` and ``weights`` that are needed; on a GPU
    for the weights only."""
    if weights.is_cuda:
        settings = native_field.field(spec), _rendering(rendering), _occupancy(None)
        of_weights = native_cuda.render_backward(
            grad, origins, directions, weights, spec, *settings, first_rays, rendering.samples
        )
        return {"weights": of_weights}
    grad, origins, directions = plain(grad), plain(origins), plain(directions)
    weights = plain(weights)
    batch, rays = origins.shape[:2]
    grads = {}
    if "weights" in needed:
        grads["weights"] = torch.empty_like(weights)
    if "origins" in needed or "directions" in needed:
        grads["origins"] = torch.empty_like(origins)
        grads["directions"] = torch.empty_like(directions)
    _C.volume_render_backward_cpu_float32(
        native_field.field(spec),
        _rendering(rendering),
        batch,
        rays,
        address(first_rays),
        address(weights),
        address(origins),
        address(directions),
        address(grad),
        address(grads.get("weights")),
        address(grads.get("origins")),
        address(grads.get("directions")),
        torch.get_num_threads(),
    )
    return grads


def composite(values: Tensor, t: Tensor, scale: Tensor, convention: RenderConvention) -> Tensor:
    """``(R, S, C + 1)``, ``(R, S)`` and ``(R,)``, none of them empty, to ``(R, C + 2)``."""
    values, t, scale = plain(values), plain(t), plain(scale)
    if values.is_cuda:
        rule = _rendering(Rendering(convention, 0.0, 1.0, values.shape[1]))
        return native_cuda.composite(values, t, scale, rule)
    rays, samples, channels = values.shape[0], values.shape[1], values.shape[2] - 1
    out = values.new_empty(rays, channels + 2)
    _C.composite_cpu_float32(
        _rendering(Rendering(convention, 0.0, 1.0, samples)),
        channels,
        rays,
        address(values),
        address(t),
        address(scale),
        address(out),
        torch.get_num_threads(),
    )
    return out


def composite_backward(
    grad: Tensor, values: Tensor, t: Tensor, scale: Tensor, convention: RenderConvention
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for values, t and scale."""
    grad, values, t, scale = plain(grad), plain(values), plain(t), plain(scale)
    if values.is_cuda:
        rule = _rendering(Rendering(convention, 0.0, 1.0, values.shape[1]))
        return native_cuda.composite_backward(grad, values, t, scale, rule)
    rays, samples, channels = values.shape[0], values.shape[1], values.shape[2] - 1
    grads = torch.empty_like(values), torch.empty_like(t), torch.empty_like(scale)
    _C.composite_backward_cpu_float32(
        _rendering(Rendering(convention, 0.0, 1.0, samples)),
        channels,
        rays,
        address(values),
        address(t),
        address(scale),
        address(grad),
        address(grads[0]),
        address(grads[1]),
        address(grads[2]),
        torch.get_num_threads(),
    )
    return grads
