"""W γ(v) + b, with or without ReLU, for a block of coordinates and several frequency bands at once.

On a separable grid W γ(v) = Σ_axis W_axis γ(v_axis), so each axis has a small table and a block is
a broadcast sum of table rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ginr_fast.ops import gemm
from ginr_fast.ops.blocks import Block


@dataclass(frozen=True)
class Band:
    """One frequency band: ω (n,), W (width, 2·c·n), b (width,) or none, and whether a ReLU
    follows. The backwards take the gradient before the ReLU."""

    frequencies: Tensor
    weight: Tensor
    bias: Tensor | None
    relu: bool = True


def encode(coords: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Tensor:
    """γ(v) as ``(rows, 2·c·n)`` in ``dtype``; phases never below float32.

    In float32 the product ω·v is formed and reduced modulo 2 in float64: rounding it would cost
    more than everything after it.
    """
    if dtype == torch.float32:
        half_turns = coords.double().unsqueeze(-1) * frequencies.double()
        half_turns = (half_turns - 2 * (half_turns / 2).round()).float()
    else:
        half_turns = coords.unsqueeze(-1) * frequencies
    phase = (half_turns * math.pi).flatten(-2)
    return torch.cat((phase.cos(), phase.sin()), dim=-1).to(dtype)


def encode_backward(grad: Tensor, features: Tensor, frequencies: Tensor, coord_dim: int) -> Tensor:
    """∂/∂v of :func:`encode`: ``(rows, 2·c·n)`` to ``(rows, c)``."""
    cosine, sine = features.unflatten(-1, (2, coord_dim, -1)).unbind(-3)
    grad_cosine, grad_sine = grad.unflatten(-1, (2, coord_dim, -1)).unbind(-3)
    slope = cosine * grad_sine - sine * grad_cosine
    return (slope.to(frequencies.dtype) * (math.pi * frequencies)).sum(-1)


class PointFeatures:
    """Features of ``(sets, N, c)`` points; ``sets`` is 1 for shared coordinates, else the batch."""

    def __init__(self, coords: Tensor, bands: Sequence[Band], dtype: torch.dtype):
        self.coords, self.bands, self.dtype = coords, bands, dtype
        self.lines, self.line_length = 1, coords.shape[1]
        self.encoded: list[Tensor] = []

    def forward(self, block: Block, sets: slice, keep: bool) -> list[Tensor]:
        """Each band's W γ + b, ``(sets·n, width)``; ``keep`` what the backward needs."""
        points = self.coords[sets, block.points].flatten(0, 1)
        encoded = [encode(points, band.frequencies, self.dtype) for band in self.bands]
        self.encoded = encoded if keep else []
        return [
            gemm.linear(gamma, band.weight, band.bias, relu=band.relu)
            for gamma, band in zip(encoded, self.bands, strict=True)
        ]

    def start_backward(self, needs_weights: bool, needs_coords: bool) -> None:
        accumulator = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.needs_weights = needs_weights
        if needs_weights:
            self.grad_weights = [torch.zeros_like(b.weight, dtype=accumulator) for b in self.bands]
            self.grad_biases = {
                index: torch.zeros_like(band.bias, dtype=accumulator)
                for index, band in enumerate(self.bands)
                if band.bias is not None
            }
        self.grad_coords = torch.zeros_like(self.coords) if needs_coords else None

    def backward(self, block: Block, sets: slice, grads: Sequence[Tensor]) -> None:
        """Take the gradients of the pre-activations of the block last computed with ``keep``."""
        for index, (band, grad) in enumerate(zip(self.bands, grads, strict=True)):
            encoded = self.encoded[index]
            grad = grad.to(self.dtype)
            if self.needs_weights:
                self.grad_weights[index] += gemm.transposed_product(grad, encoded)
                if band.bias is not None:
                    total = self.grad_biases[index]
                    total += grad.sum(0, dtype=total.dtype)
            if self.grad_coords is not None:
                slope = encode_backward(
                    gemm.linear(grad, band.weight.t()),
                    encoded,
                    band.frequencies,
                    self.coords.shape[-1],
                )
                target = self.grad_coords[sets, block.points]
                target += slope.view_as(target).to(target.dtype)

    def finish_backward(self) -> None:
        """Nothing is left to do for points."""


def _add_rows(target: Tensor, index: Tensor, rows: Tensor) -> None:
    """``target[index] += rows``; on a GPU by a product, as its additions come in any order."""
    if target.device.type == "cpu":
        target.index_add_(0, index, rows)
    else:
        places = torch.arange(target.shape[0], device=index.device).unsqueeze(1) == index
        target += places.to(rows.dtype) @ rows


class GridFeatures:
    """Features of a separable grid, from one table an axis; shared by the whole batch."""

    def __init__(self, axes: Sequence[Tensor], bands: Sequence[Band], dtype: torch.dtype):
        self.bands, self.dtype = bands, dtype
        self.shape = [axis.shape[0] for axis in axes]
        self.lines, self.line_length = math.prod(self.shape[:-1]), self.shape[-1]
        self.widths = [band.weight.shape[0] for band in bands]
        self.encoded = [
            [encode(axis.unsqueeze(-1), band.frequencies, dtype) for band in bands] for axis in axes
        ]
        self.tables = [
            torch.cat(
                [
                    gemm.linear(gamma, self._axis_columns(band.weight, axis))
                    for gamma, band in zip(self.encoded[axis], bands, strict=True)
                ],
                dim=-1,
            )
            for axis in range(len(axes))
        ]
        for table, band in zip(self.tables[-1].split(self.widths, dim=-1), bands, strict=True):
            if band.bias is not None:
                table += band.bias

    def _axis_columns(self, weight: Tensor, axis: int) -> Tensor:
        """The columns of W that meet one axis: ``(width, 2·n)``."""
        return weight.unflatten(-1, (2, len(self.shape), -1))[:, :, axis].flatten(-2)

    def _line_indices(self, block: Block) -> list[Tensor]:
        """For each axis but the last, the index of every line of the block."""
        line = torch.arange(block.first_line, block.last_line, device=self.tables[0].device)
        indices = []
        for size in reversed(self.shape[:-1]):
            indices.append(line % size)
            line = line // size
        return indices[::-1]

    def forward(self, block: Block, sets: slice, keep: bool) -> list[Tensor]:
        """Each band's W γ + b, ``(n, width)``, as views of one tensor."""
        total = self.tables[-1][block.first : block.last]
        for axis, index in enumerate(self._line_indices(block)):
            total = total + self.tables[axis][index].unsqueeze(-2)
        if len(self.shape) == 1:
            total = total.clone()
        parts = total.view(-1, total.shape[-1]).split(self.widths, dim=-1)
        if all(band.relu for band in self.bands):
            total.relu_()
        else:
            for part, band in zip(parts, self.bands, strict=True):
                if band.relu:
                    part.relu_()
        return list(parts)

    def start_backward(self, needs_weights: bool, needs_coords: bool) -> None:
        accumulator = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.needs_weights = needs_weights
        if needs_weights:
            self.grad_tables = [torch.zeros_like(t, dtype=accumulator) for t in self.tables]
            self.grad_weights = [torch.zeros_like(b.weight, dtype=accumulator) for b in self.bands]
            self.grad_biases = {
                index: torch.zeros_like(band.bias, dtype=accumulator)
                for index, band in enumerate(self.bands)
                if band.bias is not None
            }
        self.grad_coords = None

    def backward(self, block: Block, sets: slice, grads: Sequence[Tensor]) -> None:
        if not self.needs_weights:
            return
        indices = self._line_indices(block)
        shape = (block.last_line - block.first_line, block.last - block.first)
        start = 0
        for width, grad in zip(self.widths, grads, strict=True):
            columns = slice(start, start + width)
            grad = grad.unflatten(0, shape)
            target = self.grad_tables[-1]
            target[block.first : block.last, columns] += grad.sum(0, dtype=target.dtype)
            if indices:
                line_grad = grad.sum(1, dtype=target.dtype)
                for axis, index in enumerate(indices):
                    _add_rows(self.grad_tables[axis][:, columns], index, line_grad)
            start += width

    def finish_backward(self) -> None:
        """From the tables' gradients to those of the weights."""
        if not self.needs_weights:
            return
        for axis, table in enumerate(self.grad_tables):
            for index, grad in enumerate(table.split(self.widths, dim=-1)):
                gamma = self.encoded[axis][index].to(grad.dtype)
                columns = self.grad_weights[index].unflatten(-1, (2, len(self.shape), -1))
                columns[:, :, axis] += (grad.t() @ gamma).unflatten(-1, (2, -1))
        for index, grad in enumerate(self.grad_tables[-1].split(self.widths, dim=-1)):
            if index in self.grad_biases:
                self.grad_biases[index] += grad.sum(0)
