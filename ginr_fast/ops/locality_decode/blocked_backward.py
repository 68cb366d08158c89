"""The backward of the blocked backend: ``blocked.py`` in reverse, block by block."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ginr_fast.ops import gemm
from ginr_fast.ops.locality_decode.blocked import Activations, Call

_FEATURE_WEIGHTS = ("query_weight", "query_bias", "band_weight", "band_bias")


def _relu_backward(grad: Tensor, output: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(grad, output, 0)


class Backward:
    """Accumulates, over all blocks, the gradients asked for and nothing else."""

    def __init__(self, call: Call, needed: Collection[str]):
        self.call, self.needed = call, set(needed)
        self.grads: dict[str, Tensor] = {}
        inputs = {"keys": call.keys, "values": call.values, "logit_bias": call.logit_bias}
        sources: dict[str, Any] = {**inputs, **call.w._asdict()}
        for name in self.needed - {"coords", *_FEATURE_WEIGHTS}:
            self.grads[name] = torch.zeros_like(sources[name], dtype=call.accumulator)
        self.needs_features = bool(self.needed & {"coords", *_FEATURE_WEIGHTS})
        self.needs_queries = self.needs_features or bool(
            self.needed & {"projection_weight", "projection_bias"}
        )
        self.needs_logits = self.needs_queries or bool(self.needed & {"keys", "logit_bias"})

    def _add(self, name: str, index: tuple, value: Tensor) -> None:
        self.grads[name][index] += value

    def _sum_rows(self, name: str, index: tuple, grad: Tensor) -> None:
        if name in self.needed:
            self._add(name, index, grad.sum(0, dtype=self.call.accumulator))

    def _product(self, name: str, index: tuple, grad: Tensor, x: Tensor) -> None:
        """Add the weight gradient gradᵀ x."""
        if name in self.needed:
            self._add(name, index, gemm.transposed_product(grad, x))

    def run(self, grad: Tensor) -> dict[str, Tensor]:
        call = self.call
        call.features.start_backward(
            bool(self.needed & set(_FEATURE_WEIGHTS)), "coords" in self.needed
        )
        for block in call.blocks():
            groups = call.instances(block)
            q = queries = grad_queries = torch.empty(0)
            features: list[Tensor] = []
            grad_features: list[Tensor] = []
            for index, group in enumerate(groups):
                if index == 0 or not call.shared:
                    q, *features = call.features.forward(block, group, keep=self.needs_features)
                    queries = call.queries(q)
                    grad_queries = torch.zeros_like(queries)
                    grad_features = [torch.zeros_like(feature) for feature in features]
                activations = call.step(queries, features, group, block.count, keep=True)
                self.step(
                    grad[group, block.points].flatten(0, 1),
                    queries,
                    group,
                    block.count,
                    activations,
                    grad_queries,
                    grad_features,
                )
                if not call.shared or index == len(groups) - 1:
                    self._features(block, group, q, features, grad_queries, grad_features)
        return self.finished()

    def step(
        self,
        grad: Tensor,
        queries: Tensor,
        group: slice,
        count: int,
        act: Activations,
        grad_queries: Tensor,
        grad_features: list[Tensor],
    ) -> None:
        """One group of instances on one block: from ∂y to ∂M, and on to the attention."""
        call, w, width = self.call, self.call.w, self.call.w.width
        self._sum_rows("output_bias", (), grad)
        for level, hidden in enumerate(act.hidden):
            self._product("output_weight", (level,), grad, hidden)

        grad_modulated = torch.mm(grad, call.output)  # every level's share of ∂h, (rows, L·d)
        mixed: Tensor | None = None  # ∂(M^ℓ + h^{ℓ−1}) of the level above
        for level in range(w.levels - 1, -1, -1):
            columns = slice(level * width, (level + 1) * width)
            if mixed is not None:
                grad_modulated[:, columns] += mixed
            if level > 0:
                pre = _relu_backward(grad_modulated[:, columns], act.hidden[level])
                self._product("hidden_weight", (level - 1,), pre, act.mixed[level - 1])
                self._sum_rows("hidden_bias", (level - 1,), pre)
                mixed = gemm.linear(pre, w.hidden_weight[level - 1].t())
            source = grad_modulated[:, columns] if mixed is None or level == 0 else mixed
            if call.modulation_relu:
                torch.ops.aten.threshold_backward.grad_input(
                    source, act.modulated[:, columns], 0, grad_input=grad_modulated[:, columns]
                )
            elif level > 0:
                grad_modulated[:, columns] = source

        for level, target in enumerate(grad_features):
            part = grad_modulated[:, level * width : (level + 1) * width]
            if call.shared:
                for rows in part.split(count):
                    target += rows
            else:
                target += part
        if act.attended is not None:
            self._product_modulation(grad_modulated, act.attended)
            grad_attended = gemm.linear(grad_modulated, call.modulation.t())
        else:
            grad_attended = grad_modulated
        self._sum_rows_modulation(grad_modulated)
        for position in range(group.stop - group.start):
            rows = slice(position * count, (position + 1) * count)
            self._attention(
                grad_attended[rows],
                call.rows_of(queries, position, count),
                group.start + position,
                act.probabilities[position],
                call.rows_of(grad_queries, position, count),
            )

    def _product_modulation(self, grad: Tensor, attended: Tensor) -> None:
        if "modulation_weight" in self.needed:
            product = gemm.transposed_product(grad, attended)
            self._add("modulation_weight", (), product.view_as(self.grads["modulation_weight"]))

    def _sum_rows_modulation(self, grad: Tensor) -> None:
        if "modulation_bias" in self.needed:
            total = grad.sum(0, dtype=self.call.accumulator)
            self._add("modulation_bias", (), total.view_as(self.grads["modulation_bias"]))

    def _attention(
        self,
        grad: Tensor,
        queries: Tensor,
        instance: int,
        probabilities: list[Tensor],
        grad_queries: Tensor,
    ) -> None:
        """Softmax attention of one instance: ∂V, ∂K, ∂bias, and ∂Q added to ``grad_queries``."""
        call = self.call
        for head, p in enumerate(probabilities):
            if call.w.modulation_weight is None:
                grad_head = grad
            else:
                grad_head = grad[:, head * call.value_dim : (head + 1) * call.value_dim]
            self._product("values", (instance, head), p, grad_head)
            if not self.needs_logits:
                continue
            grad_p = gemm.linear(grad_head, call.values[instance, head])
            grad_logits = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            self._product("keys", (instance, head), grad_logits, call.head(queries, head))
            self._sum_rows("logit_bias", (instance, head), grad_logits)
            if self.needs_queries:
                target = call.head(grad_queries, head)
                target += gemm.linear(grad_logits, call.keys[instance, head].t())

    def _features(
        self,
        block: object,
        group: slice,
        q: Tensor,
        features: list[Tensor],
        grad_queries: Tensor,
        grad_features: list[Tensor],
    ) -> None:
        """Through the query projection and W_q, W_F, once the instances are summed."""
        call, w = self.call, self.call.w
        if not self.needs_queries:
            return
        if w.projection_weight is not None:
            self._product("projection_weight", (), grad_queries, q)
            self._sum_rows("projection_bias", (), grad_queries)
            if not self.needs_features:
                return
            grad_queries = gemm.linear(grad_queries, w.projection_weight.t())
        if not self.needs_features:
            return
        sets = slice(0, 1) if call.shared else group
        pre = [_relu_backward(grad_queries, q)]
        pre += [_relu_backward(g, f) for g, f in zip(grad_features, features, strict=True)]
        call.features.backward(block, sets, pre)  # type: ignore[arg-type]

    def finished(self) -> dict[str, Tensor]:
        features = self.call.features
        features.finish_backward()
        if "coords" in self.needed:
            assert features.grad_coords is not None
            self.grads["coords"] = features.grad_coords
        if self.needed & set(_FEATURE_WEIGHTS):
            weights, biases = features.grad_weights, list(features.grad_biases.values())
            found = {
                "query_weight": weights[0],
                "query_bias": biases[0],
                "band_weight": torch.stack(weights[1:]),
                "band_bias": torch.stack(biases[1:]),
            }
            self.grads.update({k: v for k, v in found.items() if k in self.needed})
        return self.grads
