"""The backward of the Triton backend of ``locality_decode``; equations are those of ``kernels.py``.

For a span, with m, x and h recomputed and ∂y given, from the highest level down:

    ∂z_ℓ = (W_outᵀ ∂y + ∂x_{ℓ+1}) ∘ [h_ℓ > 0]     gradient before the ReLU of 6   (ℓ ≥ 2)
    ∂x_ℓ = W_ℓᵀ ∂z_ℓ                              also the gradient of h_{ℓ−1}'s share
    ∂M_ℓ = ∂x_ℓ ∘ [m_ℓ > 0]                       gradient before the ReLU of 4
    ∂a   = Σ_ℓ W_m,ℓᵀ ∂M_ℓ                        one product, the levels side by side
    ∂Q, ∂K, ∂V from ∂a                            ``kernels/attention_backward.py``
    ∂f_ℓ = Σ ∂M_ℓ,  ∂Q = Σ ∂Q                     over the instances that share coordinates
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ginr_fast.ops import gemm
from ginr_fast.ops.blocks import Block
from ginr_fast.ops.kernels.decoder import TokenBackward
from ginr_fast.ops.kernels.layers import layer, layer_backward, pack_bias
from ginr_fast.ops.locality_decode.kernels import Call

_FEATURE_WEIGHTS = frozenset({"query_weight", "query_bias", "band_weight", "band_bias"})
_PROJECTION = frozenset({"projection_weight", "projection_bias"})


class Backward(TokenBackward):
    """Accumulates, span by span, the gradients asked for and nothing else."""

    call: Call

    def __init__(self, call: Call, needed: Collection[str]):
        width, channels, levels = call.width, call.w.out_dim, call.levels
        shapes: dict[str, tuple[int, ...]] = {
            "output_weight": (levels, channels, width),
            "output_bias": (channels,),
            "hidden_weight": (levels - 1, width, width),
            "hidden_bias": (levels - 1, width),
            "modulation_weight": (levels * width, call.attended_width),
            "modulation_bias": (levels * width,),
        }
        if call.projection is not None:
            shapes["projection_weight"] = (call.query_width, call.query_features)
            shapes["projection_bias"] = (call.query_width,)
        super().__init__(call, needed, shapes)
        self.feature_gradients = bool(self.needed & (_FEATURE_WEIGHTS | {"coords"}))
        self.query_gradients = self.feature_gradients or bool(self.needed & _PROJECTION)
        # Transposed weights, for products from the right.
        self.hidden = [weight.t().contiguous() for weight in call.hidden]
        self.modulation = call.modulation.flatten(0, 1).t().contiguous()
        self.no_bias = pack_bias(None, call.attended_width, call.keys)

    def run(self, grad: Tensor) -> dict[str, Tensor]:
        """The gradients, of ∂y (B, N, out)."""
        features = self.call.features
        features.start_backward(bool(self.needed & _FEATURE_WEIGHTS), "coords" in self.needed)
        self.walk(grad)
        return self._finished()

    def queries(self, table: Tensor) -> Tensor:
        return self.call.queries(table)

    def span(
        self, grad: Tensor, table: Tensor, queries: Tensor, group: slice
    ) -> tuple[Tensor | None, Tensor | None]:
        """One group on one span: ∂Q and ∂M (rows, ·), where wanted; the rest is accumulated."""
        call, points = self.call, grad.shape[1]
        rows = grad.shape[0] * points
        attends = self.attention_gradients
        statistics = call.statistics(rows) if attends else None
        attended = call.attend(queries, group, points, statistics)
        modulated, mixed, hidden = self._recompute(table, attended, points)

        flat = grad.reshape(rows, call.w.out_dim).to(call.dtype)
        self.total("output_bias", (), flat)
        levels = [modulated[:, : call.width], *hidden]
        for level, h in enumerate(levels):
            self.product("output_weight", (level,), flat, h)
        grad_modulated = self._layers(grad, modulated, mixed, hidden, points)
        self.product("modulation_weight", (), grad_modulated, attended)
        self.total("modulation_bias", (), grad_modulated)
        if statistics is None:
            return None, None
        grad_attended = call.empty(rows, call.attended_width)
        layer(grad_modulated, self.modulation, self.no_bias, points, y=grad_attended)
        grad_queries = self.attention(queries, group, points, attended, grad_attended, statistics)
        return grad_queries, grad_modulated if self.feature_gradients else None

    def _recompute(
        self, table: Tensor, attended: Tensor, points: int
    ) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
        """m of every level side by side, and of the levels above the first h and, where its
        weights need gradients, x."""
        call, rows = self.call, attended.shape[0]
        modulated = call.empty(rows, call.levels * call.width)
        mixed: list[Tensor | None] = []
        hidden: list[Tensor] = []
        for level in range(call.levels):
            own = modulated[:, level * call.width : (level + 1) * call.width]
            below = x = None
            if level > 0:
                below = hidden[-1] if hidden else modulated[:, : call.width]
                x = call.empty(rows, call.width)
            layer(
                attended,
                call.modulation[level],
                call.modulation_bias[level],
                points,
                activation=call.activation,
                feature=call.feature(table, level),
                residual=below,
                saved=None if x is None else own,
                y=own if x is None else x,
            )
            if x is None:
                continue
            mixed.append(x if "hidden_weight" in self.sums else None)
            hidden.append(call.empty(rows, call.width))
            layer(
                x,
                call.hidden[level - 1],
                call.hidden_bias[level - 1],
                points,
                activation="relu",
                y=hidden[-1],
            )
        return modulated, mixed, hidden

    def _layers(
        self,
        grad: Tensor,
        modulated: Tensor,
        mixed: list[Tensor | None],
        hidden: list[Tensor],
        points: int,
    ) -> Tensor:
        """∂M of every level side by side; weight gradients of the hidden layers on the way."""
        call, width = self.call, self.call.width
        rows = modulated.shape[0]
        activation = "relu" if call.activation == "relu" else "identity"
        grad_modulated = torch.empty_like(modulated)

        def columns(tensor: Tensor, level: int) -> Tensor:
            return tensor[:, level * width : (level + 1) * width]

        above: Tensor | None = None
        for level in range(call.levels - 1, -1, -1):
            # B of this level, from the level above it; A is the ∂M of the level above.
            top = above is None
            if level > 0:
                b, b_saved, b_activation = call.empty(rows, width), hidden[level - 1], "relu"
            else:
                b, b_saved = columns(grad_modulated, 0), columns(modulated, 0)
                b_activation = activation
            layer_backward(
                rows,
                points,
                width,
                g=above,
                weight=None if top else self.hidden[level],
                grad=grad,
                head=call.heads_out[level],
                a=None if top else columns(grad_modulated, level + 1),
                a_saved=None if top else columns(modulated, level + 1),
                a_activation=activation,
                b=b,
                b_saved=b_saved,
                b_activation=b_activation,
            )
            if level > 0:
                x = mixed[level - 1]
                if x is not None:
                    self.product("hidden_weight", (level - 1,), b, x)
                self.total("hidden_bias", (level - 1,), b)
            above = b
        return grad_modulated

    def back_to_features(
        self,
        block: Block,
        sets: slice,
        table: Tensor,
        grad_queries: Tensor,
        grad_features: Tensor | None,
    ) -> None:
        """Back through the projection and the features."""
        call = self.call
        grad_queries = grad_queries.to(call.dtype)
        q = table[:, : call.query_features]
        if call.projection is not None:
            grad_queries = torch.nn.functional.pad(
                grad_queries, (0, call.query_width - grad_queries.shape[1])
            )
            self.product("projection_weight", (), grad_queries, q)
            self.total("projection_bias", (), grad_queries)
            grad_queries = gemm.linear(grad_queries, call.projection.t())
        else:
            # Every head sees the same queries.
            by_head = grad_queries.unflatten(-1, (call.heads, -1)).sum(1)
            grad_queries = torch.nn.functional.pad(
                by_head[:, : q.shape[1]], (0, max(0, q.shape[1] - by_head.shape[1]))
            )
        if grad_features is None:
            return
        grad = torch.cat((grad_queries, grad_features.to(call.dtype)), dim=-1)
        call.features.backward(block, sets, grad * (table > 0))

    def _finished(self) -> dict[str, Tensor]:
        """Gradients without the padding, in float32."""
        call, w = self.call, self.call.w
        found, width = {**self.sums, **self.finished_tokens()}, w.width
        for name in ("output_weight", "hidden_weight", "hidden_bias"):
            if name in found:
                found[name] = found[name][..., :width]
        if "hidden_weight" in found:
            found["hidden_weight"] = found["hidden_weight"][:, :width]

        if "modulation_bias" in found:
            by_level = found["modulation_bias"].unflatten(0, (call.levels, call.width))
            found["modulation_bias"] = by_level[:, :width]
        if "modulation_weight" in found:
            by_level = found["modulation_weight"].unflatten(0, (call.levels, call.width))
            found["modulation_weight"] = self.value_columns(by_level[:, :width])
        if "projection_bias" in found:
            found["projection_bias"] = self.query_columns(found["projection_bias"])
        if "projection_weight" in found:
            rows = self.query_columns(found["projection_weight"].t()).t()
            found["projection_weight"] = rows[:, : w.query_weight.shape[0]]
        inner = call.features.inner
        if "coords" in self.needed:
            assert inner.grad_coords is not None
            found["coords"] = inner.grad_coords
        if self.needed & _FEATURE_WEIGHTS:
            weights, biases = inner.grad_weights, inner.grad_biases
            features = {
                "query_weight": weights[0][: w.query_weight.shape[0]],
                "query_bias": biases[0][: w.query_weight.shape[0]],
                "band_weight": torch.stack([m[:width] for m in weights[1:]]),
                "band_bias": torch.stack([biases[i + 1][:width] for i in range(call.levels)]),
            }
            found.update({k: v for k, v in features.items() if k in self.needed})
        return found
