"""The Triton backend of ``anr_decode``.

For a tile of coordinates v of one instance, with keys already scaled (numbers are used below):

    1  Q   = W_q γ(v)
    2  p   = softmax(Q_h K_hᵀ),  u = max(p − τ, 0),  a_h = u V_h / Σu      h = 1..H
    3  h_1 = act(W_1 a + b_1)                                               W_o is folded into W_1
    4  h_i = act(W_i h_{i−1} + b_i)                                         i = 2..depth−1
    5  y   = W_out h + b_out

One kernel a line: Q with the phases computed on chip, or a broadcast sum of axis tables on a grid;
attention, the function that ``locality_decode`` calls too (``kernels/attention.py``); and a layer
kernel for each of 3 and 4, the last of which takes in 5 as well, so that its h is never written.
128 rows of 512 columns do not fit into registers, so that layers hand their h on through memory.

        registers             shared memory           workspace of a span        inputs, output
    1   W γ accumulator       W, coordinates          Q                          v
    2   s, p, a of a tile     Q tile; K, V            a                          K, V
    3–5 accumulator, y        h, W                    h of two layers            y

K, V and the weights come from the L2 cache. The workspace holds a span (``kernels/spans.py``) and
is reused from span to span; Q is computed once and serves every instance that shares the
coordinates.

Backward: each span is recomputed with every h kept (before the activation for Mish); the layers
are walked in reverse, the slope of the activation in the epilogue of each product; the attention
kernels give ∂Q, ∂K and ∂V with the exact gradient of the threshold; ∂Q is summed over the
instances that share coordinates before it goes back through W_q. Weight gradients are library
products of what lies in the workspace. There is no atomic addition anywhere.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ginr_fast.ops import gemm
from ginr_fast.ops.anr_decode.weights import AnrWeights
from ginr_fast.ops.blocks import Block
from ginr_fast.ops.kernels.decoder import TokenBackward, TokenCall
from ginr_fast.ops.kernels.heads import head_columns
from ginr_fast.ops.kernels.layers import (
    Head,
    layer,
    layer_backward,
    pack_bias,
    pack_weight,
    padded_out,
    padded_width,
)
from ginr_fast.ops.kernels.spans import SpanFeatures, padded_band


class Call(TokenCall):
    """The packed operands of one call, and the forward of one span."""

    def __init__(
        self,
        coords: Tensor,
        grid_shape: list[int],
        keys: Tensor,
        values: Tensor,
        weights: AnrWeights,
        threshold: float,
        activation: str,
    ):
        super().__init__(keys, values, threshold)
        self.w = w = weights
        self.activation = activation
        layout, dtype = self.layout, self.dtype
        rows = head_columns(w.query_weight.t(), self.heads, self.key_dim, layout.query_width).t()
        band = padded_band(w.frequencies, rows, None, False)
        self.features = SpanFeatures(coords, grid_shape, [band], dtype)

        # Weight (outputs, inputs) and bias of every layer but the last.
        layers = [(w.first_weight, w.first_bias)] if w.first_weight is not None else []
        layers += zip(w.hidden_weight, w.hidden_bias, strict=True)
        self.layers: list[tuple[Tensor, Tensor]] = []
        inputs = self.attended_width
        for index, (weight, bias) in enumerate(layers):
            assert weight is not None
            if index == 0:
                weight = head_columns(weight, self.heads, self.value_dim, layout.value_width)
            width = padded_width(weight.shape[0])
            packed = pack_weight(weight, width, inputs, dtype)
            self.layers.append((packed, pack_bias(bias, width, keys)))
            inputs = width
        last = w.output_weight
        if not self.layers:
            last = head_columns(last, self.heads, self.value_dim, layout.value_width)
        self.span_width = inputs
        self.output_weight = pack_weight(last, padded_out(w.out_dim), inputs, dtype)
        self.output_bias = pack_bias(w.output_bias, padded_out(w.out_dim), keys)

    def decode(self, attended: Tensor, out: Tensor) -> None:
        """Equations 3 to 5 for a group; ``out`` (instances, points, d_out)."""
        points, x = out.shape[1], attended
        if not self.layers:
            out.copy_(self.output_of(attended).view_as(out))
            return
        for index, (weight, bias) in enumerate(self.layers):
            last = index == len(self.layers) - 1
            y = None if last else self.empty(x.shape[0], weight.shape[0])
            head = None
            if last:
                partial = self.empty(0, self.output_weight.shape[0], torch.float32)
                head = Head(self.output_weight, self.output_bias, partial, out, True, True)
            layer(x, weight, bias, points, activation=self.activation, y=y, head=head)
            if y is not None:
                x = y

    def output_of(self, attended: Tensor) -> Tensor:
        """y where the output layer is the only one: too narrow for a kernel of its own."""
        channels = self.w.out_dim
        bias = self.output_bias[:channels].to(self.dtype)
        return gemm.linear(attended, self.output_weight[:channels], bias)


class Backward(TokenBackward):
    """Accumulates, span by span, the gradients asked for and nothing else."""

    call: Call

    def __init__(self, call: Call, needed: Collection[str]):
        width = call.output_weight.shape[1]
        shapes: dict[str, tuple[int, ...]] = {
            "output_weight": (call.w.out_dim, width),
            "output_bias": (call.w.out_dim,),
        }
        if call.layers:
            first = call.layers[0][0]
            hidden = (len(call.layers) - 1, width, width)
            shapes |= {"first_weight": tuple(first.shape), "first_bias": (first.shape[0],)}
            shapes |= {"hidden_weight": hidden, "hidden_bias": hidden[:2]}
        super().__init__(call, needed, shapes)
        self.query_gradients = bool(self.needed & {"query_weight", "coords"})
        # Transposed weights, for products from the right.
        self.transposed = [weight.t().contiguous() for weight, _ in call.layers]
        self.no_bias = pack_bias(None, call.attended_width, call.keys)
        # The lowest layer that has a gradient, or that one has to pass.
        names = [self._names(index)[0] for index in range(len(call.layers))]
        wanted = [
            bool(self.needed & {f"{name}_weight", f"{name}_bias"}) or self.attention_gradients
            for name in names
        ]
        self.lowest = wanted.index(True) if True in wanted else len(wanted)

    @staticmethod
    def _names(index: int) -> tuple[str, tuple[int, ...]]:
        """Which parameter a layer is: its name, and its place in it."""
        return ("first", ()) if index == 0 else ("hidden", (index - 1,))

    def run(self, grad: Tensor) -> dict[str, Tensor]:
        """The gradients, of ∂y (B, N, out)."""
        self.call.features.start_backward("query_weight" in self.needed, "coords" in self.needed)
        self.walk(grad)
        return self._finished()

    def queries(self, table: Tensor) -> Tensor:
        return table

    def span(
        self, grad: Tensor, table: Tensor, queries: Tensor, group: slice
    ) -> tuple[Tensor | None, Tensor | None]:
        call, points = self.call, grad.shape[1]
        rows = grad.shape[0] * points
        statistics = call.statistics(rows) if self.attention_gradients else None
        attended = call.attend(queries, group, points, statistics)
        inputs, saved = self._recompute(attended, points)

        flat = grad.reshape(rows, call.w.out_dim).to(call.dtype)
        self.total("output_bias", (), flat)
        self.product("output_weight", (), flat, inputs[-1])
        grad_attended = self._layers(grad, inputs, saved, points)
        if not call.layers and statistics is not None:
            grad_attended = gemm.linear(flat, call.output_weight[: call.w.out_dim].t())
        if statistics is None:
            return None, None
        assert grad_attended is not None
        return self.attention(queries, group, points, attended, grad_attended, statistics), None

    def _recompute(self, attended: Tensor, points: int) -> tuple[list[Tensor], list[Tensor]]:
        """The input of every layer and of the output; what the activation's slope needs."""
        call, inputs, saved = self.call, [attended], []
        mish = call.activation == "mish"
        for weight, bias in call.layers:
            rows, width = attended.shape[0], weight.shape[0]
            y = call.empty(rows, width)
            kept = call.empty(rows, width) if mish else y
            layer(
                inputs[-1],
                weight,
                bias,
                points,
                activation=call.activation,
                y=y,
                saved=kept if mish else None,
                save_input=mish,
            )
            inputs.append(y)
            saved.append(kept)
        return inputs, saved

    def _layers(
        self, grad: Tensor, inputs: list[Tensor], saved: list[Tensor], points: int
    ) -> Tensor | None:
        """From ∂y down to the lowest layer with a gradient; ∂a where it is needed."""
        call, rows = self.call, inputs[0].shape[0]
        above: Tensor | None = None
        for index in range(len(call.layers) - 1, self.lowest - 1, -1):
            top = above is None
            width = call.layers[index][0].shape[0]
            g = call.empty(rows, width)
            layer_backward(
                rows,
                points,
                width,
                g=above,
                weight=None if top else self.transposed[index + 1],
                grad=grad if top else None,
                head=call.output_weight if top else None,
                b=g,
                b_saved=saved[index],
                b_activation=call.activation,
            )
            name, place = self._names(index)
            self.product(f"{name}_weight", place, g, inputs[index])
            self.total(f"{name}_bias", place, g)
            above = g
        if above is None or not self.attention_gradients:
            return None
        grad_attended = call.empty(rows, call.attended_width)
        layer(above, self.transposed[0], self.no_bias, points, y=grad_attended)
        return grad_attended

    def back_to_features(
        self,
        block: Block,
        sets: slice,
        table: Tensor,
        grad_queries: Tensor,
        grad_features: Tensor | None,
    ) -> None:
        """Back through W_q."""
        padding = table.shape[1] - grad_queries.shape[1]
        grad = torch.nn.functional.pad(grad_queries.to(self.call.dtype), (0, padding))
        self.call.features.backward(block, sets, grad)

    def _finished(self) -> dict[str, Tensor]:
        """Gradients without the padding, in float32."""
        call, w = self.call, self.call.w
        found = {**self.sums, **self.finished_tokens()}
        if "output_weight" in found:
            found["output_weight"] = (
                found["output_weight"][:, : w.output_weight.shape[1]]
                if call.layers
                else self.value_columns(found["output_weight"])
            )
        if "first_weight" in found:
            assert w.first_weight is not None
            own = self.value_columns(found["first_weight"])
            found["first_weight"] = own[: w.first_weight.shape[0]]
        if "first_bias" in found:
            assert w.first_bias is not None
            found["first_bias"] = found["first_bias"][: w.first_bias.shape[0]]
        for name in ("hidden_weight", "hidden_bias"):
            if name in found:
                width = getattr(w, name).shape[1]
                found[name] = found[name][:, :width][..., : getattr(w, name).shape[-1]]
        inner = call.features.inner
        if "coords" in self.needed:
            assert inner.grad_coords is not None
            found["coords"] = inner.grad_coords
        if "query_weight" in self.needed:
            found["query_weight"] = self.query_columns(inner.grad_weights[0].t()).t()
        return found


def forward(
    coords: Tensor,
    grid_shape: list[int],
    keys: Tensor,
    values: Tensor,
    weights: AnrWeights,
    threshold: float,
    activation: str,
) -> Tensor:
    """``(B, N, out)``; coords ``(B or 1, N, c)``, or the concatenated axes of a grid."""
    call = Call(coords, grid_shape, keys, values, weights, threshold, activation)
    out = keys.new_empty(call.batch, call.features.count, weights.out_dim)
    for block, groups in call.spans("forward"):
        queries = torch.empty(0)
        for index, group in enumerate(groups):
            if index == 0 or not call.features.shared:
                queries = call.features.forward(block, group)
            call.decode(call.attend(queries, group, block.count), out[group, block.points])
    return out


def backward(
    grad: Tensor,
    coords: Tensor,
    grid_shape: list[int],
    keys: Tensor,
    values: Tensor,
    weights: AnrWeights,
    threshold: float,
    activation: str,
    needed: Collection[str],
) -> dict[str, Tensor]:
    """The gradients named in ``needed``, as the blocked backend's."""
    call = Call(coords, grid_shape, keys, values, weights, threshold, activation)
    return Backward(call, needed).run(grad)
