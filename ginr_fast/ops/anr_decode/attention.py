"""Thresholded softmax attention of some instances on a block of coordinates, and its gradient.

Forward, a head:  P = softmax(Q Kᵀ), u = max(P − τ, 0), U = Σ_k u_k, w = u/U, a = w V.
Backward:         ∂V = wᵀ ∂a,  ∂w = ∂a Vᵀ,  D = Σ_k w_k ∂w_k = a·∂a,
                  ∂P_k = 1[P_k > τ] (∂w_k − D)/U,  ∂(QKᵀ) = P (∂P − Σ_k P_k ∂P_k).

Softmax and threshold run in float32 at least; only the operands of products are in half precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ginr_fast.ops import gemm

# float32 logits of a tile where several heads share one batched product: half a megabyte a head.
CPU_TILE_ELEMENTS = 3 << 18


# Below so many logits a head, the calls cost more than the products: heads and instances share one.
_FEW_LOGITS = 1 << 16


def _product(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y.mT``, (i, h, n, k) and (i, h, m, k) to (i, h, n, m)."""
    if x.shape[:2] == y.shape[:2] == (1, 1):
        return gemm.linear(x[0, 0], y[0, 0])[None, None]
    return torch.matmul(x, y.mT)


def _transposed_product(x: Tensor, y: Tensor) -> Tensor:
    """``x.mT @ y``, (i, h, n, k) and (i, h, n, m) to (i, h, k, m)."""
    if x.shape[:2] == y.shape[:2] == (1, 1):
        return gemm.transposed_product(x[0, 0], y[0, 0])[None, None]
    return torch.matmul(x.mT, y)


@dataclass
class Tile:
    """Some rows of some heads of some instances of a group, and what its backward needs."""

    instances: slice
    """Of the group."""
    rows: slice
    heads: slice
    probabilities: Tensor
    """P, (i, h, n, R), float32 or float64."""
    weights: Tensor
    """w, (i, h, n, R)."""
    total: Tensor | None
    """U, (i, h, n, 1), 1 in a row that lost every token; None without threshold."""


class Attention:
    """Attention of every instance of a call. Tensors keep heads side by side: ``(n, H·width)``
    where instances share coordinates, ``(i·n, H·width)`` for i instances otherwise."""

    def __init__(self, keys: Tensor, values: Tensor, threshold: float):
        self.keys, self.values, self.threshold = keys, values, threshold
        self.heads, self.tokens = keys.shape[1:3]
        self.dtype = keys.dtype
        self.precise = torch.float64 if keys.dtype == torch.float64 else torch.float32

    def _part(self, tensor: Tensor, count: int, tile: tuple[slice, slice, slice]) -> Tensor:
        """A tile of ``(n or i·n, H·width)`` as a view ``(1 or i, h, n, width)``."""
        instances, rows, heads = tile
        by_instance = tensor.view(-1, count, self.heads, tensor.shape[-1] // self.heads)
        if by_instance.shape[0] > 1:
            by_instance = by_instance[instances]
        return by_instance[:, rows, heads].transpose(1, 2)

    def _tiles(self, count: int, instances: int) -> Iterator[tuple[slice, slice, slice]]:
        """Instances, rows and heads of each tile, for ``count`` rows an instance."""
        if gemm.one_at_a_time(self.keys) and count * self.tokens > _FEW_LOGITS:
            for instance in range(instances):
                for head in range(self.heads):
                    yield slice(instance, instance + 1), slice(0, count), slice(head, head + 1)
            return
        rows = count
        if self.keys.device.type == "cpu":
            rows = max(64, CPU_TILE_ELEMENTS // (self.heads * self.tokens))
        together = max(1, rows // count)
        for first in range(0, instances, together):
            last = min(first + together, instances)
            for start in range(0, count, rows):
                end = min(start + rows, count)
                yield slice(first, last), slice(start, end), slice(0, self.heads)

    def forward(
        self, queries: Tensor, group: slice, count: int, out: Tensor, keep: bool
    ) -> list[Tile]:
        """Write a, ``(i·n, H·dv)``, of a group of instances to ``out``; the tiles for the backward
        if ``keep``."""
        kept = []
        keys, all_values = self.keys[group], self.values[group]
        for tile in self._tiles(count, group.stop - group.start):
            instances, rows, heads = tile
            values = all_values[instances, heads]
            logits = _product(self._part(queries, count, tile), keys[instances, heads])
            probabilities = torch.softmax(logits.to(self.precise), dim=-1)
            weights, total = probabilities, None
            if self.threshold > 0:
                scratch = logits if logits.dtype == self.precise else None
                weights = torch.ops.aten.softshrink.out(  # max(P − τ, 0), in one pass
                    probabilities,
                    self.threshold,
                    out=torch.empty_like(probabilities) if scratch is None else scratch,
                )
                total = weights.sum(dim=-1, keepdim=True)
                total.masked_fill_(total == 0, 1)
                if keep:
                    weights.div_(total)
            weights = weights.to(self.dtype)
            attended = _product(weights, values.mT)
            target = self._part(out, count, tile)
            if total is None or keep:
                target.copy_(attended)
            else:
                torch.div(attended, total, out=target)
            if keep:
                kept.append(Tile(*tile, probabilities, weights, total))
        return kept

    def backward(
        self,
        tiles: list[Tile],
        group: slice,
        count: int,
        grad: Tensor,
        attended: Tensor,
        queries: Tensor,
        grad_keys: Tensor | None,
        grad_values: Tensor | None,
        grad_queries: Tensor | None,
    ) -> None:
        """Add to the gradients given: of keys and values of all instances ``(B, H, R, ·)``, of
        queries as they are."""
        keys, values = self.keys[group], self.values[group]
        for tile in tiles:
            place = tile.instances, tile.rows, tile.heads
            own = (tile.instances, tile.heads)
            grad_tile = self._part(grad, count, place)
            if grad_values is not None:
                grad_values[group][own] += _transposed_product(tile.weights, grad_tile)
            if grad_keys is None and grad_queries is None:
                continue
            grad_p = _product(grad_tile, values[own]).to(self.precise)
            if tile.total is not None:
                dot = torch.linalg.vecdot(
                    self._part(attended, count, place).to(self.precise), grad_tile.to(self.precise)
                )
                grad_p.sub_(dot.unsqueeze(-1)).div_(tile.total)
                torch.ops.aten.threshold_backward.grad_input(
                    grad_p, tile.probabilities, self.threshold, grad_input=grad_p
                )
            grad_logits = torch._softmax_backward_data(
                grad_p, tile.probabilities, -1, self.precise
            ).to(self.dtype)
            if grad_keys is not None:
                grad_keys[group][own] += _transposed_product(
                    grad_logits, self._part(queries, count, place)
                )
            if grad_queries is not None:
                target = self._part(grad_queries, count, place)
                found = _product(grad_logits, keys[own].mT)
                target += found if len(target) == len(found) else found.sum(0, keepdim=True)
