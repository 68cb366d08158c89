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
rows being worked on fits. Widths are padded to multiples of 64 with zeros, which stay zeros
through every activation here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ginr_fast.ops.kernels.launch import kernel


@triton.jit
def _mish_parts(z):
    """eᶻ and n = eᶻ(eᶻ + 2), of which tanh(log(1 + eᶻ)) = n / (n + 2); beyond 20 that is 1."""
    e = tl.exp(tl.minimum(z, 20.0))
    return e, e * (e + 2.0)


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        z = tl.maximum(z, 0.0)
    if ACTIVATION == "mish":
        e, n = _mish_parts(z)
        z = z * (n / (n + 2.0))
    return z


@triton.jit
def _slope(saved, ACTIVATION: tl.constexpr):
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
def _product(
    x_ptr,
    x_stride,
    rows,
    in_rows,
    w_ptr,
    columns,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x[rows] W[columns]ᵀ with x (·, INNER) and W (·, INNER)."""
    inner = tl.arange(0, STEP)
    x = x_ptr + rows[:, None] * x_stride + inner[None, :]
    w = w_ptr + columns[:, None] * INNER + inner[None, :]
    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, INNER, STEP):
        x_tile = tl.load(x + start, mask=in_rows[:, None], other=0.0)
        w_tile = tl.load(w + start)
        accumulator = tl.dot(x_tile, w_tile.T, accumulator, input_precision=PRECISION)
    return accumulator


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
    PRECISION: tl.constexpr,
):
    """The forward of a layer.

    FEATURE: "none", "own" (a row each) or "shared" (row modulo ``points``). SAVE: "none",
    "activated" or "input". With HEAD a program takes every column and o goes to ``partial_ptr``
    (float32, ``count`` rows) or, if LAST, to ``out_ptr`` (instance, point, OUT).
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < count
    out_columns = tl.arange(0, OUT_PADDED)
    out = tl.zeros([ROWS, OUT_PADDED], tl.float32)
    for chunk in range(CHUNKS):
        columns = (tl.program_id(1) * CHUNKS + chunk) * COLUMNS + tl.arange(0, COLUMNS)
        z = _product(
            x_ptr, x_stride, rows, in_rows, w_ptr, columns, INNER, ROWS, COLUMNS, STEP, PRECISION
        )
        z += tl.load(bias_ptr + columns)[None, :]
        if FEATURE != "none":
            feature_rows = rows
            if FEATURE == "shared":
                feature_rows = rows % points
            z += tl.load(
                feature_ptr + feature_rows[:, None] * feature_stride + columns[None, :],
                mask=in_rows[:, None],
                other=0.0,
            ).to(tl.float32)
        activated = _activate(z, ACTIVATION)
        if SAVE != "none":
            saved = saved_ptr + rows[:, None] * saved_stride + columns[None, :]
            value = z if SAVE == "input" else activated
            tl.store(saved, value.to(saved_ptr.dtype.element_ty), mask=in_rows[:, None])
        if RESIDUAL:
            activated += tl.load(
                residual_ptr + rows[:, None] * residual_stride + columns[None, :],
                mask=in_rows[:, None],
                other=0.0,
            ).to(tl.float32)
        if STORE:
            tl.store(
                y_ptr + rows[:, None] * y_stride + columns[None, :],
                activated.to(y_ptr.dtype.element_ty),
                mask=in_rows[:, None],
            )
        if HEAD:
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
def layer_backward_kernel(
    g_ptr,
    w_ptr,
    grad_ptr,
    head_ptr,
    a_saved_ptr,
    b_saved_ptr,
    a_ptr,
    b_ptr,
    count,
    points,
    grad_batch_stride,
    g_stride,
    a_saved_stride,
    b_saved_stride,
    a_stride,
    b_stride,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    PRODUCT: tl.constexpr,
    HEAD: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The backward of a layer: A and B as in the equations above.

    A and B name the activation whose slope multiplies ("relu", "mish", "identity") or "none" for
    an output that is not wanted. PRODUCT: whether there is a layer above; HEAD: whether the head
    of the level adds ∂o W_out; ``grad_ptr`` is ∂o, (instance, point, OUT).
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows = rows < count
    if PRODUCT:
        t = _product(
            g_ptr, g_stride, rows, in_rows, w_ptr, columns, INNER, ROWS, COLUMNS, STEP, PRECISION
        )
    else:
        t = tl.zeros([ROWS, COLUMNS], tl.float32)
    if A != "none":
        a = t
        if A != "identity":
            a_saved = a_saved_ptr + rows[:, None] * a_saved_stride + columns[None, :]
            a = t * _slope(tl.load(a_saved, mask=in_rows[:, None], other=0.0), A)
        tl.store(
            a_ptr + rows[:, None] * a_stride + columns[None, :],
            a.to(a_ptr.dtype.element_ty),
            mask=in_rows[:, None],
        )
    if B != "none":
        if HEAD:
            grad_rows = (rows // points).to(tl.int64) * grad_batch_stride + (rows % points) * OUT
            for channel in tl.static_range(OUT):
                grad = tl.load(grad_ptr + grad_rows + channel, mask=in_rows, other=0.0)
                head = tl.load(head_ptr + channel * WIDTH + columns)
                t += grad.to(tl.float32)[:, None] * head.to(tl.float32)[None, :]
        if B != "identity":
            b_saved = b_saved_ptr + rows[:, None] * b_saved_stride + columns[None, :]
            t = t * _slope(tl.load(b_saved, mask=in_rows[:, None], other=0.0), B)
        tl.store(
            b_ptr + rows[:, None] * b_stride + columns[None, :],
            t.to(b_ptr.dtype.element_ty),
            mask=in_rows[:, None],
        )
