"""volume_render and composite in blocks of rays: any field, dtype and device.

The backward of the compositing, with G_k the gradient of w_k and R_k that of T_k:
``∂e_k = T_k (R_{k+1} − G_k)``, ``R_k = (1 − e_k) G_k + (e_k + ε) R_{k+1}``, then through σ and δ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops.blocks import block_rows
from ginr_fast.ops.field_mlp import blocked as field
from ginr_fast.ops.volume_render import reference
from ginr_fast.ops.volume_render.convention import RenderConvention, Rendering


def _spans(rays: int, batch: int, samples: int, device: torch.device) -> Iterator[slice]:
    step = max(1, 8 * block_rows(device) // (batch * samples))
    for first in range(0, rays, step):
        yield slice(first, min(first + step, rays))


def _positions(rendering: Rendering, origins: Tensor, first_rays: Tensor | None) -> Tensor:
    batch, rays = origins.shape[:2]
    t = reference.positions(rendering, batch, rays, origins, first_rays)
    return t.expand(batch, rays, -1)


def _points(
    origins: Tensor, directions: Tensor, t: Tensor, spec: FieldSpec
) -> tuple[Tensor, Tensor | None]:
    points = origins.unsqueeze(2) + t.unsqueeze(-1) * directions.unsqueeze(2)
    views = directions.unsqueeze(2).expand_as(points).flatten(1, 2) if spec.view_dim else None
    return points.flatten(1, 2), views


def _scale(directions: Tensor, convention: RenderConvention) -> Tensor | None:
    return directions.norm(dim=-1) if convention.scale_by_norm else None


def forward(
    origins: Tensor,
    directions: Tensor,
    weights: Tensor,
    spec: FieldSpec,
    rendering: Rendering,
    first_rays: Tensor | None,
) -> Tensor:
    """``(B, N, 3)`` rays through ``(B, P)`` fields to ``(B, N, C + 2)``."""
    batch, rays = origins.shape[:2]
    where = _positions(rendering, origins, first_rays)
    out = origins.new_empty(batch, rays, spec.out_dim + 1)
    for span in _spans(rays, batch, rendering.samples, origins.device):
        t, d = where[:, span], directions[:, span]
        points, views = _points(origins[:, span], d, t, spec)
        values = field.forward(points, weights, spec, views).to(out.dtype)
        values = values.unflatten(1, (-1, rendering.samples))
        scale = _scale(d, rendering.convention)
        out[:, span] = reference.composite(values, t, scale, rendering.convention)
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
    """Gradients for those of ``origins``, ``directions`` and ``weights`` that are needed."""
    batch, rays = origins.shape[:2]
    convention = rendering.convention
    where = _positions(rendering, origins, first_rays)
    wide = torch.promote_types(weights.dtype, torch.float32)
    grads = {
        "weights": torch.zeros(weights.shape, dtype=wide, device=weights.device),
        "origins": torch.zeros_like(origins),
        "directions": torch.zeros_like(directions),
    }
    wanted = [name for name in ("weights",) if name in needed]
    if "origins" in needed or "directions" in needed:
        wanted += ["coords", "directions"] if spec.view_dim else ["coords"]
    for span in _spans(rays, batch, rendering.samples, origins.device):
        t, d = where[:, span], directions[:, span]
        points, views = _points(origins[:, span], d, t, spec)
        values = field.forward(points, weights, spec, views).to(origins.dtype)
        values = values.unflatten(1, (-1, rendering.samples))
        scale = _scale(d, convention)
        of_values, _, of_scale = composite_backward(
            grad[:, span].to(origins.dtype), values, t, scale, convention
        )
        of_values = of_values.flatten(1, 2).to(weights.dtype)
        found = field.backward(of_values, points, weights, spec, views, wanted)
        if "weights" in found:
            grads["weights"] += found["weights"]
        if "coords" in found:
            of_points = found["coords"].unflatten(1, (-1, rendering.samples))
            grads["origins"][:, span] = of_points.sum(2)
            of_d = (of_points * t.unsqueeze(-1)).sum(2)
            if "directions" in found:
                of_d += found["directions"].unflatten(1, (-1, rendering.samples)).sum(2)
            if scale is not None:
                norm = scale.clamp_min(torch.finfo(scale.dtype).tiny).unsqueeze(-1)
                of_d += of_scale.unsqueeze(-1) * d / norm
            grads["directions"][:, span] = of_d
    return {name: grads[name] for name in needed}


def composite_backward(
    grad: Tensor, values: Tensor, t: Tensor, scale: Tensor | None, convention: RenderConvention
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for values ``(..., S, C + 1)``, t ``(..., S)`` and scale ``(...)``."""
    color, raw = values[..., :-1], values[..., -1]
    if convention.color == "sigmoid":
        color = color.sigmoid()
    factor = torch.ones_like(t[..., 0]) if scale is None else scale
    last = torch.full_like(t[..., :1], convention.last_interval)
    interval = torch.cat((t[..., 1:] - t[..., :-1], last), dim=-1)
    delta = interval * factor.unsqueeze(-1)
    sigma = reference.densities(raw, convention)
    passed = torch.exp(-sigma * delta)
    on = passed + convention.epsilon
    light = torch.cat((torch.ones_like(on[..., :1]), torch.cumprod(on, -1)[..., :-1]), dim=-1)
    weight = light * (1 - passed)

    of_color, of_opacity, of_depth = grad[..., :-2], grad[..., -2], grad[..., -1]
    if convention.white_background:
        of_opacity = of_opacity - of_color.sum(-1)
    of_weight = (
        (of_color.unsqueeze(-2) * color).sum(-1)
        + of_opacity.unsqueeze(-1)
        + of_depth.unsqueeze(-1) * t
    )
    behind = torch.zeros_like(t[..., 0])
    of_light = []
    for k in reversed(range(t.shape[-1])):
        of_light.append(behind)
        behind = (1 - passed[..., k]) * of_weight[..., k] + on[..., k] * behind
    of_passed = light * (torch.stack(of_light[::-1], dim=-1) - of_weight)

    of_values = torch.empty_like(values)
    of_values[..., :-1] = weight.unsqueeze(-1) * of_color.unsqueeze(-2)
    if convention.color == "sigmoid":
        of_values[..., :-1] *= color * (1 - color)
    of_sigma = -of_passed * (passed * delta)
    of_values[..., -1] = of_sigma * _density_slope(raw, convention)
    of_delta = -of_passed * (passed * sigma)
    of_t = of_depth.unsqueeze(-1) * weight
    step = of_delta[..., :-1] * factor.unsqueeze(-1)
    of_t[..., 1:] += step
    of_t[..., :-1] -= step
    return of_values, of_t, (of_delta * interval).sum(-1)


def _density_slope(raw: Tensor, convention: RenderConvention) -> Tensor:
    if convention.density == "relu":
        return (raw > 0).to(raw.dtype)
    if convention.density == "shifted_elu":
        slope = torch.where(raw > 0, torch.ones_like(raw), 0.1 * raw.exp())
        return slope.masked_fill(raw + 0.1 > 10.0, 0.0)
    return torch.ones_like(raw)
