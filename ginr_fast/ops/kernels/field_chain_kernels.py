"""A whole narrow field in one kernel: activations never leave the registers of their program.

The equations are those of ``field_layer_kernels.py``. A program owns ROWS coordinates of one
instance and every column (WIDTH at most 128, 16-bit operands): the accumulator of a layer,
activated and rounded, is the left operand of the next product, and W streams through shared memory
a layer ahead. For the backward h and, for sines, f' of every layer are stored on the way; there δ
stays in registers from layer to layer, and is stored for the gradients of the weights.
"""

from __future__ import annotations

import triton.language as tl

from ginr_fast.ops.kernels.field_activations import activate, derivative, through
from ginr_fast.ops.kernels.field_layer_kernels import coordinate_product, encoded_product
from ginr_fast.ops.kernels.launch import kernel


@kernel
def field_chain_kernel(
    coords_ptr,
    frequency_ptr,
    axis_ptr,
    first_ptr,
    first_bias_ptr,
    w_ptr,
    bias_ptr,
    head_ptr,
    head_bias_ptr,
    slope_ptr,
    y_ptr,
    out_ptr,
    count,
    steps,
    coords_batch_stride,
    first_batch_stride,
    w_batch_stride,
    bias_batch_stride,
    out_batch_stride,
    w0,
    INPUT: tl.constexpr,
    COORDS: tl.constexpr,
    PHASES: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    OUT_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OUT_ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
    STORE: tl.constexpr,
    HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A field of ``steps`` hidden layers after the first: program (row tile, instance).

    INPUT: "encoded" or "coordinates". STORE and SAVE: h and f' go to (layers, instances, count,
    WIDTH). HEAD: "none", "values" or "slope".
    """
    instance = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns, channels = tl.arange(0, WIDTH), tl.arange(0, OUT_PADDED)
    in_rows = rows < count
    coords_ptr += instance * coords_batch_stride
    first_ptr += instance * first_batch_stride
    if INPUT == "encoded":
        z = encoded_product(
            coords_ptr, frequency_ptr, axis_ptr, rows, in_rows, first_ptr, columns, COORDS,
            PHASES, ROWS, WIDTH, STEP, PRECISION,
        )  # fmt: skip
    else:
        z = coordinate_product(
            coords_ptr, rows, in_rows, first_ptr, columns, COORDS, WIDTH, ROWS, WIDTH
        )
    z += tl.load(first_bias_ptr + instance * WIDTH + columns)[None, :]

    target = instance * count * WIDTH + rows[:, None] * WIDTH + columns[None, :]
    layer_stride = tl.num_programs(1).to(tl.int64) * count * WIDTH
    h = activate(z, w0, ACTIVATION).to(w_ptr.dtype.element_ty)
    if SAVE:
        slope = derivative(z, w0, ACTIVATION)
        tl.store(slope_ptr + target, slope.to(h.dtype), mask=in_rows[:, None])
    if STORE:
        tl.store(y_ptr + target, h, mask=in_rows[:, None])
    w = w_ptr + instance * w_batch_stride + columns[:, None] * WIDTH + columns[None, :]
    bias = bias_ptr + instance * bias_batch_stride + columns
    for _ in range(steps):
        weight = tl.load(w)
        z = tl.dot(h, weight.T, input_precision=PRECISION)
        z += tl.load(bias)[None, :]
        h = activate(z, w0, ACTIVATION).to(w_ptr.dtype.element_ty)
        target += layer_stride
        if SAVE:
            slope = derivative(z, w0, ACTIVATION)
            tl.store(slope_ptr + target, slope.to(h.dtype), mask=in_rows[:, None])
        if STORE:
            tl.store(y_ptr + target, h, mask=in_rows[:, None])
        w += WIDTH * WIDTH
        bias += WIDTH
    if HEAD != "none":
        head_ptr += instance * (OUT_PADDED * WIDTH)
        head = tl.load(head_ptr + channels[:, None] * WIDTH + columns[None, :])
        out = tl.dot(h, head.T, input_precision=PRECISION)
        out += tl.load(head_bias_ptr + instance * OUT_PADDED + channels)[None, :]
        if HEAD == "slope":
            out = derivative(out, w0, OUT_ACTIVATION)
        else:
            out = activate(out, w0, OUT_ACTIVATION)
        tl.store(
            out_ptr + instance * out_batch_stride + rows[:, None] * OUT + channels[None, :],
            out.to(out_ptr.dtype.element_ty),
            mask=in_rows[:, None] & (channels < OUT)[None, :],
        )


@kernel
def field_chain_backward_kernel(
    grad_ptr,
    head_ptr,
    w_ptr,
    saved_ptr,
    out_ptr,
    count,
    steps,
    w_batch_stride,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    OUT_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """δ of every layer but the last into ``out_ptr``, from that of the last, ``grad_ptr``
    (instances, count, OUT) float32; other shapes and ACTIVATION as above and in
    ``field_backward_kernel``.
    """
    instance = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    in_rows = rows < count
    layer_stride = tl.num_programs(1).to(tl.int64) * count * WIDTH
    target = instance * count * WIDTH + rows[:, None] * WIDTH + columns[None, :]
    target += steps * layer_stride
    grad_ptr += instance * count * OUT
    head_ptr += instance * (OUT_PADDED * WIDTH)
    t = tl.zeros([ROWS, WIDTH], tl.float32)
    for channel in tl.static_range(OUT):
        grad = tl.load(grad_ptr + rows * OUT + channel, mask=in_rows, other=0.0)
        head = tl.load(head_ptr + channel * WIDTH + columns).to(tl.float32)
        t += grad[:, None] * head[None, :]
    if ACTIVATION != "none":
        saved = tl.load(saved_ptr + target, mask=in_rows[:, None], other=0.0)
        t = through(t, saved, ACTIVATION)
    g = t.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + target, g, mask=in_rows[:, None])
    w = w_ptr + instance * w_batch_stride + columns[:, None] * WIDTH + columns[None, :]
    w += (steps - 1) * WIDTH * WIDTH
    for _ in range(steps):
        weight = tl.load(w)
        target -= layer_stride
        t = tl.dot(g, weight, input_precision=PRECISION)
        if ACTIVATION != "none":
            saved = tl.load(saved_ptr + target, mask=in_rows[:, None], other=0.0)
            t = through(t, saved, ACTIVATION)
        g = t.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + target, g, mask=in_rows[:, None])
        w -= WIDTH * WIDTH
