"""TransINR's published code (github.com/yinboc/trans-inr) on ginr_fast.

``TransInr`` makes the matrices of its ``HypoMlp`` or ``HypoNerf`` by weight grouping, column i of a
layer taking group i mod g; ``volume_rendering`` marches rays through a ``HypoNerf``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ginr_fast.adapters.frame import Accelerated, Adapter, FastMethod, Match, has_hooks
from ginr_fast.adapters.hypo_fields import HypoField, field_of, match_field
from ginr_fast.adapters.packing import packed_rows, serves
from ginr_fast.adapters.probes import Probe, drawn
from ginr_fast.ops.group_weights.op import group_weights
from ginr_fast.ops.volume_render.composite import composite
from ginr_fast.ops.volume_render.op import volume_render

_PROBE_BATCH, _PROBE_TOKENS = 2, 3


def volume_rendering(
    nerf: Any,
    rays_o: Tensor,
    rays_d: Tensor,
    near: float | Tensor,
    far: float | Tensor,
    points_per_ray: int,
    use_viewdirs: bool,
    rand: bool,
) -> Tensor:
    """TransINR's function of this name: the same arguments, the same colours.

    Import it where theirs is imported. With an accelerated ``HypoNerf`` and without jitter it is
    one :func:`ginr_fast.volume_render`; with any other radiance field, and with jitter (drawn from
    PyTorch's random state as theirs is, the same for all instances), the field is called at all
    points and :func:`ginr_fast.composite` does the rest.

    Args:
        nerf: from points ``(B, N, 3)``, and ``viewdirs`` of that shape if ``use_viewdirs``, to
            colour and density ``(B, N, 4)`` before sigmoid and ReLU.
        rays_o: origins, ``(B, ..., 3)``.
        rays_d: directions, ``(B, ..., 3)``; intervals are not scaled by their length.
        near: where rays start, in units of a direction; a number or a tensor of one.
        far: where they end.
        points_per_ray: samples along a ray.
        use_viewdirs: whether ``nerf`` takes the directions.
        rand: whether samples are moved away from the camera by up to one interval, at random.

    Returns:
        Colours over white, ``(B, ..., 3)``; differentiable any number of times.

    Example:
        >>> import torch
        >>> from ginr_fast.adapters.trans_inr import volume_rendering
        >>> rays = torch.zeros(2, 5, 3), torch.randn(2, 5, 3)
        >>> volume_rendering(lambda x: torch.cat((x, x[..., :1]), -1), *rays, 2.0, 6.0, 16,
        ...                  use_viewdirs=False, rand=False).shape
        torch.Size([2, 5, 3])
    """
    start, end = float(near), float(far)
    batch, shape = rays_o.shape[0], rays_o.shape
    origins, directions = rays_o.reshape(batch, -1, 3), rays_d.reshape(batch, -1, 3)
    if not rand and start < end:
        color = _marched(nerf, origins, directions, start, end, points_per_ray, use_viewdirs)
        if color is not None:
            return color.reshape(shape)
    rays = origins.shape[1]
    t = torch.linspace(start, end, points_per_ray, device=origins.device).expand(rays, -1)
    if rand:
        step = (end - start) / (points_per_ray - 1)
        t = t + torch.rand(rays, points_per_ray, device=origins.device) * step
    points = origins.unsqueeze(2) + directions.unsqueeze(2) * t.unsqueeze(-1)
    flat = points.flatten(1, 2)
    if use_viewdirs:
        views = directions.unsqueeze(2).expand_as(points).reshape(flat.shape)
        values = nerf(flat, viewdirs=views)
    else:
        values = nerf(flat)
    values = values.unflatten(1, (rays, points_per_ray))
    seen = composite(values, t.expand(batch, -1, -1), directions, "trans_inr")
    return seen.color.reshape(shape)


def _marched(
    nerf: Any,
    origins: Tensor,
    directions: Tensor,
    near: float,
    far: float,
    samples: int,
    use_viewdirs: bool,
) -> Tensor | None:
    """Colours of rays through an accelerated ``HypoNerf``, ``(B, N, 3)``, in one pass; None if that
    cannot be, or if somebody listens to its calls."""
    known = type(nerf).known if isinstance(nerf, Accelerated) else None
    if not isinstance(known, HypoField) or known.layout != "trans_inr_nerf":
        return None
    if use_viewdirs != bool(known.spec.view_dim) or any(map(has_hooks, nerf.modules())):
        return None
    matrices, batch = known.matrices(nerf), origins.shape[0]
    if matrices is None or not serves(batch, (origins, directions), matrices):
        return None
    return volume_render(
        origins,
        directions,
        packed_rows(matrices, batch),
        known.spec,
        near=near,
        far=far,
        samples=samples,
        convention="trans_inr",
    ).color


def _match_grouping(module: Any) -> Match | str:
    parts = ("tokenizer", "hyponet", "transformer_encoder", "base_params", "wtokens")
    missing = [n for n in (*parts, "wtoken_postfc", "wtoken_rng") if not hasattr(module, n)]
    if missing:
        return f"it has no {', '.join(missing)}"
    known = field_of(module.hyponet)
    if isinstance(known, str):
        return f"its hyponet: {known}"
    tokens: Tensor = module.wtokens
    data = drawn(_PROBE_BATCH, _PROBE_TOKENS, tokens.shape[-1], like=tokens)
    probe = Probe(
        arguments=(data,),
        attributes={
            "tokenizer": _unchanged,
            "transformer_encoder": _unchanged,
            "hyponet": _Receiver(module.hyponet.param_shapes),
        },
        collect=lambda receiver: receiver.params,
    )
    groups = len(tokens)
    return Match(
        f"group_weights: {groups} groups of {known.spec.layers} layers",
        {"forward": functools.partial(_grouping_forward, known)},
        (probe,),
        calls=("tokenizer", "transformer_encoder", "wtoken_postfc", "hyponet"),
    )


def _grouping_forward(known: HypoField, module: Any, original: FastMethod, data: Any) -> nn.Module:
    tokens: Tensor = module.wtokens
    data_tokens = module.tokenizer(data)
    batch = data_tokens.shape[0]
    own = tokens.expand(batch, -1, -1)
    read = module.transformer_encoder(torch.cat((data_tokens, own), dim=1))[:, -len(tokens) :]
    groups, bases, biases = [], [], []
    for name in known.names:
        first, last = module.wtoken_rng[name]
        groups.append(module.wtoken_postfc[name](read[:, first:last]))
        base = module.base_params[name]
        bases.append(base[:-1].t())
        biases.append(base[-1])
    packed = group_weights(groups, bases, known.spec, biases=biases, layout="tiled")
    # One split: slices would each add to a gradient of all the weights.
    parts = iter(packed.split([slot.size for slot in known.spec.slots], dim=1))
    made = {}
    for name, (rows, columns) in zip(known.names, known.spec.layer_shapes, strict=True):
        weight, bias = next(parts).unflatten(1, (rows, columns)), next(parts)
        made[name] = torch.cat((weight.transpose(1, 2), bias.unsqueeze(1)), dim=1)
    module.hyponet.set_params(made)
    return module.hyponet


def _unchanged(tokens: Tensor) -> Tensor:
    return tokens


class _Receiver:
    """Takes the parameters that are made for a hyponet."""

    def __init__(self, param_shapes: Mapping[str, tuple[int, int]]) -> None:
        self.param_shapes = param_shapes

    def set_params(self, params: Mapping[str, Tensor]) -> None:
        self.params = params


_FIELD_METHODS = ("forward", "convert_posenc", "set_params")
ADAPTERS = (
    Adapter("TransINR", ("HypoMlp", "HypoNerf"), match_field, _FIELD_METHODS),
    Adapter("TransINR", ("TransInr",), _match_grouping),
)
