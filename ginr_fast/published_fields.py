"""Packed weights from, and to, the parameters of published code bases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops.checks import check_tensor

Format = Literal["trans_inr", "trans_inr_nerf", "ginr_ipc"]

_VIEW_LAYERS = ["viewdirs_fc", "density_fc", "rgb_fc1", "rgb_fc2"]


def layer_names(spec: FieldSpec, layout: Format) -> list[str]:
    """What a published code base calls the layers of a field, in the order of ``spec.slots``.

    Args:
        spec: the field.
        layout: "trans_inr" (``HypoMlp``: ``wb0`` …), "trans_inr_nerf" (``HypoNerf``: ``wb0`` … and
            ``rgb_density_fc``, or with a view branch ``viewdirs_fc``, ``density_fc``, ``rgb_fc1``,
            ``rgb_fc2``) or "ginr_ipc" (``HypoNet``: ``linear_wb0`` …).

    Raises:
        ValueError: no such layout, or one that has no view branch for a spec that does.
    """
    if layout not in get_args(Format):
        choices = ", ".join(get_args(Format))
        raise ValueError(f"layout: expected one of {choices}, got {layout!r}")
    if not spec.bias:
        raise ValueError(f"spec: {layout} has layers with a bias only")
    if spec.view_dim and layout != "trans_inr_nerf":
        raise ValueError(f"spec: {layout} has no view branch, got view_dim={spec.view_dim}")
    if layout == "ginr_ipc":
        return [f"linear_wb{index}" for index in range(spec.layers)]
    trunk = [f"wb{index}" for index in range(spec.hidden_layers + 1)]
    if layout == "trans_inr":
        return [*trunk, f"wb{len(trunk)}"]
    return [*trunk, *(_VIEW_LAYERS if spec.view_dim else ["rgb_density_fc"])]


def pack_published(
    parameters: Mapping[str, Tensor], spec: FieldSpec, layout: Format, out_bias: float = 0.0
) -> Tensor:
    """Pack the parameters of B fields as TransINR's and IPC's code keeps them.

    Args:
        parameters: for each of :func:`layer_names` a matrix ``(B, fan_in + 1, fan_out)``, the bias
            in its last row; other names are left alone.
        spec: what the fields are.
        layout: whose code it is.
        out_bias: the constant that code adds to the output (``HypoMlp``'s ``out_bias``); it goes
            into the last bias.

    Returns:
        ``(B, P)``; differentiable.

    Raises:
        KeyError: a layer is missing, by name. TypeError, ValueError: one of another shape.
    """
    packed: list[Tensor] = []
    for name, (rows, columns) in zip(layer_names(spec, layout), spec.layer_shapes, strict=True):
        if name not in parameters:
            raise KeyError(f"parameters: expected {name!r}, got {', '.join(parameters)}")
        batch = packed[0].shape[0] if packed else "B"
        value = check_tensor(f"parameters[{name!r}]", parameters[name], (batch, columns + 1, rows))
        packed += [value[:, :-1].transpose(1, 2), value[:, -1]]
    if out_bias:
        packed[-1] = packed[-1] + out_bias
    return spec.pack(packed)


def unpack_published(
    weights: Tensor, spec: FieldSpec, layout: Format, out_bias: float = 0.0
) -> dict[str, Tensor]:
    """The inverse of :func:`pack_published`: a matrix ``(B, fan_in + 1, fan_out)`` a layer."""
    found: dict[str, Tensor] = {}
    layers = spec.unpack(weights)
    for name, (weight, bias) in zip(layer_names(spec, layout), layers, strict=True):
        assert bias is not None
        if out_bias and weight is layers[-1][0]:
            bias = bias - out_bias
        found[name] = torch.cat((weight.transpose(1, 2), bias.unsqueeze(1)), dim=1)
    return found
