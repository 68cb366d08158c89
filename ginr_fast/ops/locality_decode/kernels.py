"""The Triton backend of ``locality_decode``.

For a tile of coordinates v of one instance, with keys already scaled (numbers are used below):

    1  q   = ReLU(W_q γ(v) + b_q)          f_ℓ = ReLU(W_F,ℓ γ_ℓ(v) + b_F,ℓ)
    2  Q   = W_p q + b_p                    the query projection
    3  a_h = softmax(Q_h K_hᵀ) V_h          h = 1..H
    4  m_ℓ = ReLU(W_m,ℓ a + b_m,ℓ + f_ℓ)    W_o is folded into W_m
    5  x_ℓ = m_ℓ + h_{ℓ−1}                  h_1 = m_1
    6  h_ℓ = ReLU(W_ℓ x_ℓ + b_ℓ)
    7  y   = Σ_ℓ W_out,ℓ h_ℓ + b_out

One kernel a line, or fewer: features of all bands (1) with the phases computed on chip, or a
broadcast sum of axis tables on a grid; 2; attention (3); and for every level a layer kernel whose
epilogue takes in everything after the product: 4, 5 and the level's share of 7 for ℓ = 1; 4 and
5, then 6 and 7, for the others.

        registers             shared memory           workspace of a span        inputs, output
    1   W γ accumulator       W, coordinates          q, f                       v
    2   accumulator           q, W_p blocks           Q                          –
    3   s, p, a of a tile     Q tile; K, V            a                          K, V
    4+5 accumulator           a, W_m                  h; m or x                  –
    6+7 accumulator, y        x, W                    h                          y

K, V and the weights come from the L2 cache; where K and V of a head, or W of a layer, fit into
shared memory whole, a program keeps them there and walks over row tiles. The workspace holds a
span (``kernels/spans.py``), is reused from span to span, and is read and written mostly through the
L2 cache; q, Q and f are computed once and serve every instance that shares the coordinates.
Keeping h and x on chip through 4 to 7 as well was tried in the compiler: the tile then needs more
registers than there are (docs/kernel-log.md).

Backward: each span is recomputed with m, x and h kept; the layers are walked in reverse
(``layer_backward_kernel``); the two attention kernels give ∂Q, ∂K and ∂V; the gradients of Q and f
are summed over the instances that share them before they go back through W_p, W_q and W_F; weight
gradients are library products of what lies in the workspace, and are skipped where only tokens
need gradients. There is no atomic addition anywhere.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ginr_fast.ops.kernels.decoder import TokenCall
from ginr_fast.ops.kernels.heads import head_columns
from ginr_fast.ops.kernels.layers import (
    Head,
    layer,
    pack_bias,
    pack_weight,
    padded_out,
    padded_width,
)
from ginr_fast.ops.kernels.spans import SpanFeatures, padded_band
from ginr_fast.ops.locality_decode.weights import LocalityWeights


class Call(TokenCall):
    """The packed operands of one call, and the forward of one span."""

    def __init__(
        self,
        coords: Tensor,
        grid_shape: list[int],
        keys: Tensor,
        values: Tensor,
        weights: LocalityWeights,
        modulation_relu: bool,
    ):
        super().__init__(keys, values)
        dtype, layout = self.dtype, self.layout
        self.w = w = weights
        self.activation = "relu" if modulation_relu else "none"
        self.levels, self.width = w.levels, padded_width(w.width)
        self.span_width = self.width
        bands = [padded_band(w.query_frequencies, w.query_weight, w.query_bias, True)]
        bands += [
            padded_band(w.band_frequencies[i], w.band_weight[i], w.band_bias[i], True)
            for i in range(w.levels)
        ]
        self.features = SpanFeatures(coords, grid_shape, bands, dtype)
        self.query_features = self.features.widths[0]

        self.projection: Tensor | None = None
        self.one_query = w.projection_weight is None
        if w.projection_weight is not None:
            rows = head_columns(
                w.projection_weight.t(), self.heads, self.key_dim, layout.query_width
            ).t()
            self.query_width = padded_width(self.heads * layout.query_width)
            self.projection = pack_weight(rows, self.query_width, self.query_features, dtype)
            assert w.projection_bias is not None
            bias = head_columns(w.projection_bias, self.heads, self.key_dim, layout.query_width)
            self.projection_bias = pack_bias(bias, self.query_width, keys)

        assert w.modulation_weight is not None
        columns = head_columns(w.modulation_weight, self.heads, self.value_dim, layout.value_width)
        self.modulation = keys.new_zeros((self.levels, self.width, self.attended_width))
        self.modulation[:, : w.width, : columns.shape[-1]] = columns
        self.modulation_bias = [pack_bias(b, self.width, keys) for b in w.modulation_bias]
        self.hidden = [pack_weight(m, self.width, self.width, dtype) for m in w.hidden_weight]
        self.hidden_bias = [pack_bias(b, self.width, keys) for b in w.hidden_bias]
        channels = padded_out(w.out_dim)
        self.heads_out = [pack_weight(m, channels, self.width, dtype) for m in w.output_weight]
        self.output_bias = pack_bias(w.output_bias, channels, keys)

    def queries(self, table: Tensor) -> Tensor:
        """Equation 2: Q of a table of features; q itself without a projection."""
        q = table[:, : self.query_features]
        if self.projection is None:
            return q
        out = self.empty(table.shape[0], self.query_width)
        layer(q, self.projection, self.projection_bias, table.shape[0], y=out)
        return out

    def feature(self, table: Tensor, level: int) -> Tensor:
        """f of a level."""
        first = self.query_features + level * self.width
        return table[:, first : first + self.width]

    def decode(self, table: Tensor, attended: Tensor, out: Tensor) -> None:
        """Equations 4 to 7 for a group; ``out`` (instances, points, d_out)."""
        points, rows = out.shape[1], attended.shape[0]
        channels = self.heads_out[0].shape[0]
        partial = self.empty(rows, channels if self.levels > 1 else 0, torch.float32)
        hidden: Tensor | None = None
        for level in range(self.levels):
            last = level == self.levels - 1
            head = Head(self.heads_out[level], self.output_bias, partial, out, level == 0, last)
            mixed = None if last and level == 0 else self.empty(rows, self.width)
            layer(
                attended,
                self.modulation[level],
                self.modulation_bias[level],
                points,
                activation=self.activation,
                feature=self.feature(table, level),
                residual=hidden,
                y=mixed,
                head=head if level == 0 else None,
            )
            if level == 0:
                hidden = mixed
                continue
            assert mixed is not None
            hidden = None if last else self.empty(rows, self.width)
            layer(
                mixed,
                self.hidden[level - 1],
                self.hidden_bias[level - 1],
                points,
                activation="relu",
                y=hidden,
                head=head,
            )


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
    assert logit_bias is None
    call = Call(coords, grid_shape, keys, values, weights, modulation_relu)
    out = keys.new_empty(call.batch, call.features.count, weights.out_dim)
    for block, groups in call.spans("forward"):
        table = queries = torch.empty(0)
        for index, group in enumerate(groups):
            if index == 0 or not call.features.shared:
                table = call.features.forward(block, group)
                queries = call.queries(table)
            attended = call.attend(queries, group, block.count)
            call.decode(table, attended, out[group, block.points])
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
    """The gradients named in ``needed``, as the blocked backend's."""
    from ginr_fast.ops.locality_decode.kernels_backward import Backward

    assert logit_bias is None
    call = Call(coords, grid_shape, keys, values, weights, modulation_relu)
    return Backward(call, needed).run(grad)
