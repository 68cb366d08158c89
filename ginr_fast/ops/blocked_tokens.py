"""What the blocked backends of both token decoders share: operands, features and blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ginr_fast.ops import gemm
from ginr_fast.ops.blocks import Block, block_rows, blocks, settle_allocator
from ginr_fast.ops.features import Band, GridFeatures, PointFeatures


class TokenCall:
    """One call of a token decoder: keys and values as the products take them, and its blocks.

    A subclass sets ``features``.
    """

    features: GridFeatures | PointFeatures

    def __init__(self, coords: Tensor, grid_shape: list[int], keys: Tensor, values: Tensor):
        settle_allocator()
        self.dtype = dtype = gemm.compute_dtype(keys.dtype, keys.device)
        self.accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        self.keys, self.values = keys.to(dtype).contiguous(), values.to(dtype).contiguous()
        self.batch, self.heads, self.tokens, self.key_dim = keys.shape
        self.value_dim = values.shape[-1]
        self.shared = bool(grid_shape) or coords.shape[0] == 1
        self.rows = block_rows(keys.device)

    def features_of(
        self, coords: Tensor, grid_shape: list[int], bands: list[Band]
    ) -> GridFeatures | PointFeatures:
        """The Fourier features of coordinates ``(B or 1, N, c)``, or of the concatenated axes of a
        grid."""
        if grid_shape:
            return GridFeatures(coords.flatten().split(grid_shape), bands, self.dtype)
        return PointFeatures(coords, bands, self.dtype)

    @property
    def count(self) -> int:
        """N, the coordinates of an instance."""
        return self.features.lines * self.features.line_length

    def blocks(self) -> list[Block]:
        return list(blocks(self.features.lines, self.features.line_length, self.rows))

    def instances(self, block: Block) -> list[slice]:
        """The batch in groups that make about ``rows`` rows with this block."""
        step = max(1, self.rows // block.count)
        return [slice(i, min(i + step, self.batch)) for i in range(0, self.batch, step)]
