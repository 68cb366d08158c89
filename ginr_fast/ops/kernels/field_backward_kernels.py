"""The backward of a layer of B fields; tile picture and names are those of
``field_layer_kernels.py``.

    δ_ℓ = (δ_{ℓ+1} W_{ℓ+1}) ∘ f'(z_ℓ)     δ: gradient of a layer's z; above the last hidden layer
                                          lies the head, narrow: δ W is a short sum there
    ∂v_i = Σ_j ω_j (cos(ω_j v_i) ∂s_ij − sin(ω_j v_i) ∂c_ij),   (∂c, ∂s) = δ_1 W_1
"""

from __future__ import annotations

import triton
import triton.language as tl

from ginr_fast.ops.kernels.field_activations import fourier_features, through
from ginr_fast.ops.kernels.launch import kernel
from ginr_fast.ops.kernels.layer_kernels import product, resident_weight


@triton.jit
def _field_backward_tile(
    tile,
    resident,
    g_ptr,
    w_ptr,
    grad_ptr,
    head_ptr,
    saved_ptr,
    out_ptr,
    count,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    HEAD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tile * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows = rows < count
    if HEAD:
        t = tl.zeros([ROWS, COLUMNS], tl.float32)
        for channel in tl.static_range(OUT):
            grad = tl.load(grad_ptr + rows * OUT + channel, mask=in_rows, other=0.0)
            head = tl.load(head_ptr + channel * WIDTH + columns).to(tl.float32)
            t += grad[:, None] * head[None, :]
    else:
        t = product(
            g_ptr, INNER, rows, in_rows, w_ptr, columns, resident, INNER, ROWS, COLUMNS, STEP,
            RESIDENT, PRECISION,
        )  # fmt: skip
    target = rows[:, None] * WIDTH + columns[None, :]
    if ACTIVATION != "none":
        saved = tl.load(saved_ptr + target, mask=in_rows[:, None], other=0.0)
        t = through(t, saved, ACTIVATION)
    tl.store(out_ptr + target, t.to(out_ptr.dtype.element_ty), mask=in_rows[:, None])


@kernel
def field_backward_kernel(
    g_ptr,
    w_ptr,
    grad_ptr,
    head_ptr,
    saved_ptr,
    out_ptr,
    count,
    w_batch_stride,
    programs,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    OUT_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    HEAD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """δ of a layer from δ of the one above, (instances, count, ·); ``w_ptr`` is W transposed.

    HEAD: the layer above is the last one, whose δ ``grad_ptr`` (instances, count, OUT) is float32.
    ACTIVATION: how ``saved_ptr`` gives f': "relu" (the layer's output), "sine" (f' itself) or
    "none".
    """
    instance = tl.program_id(2).to(tl.int64)
    out_ptr += instance * count * WIDTH
    if ACTIVATION != "none":
        saved_ptr += instance * count * WIDTH
    if HEAD:
        grad_ptr += instance * count * OUT
        head_ptr += instance * (OUT_PADDED * WIDTH)
    else:
        g_ptr += instance * count * INNER
        w_ptr += instance * w_batch_stride
    resident = resident_weight(w_ptr, INNER, COLUMNS, RESIDENT)
    if RESIDENT:
        for tile in range(tl.program_id(0), tl.cdiv(count, ROWS), programs):
            _field_backward_tile(
                tile, resident, g_ptr, w_ptr, grad_ptr, head_ptr, saved_ptr, out_ptr, count,
                INNER, WIDTH, OUT, ROWS, COLUMNS, STEP, HEAD, ACTIVATION, RESIDENT, PRECISION,
            )  # fmt: skip
    else:
        _field_backward_tile(
            tl.program_id(0), resident, g_ptr, w_ptr, grad_ptr, head_ptr, saved_ptr, out_ptr,
            count, INNER, WIDTH, OUT, ROWS, COLUMNS, STEP, HEAD, ACTIVATION, RESIDENT, PRECISION,
        )  # fmt: skip


@kernel
def field_coords_kernel(
    g_ptr,
    coords_ptr,
    frequency_ptr,
    axis_ptr,
    w_ptr,
    out_ptr,
    count,
    coords_batch_stride,
    w_batch_stride,
    COORDS: tl.constexpr,
    COORDS_PADDED: tl.constexpr,
    PHASES: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """∂v (instances, count, COORDS) float32 from δ of the first layer, through the encoding.

    ``w_ptr``: (instances, WIDTH, 2, PHASES). INNER phases at a time, each a sum over WIDTH.
    """
    instance = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < count
    steps, inner = tl.arange(0, STEP), tl.arange(0, INNER)
    g = g_ptr + instance * count * WIDTH + rows[:, None] * WIDTH + steps[None, :]
    w = w_ptr + instance * w_batch_stride + steps[:, None] * (2 * PHASES) + inner[None, :]
    coords_ptr += instance * coords_batch_stride
    columns = tl.arange(0, COORDS_PADDED)
    total = tl.zeros([ROWS, COORDS_PADDED], tl.float32)
    for start in range(0, PHASES, INNER):
        grad_cosine = tl.zeros([ROWS, INNER], tl.float32)
        grad_sine = tl.zeros([ROWS, INNER], tl.float32)
        for first in range(0, WIDTH, STEP):
            g_tile = tl.load(g + first, mask=in_rows[:, None], other=0.0)
            w_tile = w + first * (2 * PHASES) + start
            grad_cosine = tl.dot(g_tile, tl.load(w_tile), grad_cosine, input_precision=PRECISION)
            grad_sine = tl.dot(
                g_tile, tl.load(w_tile + PHASES), grad_sine, input_precision=PRECISION
            )
        cosine, sine, axis, frequency = fourier_features(
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
        slope = (cosine * grad_sine - sine * grad_cosine) * (3.1415926536 * frequency)[None, :]
        for coordinate in tl.static_range(COORDS):
            share = tl.sum(tl.where((axis == coordinate)[None, :], slope, 0.0), 1)
            total += tl.where((columns == coordinate)[None, :], share[:, None], 0.0)
    tl.store(
        out_ptr + instance * count * COORDS + rows[:, None] * COORDS + columns[None, :],
        total,
        mask=in_rows[:, None] & (columns < COORDS)[None, :],
    )
