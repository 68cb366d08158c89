"""field_mlp in blocks of coordinates: any field, dtype and device, memory of one block.

The backward runs each block again and goes back through it layer by layer: with
``y = f(W x + b)`` and ``d = f' · ∂y``: ``∂W = dᵀ x``, ``∂b = Σ d``, ``∂x = d W``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ginr_fast.fields import Activation, FieldSpec
from ginr_fast.ops.blocks import block_rows, settle_allocator
from ginr_fast.ops.field_mlp import reference

# Rows × width of a block on a CPU: its activations stay in the second-level cache.
_CPU_ELEMENTS = 1 << 18


def _spans(count: int, batch: int, spec: FieldSpec, device: torch.device) -> Iterator[slice]:
    if device.type == "cpu":
        settle_allocator()
        rows = max(64, _CPU_ELEMENTS // max(spec.hidden_dim, spec.input_dim))
    else:
        rows = max(1, block_rows(device) // batch)
    for first in range(0, count, rows):
        yield slice(first, min(first + rows, count))


def _instances(batch: int, device: torch.device) -> Iterator[slice]:
    """One at a time on a CPU, all together on a GPU."""
    step = 1 if device.type == "cpu" else batch
    for first in range(0, batch, step):
        yield slice(first, first + step)


def _part(points: Tensor | None, instances: slice, span: slice) -> Tensor | None:
    if points is None:
        return None
    return points[instances if points.shape[0] > 1 else slice(None), span]


def forward(coords: Tensor, weights: Tensor, spec: FieldSpec, directions: Tensor | None) -> Tensor:
    """``(B | 1, N, d)`` and ``(B, P)`` to ``(B, N, out)``."""
    batch, count = weights.shape[0], coords.shape[1]
    out = weights.new_empty(batch, count, spec.out_dim)
    for instances in _instances(batch, weights.device):
        for span in _spans(count, batch, spec, weights.device):
            where = _part(coords, instances, span)
            assert where is not None
            out[instances, span] = reference.field_mlp(
                where, weights[instances], spec, _part(directions, instances, span)
            )
    return out


def backward(
    grad: Tensor,
    coords: Tensor,
    weights: Tensor,
    spec: FieldSpec,
    directions: Tensor | None,
    needed: Sequence[str],
) -> dict[str, Tensor]:
    """Gradients for those of ``coords``, ``weights`` and ``directions`` that are needed."""
    batch, count = weights.shape[0], coords.shape[1]
    inputs = {"coords": coords, "weights": weights, "directions": directions}
    sums = {name: _zeros(inputs[name]) for name in needed}
    for instances in _instances(batch, weights.device):
        for span in _spans(count, batch, spec, weights.device):
            where = _part(coords, instances, span)
            assert where is not None
            block = _Block(spec, weights[instances], "weights" in needed)
            block.forward(where, _part(directions, instances, span))
            found = block.backward(grad[instances, span], "coords" in needed)
            for name in needed:
                total = sums[name]
                target = total[instances] if name == "weights" else _part(total, instances, span)
                assert target is not None
                part = found[name]
                target += part if target.shape[0] == part.shape[0] else part.sum(0, keepdim=True)
    return sums


class _Block:
    """One block of samples of some instances: the forward keeps what the backward needs."""

    def __init__(self, spec: FieldSpec, weights: Tensor, needs_weights: bool) -> None:
        self.spec, self.dtype = spec, weights.dtype
        self.layers = spec.unpack(weights)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.grads: dict[int, tuple[Tensor, Tensor]] = {}
        self.needs_weights = needs_weights

    def _activation(self, index: int) -> Activation:
        spec, last = self.spec, self.spec.layers - 1
        density = spec.hidden_layers + 2 if spec.view_dim else None
        if index == density:
            return "none"
        return spec.out_activation if index == last else spec.activation

    def _through(self, index: int, x: Tensor) -> Tensor:
        before = reference.linear(x, *self.layers[index])
        self.kept[index] = (x, before)
        return reference.activate(before, self._activation(index), self.spec.w0).to(self.dtype)

    def _back(self, index: int, grad: Tensor, needs_input: bool = True) -> Tensor | None:
        x, before = self.kept.pop(index)
        weight, _ = self.layers[index]
        grad = _before_activation(grad, before, self._activation(index), self.spec.w0)
        grad = grad.to(before.dtype)
        if self.needs_weights:
            product = grad.transpose(1, 2) @ x.to(before.dtype)
            self.grads[index] = (product, grad.sum(1, dtype=_wide(grad.dtype)))
        return grad @ weight.to(before.dtype) if needs_input else None

    def forward(self, coords: Tensor, directions: Tensor | None) -> None:
        spec, batch = self.spec, self.layers[0][0].shape[0]
        self.coords = hidden = coords.expand(batch, -1, -1)
        if spec.encoding is not None:
            hidden = reference.encode(hidden, spec.encoding).to(self.dtype)
        trunk = spec.hidden_layers + 1
        for index in range(trunk):
            hidden = self._through(index, hidden)
        if not spec.view_dim:
            self._through(trunk, hidden)
            return
        assert directions is not None
        self.directions = directions.expand(batch, -1, -1)
        view = self._through(trunk, F.normalize(self.directions, dim=-1))
        self._through(trunk + 1, hidden)
        self._through(trunk + 3, self._through(trunk + 2, torch.cat((hidden, view), dim=-1)))

    def backward(self, grad: Tensor, needs_coords: bool) -> dict[str, Tensor]:
        """Gradients for weights (if wanted), coords (if wanted) and directions (if there are)."""
        spec, trunk = self.spec, self.spec.hidden_layers + 1
        found: dict[str, Tensor] = {}
        if spec.view_dim:
            colour, density = grad.split((spec.out_dim - 1, 1), dim=-1)
            both = self._back(trunk + 2, _not_none(self._back(trunk + 3, colour)))
            hidden, view = _not_none(both).split((spec.hidden_dim, spec.view_dim), dim=-1)
            hidden = hidden + _not_none(self._back(trunk + 1, density))
            unit = _not_none(self._back(trunk, view))
            found["directions"] = _normalize_backward(unit, self.directions)
        else:
            hidden = _not_none(self._back(trunk, grad))
        for index in reversed(range(1, trunk)):
            hidden = _not_none(self._back(index, hidden))
        features = self._back(0, hidden, needs_coords)
        if features is not None:
            found["coords"] = self._coordinates(features)
        if self.needs_weights:
            flat = [
                part.flatten(1).to(_wide(part.dtype))
                for index in range(spec.layers)
                for part in self.grads[index][: 2 if spec.bias else 1]
            ]
            found["weights"] = torch.cat(flat, dim=1)
        return found

    def _coordinates(self, grad: Tensor) -> Tensor:
        encoding = self.spec.encoding
        if encoding is None:
            return grad
        frequencies = self.coords.new_tensor(encoding.frequencies)
        features = reference.encode(self.coords, encoding)
        cosine, sine = features.unflatten(-1, (2, self.spec.coord_dim, -1)).unbind(-3)
        grad_cosine, grad_sine = grad.unflatten(-1, (2, self.spec.coord_dim, -1)).unbind(-3)
        return ((cosine * grad_sine - sine * grad_cosine) * frequencies).sum(-1)


def _not_none(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _before_activation(grad: Tensor, before: Tensor, activation: Activation, w0: float) -> Tensor:
    if activation == "relu":
        return grad.masked_fill(before <= 0, 0)
    if activation == "sine":
        return grad * (w0 * (w0 * before.to(_wide(before.dtype))).cos())
    return grad


def _normalize_backward(grad: Tensor, directions: Tensor) -> Tensor:
    """∂/∂d of d/‖d‖; nothing for d = 0, where the forward gives 0."""
    norm = directions.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    unit = directions / norm
    return (grad - unit * (unit * grad).sum(-1, keepdim=True)) / norm


def _zeros(like: Tensor | None) -> Tensor:
    assert like is not None
    # Sums over blocks.
    return torch.zeros(like.shape, dtype=_wide(like.dtype), device=like.device)
