"""What the Triton backends of both token decoders share: packed keys and values, the attention of
a span, and the gradients accumulated from span to span."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ginr_fast.ops import gemm
from ginr_fast.ops.blocks import Block
from ginr_fast.ops.kernels.attention import Statistics, attention
from ginr_fast.ops.kernels.attention_backward import attention_backward, row_splits
from ginr_fast.ops.kernels.heads import HeadLayout, pack_tokens, padded_tokens
from ginr_fast.ops.kernels.layers import padded_width
from ginr_fast.ops.kernels.spans import SpanFeatures, spans


class TokenCall:
    """One call of a token decoder: keys and values as the kernels take them, and attention."""

    features: SpanFeatures
    span_width: int
    """Width of the layers, which decides how long a span is."""
    one_query = False
    """Whether every head sees the same queries."""

    def __init__(self, keys: Tensor, values: Tensor, threshold: float = 0.0):
        self.dtype, self.device, self.threshold = keys.dtype, keys.device, threshold
        self.batch, self.heads, self.tokens, self.key_dim = keys.shape
        self.value_dim = values.shape[-1]
        self.layout = layout = HeadLayout.of(self.heads, self.key_dim, self.value_dim)
        self.all_tokens = padded_tokens(self.tokens)
        self.keys = pack_tokens(keys, layout.query_width, self.all_tokens, self.dtype)
        self.values = pack_tokens(values, layout.value_width, self.all_tokens, self.dtype)
        self.attended_width = padded_width(self.heads * layout.value_width)

    def spans(self, kind: str) -> list[tuple[Block, list[slice]]]:
        """The spans of a ``forward`` or ``backward``, each with its groups of instances."""
        return spans(self.features, self.batch, kind, self.device, self.span_width)

    def empty(self, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
        """Workspace for a span."""
        return torch.empty(rows, columns, dtype=dtype or self.dtype, device=self.device)

    def attend(
        self, queries: Tensor, group: slice, points: int, statistics: Statistics | None = None
    ) -> Tensor:
        """a of a group of instances on a span, (rows, attended width)."""
        keys, values = self.keys[group], self.values[group]
        attended = self.empty(keys.shape[0] * points, self.attended_width)
        attended[:, self.heads * self.layout.value_width :] = 0
        attention(
            queries,
            keys,
            values,
            self.layout,
            points,
            self.tokens,
            attended,
            shared=self.features.shared,
            one_query=self.one_query,
            threshold=self.threshold,
            statistics=statistics,
        )
        return attended

    def statistics(self, rows: int) -> Statistics:
        """Room for two numbers a row and head; one without a threshold."""
        first = self.empty(rows, self.heads, torch.float32)
        return Statistics(first, torch.empty_like(first) if self.threshold > 0 else None)


class TokenBackward(ABC):
    """Walks over the spans and accumulates the gradients asked for; an operator adds its layers.

    A subclass gives ``query_gradients`` (whether ∂Q is needed), ``span`` and ``back_to_features``.
    """

    query_gradients: bool

    def __init__(
        self, call: TokenCall, needed: Collection[str], shapes: Mapping[str, tuple[int, ...]]
    ):
        self.call, self.needed = call, frozenset(needed)
        # Gradients at padded sizes, in float32; the padding is cut off at the end.
        self.sums = {
            name: self.zeros(*shape) for name, shape in shapes.items() if name in self.needed
        }
        pairs = call.batch * call.heads
        self.splits = row_splits(pairs, call.layout, call.device, call.dtype)
        shape = (self.splits, call.batch, call.heads, call.all_tokens)
        self.grad_keys = self.grad_values = None
        if "keys" in self.needed:
            self.grad_keys = self.zeros(*shape, call.layout.query_width)
        if "values" in self.needed:
            self.grad_values = self.zeros(*shape, call.layout.value_width)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.call.device)

    @property
    def attention_gradients(self) -> bool:
        """Whether anything behind the attention's output needs a gradient."""
        return bool(self.query_gradients or {"keys", "values"} & self.needed)

    def product(self, name: str, index: tuple, grad: Tensor, x: Tensor) -> None:
        """Add the weight gradient gradᵀ x."""
        if name in self.sums:
            self.sums[name][index] += gemm.transposed_product(grad, x)

    def total(self, name: str, index: tuple, grad: Tensor) -> None:
        """Add the bias gradient, the sum over rows."""
        if name in self.sums:
            self.sums[name][index] += grad.sum(0, dtype=torch.float32)

    @abstractmethod
    def span(
        self, grad: Tensor, table: Tensor, queries: Tensor, group: slice
    ) -> tuple[Tensor | None, Tensor | None]:
        """One group on one span: rows of ∂Q and of the other features' gradient, where wanted."""

    @abstractmethod
    def queries(self, table: Tensor) -> Tensor:
        """Q from the table of features."""

    @abstractmethod
    def back_to_features(
        self,
        block: Block,
        sets: slice,
        table: Tensor,
        grad_queries: Tensor,
        grad_features: Tensor | None,
    ) -> None:
        """Onward from ∂Q, once it is summed over the instances that share coordinates."""

    def walk(self, grad: Tensor) -> None:
        """Every span of ∂y (B, N, out)."""
        features = self.call.features
        for block, groups in self.call.spans("backward"):
            table = queries = torch.empty(0)
            totals: list[Tensor | None] = [None, None]
            for index, group in enumerate(groups):
                if index == 0 or not features.shared:
                    table = features.forward(block, group)
                    queries = self.queries(table)
                    totals = [None, None]
                rows = self.span(grad[group, block.points], table, queries, group)
                totals = [
                    self._shared(part, total, block.count)
                    for part, total in zip(rows, totals, strict=True)
                ]
                if totals[0] is not None and (not features.shared or index == len(groups) - 1):
                    sets = slice(0, 1) if features.shared else group
                    self.back_to_features(block, sets, table, totals[0], totals[1])
        features.finish_backward()

    def _shared(self, rows: Tensor | None, total: Tensor | None, points: int) -> Tensor | None:
        """The gradient of what instances share, summed over a group and added to the total."""
        if rows is None or not self.call.features.shared:
            return rows
        summed = rows.unflatten(0, (-1, points)).sum(0, dtype=torch.float32)
        return summed if total is None else total.add_(summed)

    def attention(
        self,
        queries: Tensor,
        group: slice,
        points: int,
        attended: Tensor,
        grad_attended: Tensor,
        statistics: Statistics,
    ) -> Tensor | None:
        """∂K and ∂V are added up; ∂Q (rows, H · query width) is returned where needed."""
        call = self.call
        grad_queries = None
        if self.query_gradients:
            grad_queries = call.empty(attended.shape[0], call.heads * call.layout.query_width)
        attention_backward(
            queries,
            call.keys[group],
            call.values[group],
            call.layout,
            points,
            call.tokens,
            attended,
            grad_attended,
            statistics,
            call.statistics(attended.shape[0]),
            shared=call.features.shared,
            one_query=call.one_query,
            threshold=call.threshold,
            grad_queries=grad_queries,
            grad_keys=None if self.grad_keys is None else self.grad_keys[:, group],
            grad_values=None if self.grad_values is None else self.grad_values[:, group],
        )
        return grad_queries

    def query_columns(self, columns: Tensor) -> Tensor:
        """(…, H · query width and padding) without the padding, (…, H · dq)."""
        return self._own(columns, self.call.key_dim, self.call.layout.query_width)

    def value_columns(self, columns: Tensor) -> Tensor:
        """(…, H · value width and padding) without the padding, (…, H · dv)."""
        return self._own(columns, self.call.value_dim, self.call.layout.value_width)

    def _own(self, columns: Tensor, dim: int, width: int) -> Tensor:
        by_head = columns[..., : self.call.heads * width].unflatten(-1, (-1, width))
        return by_head[..., :dim].flatten(-2)

    def finished_tokens(self) -> dict[str, Tensor]:
        """∂K and ∂V, where needed."""
        call, found = self.call, {}
        if self.grad_keys is not None:
            found["keys"] = self.grad_keys.sum(0)[:, :, : call.tokens, : call.key_dim]
        if self.grad_values is not None:
            found["values"] = self.grad_values.sum(0)[:, :, : call.tokens, : call.value_dim]
        return found
