"""Cross-attention of many coordinates over few tokens, forward: the piece both decoders share.

For one head, with keys already scaled,

    s = q Kᵀ,   p = softmax(s),   a = p V                                         (plain)
    u = max(p − τ, 0),   w = u / Σ u,   a = w V                                   (threshold τ)

A program owns ROWS coordinates of one instance and head. Its queries stay in shared memory, its
output accumulator in registers; keys and values stream from the L2 cache in blocks of TOKENS, or,
where all of them fit into shared memory, stay there while the program walks over row tiles. The
softmax never leaves the chip: a plain row is rescaled as its maximum moves (one pass), a
thresholded row needs its maximum and sum first, so that its logits are computed twice. A row in
which no weight exceeds τ gives zero. What the backward needs is one number a row, lse = log₂ Σ eˢ
(and Σ u with a threshold).

Wide heads are cut: queries and keys into QUERY_CHUNKS × QUERY_DIM summed into the logits, values
into VALUE_CHUNKS × VALUE_DIM, each chunk a program of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ginr_fast.ops.kernels.heads import HeadLayout, token_block
from ginr_fast.ops.kernels.launch import cdiv, kernel, launch, precision, tiles
from ginr_fast.ops.kernels.layer_kernels import relu

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def inverse_or_zero(x):
    return tl.where(x > 0, 1.0 / tl.where(x > 0, x, 1.0), 0.0)


@triton.jit
def load_chunks(
    base_ptr, rows, stride, in_rows, DIM: tl.constexpr, CHUNKS: tl.constexpr
):  # a tuple of (rows, DIM) tiles
    columns = tl.arange(0, DIM)
    chunks = ()
    for chunk in tl.static_range(CHUNKS):
        chunks = chunks + (
            tl.load(
                base_ptr + rows[:, None] * stride + (chunk * DIM + columns)[None, :],
                mask=in_rows[:, None],
                other=0.0,
            ),
        )
    return chunks


@triton.jit
def products(
    left,
    right_ptr,
    rows,
    stride,
    N: tl.constexpr,
    DIM: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """left · right[rows]ᵀ, summed over the chunks of a head: (·, N) in float32."""
    columns = tl.arange(0, DIM)
    total = tl.zeros([left[0].shape[0], N], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        right = tl.load(right_ptr + rows[:, None] * stride + (chunk * DIM + columns)[None, :])
        total = tl.dot(left[chunk], right.T, total, input_precision=PRECISION)
    return total


@triton.jit
def masked(s, token, tokens, FULL: tl.constexpr):
    """Logits in base 2, −∞ where there is no token (FULL: there is one everywhere)."""
    s = s * LOG2_E
    if not FULL:
        s = tl.where((token < tokens)[None, :], s, float("-inf"))
    return s


@triton.jit
def _online_softmax(s, highest, total):
    """A block of logits joins a row: p, by how much to rescale what came before, maximum, sum."""
    higher = tl.maximum(highest, tl.max(s, 1))
    rescale = tl.exp2(highest - higher)
    p = tl.exp2(s - higher[:, None])
    return p, rescale, higher, total * rescale + tl.sum(p, 1)


@triton.jit
def load_blocks(
    ptr, stride, TOKENS: tl.constexpr, BLOCKS: tl.constexpr, DIM: tl.constexpr
):  # every token of an instance and head, as a tuple of (TOKENS, DIM) tiles
    columns = tl.arange(0, DIM)
    tiles = ()
    for block in tl.static_range(BLOCKS):
        token = block * TOKENS + tl.arange(0, TOKENS)
        tiles = tiles + (tl.load(ptr + token[:, None] * stride + columns[None, :]),)
    return tiles


@triton.jit
def attend(
    queries,
    k_ptr,
    v_ptr,
    keys,
    values,
    tau,
    tokens,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    ALL_TOKENS: tl.constexpr,
    QUERY_DIM: tl.constexpr,
    QUERY_CHUNKS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    THRESHOLD: tl.constexpr,
    FULL: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """a, lse (base 2) and Σ u of a tile of queries over every token of one instance and head.

    ``k_ptr`` (ALL_TOKENS, QUERY_CHUNKS·QUERY_DIM) and ``v_ptr`` (ALL_TOKENS, VALUE_STRIDE) are
    padded to whole blocks; from ``tokens`` on they are ignored. RESIDENT: the blocks are at hand
    in ``keys`` and ``values`` (no threshold, one chunk).
    """
    block = tl.arange(0, TOKENS)
    value_columns = tl.arange(0, VALUE_DIM)
    stride: tl.constexpr = QUERY_DIM * QUERY_CHUNKS
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, VALUE_DIM], tl.float32)
    if RESIDENT:
        for index in tl.static_range(ALL_TOKENS // TOKENS):
            s = tl.dot(queries[0], keys[index].T, input_precision=PRECISION)
            s = masked(s, index * TOKENS + block, tokens, FULL)
            p, rescale, highest, total = _online_softmax(s, highest, total)
            output = tl.dot(
                p.to(values[index].dtype),
                values[index],
                output * rescale[:, None],
                input_precision=PRECISION,
            )
    else:
        for start in range(0, ALL_TOKENS, TOKENS):
            token = start + block
            s = products(queries, k_ptr, token, stride, TOKENS, QUERY_DIM, QUERY_CHUNKS, PRECISION)
            s = masked(s, token, tokens, FULL)
            p, rescale, highest, total = _online_softmax(s, highest, total)
            if not THRESHOLD:
                v = tl.load(v_ptr + token[:, None] * VALUE_STRIDE + value_columns[None, :])
                output = tl.dot(
                    p.to(v.dtype), v, output * rescale[:, None], input_precision=PRECISION
                )
    lse = highest + tl.log2(total)
    norm = total
    if THRESHOLD:
        norm = tl.zeros([ROWS], tl.float32)
        for start in range(0, ALL_TOKENS, TOKENS):
            token = start + block
            s = products(queries, k_ptr, token, stride, TOKENS, QUERY_DIM, QUERY_CHUNKS, PRECISION)
            s = masked(s, token, tokens, FULL)
            u = relu(tl.exp2(s - lse[:, None]) - tau)
            norm += tl.sum(u, 1)
            v = tl.load(v_ptr + token[:, None] * VALUE_STRIDE + value_columns[None, :])
            output = tl.dot(u.to(v.dtype), v, output, input_precision=PRECISION)
    return output * inverse_or_zero(norm)[:, None], lse, norm


@triton.jit
def _attention_tile(
    tile,
    keys,
    values,
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    lse_ptr,
    norm_ptr,
    tau,
    points,
    tokens,
    q_points,
    q_stride,
    q_head,
    o_stride,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    ALL_TOKENS: tl.constexpr,
    QUERY_DIM: tl.constexpr,
    QUERY_CHUNKS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_CHUNKS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    STATISTICS: tl.constexpr,
    FULL: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tile * ROWS + tl.arange(0, ROWS)
    in_rows = rows < points
    chunk = tl.program_id(1) % VALUE_CHUNKS
    pair = tl.program_id(1) // VALUE_CHUNKS
    instance = pair // HEADS
    head = pair % HEADS
    value_stride: tl.constexpr = VALUE_DIM * VALUE_CHUNKS
    queries = load_chunks(
        q_ptr + head * q_head, instance * q_points + rows, q_stride, in_rows,
        QUERY_DIM, QUERY_CHUNKS,
    )  # fmt: skip
    output, lse, norm = attend(
        queries, k_ptr, v_ptr, keys, values, tau, tokens, ROWS, TOKENS, ALL_TOKENS,
        QUERY_DIM, QUERY_CHUNKS, VALUE_DIM, value_stride, THRESHOLD, FULL, RESIDENT,
        PRECISION,
    )  # fmt: skip
    out_rows = instance * points + rows
    columns = head * value_stride + chunk * VALUE_DIM + tl.arange(0, VALUE_DIM)
    tl.store(
        o_ptr + out_rows[:, None] * o_stride + columns[None, :],
        output.to(o_ptr.dtype.element_ty),
        mask=in_rows[:, None],
    )
    if STATISTICS:
        first = in_rows & (chunk == 0)
        tl.store(lse_ptr + out_rows * HEADS + head, lse, mask=first)
        if THRESHOLD:
            tl.store(norm_ptr + out_rows * HEADS + head, norm, mask=first)


@kernel
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    lse_ptr,
    norm_ptr,
    tau,
    points,
    tokens,
    q_points,
    q_stride,
    q_head,
    o_stride,
    programs,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    ALL_TOKENS: tl.constexpr,
    QUERY_DIM: tl.constexpr,
    QUERY_CHUNKS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_CHUNKS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    STATISTICS: tl.constexpr,
    FULL: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (row tiles, instances · heads · value chunks). The queries of an instance start at row
    instance · ``q_points`` (0 when the batch shares them), those of a head at column
    head · ``q_head``. RESIDENT: ``programs`` along the first axis share the row tiles."""
    chunk = tl.program_id(1) % VALUE_CHUNKS
    pair = (tl.program_id(1) // VALUE_CHUNKS).to(tl.int64)
    query_stride: tl.constexpr = QUERY_DIM * QUERY_CHUNKS
    value_stride: tl.constexpr = VALUE_DIM * VALUE_CHUNKS
    k = k_ptr + pair * (ALL_TOKENS * query_stride)
    v = v_ptr + pair * (ALL_TOKENS * value_stride) + chunk * VALUE_DIM
    if RESIDENT:
        keys = load_blocks(k, query_stride, TOKENS, ALL_TOKENS // TOKENS, QUERY_DIM)
        values = load_blocks(v, value_stride, TOKENS, ALL_TOKENS // TOKENS, VALUE_DIM)
        for tile in range(tl.program_id(0), tl.cdiv(points, ROWS), programs):
            _attention_tile(
                tile, keys, values, q_ptr, k, v, o_ptr, lse_ptr, norm_ptr, tau, points, tokens,
                q_points, q_stride, q_head, o_stride, HEADS, ROWS, TOKENS, ALL_TOKENS, QUERY_DIM,
                QUERY_CHUNKS, VALUE_DIM, VALUE_CHUNKS, THRESHOLD, STATISTICS, FULL, RESIDENT,
                PRECISION,
            )  # fmt: skip
    else:
        _attention_tile(
            tl.program_id(0), 0, 0, q_ptr, k, v, o_ptr, lse_ptr, norm_ptr, tau, points, tokens,
            q_points, q_stride, q_head, o_stride, HEADS, ROWS, TOKENS, ALL_TOKENS, QUERY_DIM,
            QUERY_CHUNKS, VALUE_DIM, VALUE_CHUNKS, THRESHOLD, STATISTICS, FULL, RESIDENT,
                PRECISION,
        )  # fmt: skip


@dataclass
class Statistics:
    """What the backward needs to know of each row and head, (rows, H) float32."""

    lse: Tensor
    norm: Tensor | None


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: HeadLayout,
    points: int,
    tokens: int,
    out: Tensor,
    *,
    shared: bool,
    one_query: bool = False,
    threshold: float = 0.0,
    statistics: Statistics | None = None,
) -> None:
    """Cross-attention of a group of instances.

    Args:
        queries: (points, ·) if ``shared`` by the instances, else (instances · points, ·); a head
            has ``layout.query_width`` columns, all heads the same ones if ``one_query``.
        keys, values: of the group, as packed: (instances, H, padded tokens, ·).
        tokens: how many of the tokens are real.
        out: (instances · points, ≥ H · value width), rows at any stride.
    """
    device, dtype = queries.device, queries.dtype
    instances, all_tokens = keys.shape[0], keys.shape[2]
    tile = tiles("resident_attention", device, dtype, layout.widest)
    held = all_tokens * (layout.query_width + layout.value_width) * dtype.itemsize
    # What more a program has to hold for the backward or a threshold would not fit beside them.
    resident = bool(tile) and held <= tile["bytes"] and statistics is None and threshold == 0
    if resident:
        share = max(1, tile["programs"] // (instances * layout.heads))
        programs = min(cdiv(points, tile["rows"]), share)
    else:
        tile = tiles("attention", device, dtype, layout.widest)
        programs = cdiv(points, tile["rows"])
    launch(
        attention_kernel,
        (programs, instances * layout.heads * layout.value_chunks),
        {
            "q_ptr": queries,
            "k_ptr": keys,
            "v_ptr": values,
            "o_ptr": out,
            "lse_ptr": None if statistics is None else statistics.lse,
            "norm_ptr": None if statistics is None else statistics.norm,
            "tau": float(threshold),
            "points": points,
            "tokens": tokens,
            "q_points": 0 if shared else points,
            "q_stride": queries.stride(0),
            "q_head": 0 if one_query else layout.query_width,
            "o_stride": out.stride(0),
            "programs": programs,
        },
        {
            "HEADS": layout.heads,
            "ROWS": tile["rows"],
            "TOKENS": token_block(tile, all_tokens),
            "ALL_TOKENS": all_tokens,
            "QUERY_DIM": layout.query_dim,
            "QUERY_CHUNKS": layout.query_chunks,
            "VALUE_DIM": layout.value_dim,
            "VALUE_CHUNKS": layout.value_chunks,
            "THRESHOLD": threshold > 0,
            "STATISTICS": statistics is not None,
            "FULL": tokens == all_tokens,
            "RESIDENT": resident,
            "PRECISION": precision(dtype, device),
        },
        tile,
        device,
    )
