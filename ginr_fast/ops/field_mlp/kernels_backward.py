"""The backward of the Triton backend of ``field_mlp``; equations are those of ``kernels.py``.

For a span, with h and f' recomputed and ∂y given, from the last layer down (δ: gradient before f):

    δ_o = ∂y ∘ f_out'                     ∂W_o = δ_oᵀ h,        ∂b_o = Σ δ_o
    δ_ℓ = (W_{ℓ+1}ᵀ δ_{ℓ+1}) ∘ f'(z_ℓ)    ∂W_ℓ = δ_ℓᵀ h_{ℓ−1},  ∂b_ℓ = Σ δ_ℓ
    ∂v  = δ_1 W_1, and back through γ

The products of ∂W are the library's, a batch of instances at a time, summed over spans in float32.

float16 has few exponents, and the gradient of a mean over many points is tiny: ∂y of an instance is
multiplied by the power of two that brings its largest entry into [1, 2), and the results are
divided by it. The factor stays on the device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from ginr_fast.ops.field_mlp.kernels import Call
from ginr_fast.ops.kernels.field_chains import field_chain_backward
from ginr_fast.ops.kernels.field_layers import Encoded, field_backward, field_coords
from ginr_fast.ops.kernels.fourier import encode

_WIDE_RESULTS = hasattr(torch.ops.aten.bmm, "dtype")  # PyTorch 2.8 on


class Backward:
    """Accumulates, span by span, the gradients asked for and nothing else."""

    def __init__(self, call: Call, needed: Collection[str]):
        self.call, self.spec = call, call.spec
        self.scale: Tensor | None = None
        spec = call.spec
        self.sines = spec.activation == "sine"
        self.found: dict[str, Tensor] = {}
        if "weights" in needed:
            total = torch.zeros(call.batch, spec.parameter_count, device=call.device)
            self.found["weights"] = total
            self.layers = spec.unpack(total)
        if "coords" in needed:
            self.found["coords"] = torch.zeros_like(call.coords)
        if not call.chained:  # Wᵀ, for products from the right
            self.transposed = call.hidden.transpose(2, 3).contiguous()

    def run(self, grad: Tensor) -> dict[str, Tensor]:
        """The gradients, of ∂y (B, N, out)."""
        call, spec = self.call, self.spec
        self.scale = _scale(grad) if call.dtype == torch.float16 else None
        layers = spec.hidden_layers + 1
        columns = call.width * (layers * (1 + self.sines) + (layers if call.chained else 2))
        columns += spec.input_dim if spec.encoding is not None else 0
        for block, group in call.spans("backward", columns):
            part = grad[group, block].float()
            self._span(part if self.scale is None else part * self.scale[group], block, group)
        if self.scale is not None and "weights" in self.found:
            self.found["weights"] /= self.scale[:, :, 0]
        return self.found

    def _span(self, grad: Tensor, block: slice, group: slice) -> None:
        """One span; ``grad`` (instances, points, out) float32."""
        call, spec = self.call, self.spec
        hidden, slopes, out_slope = self._recompute(block, group, (grad.shape[0], grad.shape[1]))
        if out_slope is not None:
            grad = grad * out_slope
        grad = grad.contiguous()
        self._weights(spec.layers - 1, group, grad.to(call.dtype), hidden[-1], grad)
        for index, g in self._deltas(grad, hidden if slopes is None else slopes, group):
            if index > 0:
                self._weights(index, group, g, hidden[index - 1])
            else:
                self._input(g, block, group)

    def _recompute(
        self, block: slice, group: slice, shape: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """h of every hidden layer, (layers, instances, points, width), f' of the same for sines,
        and f_out' unless that is 1."""
        call, spec = self.call, self.spec
        layers = spec.hidden_layers + 1
        hidden = call.empty(layers, *shape, call.width)
        slopes = call.empty(layers, *shape, call.width) if self.sines else None
        out_slope = head = None
        if spec.out_activation != "none":
            out_slope = torch.empty(*shape, spec.out_dim, device=call.device)
            head = call.head_of(group, out_slope, slope=True)
        if call.chained:
            call.chain(block, group, shape, hidden, slopes, head)
            return hidden, slopes, out_slope
        below: Tensor | Encoded = call.below(block, group)
        for index in range(layers):
            slope = None if slopes is None else slopes[index]
            last = index == layers - 1
            call.layer(index, below, group, shape, hidden[index], slope, head if last else None)
            below = hidden[index]
        return hidden, slopes, out_slope

    def _deltas(self, grad: Tensor, saved: Tensor, group: slice) -> Iterator[tuple[int, Tensor]]:
        """(layer, δ) from the last hidden layer to the first; a δ is gone after the next one."""
        call, activation = self.call, self.spec.activation
        top, head = self.spec.hidden_layers, call.head[group]
        if call.chained:
            deltas = torch.empty_like(saved)
            field_chain_backward(grad, head, call.hidden[group], saved, deltas, activation)
            for index in reversed(range(top + 1)):
                yield index, deltas[index]
            return
        g, spare = torch.empty_like(saved[0]), torch.empty_like(saved[0]) if top else None
        field_backward(g, grad=grad, head=head, saved=saved[top], activation=activation)
        yield top, g
        for index in reversed(range(top)):
            weight = self.transposed[group, index]
            assert spare is not None
            field_backward(spare, above=g, weight=weight, saved=saved[index], activation=activation)
            g, spare = spare, g
            yield index, g

    def _weights(
        self, layer: int, group: slice, g: Tensor, below: Tensor, exact: Tensor | None = None
    ) -> None:
        """Add to ∂W and ∂b of a layer; ``exact`` is δ before it was rounded to ``g``."""
        if "weights" not in self.found:
            return
        weight, bias = self.layers[layer]
        rows, columns = weight.shape[1:]
        weight[group] += _product(g, below)[:, :rows, :columns]
        if bias is not None:
            sums = (g if exact is None else exact).sum(1, dtype=torch.float32)
            bias[group] += sums[:, :rows]

    def _input(self, g: Tensor, block: slice, group: slice) -> None:
        """What the first layer's δ gives: its weights' gradient, and ∂v."""
        call, spec = self.call, self.spec
        below = call.below(block, group)
        if "weights" in self.found:
            if spec.encoding is None:
                features = below.coords.to(call.dtype)
            else:
                points = below.coords.flatten(0, 1)
                features = encode(points, call.half_turns, call.dtype)
                features = features.unflatten(0, below.coords.shape[:2])
            self._weights(0, group, g, features.expand(g.shape[0], -1, -1))
        if "coords" not in self.found:
            return
        if spec.encoding is None:
            slope = g.float() @ call.first[group].transpose(1, 2)
        else:
            slope = field_coords(g, below, call.first[group])
        if self.scale is not None:
            slope = slope / self.scale[group]
        total = self.found["coords"]
        shared = total.shape[0] == 1
        total[slice(None) if shared else group, block] += slope.sum(0) if shared else slope


def _scale(grad: Tensor) -> Tensor:
    """The powers of two that bring the largest entry of each instance of ``grad`` (B, N, out) into
    [1, 2), (B, 1, 1); 1 where all are zero or one is not finite."""
    largest = grad.detach().abs().amax(dim=(1, 2), keepdim=True).float()
    exponent = torch.frexp(largest).exponent.float() - 1
    usable = largest.isfinite() & (largest > 0)
    # A factor of 2¹²⁷ or more has no float32 reciprocal.
    return torch.where(usable, torch.exp2(-exponent.clamp(-120, 120)), torch.ones_like(largest))


def _product(g: Tensor, below: Tensor) -> Tensor:
    """gᵀ below of each instance in float32: (I, n, m) and (I, n, k) to (I, m, k)."""
    if g.dtype == torch.float32:
        return torch.bmm(g.transpose(1, 2), below)
    if g.is_cuda and _WIDE_RESULTS:
        return torch.bmm(g.transpose(1, 2), below, out_dtype=torch.float32)
    return torch.bmm(g.transpose(1, 2).float(), below.float())
