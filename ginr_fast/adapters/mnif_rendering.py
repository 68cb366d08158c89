"""The renderer of mNIF's published code, a function, on :func:`ginr_fast.composite`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ginr_fast.ops.volume_render.composite import composite
from ginr_fast.ops.volume_render.convention import (
    ColorActivation,
    DensityActivation,
    RenderConvention,
    RenderedRays,
)

_MAX_DENSITY = 10.0
_COLORS: Mapping[str, ColorActivation] = {"sigmoid": "sigmoid", "no_use": "none"}
_DENSITIES: Mapping[str, DensityActivation] = {
    "elu": "shifted_elu",
    "relu": "relu",
    "no_use": "none",
}
_NUMBER = r"(\d+(?:\.\d+)?)"
_SHIFTED_SINE = re.compile(rf"sine5\+shift{_NUMBER}(\+elu)?")


def nerf_volume_rendering(
    prediction: dict[str, Any], opt: Any, out_type: str = "rgb"
) -> dict[str, Any]:
    """mNIF's function of this name (``src/models/stage1/nerf/helper.py``): the same signature and
    result, composited by :func:`ginr_fast.composite`.

    Args:
        prediction: of ``LinearMixtureINR``: ``model_out`` ``(B, R·S, C)``, a colour in the first
            three components and a density in the last, before activations; and ``model_in`` with
            ``t_vals`` ``(B·R, S)``, for "mip-nerf" the S + 1 ends of the intervals, and ``rays_d``
            ``(B·R, 3)``.
        opt: ``num_samples_per_ray`` (S − 1), ``rgb_activation``, ``density_activation``,
            ``rendering_type`` and ``white_bkgd``, with the values that mNIF's code takes.
        out_type: "all" for depth and opacity too, else "rgb".

    Returns:
        ``prediction`` itself with another ``model_out``: the colours ``(B, R, 3)``, or for "all"
        ``{"rgb": (B, R, 3), "depth": (B, R), "acc": (B, R)}``. Differentiable any number of times.

    Raises:
        ValueError: an activation that mNIF's code does not have.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from ginr_fast.adapters.mnif_rendering import nerf_volume_rendering
        >>> opt = SimpleNamespace(num_samples_per_ray=7, rgb_activation="no_use",
        ...     density_activation="elu", rendering_type="nerf", white_bkgd=True)
        >>> rays = {"t_vals": torch.linspace(0.8, 1.8, 8).expand(5, 8), "rays_d": torch.randn(5, 3)}
        >>> prediction = {"model_in": rays, "model_out": torch.randn(1, 40, 4)}
        >>> nerf_volume_rendering(prediction, opt)["model_out"].shape
        torch.Size([1, 5, 3])
    """
    out, rays = prediction["model_out"], prediction["model_in"]
    batch, samples = out.shape[0], opt.num_samples_per_ray + 1
    t, directions = rays["t_vals"], rays["rays_d"]
    values = out.reshape(-1, samples, out.shape[-1])
    if opt.rendering_type == "mip-nerf":
        seen = _composite_intervals(values, t, directions, opt)
    else:
        seen = _composite_samples(values, t, directions, opt)
    color = seen.color.reshape(batch, -1, 3)
    if out_type == "all":
        depth, opacity = seen.depth.reshape(batch, -1), seen.opacity.reshape(batch, -1)
        prediction["model_out"] = {"rgb": color, "depth": depth, "acc": opacity}
    else:
        prediction["model_out"] = color
    return prediction


def _composite_samples(values: Tensor, t: Tensor, directions: Tensor, opt: Any) -> RenderedRays:
    """A sample stands for the interval behind it; the last interval is a constant."""
    color, density = (
        _COLORS.get(opt.rgb_activation),
        _DENSITIES.get(opt.density_activation),
    )
    if color is None or density is None or values.shape[-1] != 4:
        rgb, sigma = values[..., :3], values[..., -1:]
        rgb = rgb if color else _activated_color(rgb, opt.rgb_activation)
        sigma = sigma if density else _activated_density(sigma, opt.density_activation)
        values = torch.cat((rgb, sigma), dim=-1)
    rule = RenderConvention(
        color=color or "none",
        density=density or "none",
        last_interval=1e-3 if opt.rendering_type == "functa" else 1e10,
        white_background=bool(opt.white_bkgd),
    )
    return composite(values, t, directions, rule)


def _composite_intervals(values: Tensor, t: Tensor, directions: Tensor, opt: Any) -> RenderedRays:
    """mip-NeRF (arXiv 2103.13415): a sample stands for the interval between two ends, and the depth
    is that of its middle."""
    middle = (0.5 * (t[..., 1:] + t[..., :-1])).unsqueeze(-1)
    rgb = _activated_color(values[..., :3], opt.rgb_activation)
    sigma = _activated_density(values[..., -1:], opt.density_activation)
    known = torch.cat((rgb, middle.to(rgb.dtype), sigma), dim=-1)
    # Behind the last end there is nothing: a sample without density.
    ended = F.pad(known, (0, 0, 0, 1))
    rule = RenderConvention(color="none", density="none", white_background=False, epsilon=0.0)
    seen = composite(ended, t, directions, rule)
    color, depth = seen.color.split((3, 1), dim=-1)
    if opt.white_bkgd:
        color = color + (1 - seen.opacity.unsqueeze(-1))
    return RenderedRays(color, seen.opacity, depth.squeeze(-1))


def _activated_color(color: Tensor, rule: str) -> Tensor:
    named: dict[str, Callable[[Tensor], Tensor]] = {
        "sigmoid": torch.sigmoid,
        "relu": F.relu,
        "no_use": lambda value: value,
    }
    if rule in named:
        return named[rule](color)
    sine = re.fullmatch(rf"sine{_NUMBER}", rule)
    if sine is None:
        raise ValueError(
            f"opt.rgb_activation: expected sigmoid, relu, sine<w0> or no_use, got {rule!r}"
        )
    return torch.sin(float(sine[1]) * color)


def _shifted_elu(density: Tensor) -> Tensor:
    return _clipped(F.elu(density, alpha=0.1) + 0.1)


def _clipped(density: Tensor) -> Tensor:
    return density.clamp(0, _MAX_DENSITY)


def _activated_density(density: Tensor, rule: str) -> Tensor:
    named: dict[str, Callable[[Tensor], Tensor]] = {
        "elu": _shifted_elu,
        "relu": F.relu,
        "leakyrelu": lambda value: F.leaky_relu(value) + 0.1,
        "shift1": lambda value: _clipped(value + 1),
        "shift": lambda value: _clipped(value + 0.5),
        "no_use": lambda value: value,
    }
    if rule in named:
        return named[rule](density)
    if sine := _SHIFTED_SINE.fullmatch(rule):
        shifted = torch.sin(5 * density) + float(sine[1])
        return _shifted_elu(shifted) if sine[2] else _clipped(shifted)
    if scaled := re.fullmatch(rf"elu\+scale{_NUMBER}", rule):
        return _shifted_elu(float(scaled[1]) * density)
    raise ValueError(
        "opt.density_activation: expected elu, relu, leakyrelu, shift, shift1, sine5+shift<x>, "
        f"sine5+shift<x>+elu, elu+scale<x> or no_use, got {rule!r}"
    )
