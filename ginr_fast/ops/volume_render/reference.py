"""The published formulation of volume rendering, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops.field_mlp.reference import field_mlp
from ginr_fast.ops.volume_render.convention import RenderConvention, Rendering
from ginr_fast.ops.volume_render.random import uniform


def positions(
    rendering: Rendering, batch: int, rays: int, like: Tensor, first_rays: Tensor | None = None
) -> Tensor:
    """t of every sample, ``(B, N, S)``, or ``(1, 1, S)`` without jitter."""
    near, far, samples = rendering.near, rendering.far, rendering.samples
    t = torch.linspace(near, far, samples, dtype=like.dtype, device=like.device)
    if rendering.seed is None or samples == 1:
        return t.view(1, 1, samples)
    if first_rays is None:
        numbers = torch.arange(batch * rays, device=like.device)
    else:
        numbers = (first_rays.unsqueeze(1) + torch.arange(rays, device=like.device)).flatten()
    u = uniform(rendering.seed, numbers, samples).to(like.dtype)
    u = u.view(batch, rays, samples)
    if rendering.convention.jitter == "forward":
        return t + u * ((far - near) / (samples - 1))
    middle = 0.5 * (t[1:] + t[:-1])
    lower, upper = torch.cat((t[:1], middle)), torch.cat((middle, t[-1:]))
    return lower + (upper - lower) * u


def densities(raw: Tensor, convention: RenderConvention) -> Tensor:
    """σ from the field's last component."""
    if convention.density == "relu":
        return raw.relu()
    if convention.density == "shifted_elu":
        return (F.elu(raw, alpha=0.1) + 0.1).clamp(max=10.0)
    return raw


def composite(
    values: Tensor, t: Tensor, scale: Tensor | None, convention: RenderConvention
) -> Tensor:
    """Samples to rays.

    Args:
        values: ``(..., S, C + 1)`` before their activations: colour, density.
        t: ``(..., S)``.
        scale: ``(...)``, what intervals are multiplied by; None for 1.

    Returns:
        ``(..., C + 2)``: colour, opacity, depth.
    """
    color, raw = values[..., :-1], values[..., -1]
    if convention.color == "sigmoid":
        color = color.sigmoid()
    last = torch.full_like(t[..., :1], convention.last_interval)
    delta = torch.cat((t[..., 1:] - t[..., :-1], last), dim=-1)
    if scale is not None:
        delta = delta * scale.unsqueeze(-1)
    passed = torch.exp(-densities(raw, convention) * delta)
    alpha = 1 - passed
    behind = torch.cumprod((passed + convention.epsilon)[..., :-1], dim=-1)
    weights = alpha * torch.cat((torch.ones_like(alpha[..., :1]), behind), dim=-1)
    seen = (weights.unsqueeze(-1) * color).sum(-2)
    opacity = weights.sum(-1, keepdim=True)
    depth = (weights * t).sum(-1, keepdim=True)
    if convention.white_background:
        seen = seen + (1 - opacity)
    return torch.cat((seen, opacity, depth), dim=-1)


def volume_render(
    origins: Tensor,
    directions: Tensor,
    weights: Tensor,
    spec: FieldSpec,
    rendering: Rendering,
    first_rays: Tensor | None = None,
) -> Tensor:
    """``(B, N, 3)`` rays through ``(B, P)`` fields to ``(B, N, C + 2)``: colour, opacity, depth."""
    batch, rays = origins.shape[:2]
    t = positions(rendering, batch, rays, origins, first_rays).expand(batch, rays, -1)
    points = origins.unsqueeze(2) + t.unsqueeze(-1) * directions.unsqueeze(2)
    views = None
    if spec.view_dim:
        views = directions.unsqueeze(2).expand_as(points).flatten(1, 2)
    values = field_mlp(points.flatten(1, 2), weights, spec, views)
    # Compositing is always in float32 at least: the light left after many samples is a product.
    values = values.to(torch.promote_types(values.dtype, origins.dtype))
    values = values.unflatten(1, (rays, rendering.samples))
    scale = directions.norm(dim=-1) if rendering.convention.scale_by_norm else None
    return composite(values, t, scale, rendering.convention)
