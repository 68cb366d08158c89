"""The blocked backend: exact algebra, coordinate blocks that stay in cache, recomputation.

Forward, for a block of n coordinates and a few instances (rows = instances × n; all products below
are library GEMMs on (rows, ·) matrices):

    q = ReLU(W_q γ + b_q), f = ReLU(W_F γ + b_F)      once a block when coordinates are shared
    Q = W_Q q + b_Q                                    absent when folded into the keys
    P_h = softmax(Q_h K_hᵀ + bias_h),  a = [P_h V_h]   an instance and head at a time
    M = ReLU(W_m a + b_m + f)                          all L levels in one product, (rows, L·d)
    h¹ = M¹;  h^ℓ = ReLU(W^ℓ (M^ℓ + h^{ℓ−1}) + b^ℓ);  y = Σ W_out^ℓ h^ℓ + b_out

Backward: each block is recomputed, then walked in reverse; the gradients of q and f are summed
over the instances before they go back through W_q and W_F. Nothing of size N×d is ever stored.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ginr_fast.ops import gemm
from ginr_fast.ops.blocked_tokens import TokenCall
from ginr_fast.ops.features import Band
from ginr_fast.ops.locality_decode.weights import LocalityWeights


@dataclass
class Activations:
    """What one (block, instances) step leaves for its backward."""

    probabilities: list[list[Tensor]]
    """P by instance and head, (n, R)."""
    attended: Tensor | None
    """a, (rows, H·dv); None with folded values."""
    modulated: Tensor
    """M, (rows, L·d)."""
    mixed: list[Tensor]
    """M^ℓ + h^{ℓ−1} for ℓ ≥ 2, (rows, d)."""
    hidden: list[Tensor]
    """h^ℓ, (rows, d)."""


class Call(TokenCall):
    """The constants of one call, and the forward of one step."""

    def __init__(
        self,
        coords: Tensor,
        grid_shape: list[int],
        keys: Tensor,
        values: Tensor,
        logit_bias: Tensor | None,
        weights: LocalityWeights,
        modulation_relu: bool,
    ):
        super().__init__(coords, grid_shape, keys, values)
        self.logit_bias = None if logit_bias is None else logit_bias.to(self.dtype)
        self.w = w = weights.to_dtype(self.dtype)
        self.modulation_relu = modulation_relu
        bands = [Band(w.query_frequencies, w.query_weight, w.query_bias)]
        bands += [
            Band(w.band_frequencies[i], w.band_weight[i], w.band_bias[i]) for i in range(w.levels)
        ]
        self.features = self.features_of(coords, grid_shape, bands)
        if w.modulation_weight is not None:
            self.modulation = w.modulation_weight.flatten(0, 1)  # (L·d, H·dv)
        self.output = torch.cat(tuple(w.output_weight), dim=-1)  # (out, L·d)

    def queries(self, q: Tensor) -> Tensor:
        """Q, (rows, H·dq); q itself when the projection is folded into the keys."""
        if self.w.projection_weight is None:
            return q
        return gemm.linear(q, self.w.projection_weight, self.w.projection_bias)

    def head(self, queries: Tensor, head: int) -> Tensor:
        """The slice of Q that head h sees."""
        if self.w.projection_weight is None:
            return queries
        return queries[:, head * self.key_dim : (head + 1) * self.key_dim]

    def rows_of(self, tensor: Tensor, position: int, count: int) -> Tensor:
        """The rows of one instance of a group, or all of them when coordinates are shared."""
        return tensor if self.shared else tensor[position * count : (position + 1) * count]

    def attend(self, queries: Tensor, instance: int, out: Tensor, keep: bool) -> list[Tensor]:
        """P_h V_h of one instance: side by side into ``out``, or added to it if W_m is folded into
        the values. Returns P_h by head, or nothing without ``keep``."""
        kept = []
        for head in range(self.heads):
            bias = None if self.logit_bias is None else self.logit_bias[instance, head]
            logits = gemm.linear(self.head(queries, head), self.keys[instance, head], bias)
            p = torch.softmax(logits, dim=-1)
            values = self.values[instance, head].t()
            if self.w.modulation_weight is None:
                gemm.add_linear(out, p, values)
            else:
                part = out[:, head * self.value_dim : (head + 1) * self.value_dim]
                gemm.linear_into(part, p, values)
            if keep:
                kept.append(p)
        return kept

    def step(
        self, queries: Tensor, features: list[Tensor], group: slice, count: int, keep: bool
    ) -> Activations:
        """A group of instances on a block, up to the hidden features of every level; without
        ``keep`` the probabilities are dropped as soon as they are used."""
        w, width = self.w, self.w.width
        size = group.stop - group.start
        folded = w.modulation_weight is None
        modulated = queries.new_empty(size * count, w.levels * width)
        levels = modulated.unflatten(0, (size, count)).unflatten(-1, (w.levels, width))
        for level, feature in enumerate(features):
            rows_of_all = feature.view(-1, count, width).expand(size, -1, -1)
            torch.add(rows_of_all, w.modulation_bias[level], out=levels[:, :, level])
        attended = modulated
        if not folded:
            attended = queries.new_empty(size * count, self.heads * self.value_dim)
        probabilities = []
        for position in range(size):
            rows = slice(position * count, (position + 1) * count)
            of_instance = self.rows_of(queries, position, count)
            p = self.attend(of_instance, group.start + position, attended[rows], keep)
            probabilities.append(p)
        if not folded:
            gemm.add_linear(modulated, attended, self.modulation)
        if self.modulation_relu:
            modulated.relu_()

        hidden, mixed = [modulated[:, :width]], []
        for level in range(1, w.levels):
            x = modulated[:, level * width : (level + 1) * width] + hidden[-1]
            mixed.append(x)
            hidden.append(
                gemm.linear(x, w.hidden_weight[level - 1], w.hidden_bias[level - 1], relu=True)
            )
        attended_or_none = None if folded else attended
        return Activations(probabilities, attended_or_none, modulated, mixed, hidden)

    def values_of(self, hidden: list[Tensor]) -> Tensor:
        """y = Σ W_out h + b_out, (rows, out)."""
        y = torch.addmm(self.w.output_bias, hidden[0], self.w.output_weight[0].t())
        for level in range(1, self.w.levels):
            y.addmm_(hidden[level], self.w.output_weight[level].t())
        return y


def forward(
    coords: Tensor,
    grid_shape: list[int],
    keys: Tensor,
    values: Tensor,
    logit_bias: Tensor | None,
    weights: LocalityWeights,
    modulation_relu: bool,
) -> Tensor:
    """``(B, N, out)``; coords ``(B or 1, N, c)``, or the concatenated axes of a grid."""
    call = Call(coords, grid_shape, keys, values, logit_bias, weights, modulation_relu)
    out = keys.new_empty(call.batch, call.count, weights.out_dim)
    for block in call.blocks():
        shared: tuple[Tensor, list[Tensor]] | None = None
        for group in call.instances(block):
            if shared is None or not call.shared:
                q, *features = call.features.forward(block, group, keep=False)
                shared = call.queries(q), features
            y = call.values_of(call.step(*shared, group, block.count, keep=False).hidden)
            out[group, block.points] = y.unflatten(0, (-1, block.count)).to(out.dtype)
    return out


def backward(
    grad: Tensor,
    coords: Tensor,
    grid_shape: list[int],
    keys: Tensor,
    values: Tensor,
    logit_bias: Tensor | None,
    weights: LocalityWeights,
    modulation_relu: bool,
    needed: Collection[str],
) -> dict[str, Tensor]:
    """The gradients named in ``needed``: of ``coords``, ``keys``, ``values``, ``logit_bias`` and
    of the parameters by their names in :class:`LocalityWeights`."""
    from ginr_fast.ops.locality_decode.blocked_backward import Backward

    call = Call(coords, grid_shape, keys, values, logit_bias, weights, modulation_relu)
    return Backward(call, needed).run(grad.to(call.dtype))
