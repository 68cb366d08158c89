"""Kernels of operators that make packed weights: rows normalised over their fan-in.

    group_weights       v_i = u_{g(i)} ⊙ w̄_i          ∂u_g = Σ_{i in g} ∂v_i ⊙ w̄_i
                        w_i = v_i / n_i               ∂w̄_i = Σ_b ∂v_i ⊙ u_{g(i)}
    low_rank_weights    W = U V_b, rows normalised    ∂v of its rows, for library products

with n = max(‖v‖, ε) and ∂v_i = (g_i − w_i s_i) / n_i, s_i = w_i·g_i, or 0 where ‖v_i‖ ≤ ε. They are
bound by memory: w is read back from the packed weights, and n and s are a number a row. A program
owns ROWS rows of one instance (or of all, one after the other, where it sums over them), and
walks over the fan-in in steps of COLUMNS. Sums are in float32, in an order that does not vary.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ginr_fast.ops.kernels.launch import kernel


@triton.jit
def _group(rows, FAN_OUT: tl.constexpr, GROUPS: tl.constexpr, TILED: tl.constexpr):
    """Which group a row belongs to."""
    return rows % GROUPS if TILED else rows // (FAN_OUT // GROUPS)


@triton.jit
def _tile(ptr, rows, columns, FAN_OUT: tl.constexpr, FAN_IN: tl.constexpr):
    """Rows and columns of a (FAN_OUT, FAN_IN) matrix in float32, 0 beyond it."""
    inside = (rows < FAN_OUT)[:, None] & (columns < FAN_IN)[None, :]
    return tl.load(ptr + rows[:, None] * FAN_IN + columns[None, :], mask=inside, other=0.0).to(
        tl.float32
    )


@triton.jit
def _length(squares, EPSILON: tl.constexpr):
    """n from ‖v‖², NaN where that is."""
    return tl.maximum(tl.sqrt_rn(squares), EPSILON, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _row_gradient(grad, rows, lengths, dots):
    """∂v of a tile of unit rows."""
    return (grad - rows * dots[:, None]) / lengths[:, None]


@kernel
def group_weights_kernel(
    groups_ptr,
    base_ptr,
    bias_ptr,
    out_ptr,
    lengths_ptr,
    out_batch_stride,
    lengths_stride,
    EPSILON: tl.constexpr,
    FAN_OUT: tl.constexpr,
    FAN_IN: tl.constexpr,
    GROUPS: tl.constexpr,
    TILED: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A layer's weight and bias into its columns of the packed rows, and the lengths n."""
    instance = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < FAN_OUT
    group = tl.where(in_rows, _group(rows, FAN_OUT, GROUPS, TILED), 0)
    groups = groups_ptr + instance * (GROUPS * FAN_IN)
    out = out_ptr + instance * out_batch_stride
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, FAN_IN, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        v = _tile(groups, group, columns, GROUPS, FAN_IN)
        v *= _tile(base_ptr, rows, columns, FAN_OUT, FAN_IN)
        squares += v * v
    length = _length(tl.sum(squares, 1), EPSILON)
    tl.store(lengths_ptr + instance * lengths_stride + rows, length, mask=in_rows)
    for start in range(0, FAN_IN, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        v = _tile(groups, group, columns, GROUPS, FAN_IN)
        v *= _tile(base_ptr, rows, columns, FAN_OUT, FAN_IN)
        tl.store(
            out + rows[:, None] * FAN_IN + columns[None, :],
            (v / length[:, None]).to(out_ptr.dtype.element_ty),
            mask=in_rows[:, None] & (columns < FAN_IN)[None, :],
        )
    if BIAS:
        bias = tl.load(bias_ptr + rows, mask=in_rows, other=0.0)
        tl.store(out + FAN_OUT * FAN_IN + rows, bias, mask=in_rows)


@kernel
def row_dots_kernel(
    grad_ptr,
    rows_ptr,
    lengths_ptr,
    dots_ptr,
    grad_batch_stride,
    lengths_stride,
    EPSILON: tl.constexpr,
    FAN_OUT: tl.constexpr,
    FAN_IN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """s = w·g of a layer's rows, 0 where n is ε; the unit rows are packed as the gradient is."""
    instance = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < FAN_OUT
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, FAN_IN, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        grad = _tile(grad_ptr + instance * grad_batch_stride, rows, columns, FAN_OUT, FAN_IN)
        unit = _tile(rows_ptr + instance * grad_batch_stride, rows, columns, FAN_OUT, FAN_IN)
        products += grad * unit
    place = instance * lengths_stride + rows
    length = tl.load(lengths_ptr + place, mask=in_rows, other=1.0)
    dots = tl.where(length > EPSILON, tl.sum(products, 1), 0.0)
    tl.store(dots_ptr + place, dots, mask=in_rows)


@kernel
def group_gradient_kernel(
    grad_ptr,
    rows_ptr,
    lengths_ptr,
    dots_ptr,
    base_ptr,
    out_ptr,
    grad_batch_stride,
    lengths_stride,
    FAN_OUT: tl.constexpr,
    FAN_IN: tl.constexpr,
    GROUPS: tl.constexpr,
    TILED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """∂u of one group of an instance, for COLUMNS of the fan-in."""
    instance = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    members: tl.constexpr = FAN_OUT // GROUPS
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, members, ROWS):
        member = start + tl.arange(0, ROWS)
        rows = member * GROUPS + group if TILED else group * members + member
        rows = tl.where(member < members, rows, FAN_OUT)
        place = instance * lengths_stride + rows
        length = tl.load(lengths_ptr + place, mask=member < members, other=1.0)
        dots = tl.load(dots_ptr + place, mask=member < members, other=0.0)
        grad = _tile(grad_ptr + instance * grad_batch_stride, rows, columns, FAN_OUT, FAN_IN)
        unit = _tile(rows_ptr + instance * grad_batch_stride, rows, columns, FAN_OUT, FAN_IN)
        base = _tile(base_ptr, rows, columns, FAN_OUT, FAN_IN)
        total += _row_gradient(grad, unit, length, dots) * base
    tl.store(
        out_ptr + (instance * GROUPS + group) * FAN_IN + columns,
        tl.sum(total, 0).to(out_ptr.dtype.element_ty),
        mask=columns < FAN_IN,
    )


@kernel
def group_base_gradient_kernel(
    grad_ptr,
    rows_ptr,
    lengths_ptr,
    dots_ptr,
    groups_ptr,
    out_ptr,
    count,
    grad_batch_stride,
    lengths_stride,
    FAN_OUT: tl.constexpr,
    FAN_IN: tl.constexpr,
    GROUPS: tl.constexpr,
    TILED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """∂w̄ of ROWS rows and COLUMNS of the fan-in, the sum over ``count`` instances."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows = rows < FAN_OUT
    group = tl.where(in_rows, _group(rows, FAN_OUT, GROUPS, TILED), 0)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for index in range(count):
        instance = tl.cast(index, tl.int64)
        place = instance * lengths_stride + rows
        length = tl.load(lengths_ptr + place, mask=in_rows, other=1.0)
        dots = tl.load(dots_ptr + place, mask=in_rows, other=0.0)
        grad = _tile(grad_ptr + instance * grad_batch_stride, rows, columns, FAN_OUT, FAN_IN)
        unit = _tile(rows_ptr + instance * grad_batch_stride, rows, columns, FAN_OUT, FAN_IN)
        own = _tile(groups_ptr + instance * (GROUPS * FAN_IN), group, columns, GROUPS, FAN_IN)
        total += _row_gradient(grad, unit, length, dots) * own
    tl.store(
        out_ptr + rows[:, None] * FAN_IN + columns[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=in_rows[:, None] & (columns < FAN_IN)[None, :],
    )


@triton.jit
def _low_rank_tile(
    mixing_ptr,
    patterns_ptr,
    rows,
    columns,
    FAN_OUT: tl.constexpr,
    FAN_IN: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """U[rows] V[:, columns]."""
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, RANK, STEP):
        inner = start + tl.arange(0, STEP)
        mixing = tl.load(
            mixing_ptr + rows[:, None] * RANK + inner[None, :],
            mask=(rows < FAN_OUT)[:, None] & (inner < RANK)[None, :],
            other=0.0,
        )
        patterns = tl.load(
            patterns_ptr + inner[:, None] * FAN_IN + columns[None, :],
            mask=(inner < RANK)[:, None] & (columns < FAN_IN)[None, :],
            other=0.0,
        )
        product = tl.dot(mixing, patterns, product, input_precision=PRECISION)
    return product


@kernel
def low_rank_kernel(
    mixing_ptr,
    patterns_ptr,
    out_ptr,
    lengths_ptr,
    out_batch_stride,
    EPSILON: tl.constexpr,
    FAN_OUT: tl.constexpr,
    FAN_IN: tl.constexpr,
    RANK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W = U V_b into its columns of the packed rows.

    With NORMALIZE the product is formed twice: for the lengths of the rows, which are stored, and
    to be divided by them. It is cheaper than to hold rows of any length.
    """
    instance = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < FAN_OUT
    patterns = patterns_ptr + instance * (RANK * FAN_IN)
    length = tl.full([ROWS], 1.0, tl.float32)
    if NORMALIZE:
        squares = tl.zeros([ROWS], tl.float32)
        for start in range(0, FAN_IN, COLUMNS):
            product = _low_rank_tile(
                mixing_ptr, patterns, rows, start + tl.arange(0, COLUMNS), FAN_OUT, FAN_IN, RANK,
                ROWS, COLUMNS, STEP, PRECISION,
            )  # fmt: skip
            squares += tl.sum(product * product, 1)
        length = _length(squares, EPSILON)
        tl.store(lengths_ptr + instance * FAN_OUT + rows, length, mask=in_rows)
    for start in range(0, FAN_IN, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        product = _low_rank_tile(
            mixing_ptr, patterns, rows, columns, FAN_OUT, FAN_IN, RANK, ROWS, COLUMNS, STEP,
            PRECISION,
        )  # fmt: skip
        tl.store(
            out_ptr + instance * out_batch_stride + rows[:, None] * FAN_IN + columns[None, :],
            (product / length[:, None]).to(out_ptr.dtype.element_ty),
            mask=in_rows[:, None] & (columns < FAN_IN)[None, :],
        )


@kernel
def low_rank_rows_kernel(
    grad_ptr,
    rows_ptr,
    lengths_ptr,
    dots_ptr,
    out_ptr,
    grad_batch_stride,
    FAN_OUT: tl.constexpr,
    FAN_IN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """∂v of the rows of W, (B, FAN_OUT, FAN_IN)."""
    instance = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < FAN_OUT
    length = tl.load(lengths_ptr + instance * FAN_OUT + rows, mask=in_rows, other=1.0)
    dots = tl.load(dots_ptr + instance * FAN_OUT + rows, mask=in_rows, other=0.0)
    for start in range(0, FAN_IN, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        grad = _tile(grad_ptr + instance * grad_batch_stride, rows, columns, FAN_OUT, FAN_IN)
        unit = _tile(rows_ptr + instance * grad_batch_stride, rows, columns, FAN_OUT, FAN_IN)
        delta = _row_gradient(grad, unit, length, dots)
        tl.store(
            out_ptr + (instance * FAN_OUT + rows[:, None]) * FAN_IN + columns[None, :],
            delta.to(out_ptr.dtype.element_ty),
            mask=in_rows[:, None] & (columns < FAN_IN)[None, :],
        )
