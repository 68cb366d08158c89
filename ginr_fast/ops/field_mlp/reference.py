"""The published formulation of field_mlp: a chain of batched matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ginr_fast.fields import Activation, FieldSpec, FourierEncoding
from ginr_fast.ops.checks import autocasts


def encode(coords: Tensor, encoding: FourierEncoding) -> Tensor:
    """``[cos(ω_j v_i) …, sin(ω_j v_i) …]``: ``(..., d)`` to ``(..., 2·d·n)``, in the coordinates'
    dtype."""
    frequencies = torch.tensor(encoding.frequencies, dtype=coords.dtype, device=coords.device)
    phase = (coords.unsqueeze(-1) * frequencies).flatten(-2)
    return torch.cat((phase.cos(), phase.sin()), dim=-1)


def activate(x: Tensor, activation: Activation, w0: float) -> Tensor:
    """f(x); the phase of a sine is formed in float32 at least."""
    if activation == "relu":
        return x.relu()
    if activation == "sine":
        phase = w0 * (x if x.dtype in (torch.float32, torch.float64) else x.float())
        return phase.sin().to(x.dtype)
    return x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + b``, batched; coordinates keep their precision, whatever the weights have."""
    if autocasts(x):  # it would round coordinates and phases
        with torch.autocast(x.device.type, enabled=False):
            return linear(x, weight, bias)
    dtype = torch.promote_types(x.dtype, weight.dtype)
    x, weight = x.to(dtype), weight.to(dtype)
    if bias is None:
        return x @ weight.transpose(1, 2)
    return torch.baddbmm(bias.to(dtype).unsqueeze(1), x, weight.transpose(1, 2))


def field_mlp(
    coords: Tensor, weights: Tensor, spec: FieldSpec, directions: Tensor | None = None
) -> Tensor:
    """``h ← f(W h + b)`` layer by layer, any dtype and device.

    Args:
        coords: ``(B, N, d)``, or ``(1, N, d)`` shared by the batch.
        weights: packed, ``(B, P)``.
        spec: what the fields are.
        directions: ``(B, N, 3)`` or ``(1, N, 3)``, for a spec with a view branch.

    Returns:
        ``(B, N, out_dim)`` in the dtype of ``weights``.
    """
    coords = coords.expand(weights.shape[0], -1, -1)
    hidden = coords if spec.encoding is None else encode(coords, spec.encoding).to(weights.dtype)
    layers = spec.unpack(weights)

    def layer(x: Tensor, index: int, activation: Activation) -> Tensor:
        return activate(linear(x, *layers[index]), activation, spec.w0).to(weights.dtype)

    trunk = spec.hidden_layers + 1
    for index in range(trunk):
        hidden = layer(hidden, index, spec.activation)
    if not spec.view_dim:
        return layer(hidden, trunk, spec.out_activation)
    assert directions is not None
    unit = F.normalize(directions.expand(weights.shape[0], -1, -1), dim=-1)
    view = layer(unit, trunk, spec.activation)
    density = layer(hidden, trunk + 1, "none")
    colour = layer(torch.cat((hidden, view), dim=-1), trunk + 2, spec.activation)
    colour = layer(colour, trunk + 3, spec.out_activation)
    return torch.cat((colour, density), dim=-1)
