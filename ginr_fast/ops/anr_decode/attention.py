"""Thresholded softmax attention of one instance on a block of coordinates, and its gradient.

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


def _product(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y.mT``, (h, n, k) and (h, m, k) to (h, n, m)."""
    if x.shape[0] == 1:
        return gemm.linear(x[0], y[0]).unsqueeze(0)
    return torch.bmm(x, y.mT)


def _transposed_product(x: Tensor, y: Tensor) -> Tensor:
    """``x.mT @ y``, (h, n, k) and (h, n, m) to (h, k, m)."""
    if x.shape[0] == 1:
        return gemm.transposed_product(x[0], y[0]).unsqueeze(0)
    return torch.bmm(x.mT, y)


@dataclass
class Tile:
    """Some rows of some heads, and what its backward needs."""

    rows: slice
    heads: slice
    probabilities: Tensor
    """P, (h, n, R), float32 or float64."""
    weights: Tensor
    """w, (h, n, R)."""
    total: Tensor | None
    """U, (h, n, 1), 1 in a row that lost every token; None without threshold."""


class Attention:
    """Attention of every instance of a call. Tensors keep heads side by side: ``(n, H·width)``."""

    def __init__(self, keys: Tensor, values: Tensor, threshold: float):
        self.keys, self.values, self.threshold = keys, values, threshold
        self.heads, self.tokens = keys.shape[1:3]
        self.dtype = keys.dtype
        self.precise = torch.float64 if keys.dtype == torch.float64 else torch.float32

    def _by_head(self, tensor: Tensor, rows: slice, heads: slice) -> Tensor:
        """A tile of ``(n, H·width)`` as a view ``(h, n, width)``."""
        return tensor[rows].unflatten(-1, (self.heads, -1))[:, heads].transpose(0, 1)

    def _tiles(self, count: int) -> Iterator[tuple[slice, slice]]:
        if gemm.uses_onednn(self.keys) and self.dtype == torch.float32:
            # One head at a time: oneDNN's product beats a batched one that has no AVX-512.
            for head in range(self.heads):
                yield slice(0, count), slice(head, head + 1)
            return
        step = count
        if self.keys.device.type == "cpu":
            step = max(64, CPU_TILE_ELEMENTS // (self.heads * self.tokens))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count)), slice(0, self.heads)

    def forward(self, queries: Tensor, instance: int, out: Tensor, keep: bool) -> list[Tile]:
        """Write a, ``(n, H·dv)``, to ``out``; the tiles for the backward if ``keep``."""
        kept = []
        for rows, heads in self._tiles(queries.shape[0]):
            values = self.values[instance, heads]
            logits = _product(self._by_head(queries, rows, heads), self.keys[instance, heads])
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
            target = self._by_head(out, rows, heads)
            if total is None or keep:
                target.copy_(attended)
            else:
                torch.div(attended, total, out=target)
            if keep:
                kept.append(Tile(rows, heads, probabilities, weights, total))
        return kept

    def backward(
        self,
        tiles: list[Tile],
        grad: Tensor,
        attended: Tensor,
        queries: Tensor,
        instance: int,
        grad_keys: Tensor | None,
        grad_values: Tensor | None,
        grad_queries: Tensor | None,
    ) -> None:
        """Add to the gradients given: of keys and values ``(H, R, ·)``, of queries
        ``(n, H·dq)``."""
        for tile in tiles:
            rows, heads = tile.rows, tile.heads
            grad_tile = self._by_head(grad, rows, heads)
            if grad_values is not None:
                grad_values[heads] += _transposed_product(tile.weights, grad_tile)
            if grad_keys is None and grad_queries is None:
                continue
            grad_p = _product(grad_tile, self.values[instance, heads]).to(self.precise)
            if tile.total is not None:
                dot = torch.linalg.vecdot(
                    self._by_head(attended, rows, heads).to(self.precise),
                    grad_tile.to(self.precise),
                )
                grad_p.sub_(dot.unsqueeze(-1)).div_(tile.total)
                torch.ops.aten.threshold_backward.grad_input(
                    grad_p, tile.probabilities, self.threshold, grad_input=grad_p
                )
            grad_logits = torch._softmax_backward_data(
                grad_p, tile.probabilities, -1, self.precise
            ).to(self.dtype)
            if grad_keys is not None:
                grad_keys[heads] += _transposed_product(
                    grad_logits, self._by_head(queries, rows, heads)
                )
            if grad_queries is not None:
                target = self._by_head(grad_queries, rows, heads)
                target += _product(grad_logits, self.keys[instance, heads].mT)
