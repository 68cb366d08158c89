"""Calls of the layer kernels: packed operands, padded widths, tile sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ginr_fast.ops.kernels.launch import cdiv, launch, padded, power_of_two, precision, tiles
from ginr_fast.ops.kernels.layer_backward_kernels import layer_backward_kernel
from ginr_fast.ops.kernels.layer_kernels import layer_kernel

WIDTH_MULTIPLE = 64


@dataclass
class Head:
    """A level's share of the output: W_out padded, the bias, and where o comes from and goes."""

    weight: Tensor
    """(out padded, width)."""
    bias: Tensor
    """(out padded,) float32; added by the last head."""
    partial: Tensor
    """(rows, out padded) float32."""
    out: Tensor
    """(instances, points, out), a view into the result."""
    first: bool
    last: bool


def pack_weight(weight: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """``weight`` in ``dtype``, padded with zeros to (rows, columns), contiguous."""
    if weight.shape == (rows, columns) and weight.dtype == dtype and weight.is_contiguous():
        return weight
    out = weight.new_zeros((rows, columns), dtype=dtype)
    out[: weight.shape[0], : weight.shape[1]] = weight
    return out


def pack_bias(bias: Tensor | None, width: int, like: Tensor) -> Tensor:
    """``bias`` in float32, padded with zeros to (width,)."""
    out = torch.zeros(width, dtype=torch.float32, device=like.device)
    if bias is not None:
        out[: bias.shape[0]] = bias
    return out


def padded_width(width: int) -> int:
    """Width of a layer as the kernels see it."""
    return padded(width, WIDTH_MULTIPLE)


def padded_out(out_dim: int) -> int:
    """Channels of the output as the tensor cores see them."""
    return power_of_two(out_dim)


def _columns(tile: dict[str, int], width: int) -> int:
    """The widest column chunk of the tile that divides a padded width."""
    columns = tile["columns"]
    while width % columns:
        columns //= 2
    return columns


@dataclass(frozen=True)
class _Shape:
    """How a layer is cut among programs."""

    tile: dict[str, int]
    columns: int
    step: int
    resident: bool
    programs: int
    """Programs along the rows."""


def _shape(kind: str, like: Tensor, rows: int, width: int, inner: int, out_dim: int) -> _Shape:
    """Cut a product of ``inner`` terms into ``width`` columns, a program taking all of them where
    a head of ``out_dim`` channels follows. W is kept resident where it fits."""
    device, dtype = like.device, like.dtype
    tile = tiles(f"resident_{kind}", device, dtype, width)
    if tile and inner > 0 and inner & (inner - 1) == 0 and width & (width - 1) == 0:
        columns = min(width, tile["columns"])
        held = (columns + tile["rows"] * tile["stages"]) * inner * dtype.itemsize
        fits = held <= tile["bytes"] and out_dim <= tile["channels"]
        if fits and (out_dim == 0 or columns == width):
            programs = min(cdiv(rows, tile["rows"]), max(1, tile["programs"] * columns // width))
            return _Shape(tile, columns, inner, True, programs)
    tile = tiles(kind, device, dtype, width)
    columns = _columns(tile, width)
    return _Shape(
        tile,
        columns,
        min(tile["step"], inner & -inner or tile["step"]),
        False,
        cdiv(rows, tile["rows"]),
    )


def layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    points: int,
    *,
    activation: str = "none",
    feature: Tensor | None = None,
    residual: Tensor | None = None,
    saved: Tensor | None = None,
    save_input: bool = False,
    y: Tensor | None = None,
    head: Head | None = None,
) -> None:
    """Forward of a layer on ``x`` (rows, inner); ``weight`` (width, inner) as packed.

    ``feature`` has a row for each row of x or for each of ``points``. Results go to ``y``,
    ``saved`` and the head's tensors; rows may have any stride.
    """
    count, (width, inner) = x.shape[0], weight.shape
    shape = _shape("layer", x, count, width, inner, 0 if head is None else head.out.shape[-1])
    tile, columns = shape.tile, shape.columns
    chunks = width // columns if head is not None else 1
    kind = "none"
    if feature is not None:
        kind = "own" if feature.shape[0] == count else "shared"
    launch(
        layer_kernel,
        (shape.programs, width // columns // chunks),
        {
            "x_ptr": x,
            "w_ptr": weight,
            "bias_ptr": bias,
            "feature_ptr": feature,
            "residual_ptr": residual,
            "saved_ptr": saved,
            "y_ptr": y,
            "head_ptr": None if head is None else head.weight,
            "head_bias_ptr": None if head is None else head.bias,
            "partial_ptr": None if head is None else head.partial,
            "out_ptr": None if head is None else head.out,
            "count": count,
            "points": points,
            "out_batch_stride": 0 if head is None else head.out.stride(0),
            "x_stride": x.stride(0),
            "feature_stride": 0 if feature is None else feature.stride(0),
            "residual_stride": 0 if residual is None else residual.stride(0),
            "saved_stride": 0 if saved is None else saved.stride(0),
            "y_stride": 0 if y is None else y.stride(0),
            "programs": shape.programs,
        },
        {
            "INNER": inner,
            "WIDTH": width,
            "OUT": 1 if head is None else head.out.shape[-1],
            "OUT_PADDED": 16 if head is None else head.weight.shape[0],
            "ROWS": tile["rows"],
            "COLUMNS": columns,
            "CHUNKS": chunks,
            "STEP": shape.step,
            "RESIDENT": shape.resident,
            "ACTIVATION": activation,
            "FEATURE": kind,
            "RESIDUAL": residual is not None,
            "SAVE": "none" if saved is None else "input" if save_input else "activated",
            "STORE": y is not None,
            "HEAD": head is not None,
            "FIRST": head is None or head.first,
            "LAST": head is not None and head.last,
            "PRECISION": precision(x.dtype, x.device),
        },
        tile,
        x.device,
    )


def layer_backward(
    count: int,
    points: int,
    width: int,
    *,
    g: Tensor | None = None,
    weight: Tensor | None = None,
    grad: Tensor | None = None,
    head: Tensor | None = None,
    a: Tensor | None = None,
    a_saved: Tensor | None = None,
    a_activation: str = "identity",
    b: Tensor | None = None,
    b_saved: Tensor | None = None,
    b_activation: str = "identity",
) -> None:
    """Backward of a layer: ``weight`` is Wᵀ as packed, (width, inner of g); results in a and b.

    ``grad`` (instances, points, out) with ``head`` (out, width) is the head's share of B.
    """
    some = a if a is not None else b
    assert some is not None
    inner = width if weight is None else weight.shape[1]
    shape = _shape("layer_backward", some, count, width, inner if g is not None else 0, 0)
    tile, columns = shape.tile, shape.columns

    def stride(tensor: Tensor | None) -> int:
        return 0 if tensor is None else tensor.stride(0)

    launch(
        layer_backward_kernel,
        (shape.programs, width // columns),
        {
            "g_ptr": g,
            "w_ptr": weight,
            "grad_ptr": grad,
            "head_ptr": head,
            "a_saved_ptr": a_saved,
            "b_saved_ptr": b_saved,
            "a_ptr": a,
            "b_ptr": b,
            "count": count,
            "points": points,
            "grad_batch_stride": stride(grad),
            "g_stride": stride(g),
            "a_saved_stride": stride(a_saved),
            "b_saved_stride": stride(b_saved),
            "a_stride": stride(a),
            "b_stride": stride(b),
            "programs": shape.programs,
        },
        {
            "INNER": inner,
            "WIDTH": width,
            "OUT": 1 if grad is None else grad.shape[-1],
            "ROWS": tile["rows"],
            "COLUMNS": columns,
            "STEP": shape.step,
            "RESIDENT": shape.resident,
            "PRODUCT": g is not None,
            "HEAD": grad is not None,
            "A": "none" if a is None else a_activation,
            "B": "none" if b is None else b_activation,
            "PRECISION": precision(some.dtype, some.device),
        },
        tile,
        some.device,
    )
