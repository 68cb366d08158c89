"""Spans: what both token decoders share in walking over coordinates on a GPU.

A span is a run of coordinates of a group of instances. What the kernels of one span hand to the
next ones lies in a workspace that is reused from span to span, so that memory does not grow with
the number of coordinates. A span is long enough that its launches hide behind each other's work,
and that weights held in shared memory serve many rows; on paper the traffic of the workspace is
not what limits the kernels then, even where it leaves the L2 cache (docs/kernels.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ginr_fast.ops.blocks import Block, blocks
from ginr_fast.ops.features import Band, GridFeatures, PointFeatures
from ginr_fast.ops.kernels.fourier import FourierLinear, encode, expand_grid
from ginr_fast.ops.kernels.launch import tiles
from ginr_fast.ops.kernels.layers import pack_bias, pack_weight, padded_width


def padded_band(frequencies: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Band:
    """A band whose width is padded for the kernels."""
    width = padded_width(weight.shape[0])
    packed = pack_weight(weight, width, weight.shape[1], weight.dtype)
    return Band(frequencies, packed, pack_bias(bias, width, weight).to(weight.dtype), relu)


class SpanFeatures:
    """Features of every band for a span, side by side in one table of ``width`` columns."""

    def __init__(
        self, coords: Tensor, grid_shape: list[int], bands: Sequence[Band], dtype: torch.dtype
    ):
        self.grid_shape, self.bands, self.dtype = grid_shape, bands, dtype
        self.widths = [band.weight.shape[0] for band in bands]
        self.width = sum(self.widths)
        self.relu = all(band.relu for band in bands)
        self.inner: GridFeatures | PointFeatures
        if grid_shape:
            self.inner = GridFeatures(coords.flatten().split(grid_shape), bands, dtype)
            self.tables = torch.cat(self.inner.tables)
        else:
            self.inner = PointFeatures(coords, bands, dtype)
            self.linears = [
                FourierLinear(
                    b.frequencies, b.weight, b.bias, coords.shape[-1], width, dtype, b.relu
                )
                for b, width in zip(bands, self.widths, strict=True)
            ]
        self.shared = bool(grid_shape) or coords.shape[0] == 1
        self.count = self.inner.lines * self.inner.line_length

    def _points(self, block: Block, sets: slice) -> Tensor:
        assert isinstance(self.inner, PointFeatures)
        return self.inner.coords[sets, block.points].float().flatten(0, 1).contiguous()

    def forward(self, block: Block, sets: slice) -> Tensor:
        """The table of a span, (sets · n, width)."""
        if isinstance(self.inner, GridFeatures):
            out = torch.empty(block.count, self.width, dtype=self.dtype, device=self.tables.device)
            first = block.points.start
            expand_grid(self.tables, self.grid_shape, first, block.count, out, self.relu)
            return out
        points = self._points(block, sets)
        out = torch.empty(len(points), self.width, dtype=self.dtype, device=points.device)
        for linear, part in zip(self.linears, out.split(self.widths, dim=-1), strict=True):
            linear(points, part)
        return out

    def start_backward(self, needs_weights: bool, needs_coords: bool) -> None:
        self.inner.start_backward(needs_weights, needs_coords)

    def backward(self, block: Block, sets: slice, grad: Tensor) -> None:
        """Take the gradient of a span's pre-activations, (sets · n, width)."""
        if isinstance(self.inner, PointFeatures):
            points = self._points(block, sets)
            self.inner.encoded = [encode(points, b.frequencies, self.dtype) for b in self.bands]
        self.inner.backward(block, sets, grad.split(self.widths, dim=-1))

    def finish_backward(self) -> None:
        self.inner.finish_backward()


def spans(
    features: SpanFeatures, batch: int, kind: str, device: torch.device, width: int
) -> list[tuple[Block, list[slice]]]:
    """Blocks of coordinates, and for each the groups of instances to take at once.

    ``width`` is that of the decoder's layers: wider rows make shorter spans.
    """
    tile = tiles("span", device, features.dtype, width)
    rows, least = tile[kind], tile["least"]
    # A shared table serves every instance: all of them take the same, shorter, run of points.
    points = max(least, rows // batch // least * least) if batch else rows
    found = []
    for block in blocks(features.inner.lines, features.inner.line_length, points):
        step = max(1, min(batch, math.ceil(rows / max(block.count, 1))))
        groups = [slice(i, min(i + step, batch)) for i in range(0, batch, step)]
        found.append((block, groups))
    return found
