"""One layer of the decoders, forward and backward, as a matrix product with everything else fused
into its epilogue.

    forward    z = x Wᵀ + b + f          f: features of the coordinate, shared by the batch or not
               s = act(z)                saved for the backward if asked (z itself for Mish)
               y = s + r                 r: the hidden features of the level below
               o = o' + y W_outᵀ + b_out the head of a level, never leaving the chip
    backward   t = g W                   g: gradient of the pre-activations above
               A = t ∘ s_A'              gradient of this level's modulated features
               B = (t + ∂o W_out) ∘ s_B' gradient of the pre-activations below

A program owns ROWS rows and walks over chunks of COLUMNS columns: the accumulator is all that
stays in registers; x and W stream through shared memory from the L2 cache, where the span of
rows being worked on fits. Where W of a program's columns fits into shared memory (RESIDENT), the
program instead keeps it there and walks over row tiles: at 256 x 256 that is half of the traffic
or less, and traffic is what limits such a layer. Widths are padded to multiples of 64 with zeros,
which stay zeros through every activation here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ginr_fast.ops.kernels.launch import kernel


@triton.jit
def relu(z):
    """max(z, 0), and NaN where z is: a plain maximum would hide it."""
    return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _mish_parts(z):
    """eᶻ and n = eᶻ(eᶻ + 2), of which tanh(log(1 + eᶻ)) = n / (n + 2); beyond 20 that is 1."""
    e = tl.exp(tl.minimum(z, 20.0))
    return e, e * (e + 2.0)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        z = relu(z)
    if ACTIVATION == "mish":
        e, n = _mish_parts(z)
        z = z * (n / (n + 2.0))
    return z


@triton.jit
def slope(saved, ACTIVATION: tl.constexpr):
    """act' from what the forward saved: the output of a ReLU, the input of a Mish."""
    if ACTIVATION == "relu":
        slope = tl.where(saved > 0, 1.0, 0.0)
    elif ACTIVATION == "mish":
        z = saved.to(tl.float32)
        e, n = _mish_parts(z)
        # n/(n+2) + z (1 − (n/(n+2))²) e/(1+e), over one denominator
        slope = (n * (n + 2.0) + 4.0 * z * e * (e + 1.0)) / ((n + 2.0) * (n + 2.0))
        slope = tl.where(z > 20.0, 1.0, slope)
    else:
        slope = tl.full(saved.shape, 1.0, tl.float32)
    return slope


@triton.jit
def product(
    x_ptr,
    x_stride,
    rows,
    in_rows,
    w_ptr,
    columns,
    resident,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x[rows] W[columns]ᵀ with x (·, INNER) and W (·, INNER), or with W[columns] at hand."""
    inner = tl.arange(0, STEP)
    x = x_ptr + rows[:, None] * x_stride + inner[None, :]
    w = w_ptr + columns[:, None] * INNER + inner[None, :]
    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    if RESIDENT:
        x_tile = tl.load(x, mask=in_rows[:, None], other=0.0)
        accumulator = tl.dot(x_tile, resident.T, accumulator, input_precision=PRECISION)
    else:
        for start in range(0, INNER, STEP):
            x_tile = tl.load(x + start, mask=in_rows[:, None], other=0.0)
            w_tile = tl.load(w + start)
            accumulator = tl.dot(x_tile, w_tile.T, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def tile_of(ptr, rows, stride, columns, in_rows):
    return tl.load(
        ptr + rows[:, None] * stride + columns[None, :], mask=in_rows[:, None], other=0.0
    )


@triton.jit
def resident_weight(
    w_ptr, INNER: tl.constexpr, COLUMNS: tl.constexpr, RESIDENT: tl.constexpr
):  # W of this program's columns, which stays in shared memory; or nothing
    resident = 0
    if RESIDENT:
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inner = tl.arange(0, INNER)
        resident = tl.load(w_ptr + columns[:, None] * INNER + inner[None, :])
    return resident


@triton.jit
def _layer_tile(
    tile,
    resident,
    x_ptr,
    w_ptr,
    bias_ptr,
    feature_ptr,
    residual_ptr,
    saved_ptr,
    y_ptr,
    head_ptr,
    head_bias_ptr,
    partial_ptr,
    out_ptr,
    count,
    points,
    out_batch_stride,
    x_stride,
    feature_stride,
    residual_stride,
    saved_stride,
    y_stride,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    OUT_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    STEP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FEATURE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SAVE: tl.constexpr,
    STORE: tl.constexpr,
    HEAD: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tile * ROWS + tl.arange(0, ROWS)
    in_rows = rows < count
    out_columns = tl.arange(0, OUT_PADDED)
    out = tl.zeros([ROWS, OUT_PADDED], tl.float32)
    for chunk in range(CHUNKS):
        columns = (tl.program_id(1) * CHUNKS + chunk) * COLUMNS + tl.arange(0, COLUMNS)
        feature_rows = rows
        if FEATURE == "shared":
            feature_rows = rows % points
        if RESIDENT:  # one program a multiprocessor: ask early for what is added later
            if FEATURE != "none":
                feature = tile_of(feature_ptr, feature_rows, feature_stride, columns, in_rows)
            if RESIDUAL:
                residual = tile_of(residual_ptr, rows, residual_stride, columns, in_rows)
        z = product(
            x_ptr,
            x_stride,
            rows,
            in_rows,
            w_ptr,
            columns,
            resident,
            INNER,
            ROWS,
            COLUMNS,
            STEP,
            RESIDENT,
            PRECISION,
        )
        z += tl.load(bias_ptr + columns)[None, :]
        if FEATURE != "none":
            if not RESIDENT:
                feature = tile_of(feature_ptr, feature_rows, feature_stride, columns, in_rows)
            z += feature.to(tl.float32)
        activated = activate(z, ACTIVATION)
        if SAVE != "none":
            saved = saved_ptr + rows[:, None] * saved_stride + columns[None, :]
            value = z if SAVE == "input" else activated
            tl.store(saved, value.to(saved_ptr.dtype.element_ty), mask=in_rows[:, None])
        if RESIDUAL:
            if not RESIDENT:
                residual = tile_of(residual_ptr, rows, residual_stride, columns, in_rows)
            activated += residual.to(tl.float32)
        if STORE:
            tl.store(
                y_ptr + rows[:, None] * y_stride + columns[None, :],
                activated.to(y_ptr.dtype.element_ty),
                mask=in_rows[:, None],
            )
        if HEAD and RESIDENT:
            # Few channels, as sums over the row: operands of a product would take shared memory.
            for channel in tl.static_range(OUT):
                weight = tl.load(head_ptr + channel * WIDTH + columns).to(tl.float32)
                value = tl.sum(activated * weight[None, :], 1)
                out = tl.where((out_columns == channel)[None, :], value[:, None], out)
        elif HEAD:
            head = tl.load(head_ptr + out_columns[:, None] * WIDTH + columns[None, :])
            out = tl.dot(activated.to(head.dtype), head.T, out, input_precision=PRECISION)
    if HEAD:
        partial = partial_ptr + rows[:, None] * OUT_PADDED + out_columns[None, :]
        if not FIRST:
            out += tl.load(partial, mask=in_rows[:, None], other=0.0)
        if LAST:
            out += tl.load(head_bias_ptr + out_columns)[None, :]
            instance = (rows // points).to(tl.int64)
            target = out_ptr + instance[:, None] * out_batch_stride
            target += (rows % points)[:, None] * OUT + out_columns[None, :]
            mask = in_rows[:, None] & (out_columns < OUT)[None, :]
            tl.store(target, out.to(out_ptr.dtype.element_ty), mask=mask)
        else:
            tl.store(partial, out, mask=in_rows[:, None])


@kernel
def layer_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    feature_ptr,
    residual_ptr,
    saved_ptr,
    y_ptr,
    head_ptr,
    head_bias_ptr,
    partial_ptr,
    out_ptr,
    count,
    points,
    out_batch_stride,
    x_stride,
    feature_stride,
    residual_stride,
    saved_stride,
    y_stride,
    programs,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    OUT_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    STEP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FEATURE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SAVE: tl.constexpr,
    STORE: tl.constexpr,
    HEAD: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The forward of a layer.

    FEATURE: "none", "own" (a row each) or "shared" (row modulo ``points``). SAVE: "none",
    "activated" or "input". With HEAD a program takes every column and o goes to ``partial_ptr``
    (float32, ``count`` rows) or, if LAST, to ``out_ptr`` (instance, point, OUT).
    """
    resident = resident_weight(w_ptr, INNER, COLUMNS, RESIDENT)
    if RESIDENT:
        for tile in range(tl.program_id(0), tl.cdiv(count, ROWS), programs):
            _layer_tile(
                tile, resident, x_ptr, w_ptr, bias_ptr, feature_ptr, residual_ptr,
                saved_ptr, y_ptr, head_ptr, head_bias_ptr, partial_ptr, out_ptr,
                count, points, out_batch_stride, x_stride, feature_stride,
                residual_stride, saved_stride, y_stride, INNER, WIDTH, OUT,
                OUT_PADDED, ROWS, COLUMNS, CHUNKS, STEP, ACTIVATION, FEATURE,
                RESIDUAL, SAVE, STORE, HEAD, FIRST, LAST, RESIDENT, PRECISION,
            )  # fmt: skip
    else:
        _layer_tile(
            tl.program_id(0), resident, x_ptr, w_ptr, bias_ptr, feature_ptr,
            residual_ptr, saved_ptr, y_ptr, head_ptr, head_bias_ptr, partial_ptr,
            out_ptr, count, points, out_batch_stride, x_stride, feature_stride,
            residual_stride, saved_stride, y_stride, INNER, WIDTH, OUT, OUT_PADDED,
            ROWS, COLUMNS, CHUNKS, STEP, ACTIVATION, FEATURE, RESIDUAL, SAVE, STORE,
            HEAD, FIRST, LAST, RESIDENT, PRECISION,
        )  # fmt: skip
