"""One layer of B fields, forward, with everything that follows the product in its epilogue.

    z = x Wᵀ + b               x: the layer below; or γ(v), formed on chip; or the coordinate v
    y = f(z)                   stored for the layer above; with SAVE, f'(z) too (sine)
    o = f_out(y W_oᵀ + b_o)    the last layer, narrow, after the last hidden one

A program owns a tile of ROWS coordinates of one instance and COLUMNS columns (with a head, all of
them in chunks). Weights are an instance's own: (B, WIDTH, INNER). x and W stream through shared
memory, or W stays there and the program walks over row tiles (RESIDENT); see ``layer_kernels.py``.
γ(v) is never in memory: cosines and sines of a chunk of phases go from registers into the product.
Coordinates themselves are multiplied in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ginr_fast.ops.kernels.field_activations import activate, derivative, fourier_features
from ginr_fast.ops.kernels.launch import kernel
from ginr_fast.ops.kernels.layer_kernels import product, resident_weight


@triton.jit
def encoded_product(
    coords_ptr,
    frequency_ptr,
    axis_ptr,
    rows,
    in_rows,
    w_ptr,
    columns,
    COORDS: tl.constexpr,
    PHASES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """γ(v)[rows] W[columns]ᵀ; W is (columns, 2, PHASES): cosine half, sine half."""
    inner = tl.arange(0, STEP)
    w = w_ptr + columns[:, None] * (2 * PHASES) + inner[None, :]
    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, PHASES, STEP):
        w_cosine = tl.load(w + start)
        w_sine = tl.load(w + PHASES + start)
        cosine, sine, _, _ = fourier_features(
            coords_ptr,
            frequency_ptr,
            axis_ptr,
            rows,
            in_rows,
            start + inner,
            COORDS,
            PHASES,
            w_ptr.dtype.element_ty == tl.float32,
        )
        accumulator = tl.dot(
            cosine.to(w_cosine.dtype), w_cosine.T, accumulator, input_precision=PRECISION
        )
        accumulator = tl.dot(
            sine.to(w_sine.dtype), w_sine.T, accumulator, input_precision=PRECISION
        )
    return accumulator


@triton.jit
def coordinate_product(
    coords_ptr,
    rows,
    in_rows,
    w_ptr,
    columns,
    COORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """v[rows] W[columns]ᵀ in float32; W is (COORDS, WIDTH) here."""
    z = tl.zeros([ROWS, COLUMNS], tl.float32)
    for axis in tl.static_range(COORDS):
        coordinate = tl.load(coords_ptr + rows * COORDS + axis, mask=in_rows, other=0.0)
        weight = tl.load(w_ptr + axis * WIDTH + columns)
        z += coordinate[:, None] * weight[None, :]
    return z


@triton.jit
def _field_tile(
    tile,
    resident,
    x_ptr,
    coords_ptr,
    frequency_ptr,
    axis_ptr,
    w_ptr,
    bias_ptr,
    slope_ptr,
    y_ptr,
    head_ptr,
    head_bias_ptr,
    out_ptr,
    count,
    w0,
    INPUT: tl.constexpr,
    COORDS: tl.constexpr,
    PHASES: tl.constexpr,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    OUT_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    STEP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OUT_ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
    STORE: tl.constexpr,
    HEAD: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tile * ROWS + tl.arange(0, ROWS)
    in_rows = rows < count
    channels = tl.arange(0, OUT_PADDED)
    out = tl.zeros([ROWS, OUT_PADDED], tl.float32)
    for chunk in range(CHUNKS):
        columns = (tl.program_id(1) * CHUNKS + chunk) * COLUMNS + tl.arange(0, COLUMNS)
        if INPUT == "layer":
            z = product(
                x_ptr, INNER, rows, in_rows, w_ptr, columns, resident, INNER, ROWS, COLUMNS,
                STEP, RESIDENT, PRECISION,
            )  # fmt: skip
        elif INPUT == "encoded":
            z = encoded_product(
                coords_ptr, frequency_ptr, axis_ptr, rows, in_rows, w_ptr, columns, COORDS,
                PHASES, ROWS, COLUMNS, STEP, PRECISION,
            )  # fmt: skip
        else:
            z = coordinate_product(
                coords_ptr, rows, in_rows, w_ptr, columns, COORDS, WIDTH, ROWS, COLUMNS
            )
        z += tl.load(bias_ptr + columns)[None, :]
        y = activate(z, w0, ACTIVATION)
        target = rows[:, None] * WIDTH + columns[None, :]
        if SAVE:
            slope = derivative(z, w0, ACTIVATION).to(slope_ptr.dtype.element_ty)
            tl.store(slope_ptr + target, slope, mask=in_rows[:, None])
        if STORE:
            tl.store(y_ptr + target, y.to(y_ptr.dtype.element_ty), mask=in_rows[:, None])
        if HEAD != "none" and RESIDENT:
            # Few channels, as sums over the row: operands of a product would take shared memory.
            for channel in tl.static_range(OUT):
                weight = tl.load(head_ptr + channel * WIDTH + columns).to(tl.float32)
                value = tl.sum(y * weight[None, :], 1)
                out = tl.where((channels == channel)[None, :], value[:, None], out)
        elif HEAD != "none":
            head = tl.load(head_ptr + channels[:, None] * WIDTH + columns[None, :])
            out = tl.dot(y.to(head.dtype), head.T, out, input_precision=PRECISION)
    if HEAD != "none":
        out += tl.load(head_bias_ptr + channels)[None, :]
        if HEAD == "slope":
            out = derivative(out, w0, OUT_ACTIVATION)
        else:
            out = activate(out, w0, OUT_ACTIVATION)
        tl.store(
            out_ptr + rows[:, None] * OUT + channels[None, :],
            out.to(out_ptr.dtype.element_ty),
            mask=in_rows[:, None] & (channels < OUT)[None, :],
        )


@kernel
def field_layer_kernel(
    x_ptr,
    coords_ptr,
    frequency_ptr,
    axis_ptr,
    w_ptr,
    bias_ptr,
    slope_ptr,
    y_ptr,
    head_ptr,
    head_bias_ptr,
    out_ptr,
    count,
    coords_batch_stride,
    w_batch_stride,
    bias_batch_stride,
    out_batch_stride,
    w0,
    programs,
    INPUT: tl.constexpr,
    COORDS: tl.constexpr,
    PHASES: tl.constexpr,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    OUT_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    STEP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OUT_ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
    STORE: tl.constexpr,
    HEAD: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The forward of a layer of an instance: program (row tile, column chunk, instance).

    INPUT: "layer" (x (instances, count, INNER)), "encoded" or "coordinates" ((·, count, COORDS),
    stride 0 where instances share them). HEAD: "none", "values" or, for the backward, "slope".
    """
    instance = tl.program_id(2).to(tl.int64)
    w_ptr += instance * w_batch_stride
    bias_ptr += instance * bias_batch_stride
    if INPUT == "layer":
        x_ptr += instance * count * INNER
    else:
        coords_ptr += instance * coords_batch_stride
    if SAVE:
        slope_ptr += instance * count * WIDTH
    if STORE:
        y_ptr += instance * count * WIDTH
    if HEAD != "none":
        head_ptr += instance * (OUT_PADDED * WIDTH)
        head_bias_ptr += instance * OUT_PADDED
        out_ptr += instance * out_batch_stride
    resident = resident_weight(w_ptr, INNER, COLUMNS, RESIDENT)
    if RESIDENT:
        for tile in range(tl.program_id(0), tl.cdiv(count, ROWS), programs):
            _field_tile(
                tile, resident, x_ptr, coords_ptr, frequency_ptr, axis_ptr, w_ptr, bias_ptr,
                slope_ptr, y_ptr, head_ptr, head_bias_ptr, out_ptr, count, w0, INPUT, COORDS,
                PHASES, INNER, WIDTH, OUT, OUT_PADDED, ROWS, COLUMNS, CHUNKS, STEP, ACTIVATION,
                OUT_ACTIVATION, SAVE, STORE, HEAD, RESIDENT, PRECISION,
            )  # fmt: skip
    else:
        _field_tile(
            tl.program_id(0), resident, x_ptr, coords_ptr, frequency_ptr, axis_ptr, w_ptr,
            bias_ptr, slope_ptr, y_ptr, head_ptr, head_bias_ptr, out_ptr, count, w0, INPUT,
            COORDS, PHASES, INNER, WIDTH, OUT, OUT_PADDED, ROWS, COLUMNS, CHUNKS, STEP,
            ACTIVATION, OUT_ACTIVATION, SAVE, STORE, HEAD, RESIDENT, PRECISION,
        )  # fmt: skip
