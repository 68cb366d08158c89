"""The backward of the blocked backend: ``blocked.py`` in reverse, block by block."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ginr_fast.ops import gemm
from ginr_fast.ops.anr_decode.blocked import Activations, Call
from ginr_fast.ops.blocks import Block

_FEATURE_INPUTS = ("coords", "query_weight")


class Backward:
    """Accumulates, over all blocks, the gradients asked for and nothing else."""

    def __init__(self, call: Call, needed: Collection[str]):
        self.call, self.needed = call, set(needed)
        self.grads: dict[str, Tensor] = {}
        sources = {"keys": call.keys, "values": call.values, **call.w._asdict()}
        for name in self.needed - set(_FEATURE_INPUTS):
            self.grads[name] = torch.zeros_like(sources[name], dtype=call.accumulator)
        self.needs_queries = bool(self.needed & set(_FEATURE_INPUTS))
        self.needs_attention = self.needs_queries or bool(self.needed & {"keys", "values"})
        # The lowest layer that has a gradient, or that one has to pass.
        self.lowest = len(call.layers)
        for index in reversed(range(len(call.layers))):
            layer = call.layer_names[index][0]
            if self.needs_attention or self.needed & {f"{layer}_weight", f"{layer}_bias"}:
                self.lowest = index

    def _layer(self, layer: str, index: tuple, grad: Tensor, x: Tensor) -> None:
        """Add the gradients of one linear layer's weight and bias."""
        if f"{layer}_weight" in self.needed:
            self.grads[f"{layer}_weight"][index] += gemm.transposed_product(grad, x)
        if f"{layer}_bias" in self.needed:
            self.grads[f"{layer}_bias"][index] += grad.sum(0, dtype=self.call.accumulator)

    def run(self, grad: Tensor) -> dict[str, Tensor]:
        call = self.call
        call.features.start_backward("query_weight" in self.needed, "coords" in self.needed)
        for block in call.blocks():
            groups = call.instances(block)
            queries = torch.empty(0)
            grad_queries: Tensor | None = None
            for index, group in enumerate(groups):
                if index == 0 or not call.shared:
                    (queries,) = call.features.forward(block, group, keep=self.needs_queries)
                    if self.needs_queries:
                        grad_queries = torch.zeros_like(queries, dtype=call.accumulator)
                _, activations = call.step(queries, group, block.count, keep=True)
                grad_rows = grad[group, block.points].flatten(0, 1)
                self.step(grad_rows, queries, group, block, activations, grad_queries)
                if grad_queries is not None and (not call.shared or index == len(groups) - 1):
                    sets = slice(0, 1) if call.shared else group
                    call.features.backward(block, sets, [grad_queries])
        return self.finished()

    def step(
        self,
        grad: Tensor,
        queries: Tensor,
        group: slice,
        block: Block,
        act: Activations,
        grad_queries: Tensor | None,
    ) -> None:
        """One group of instances on one block, from ∂y to ∂Q."""
        call = self.call
        self._layer("output", (), grad, act.inputs[-1])
        if not self.needs_attention and self.lowest == len(call.layers):
            return
        grad = gemm.linear(grad, call.w.output_weight.t())
        for index in range(len(call.layers) - 1, self.lowest - 1, -1):
            if call.relu:
                grad = torch.ops.aten.threshold_backward(grad, act.inputs[index + 1], 0)
            else:
                grad = torch.ops.aten.mish_backward(grad, act.preactivations[index])
            self._layer(*call.layer_names[index], grad, act.inputs[index])
            if self.needs_attention or index > self.lowest:
                grad = gemm.linear(grad, call.layers[index][0].t())
        if not self.needs_attention:
            return
        call.attention.backward(
            act.tiles,
            group,
            block.count,
            grad,
            act.inputs[0],
            queries,
            self.grads.get("keys"),
            self.grads.get("values"),
            grad_queries,
        )

    def finished(self) -> dict[str, Tensor]:
        features = self.call.features
        features.finish_backward()
        if "coords" in self.needed:
            assert features.grad_coords is not None
            self.grads["coords"] = features.grad_coords
        if "query_weight" in self.needed:
            self.grads["query_weight"] = features.grad_weights[0]
        return self.grads
