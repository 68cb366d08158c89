"""The backward of a layer; equations and tile picture are those of ``layer_kernels.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ginr_fast.ops.kernels.launch import kernel
from ginr_fast.ops.kernels.layer_kernels import product, resident_weight, slope


@triton.jit
def _layer_backward_tile(
    tile,
    resident,
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
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tile * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows = rows < count
    if PRODUCT:
        t = product(
            g_ptr,
            g_stride,
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
    else:
        t = tl.zeros([ROWS, COLUMNS], tl.float32)
    if A != "none":
        a = t
        if A != "identity":
            a_saved = a_saved_ptr + rows[:, None] * a_saved_stride + columns[None, :]
            a = t * slope(tl.load(a_saved, mask=in_rows[:, None], other=0.0), A)
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
            t = t * slope(tl.load(b_saved, mask=in_rows[:, None], other=0.0), B)
        tl.store(
            b_ptr + rows[:, None] * b_stride + columns[None, :],
            t.to(b_ptr.dtype.element_ty),
            mask=in_rows[:, None],
        )


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
    programs,
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
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The backward of a layer: A and B as in the equations above.

    A and B name the activation whose slope multiplies ("relu", "mish", "identity") or "none" for
    an output that is not wanted. PRODUCT: whether there is a layer above; HEAD: whether the head
    of the level adds ∂o W_out; ``grad_ptr`` is ∂o, (instance, point, OUT).
    """
    resident = resident_weight(w_ptr, INNER, COLUMNS, RESIDENT)
    if RESIDENT:
        for tile in range(tl.program_id(0), tl.cdiv(count, ROWS), programs):
            _layer_backward_tile(
                tile, resident, g_ptr, w_ptr, grad_ptr, head_ptr, a_saved_ptr,
                b_saved_ptr, a_ptr, b_ptr, count, points, grad_batch_stride,
                g_stride, a_saved_stride, b_saved_stride, a_stride, b_stride, INNER,
                WIDTH, OUT, ROWS, COLUMNS, STEP, PRODUCT, HEAD, A, B, RESIDENT,
                PRECISION,
            )  # fmt: skip
    else:
        _layer_backward_tile(
            tl.program_id(0), resident, g_ptr, w_ptr, grad_ptr, head_ptr, a_saved_ptr,
            b_saved_ptr, a_ptr, b_ptr, count, points, grad_batch_stride, g_stride,
            a_saved_stride, b_saved_stride, a_stride, b_stride, INNER, WIDTH, OUT, ROWS,
            COLUMNS, STEP, PRODUCT, HEAD, A, B, RESIDENT, PRECISION,
        )  # fmt: skip
