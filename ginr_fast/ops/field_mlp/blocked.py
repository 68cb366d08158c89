"""field_mlp in blocks of coordinates: any field, dtype and device, memory of one block.

The backward runs each block again and goes back through it layer by layer: with
``y = f(W x + b)`` and ``d = f' · ∂y``: ``∂W = dᵀ x``, ``∂b = Σ d``, ``∂x = d W``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ginr_fast.fields import Activation, FieldSpec, FourierEncoding
from ginr_fast.ops import gemm, native_gemm
from ginr_fast.ops.blocks import block_rows, settle_allocator
from ginr_fast.ops.field_mlp import reference

# Rows × width of a block on a CPU: its activations stay in the second-level cache.
_CPU_ELEMENTS = 1 << 18


# From this width and this many samples of an instance on, products on AMX make this backend faster
# than the native one, whose kernel stays with the vector units.
_AMX_WIDTH = 256
_AMX_SAMPLES = 2048


def outruns_native(spec: FieldSpec, count: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this backend is the faster one for ``count`` samples an instance on a CPU.

    It is on AMX, for wide fields without sines, with bfloat16 weights. Never in compiled calls.
    (float32 fields stay native under PyTorch's precision "high" too: with two threads, which then
    work in two pools in turns, this backend took 1.6 times as long.)
    """
    return (
        not torch.compiler.is_compiling()
        and device.type == "cpu"
        and spec.hidden_dim >= _AMX_WIDTH
        and count >= _AMX_SAMPLES
        and "sine" not in (spec.activation, spec.out_activation)
        and native_gemm.present()
        and dtype == torch.bfloat16
    )


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


def _encode(coords: Tensor, encoding: FourierEncoding) -> Tensor:
    """The features of coordinates. The phases of float32 are reduced by turns in float64 on a CPU:
    rounding them would cost more than everything after it."""
    if coords.dtype != torch.float32 or coords.device.type != "cpu":
        return reference.encode(coords, encoding)
    turns = [frequency / (2 * math.pi) for frequency in encoding.frequencies]
    phase = coords.double().unsqueeze(-1) * coords.new_tensor(turns, dtype=torch.float64)
    phase = (phase - phase.round()).float().flatten(-2).mul_(2 * math.pi)
    return torch.cat((phase.cos(), phase.sin()), dim=-1)


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none"
) -> Tensor:
    """``x Wᵀ + b``, batched, and the ReLU if one follows; coordinates keep their precision, and
    phases of sines are formed at the full one, whatever products may have."""
    if x.shape[0] > 1 or x.dtype != weight.dtype or activation == "sine":
        y = reference.linear(x, weight, bias)
    else:
        y = gemm.linear(x[0], weight[0], None if bias is None else bias[0]).unsqueeze(0)
    # Apart from the product: oneDNN's own ReLU makes NaN 0.
    return y.relu_() if activation == "relu" else y


def _transposed_product(x: Tensor, y: Tensor) -> Tensor:
    """``xᵀ y``, batched."""
    if x.shape[0] > 1:
        return x.transpose(1, 2) @ y
    return gemm.transposed_product(x[0], y[0]).unsqueeze(0)


def forward(coords: Tensor, weights: Tensor, spec: FieldSpec, directions: Tensor | None) -> Tensor:
    """``(B | 1, N, d)`` and ``(B, P)`` to ``(B, N, out)``."""
    batch, count = weights.shape[0], coords.shape[1]
    out = weights.new_empty(batch, count, spec.out_dim)
    for span in _spans(count, batch, spec, weights.device):
        inputs = _Inputs(coords, directions, span, spec, weights.dtype)
        for instances in _instances(batch, weights.device):
            block = _Block(spec, weights[instances], None)
            out[instances, span] = block.forward(*inputs.of(instances))
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
    named = {"coords": coords, "weights": weights, "directions": directions}
    sums = {name: _zeros(named[name]) for name in needed}
    for span in _spans(count, batch, spec, weights.device):
        inputs = _Inputs(coords, directions, span, spec, weights.dtype)
        for instances in _instances(batch, weights.device):
            block = _Block(spec, weights[instances], needed)
            block.forward(*inputs.of(instances))
            found = block.backward(grad[instances, span])
            for name in needed:
                total = sums[name]
                target = total[instances] if name == "weights" else _part(total, instances, span)
                assert target is not None
                part = found[name]
                target += part if target.shape[0] == part.shape[0] else part.sum(0, keepdim=True)
    return sums


class _Inputs:
    """What the fields take at a block of samples; shared coordinates are encoded once."""

    def __init__(
        self,
        coords: Tensor,
        directions: Tensor | None,
        span: slice,
        spec: FieldSpec,
        dtype: torch.dtype,
    ) -> None:
        self.coords, self.encoding, self.dtype = coords[:, span], spec.encoding, dtype
        self.directions = None if directions is None else directions[:, span]
        self.shared = self._encoded(self.coords) if coords.shape[0] == 1 else None

    def _encoded(self, coords: Tensor) -> Tensor:
        return coords if self.encoding is None else _encode(coords, self.encoding).to(self.dtype)

    def of(self, instances: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Coordinates, what the first layer takes, and directions, of some instances."""
        if self.shared is not None:
            coords, hidden = self.coords, self.shared
        else:
            coords = self.coords[instances]
            hidden = self._encoded(coords)
        return coords, hidden, _part(self.directions, instances, slice(None))


class _Block:
    """One block of samples of some instances: the forward keeps what the backward needs, of which
    the gradients ``needed``; None: there is no backward."""

    def __init__(self, spec: FieldSpec, weights: Tensor, needed: Sequence[str] | None) -> None:
        self.spec, self.dtype = spec, weights.dtype
        self.layers = spec.unpack(weights)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.grads: dict[int, tuple[Tensor, Tensor]] = {}
        self.keeps = needed is not None
        self.needs_weights = needed is not None and "weights" in needed
        self.needs_coords = needed is not None and "coords" in needed

    def _activation(self, index: int) -> Activation:
        spec, last = self.spec, self.spec.layers - 1
        density = spec.hidden_layers + 2 if spec.view_dim else None
        if index == density:
            return "none"
        return spec.out_activation if index == last else spec.activation

    def _through(self, index: int, x: Tensor) -> Tensor:
        activation = self._activation(index)
        y = _linear(x, *self.layers[index], activation)
        if self.keeps:
            self.kept[index] = (x, y)
        if activation == "sine":
            y = reference.activate(y, activation, self.spec.w0)
        return y.to(self.dtype)

    def _back(self, index: int, grad: Tensor, needs_input: bool = True) -> Tensor | None:
        x, y = self.kept.pop(index)
        weight, _ = self.layers[index]
        grad = _before_activation(grad, y, self._activation(index), self.spec.w0)
        grad = grad.to(y.dtype)
        if self.needs_weights:
            product = _transposed_product(grad, x.to(y.dtype))
            self.grads[index] = (product, grad.sum(1, dtype=_wide(grad.dtype)))
        if not needs_input:
            return None
        return _linear(grad, weight.to(y.dtype).transpose(1, 2), None)

    def forward(self, coords: Tensor, hidden: Tensor, directions: Tensor | None) -> Tensor:
        spec, batch = self.spec, self.layers[0][0].shape[0]
        self.coords, hidden = coords.expand(batch, -1, -1), hidden.expand(batch, -1, -1)
        trunk = spec.hidden_layers + 1
        for index in range(trunk):
            hidden = self._through(index, hidden)
        if not spec.view_dim:
            return self._through(trunk, hidden)
        assert directions is not None
        self.directions = directions.expand(batch, -1, -1)
        view = self._through(trunk, F.normalize(self.directions, dim=-1))
        density = self._through(trunk + 1, hidden)
        both = torch.cat((hidden, view), dim=-1)
        colour = self._through(trunk + 3, self._through(trunk + 2, both))
        return torch.cat((colour, density), dim=-1)

    def backward(self, grad: Tensor) -> dict[str, Tensor]:
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
        features = self._back(0, hidden, self.needs_coords)
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
        features = _encode(self.coords, encoding)
        cosine, sine = features.unflatten(-1, (2, self.spec.coord_dim, -1)).unbind(-3)
        grad_cosine, grad_sine = grad.unflatten(-1, (2, self.spec.coord_dim, -1)).unbind(-3)
        return ((cosine * grad_sine - sine * grad_cosine) * frequencies).sum(-1)


def _not_none(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _before_activation(grad: Tensor, kept: Tensor, activation: Activation, w0: float) -> Tensor:
    """Back through an activation, from what a ReLU gave or what a sine took."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, kept.to(grad.dtype), 0)
    if activation == "sine":
        return grad * (w0 * (w0 * kept.to(_wide(kept.dtype))).cos())
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
