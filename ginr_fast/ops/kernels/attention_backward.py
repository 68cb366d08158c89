"""Cross-attention over few tokens, backward, with the probabilities recomputed from lse.

With g = ∂a of one head and δ = g · a (a row's dot product), the gradient of the logits is

    ∂s = p ∘ (g Vᵀ − δ)                                                            (plain)
    ∂s = p ∘ (1[p > τ] (g Vᵀ − δ) / Σu − ε),  ε = Σ p 1[p > τ] (g Vᵀ − δ) / Σu     (threshold τ)

and ∂Q = ∂s K, ∂K = ∂sᵀ Q, ∂V = wᵀ g. Two kernels, no atomic additions, so that results are the
same bit for bit from run to run:

* ``query_gradient_kernel``: a program owns a tile of rows and walks over the tokens. It leaves δ
  (and ε) for the other kernel, and skips ∂Q where nobody asks for it.
* ``token_gradient_kernel``: a program owns a block of tokens of one instance and head, holds its
  ∂K and ∂V in registers, walks over its share of the rows, and adds to its own slice of a float32
  accumulator, which lives from span to span.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ginr_fast.ops.kernels.attention import (
    LOG2_E,
    Statistics,
    inverse_or_zero,
    load_chunks,
    masked,
    products,
)
from ginr_fast.ops.kernels.heads import HeadLayout, token_block
from ginr_fast.ops.kernels.launch import cdiv, kernel, launch, precision, tiles
from ginr_fast.ops.kernels.layer_kernels import relu


@kernel
def query_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    g_ptr,
    lse_ptr,
    norm_ptr,
    delta_ptr,
    epsilon_ptr,
    dq_ptr,
    tau,
    points,
    tokens,
    q_points,
    q_stride,
    q_head,
    o_stride,
    g_stride,
    dq_stride,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    ALL_TOKENS: tl.constexpr,
    QUERY_DIM: tl.constexpr,
    QUERY_CHUNKS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_CHUNKS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    QUERIES: tl.constexpr,
    FULL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """δ, ε and, with QUERIES, ∂Q. Grid: (row tiles, instances · heads · query chunks)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < points
    chunk = tl.program_id(1) % QUERY_CHUNKS
    pair = tl.program_id(1) // QUERY_CHUNKS
    instance = pair // HEADS
    head = pair % HEADS
    query_stride: tl.constexpr = QUERY_DIM * QUERY_CHUNKS
    value_stride: tl.constexpr = VALUE_DIM * VALUE_CHUNKS
    out_rows = instance * points + rows
    grads = load_chunks(
        g_ptr + head * value_stride, out_rows, g_stride, in_rows, VALUE_DIM, VALUE_CHUNKS
    )
    outputs = load_chunks(
        o_ptr + head * value_stride, out_rows, o_stride, in_rows, VALUE_DIM, VALUE_CHUNKS
    )
    delta = tl.zeros([ROWS], tl.float32)
    for part in tl.static_range(VALUE_CHUNKS):
        delta += tl.sum(grads[part].to(tl.float32) * outputs[part].to(tl.float32), 1)
    first = in_rows & (chunk == 0)
    tl.store(delta_ptr + out_rows * HEADS + head, delta, mask=first)
    if THRESHOLD or QUERIES:
        k = k_ptr + pair.to(tl.int64) * (ALL_TOKENS * query_stride)
        v = v_ptr + pair.to(tl.int64) * (ALL_TOKENS * value_stride)
        queries = load_chunks(
            q_ptr + head * q_head, instance * q_points + rows, q_stride, in_rows,
            QUERY_DIM, QUERY_CHUNKS,
        )  # fmt: skip
        lse = tl.load(lse_ptr + out_rows * HEADS + head, mask=in_rows, other=float("inf"))
        block = tl.arange(0, TOKENS)
        epsilon = tl.zeros([ROWS], tl.float32)
        scale = tl.full([ROWS], 1.0, tl.float32)
        if THRESHOLD:
            norm = tl.load(norm_ptr + out_rows * HEADS + head, mask=in_rows, other=0.0)
            scale = inverse_or_zero(norm)
            for start in range(0, ALL_TOKENS, TOKENS):
                token = start + block
                s = products(
                    queries, k, token, query_stride, TOKENS, QUERY_DIM, QUERY_CHUNKS, PRECISION
                )
                p = tl.exp2(s * LOG2_E - lse[:, None])
                dw = products(
                    grads, v, token, value_stride, TOKENS, VALUE_DIM, VALUE_CHUNKS, PRECISION
                )
                active = (p > tau) & (token < tokens)[None, :]
                epsilon += tl.sum(tl.where(active, p * (dw - delta[:, None]), 0.0), 1)
            epsilon *= scale
            tl.store(epsilon_ptr + out_rows * HEADS + head, epsilon, mask=first)
        if QUERIES:
            columns = chunk * QUERY_DIM + tl.arange(0, QUERY_DIM)
            dq = tl.zeros([ROWS, QUERY_DIM], tl.float32)
            for start in range(0, ALL_TOKENS, TOKENS):
                token = start + block
                s = products(
                    queries, k, token, query_stride, TOKENS, QUERY_DIM, QUERY_CHUNKS, PRECISION
                )
                p = tl.exp2(masked(s, token, tokens, FULL) - lse[:, None])
                dw = products(
                    grads, v, token, value_stride, TOKENS, VALUE_DIM, VALUE_CHUNKS, PRECISION
                )
                ds = dw - delta[:, None]
                if THRESHOLD:
                    ds = tl.where(p > tau, ds * scale[:, None], 0.0) - epsilon[:, None]
                ds = p * ds
                keys = tl.load(k + token[:, None] * query_stride + columns[None, :])
                dq = tl.dot(ds.to(keys.dtype), keys, dq, input_precision=PRECISION)
            target = head * query_stride + columns
            tl.store(
                dq_ptr + out_rows[:, None] * dq_stride + target[None, :],
                dq.to(dq_ptr.dtype.element_ty),
                mask=in_rows[:, None],
            )


@kernel
def token_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    g_ptr,
    lse_ptr,
    norm_ptr,
    delta_ptr,
    epsilon_ptr,
    dk_ptr,
    dv_ptr,
    tau,
    points,
    steps,
    pairs,
    q_points,
    q_stride,
    q_head,
    g_stride,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    ALL_TOKENS: tl.constexpr,
    QUERY_DIM: tl.constexpr,
    QUERY_CHUNKS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_CHUNKS: tl.constexpr,
    CHUNKS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """∂K and ∂V. Grid: (token blocks, instances · heads · chunks, splits).

    ``dk_ptr`` and ``dv_ptr`` are (splits, ``pairs``, ALL_TOKENS, ·), from this group's first pair
    on; a split takes ``steps`` tiles of rows; every program adds to a slice that
    no other program touches. Padded tokens hold whatever comes out and are cut off later.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    chunk = tl.program_id(1) % CHUNKS
    pair = tl.program_id(1) // CHUNKS
    split = tl.program_id(2)
    instance = pair // HEADS
    head = pair % HEADS
    query_stride: tl.constexpr = QUERY_DIM * QUERY_CHUNKS
    value_stride: tl.constexpr = VALUE_DIM * VALUE_CHUNKS
    every = token < ALL_TOKENS
    offset = pair.to(tl.int64) * ALL_TOKENS
    keys = load_chunks(
        k_ptr + offset * query_stride, token, query_stride, every, QUERY_DIM, QUERY_CHUNKS
    )
    values = load_chunks(
        v_ptr + offset * value_stride, token, value_stride, every, VALUE_DIM, VALUE_CHUNKS
    )
    query_columns = (chunk % QUERY_CHUNKS) * QUERY_DIM + tl.arange(0, QUERY_DIM)
    value_columns = (chunk % VALUE_CHUNKS) * VALUE_DIM + tl.arange(0, VALUE_DIM)
    q = q_ptr + head * q_head
    g = g_ptr + head * value_stride
    dk = tl.zeros([TOKENS, QUERY_DIM], tl.float32)
    dv = tl.zeros([TOKENS, VALUE_DIM], tl.float32)
    for step in range(0, steps):
        row = (split * steps + step) * ROWS + tl.arange(0, ROWS)
        in_rows = row < points
        # Rows past the end repeat the last one and are given probability 0.
        row = tl.minimum(row, points - 1)
        out_rows = instance * points + row
        q_rows = instance * q_points + row
        lse = tl.load(lse_ptr + out_rows * HEADS + head, mask=in_rows, other=float("inf"))
        s = products(keys, q, q_rows, q_stride, ROWS, QUERY_DIM, QUERY_CHUNKS, PRECISION)
        p = tl.exp2(s * LOG2_E - lse[None, :])
        w = p
        scale = tl.full([ROWS], 1.0, tl.float32)
        if THRESHOLD:
            norm = tl.load(norm_ptr + out_rows * HEADS + head, mask=in_rows, other=0.0)
            scale = inverse_or_zero(norm)
            w = relu(p - tau) * scale[None, :]
        grad = tl.load(g + out_rows[:, None] * g_stride + value_columns[None, :])
        if VALUES:
            dv = tl.dot(w.to(grad.dtype), grad, dv, input_precision=PRECISION)
        if KEYS:
            delta = tl.load(delta_ptr + out_rows * HEADS + head)
            ds = products(values, g, out_rows, g_stride, ROWS, VALUE_DIM, VALUE_CHUNKS, PRECISION)
            ds -= delta[None, :]
            if THRESHOLD:
                epsilon = tl.load(epsilon_ptr + out_rows * HEADS + head)
                ds = tl.where(p > tau, ds * scale[None, :], 0.0) - epsilon[None, :]
            ds = p * ds
            query = tl.load(q + q_rows[:, None] * q_stride + query_columns[None, :])
            dk = tl.dot(ds.to(query.dtype), query, dk, input_precision=PRECISION)
    offset += split.to(tl.int64) * pairs * ALL_TOKENS
    if VALUES:  # noqa: SIM102 - without VALUES there is no pointer
        if chunk < VALUE_CHUNKS:
            target = dv_ptr + (offset + token)[:, None] * value_stride + value_columns[None, :]
            tl.store(target, tl.load(target) + dv)
    if KEYS:  # noqa: SIM102
        if chunk < QUERY_CHUNKS:
            target = dk_ptr + (offset + token)[:, None] * query_stride + query_columns[None, :]
            tl.store(target, tl.load(target) + dk)


def row_splits(pairs: int, layout: HeadLayout, device: torch.device, dtype: torch.dtype) -> int:
    """Into how many shares the rows of a span are cut for ∂K and ∂V, so that a small batch still
    fills the chip; every share has an accumulator of its own."""
    return tiles("token_gradient", device, dtype, layout.widest)["programs"] // max(pairs, 1) or 1


def attention_backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: HeadLayout,
    points: int,
    tokens: int,
    out: Tensor,
    grad: Tensor,
    statistics: Statistics,
    scratch: Statistics,
    *,
    shared: bool,
    one_query: bool = False,
    threshold: float = 0.0,
    grad_queries: Tensor | None = None,
    grad_keys: Tensor | None = None,
    grad_values: Tensor | None = None,
) -> None:
    """Backward of :func:`~ginr_fast.ops.kernels.attention.attention` for the same arguments.

    ``grad_queries`` (instances · points, ·) is written, a row an instance even where queries are
    shared; ``grad_keys`` and ``grad_values`` (splits, instances, H, padded tokens, ·) float32 are
    added to. ``scratch`` takes δ and ε.
    """
    device, dtype = queries.device, queries.dtype
    instances, all_tokens = keys.shape[0], keys.shape[2]
    common = {
        "q_ptr": queries,
        "k_ptr": keys,
        "v_ptr": values,
        "g_ptr": grad,
        "lse_ptr": statistics.lse,
        "norm_ptr": statistics.norm,
        "delta_ptr": scratch.lse,
        "epsilon_ptr": scratch.norm,
        "tau": float(threshold),
        "points": points,
        "q_points": 0 if shared else points,
        "q_stride": queries.stride(0),
        "q_head": 0 if one_query else layout.query_width,
        "g_stride": grad.stride(0),
    }
    constants = {
        "HEADS": layout.heads,
        "ALL_TOKENS": all_tokens,
        "QUERY_DIM": layout.query_dim,
        "QUERY_CHUNKS": layout.query_chunks,
        "VALUE_DIM": layout.value_dim,
        "VALUE_CHUNKS": layout.value_chunks,
        "THRESHOLD": threshold > 0,
        "PRECISION": precision(dtype, device),
    }
    if grad_queries is not None or grad_keys is not None:
        tile = tiles("query_gradient", device, dtype, layout.widest)
        launch(
            query_gradient_kernel,
            (cdiv(points, tile["rows"]), instances * layout.heads * layout.query_chunks),
            {
                **common,
                "o_ptr": out,
                "dq_ptr": grad_queries,
                "tokens": tokens,
                "o_stride": out.stride(0),
                "dq_stride": 0 if grad_queries is None else grad_queries.stride(0),
            },
            {
                **constants,
                "ROWS": tile["rows"],
                "TOKENS": token_block(tile, all_tokens),
                "QUERIES": grad_queries is not None,
                "FULL": tokens == all_tokens,
            },
            tile,
            device,
        )
    accumulators = [t for t in (grad_keys, grad_values) if t is not None]
    if accumulators:
        tile = tiles("token_gradient", device, dtype, layout.widest)
        block = token_block(tile, all_tokens)
        chunks = max(layout.query_chunks, layout.value_chunks)
        # The accumulators are those of the whole batch: the group is a view into them.
        splits = accumulators[0].shape[0]
        pairs = accumulators[0].stride(0) // accumulators[0].stride(2)
        steps = cdiv(points, splits * tile["rows"])
        launch(
            token_gradient_kernel,
            (all_tokens // block, instances * layout.heads * chunks, splits),
            {**common, "dk_ptr": grad_keys, "dv_ptr": grad_values, "pairs": pairs, "steps": steps},
            {
                **constants,
                "ROWS": tile["rows"],
                "TOKENS": block,
                "CHUNKS": chunks,
                "KEYS": grad_keys is not None,
                "VALUES": grad_values is not None,
            },
            tile,
            device,
        )
