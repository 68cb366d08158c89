"""Calls of the kernels that make packed weights, a layer each."""

from __future__ import annotations

import torch
from torch import Tensor

from ginr_fast.ops.kernels.launch import cdiv, launch, power_of_two, precision
from ginr_fast.ops.kernels.unit_row_kernels import (
    group_base_gradient_kernel,
    group_gradient_kernel,
    group_weights_kernel,
    low_rank_kernel,
    low_rank_rows_kernel,
    row_dots_kernel,
)
from ginr_fast.ops.unit_rows import EPSILON

# Bound by memory, or, as the low-rank product, too small to matter: nothing here is worth tuning.
_ROWS = {"rows": 4, "columns": 256, "warps": 4, "stages": 1}
_PRODUCT = {
    2: {"rows": 64, "columns": 128, "step": 32, "warps": 4, "stages": 3},
    4: {"rows": 32, "columns": 64, "step": 32, "warps": 4, "stages": 2},
}


def _columns(fan_in: int) -> int:
    return min(_ROWS["columns"], power_of_two(fan_in))


def group_weights(
    groups: Tensor,
    base: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lengths: Tensor,
    tiled: bool,
) -> None:
    """A layer of ``group_weights``.

    ``groups`` (B, G, fan in), ``base`` (fan out, fan in) and ``bias`` (fan out,) contiguous;
    ``out`` and ``lengths`` (float32) are the packed rows from the layer's first column on.
    """
    batch, count, fan_in = groups.shape
    fan_out = base.shape[0]
    launch(
        group_weights_kernel,
        (batch, cdiv(fan_out, _ROWS["rows"])),
        {
            "groups_ptr": groups,
            "base_ptr": base,
            "bias_ptr": bias,
            "out_ptr": out,
            "lengths_ptr": lengths,
            "out_batch_stride": out.stride(0),
            "lengths_stride": lengths.stride(0),
        },
        {
            "EPSILON": EPSILON,
            "FAN_OUT": fan_out,
            "FAN_IN": fan_in,
            "GROUPS": count,
            "TILED": tiled,
            "BIAS": bias is not None,
            "ROWS": _ROWS["rows"],
            "COLUMNS": _columns(fan_in),
        },
        _ROWS,
        out.device,
    )


def row_dots(
    grad: Tensor, rows: Tensor, lengths: Tensor, dots: Tensor, shape: tuple[int, int]
) -> None:
    """w·g of a layer's rows into ``dots``.

    ``grad`` and ``rows`` (unit rows) are packed, ``lengths`` and ``dots`` (float32) have a number a
    row; all from the layer's first column on, each pair with equal strides.
    """
    launch(
        row_dots_kernel,
        (grad.shape[0], cdiv(shape[0], _ROWS["rows"])),
        {
            "grad_ptr": grad,
            "rows_ptr": rows,
            "lengths_ptr": lengths,
            "dots_ptr": dots,
            "grad_batch_stride": grad.stride(0),
            "lengths_stride": lengths.stride(0),
        },
        {
            "EPSILON": EPSILON,
            "FAN_OUT": shape[0],
            "FAN_IN": shape[1],
            "ROWS": _ROWS["rows"],
            "COLUMNS": _columns(shape[1]),
        },
        _ROWS,
        grad.device,
    )


def group_gradient(
    grad: Tensor,
    rows: Tensor,
    lengths: Tensor,
    dots: Tensor,
    base: Tensor,
    out: Tensor,
    tiled: bool,
) -> None:
    """∂u of a layer into ``out`` (B, G, fan in), contiguous; the rest as for :func:`row_dots`."""
    batch, count, fan_in = out.shape
    fan_out = base.shape[0]
    columns = _columns(fan_in)
    launch(
        group_gradient_kernel,
        (batch, count, cdiv(fan_in, columns)),
        {
            "grad_ptr": grad,
            "rows_ptr": rows,
            "lengths_ptr": lengths,
            "dots_ptr": dots,
            "base_ptr": base,
            "out_ptr": out,
            "grad_batch_stride": grad.stride(0),
            "lengths_stride": lengths.stride(0),
        },
        {
            "FAN_OUT": fan_out,
            "FAN_IN": fan_in,
            "GROUPS": count,
            "TILED": tiled,
            "ROWS": min(_ROWS["rows"], power_of_two(fan_out // count, 1)),
            "COLUMNS": columns,
        },
        _ROWS,
        grad.device,
    )


def group_base_gradient(
    grad: Tensor,
    rows: Tensor,
    lengths: Tensor,
    dots: Tensor,
    groups: Tensor,
    out: Tensor,
    tiled: bool,
) -> None:
    """∂w̄ of a layer into ``out`` (fan out, fan in), contiguous; the rest as above."""
    batch, count, fan_in = groups.shape
    fan_out = out.shape[0]
    columns = _columns(fan_in)
    launch(
        group_base_gradient_kernel,
        (cdiv(fan_out, _ROWS["rows"]), cdiv(fan_in, columns)),
        {
            "grad_ptr": grad,
            "rows_ptr": rows,
            "lengths_ptr": lengths,
            "dots_ptr": dots,
            "groups_ptr": groups,
            "out_ptr": out,
            "count": batch,
            "grad_batch_stride": grad.stride(0),
            "lengths_stride": lengths.stride(0),
        },
        {
            "FAN_OUT": fan_out,
            "FAN_IN": fan_in,
            "GROUPS": count,
            "TILED": tiled,
            "ROWS": _ROWS["rows"],
            "COLUMNS": columns,
        },
        _ROWS,
        grad.device,
    )


def low_rank(mixing: Tensor, patterns: Tensor, out: Tensor, lengths: Tensor | None) -> None:
    """U V_b into ``out``, the packed rows from the weight's first column on.

    ``mixing`` (fan out, R) and ``patterns`` (B, R, fan in) contiguous. With ``lengths`` (B, fan
    out), float32, contiguous, its rows are normalised.
    """
    batch, rank, fan_in = patterns.shape
    fan_out = mixing.shape[0]
    tile = _PRODUCT[mixing.dtype.itemsize]
    launch(
        low_rank_kernel,
        (batch, cdiv(fan_out, tile["rows"])),
        {
            "mixing_ptr": mixing,
            "patterns_ptr": patterns,
            "out_ptr": out,
            "lengths_ptr": lengths,
            "out_batch_stride": out.stride(0),
        },
        {
            "EPSILON": EPSILON,
            "FAN_OUT": fan_out,
            "FAN_IN": fan_in,
            "RANK": rank,
            "NORMALIZE": lengths is not None,
            "ROWS": tile["rows"],
            "COLUMNS": tile["columns"],
            "STEP": tile["step"],
            "PRECISION": precision(mixing.dtype, mixing.device),
        },
        tile,
        out.device,
    )


def low_rank_rows(
    grad: Tensor, rows: Tensor, lengths: Tensor, dots: Tensor, shape: tuple[int, int]
) -> Tensor:
    """∂v of a normalised layer, (B, fan out, fan in) in the dtype of ``grad``; arguments as those
    of :func:`row_dots`."""
    out = torch.empty((grad.shape[0], *shape), dtype=grad.dtype, device=grad.device)
    launch(
        low_rank_rows_kernel,
        (grad.shape[0], cdiv(shape[0], _ROWS["rows"])),
        {
            "grad_ptr": grad,
            "rows_ptr": rows,
            "lengths_ptr": lengths,
            "dots_ptr": dots,
            "out_ptr": out,
            "grad_batch_stride": grad.stride(0),
        },
        {
            "FAN_OUT": shape[0],
            "FAN_IN": shape[1],
            "ROWS": _ROWS["rows"],
            "COLUMNS": _columns(shape[1]),
        },
        _ROWS,
        grad.device,
    )
    return out
