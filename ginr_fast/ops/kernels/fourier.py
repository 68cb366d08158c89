"""Fourier features on chip: γ(v) and ReLU(W γ(v) + b), and the features of a separable grid.

    γ(v) = [cos π x_p, sin π x_p],  x_p = ω_j v_i,  p = i·n + j,  P = c·n phases

A program owns a tile of coordinates. Phases live in registers only: for a chunk of phases it forms
x_p in float32 with the rounding error of the product kept (one fused multiply-add), reduces it to
[-1/4, 1/4] exactly, evaluates two short polynomials, and multiplies the cosines and sines straight
into the accumulator:  W γ = Σ_chunks cos(π x) W_cosᵀ + sin(π x) W_sinᵀ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ginr_fast.ops.kernels.launch import cdiv, kernel, launch, padded, precision, tiles
from ginr_fast.ops.kernels.layer_kernels import relu


@triton.jit
def sin_cos_half_turns(frequency, coordinate):
    """cos(π ω v) and sin(π ω v) in float32, good to a few ulp for |ω v| up to 2²²."""
    product = frequency * coordinate
    lost = tl.fma(frequency, coordinate, -product)  # what rounding the product threw away
    turns = tl.floor(product * 0.5 + 0.5)
    x = (product - 2.0 * turns) + lost  # [-1, 1]; the subtraction is exact
    quarter = tl.floor(2.0 * x + 0.5)
    x -= 0.5 * quarter  # [-1/4, 1/4]
    z = x * x
    # Taylor polynomials of sin πx and cos πx; the first term left out is below 3e-9 here.
    sine = 0.0821458866 * z - 0.5992645293
    sine = sine * z + 2.5501640399
    sine = sine * z - 5.1677127800
    sine = (sine * z + 3.1415926536) * x
    cosine = -0.0258068913 * z + 0.2353306304
    cosine = cosine * z - 1.3352627689
    cosine = cosine * z + 4.0587121264
    cosine = cosine * z - 4.9348022005
    cosine = cosine * z + 1.0
    odd = (quarter == 1.0) | (quarter == -1.0)
    first = tl.where(odd, sine, cosine)
    second = tl.where(odd, cosine, sine)
    # Signs by quarter turn: cos + at 0, − sin at 1, − at ±2, + sin at −1; sin likewise.
    flip_cosine = (quarter >= 1.0) | (quarter <= -2.0)
    flip_sine = (quarter <= -1.0) | (quarter >= 2.0)
    return tl.where(flip_cosine, -first, first), tl.where(flip_sine, -second, second)


@triton.jit
def _phases(coords_ptr, frequency_ptr, axis_ptr, rows, in_rows, phases, COORDS: tl.constexpr):
    """cos and sin of a tile of phases; a padded phase has frequency 0 (and zero weights)."""
    frequency = tl.load(frequency_ptr + phases)
    axis = tl.load(axis_ptr + phases)
    coordinate = tl.load(
        coords_ptr + rows[:, None] * COORDS + axis[None, :], mask=in_rows[:, None], other=0.0
    )
    return sin_cos_half_turns(frequency[None, :], coordinate)


@kernel
def fourier_linear_kernel(
    coords_ptr,
    frequency_ptr,
    axis_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    count,
    out_stride,
    COORDS: tl.constexpr,
    PHASES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = (ReLU)(W γ(v) + b); weight_ptr is (columns, 2, PHASES): cosine half, sine half."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, INNER)
    in_rows = rows < count
    weight = weight_ptr + columns[:, None] * (2 * PHASES) + inner[None, :]
    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, PHASES, INNER):
        cosine, sine = _phases(
            coords_ptr, frequency_ptr, axis_ptr, rows, in_rows, start + inner, COORDS
        )
        w_cosine = tl.load(weight + start)
        w_sine = tl.load(weight + PHASES + start)
        accumulator = tl.dot(
            cosine.to(w_cosine.dtype), w_cosine.T, accumulator, input_precision=PRECISION
        )
        accumulator = tl.dot(
            sine.to(w_sine.dtype), w_sine.T, accumulator, input_precision=PRECISION
        )
    accumulator += tl.load(bias_ptr + columns)[None, :]
    if RELU:
        accumulator = relu(accumulator)
    tl.store(
        out_ptr + rows[:, None] * out_stride + columns[None, :],
        accumulator.to(out_ptr.dtype.element_ty),
        mask=in_rows[:, None],
    )


@kernel
def fourier_kernel(
    coords_ptr,
    frequency_ptr,
    axis_ptr,
    out_ptr,
    count,
    PHASES: tl.constexpr,
    COORDS: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
):
    """γ(v) itself, (count, 2·PHASES), for the weight gradients."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    phases = tl.program_id(1) * INNER + tl.arange(0, INNER)
    in_rows = rows < count
    cosine, sine = _phases(coords_ptr, frequency_ptr, axis_ptr, rows, in_rows, phases, COORDS)
    target = out_ptr + rows[:, None] * (2 * PHASES) + phases[None, :]
    mask = in_rows[:, None] & (phases < PHASES)[None, :]
    tl.store(target, cosine.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(target + PHASES, sine.to(out_ptr.dtype.element_ty), mask=mask)


@kernel
def expand_grid_kernel(
    table_ptr,
    out_ptr,
    first,
    count,
    size_1,
    size_2,
    size_3,
    size_4,
    size_5,
    size_6,
    width,
    out_stride,
    AXES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RELU: tl.constexpr,
):
    """out[p] = (ReLU)(Σ_axis table_axis[index_axis(first + p)]): features of grid points.

    The tables of all axes lie one below the other, (Σ sizes, width); unused sizes are 1.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    line = first + rows
    base = size_1 + size_2 + size_3 + size_4 + size_5 + size_6 - (6 - AXES)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for back in tl.static_range(AXES):
        axis = AXES - 1 - back
        size = size_1
        if axis == 1:
            size = size_2
        if axis == 2:
            size = size_3
        if axis == 3:
            size = size_4
        if axis == 4:
            size = size_5
        if axis == 5:
            size = size_6
        base -= size
        index = base + line % size
        line = line // size
        total += tl.load(
            table_ptr + index[:, None] * width + columns[None, :], mask=mask, other=0.0
        ).to(tl.float32)
    if RELU:
        total = relu(total)
    tl.store(
        out_ptr + rows[:, None] * out_stride + columns[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=mask,
    )


def phase_table(frequencies: Tensor, coord_dim: int, multiple: int) -> tuple[Tensor, Tensor]:
    """Frequency and coordinate index of every phase p, padded with zeros: two ``(P,)``."""
    count = frequencies.shape[0]
    total = padded(coord_dim * count, multiple)
    frequency = frequencies.new_zeros(total, dtype=torch.float32)
    frequency[: coord_dim * count] = frequencies.float().repeat(coord_dim)
    axis = torch.zeros(total, dtype=torch.int32, device=frequencies.device)
    axis[: coord_dim * count] = torch.arange(
        coord_dim, dtype=torch.int32, device=frequencies.device
    ).repeat_interleave(count)
    return frequency, axis


class FourierLinear:
    """ReLU(W γ(v) + b) of one band, its operands packed once a call."""

    def __init__(
        self,
        frequencies: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        coord_dim: int,
        width: int,
        dtype: torch.dtype,
        relu: bool = True,
    ):
        device = weight.device
        self.tile = tiles("fourier_linear", device, dtype, width)
        self.coord_dim, self.dtype, self.relu = coord_dim, dtype, relu
        self.frequency, self.axis = phase_table(frequencies, coord_dim, self.tile["inner"])
        phases = coord_dim * frequencies.shape[0]
        self.phases = self.frequency.shape[0]
        self.weight = weight.new_zeros((width, 2, self.phases), dtype=dtype)
        self.weight[: weight.shape[0], :, :phases] = weight.unflatten(-1, (2, phases))
        self.bias = weight.new_zeros(width, dtype=torch.float32)
        if bias is not None:
            self.bias[: bias.shape[0]] = bias
        self.width = width

    def __call__(self, coords: Tensor, out: Tensor) -> None:
        """``(n, c)`` float32 coordinates into ``out`` (n, width), rows at any stride."""
        tile, count = self.tile, coords.shape[0]
        columns = min(tile["columns"], self.width & -self.width)
        launch(
            fourier_linear_kernel,
            (cdiv(count, tile["rows"]), self.width // columns),
            {
                "coords_ptr": coords,
                "frequency_ptr": self.frequency,
                "axis_ptr": self.axis,
                "weight_ptr": self.weight,
                "bias_ptr": self.bias,
                "out_ptr": out,
                "count": count,
                "out_stride": out.stride(0),
            },
            {
                "COORDS": self.coord_dim,
                "PHASES": self.phases,
                "ROWS": tile["rows"],
                "COLUMNS": columns,
                "INNER": tile["inner"],
                "RELU": self.relu,
                "PRECISION": precision(self.dtype, coords.device),
            },
            tile,
            coords.device,
        )


def encode(coords: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Tensor:
    """γ(v), ``(n, c)`` to ``(n, 2·c·n_frequencies)`` in ``dtype``, in one kernel."""
    count, coord_dim = coords.shape
    phases = coord_dim * frequencies.shape[0]
    tile = tiles("fourier", coords.device, dtype)
    frequency, axis = phase_table(frequencies, coord_dim, tile["inner"])
    out = torch.empty(count, 2 * phases, dtype=dtype, device=coords.device)
    launch(
        fourier_kernel,
        (cdiv(count, tile["rows"]), cdiv(phases, tile["inner"])),
        {
            "coords_ptr": coords.float().contiguous(),
            "frequency_ptr": frequency,
            "axis_ptr": axis,
            "out_ptr": out,
            "count": count,
        },
        {"PHASES": phases, "COORDS": coord_dim, "ROWS": tile["rows"], "INNER": tile["inner"]},
        tile,
        coords.device,
    )
    return out


def expand_grid(
    table: Tensor, shape: Sequence[int], first: int, count: int, out: Tensor, relu: bool = True
) -> None:
    """Rows ``first : first + count`` of the grid from the axis tables (Σ sizes, width)."""
    width = table.shape[1]
    tile = tiles("expand_grid", table.device, table.dtype)
    sizes = [*shape, *([1] * (6 - len(shape)))]
    launch(
        expand_grid_kernel,
        (cdiv(count, tile["rows"]), cdiv(width, tile["columns"])),
        {
            "table_ptr": table,
            "out_ptr": out,
            "first": first,
            "count": count,
            **{f"size_{axis + 1}": size for axis, size in enumerate(sizes)},
            "width": width,
            "out_stride": out.stride(0),
        },
        {"AXES": len(shape), "ROWS": tile["rows"], "COLUMNS": tile["columns"], "RELU": relu},
        tile,
        table.device,
    )
