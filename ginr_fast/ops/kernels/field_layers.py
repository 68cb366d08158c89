"""Calls of the field kernels: which tile sizes, how a launch is cut among programs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ginr_fast.ops.kernels.field_backward_kernels import (
    field_backward_kernel,
    field_coords_kernel,
)
from ginr_fast.ops.kernels.field_layer_kernels import field_layer_kernel
from ginr_fast.ops.kernels.launch import cdiv, launch, power_of_two, precision, tiles


@dataclass(frozen=True)
class Encoded:
    """Coordinates of a span and how they enter the first layer."""

    coords: Tensor
    """(instances or 1, points, d) float32, rows contiguous; one set serves every instance."""
    frequency: Tensor | None
    """(2, phases): see ``fourier_features``; None where the coordinate itself enters."""
    axis: Tensor | None

    @property
    def batch_stride(self) -> int:
        return self.coords.stride(0) if self.coords.shape[0] > 1 else 0

    @property
    def coord_dim(self) -> int:
        return self.coords.shape[-1]


@dataclass(frozen=True)
class FieldHead:
    """The last layer: W_o (instances, out padded, width), its bias, and where o goes."""

    weight: Tensor
    bias: Tensor
    """(instances, out padded) float32."""
    out: Tensor
    """(instances, points, out), rows contiguous."""
    activation: str
    slope: bool = False
    """Whether f_out' is wanted in place of f_out."""


@dataclass(frozen=True)
class _Cut:
    """How a layer is cut among programs."""

    tile: dict[str, int]
    columns: int
    step: int
    resident: bool
    programs: int
    """Programs along the rows of an instance."""


def _cut(
    kind: str, like: Tensor, shape: tuple[int, int], width: int, inner: int, channels: int
) -> _Cut:
    """Cut a product of ``inner`` terms into ``width`` columns for ``shape`` (instances, rows); a
    program takes all columns where a head of ``channels`` follows. W is kept where it fits."""
    instances, rows = shape
    tile = tiles(f"resident_{kind}", like.device, like.dtype, width) if inner else {}
    if tile and inner & (inner - 1) == 0 and width & (width - 1) == 0:
        columns = min(width, tile["columns"])
        held = (columns + tile["rows"] * tile["stages"]) * inner * like.element_size()
        fits = held <= tile["bytes"] and channels <= tile["channels"]
        if fits and (channels == 0 or columns == width):
            share = max(1, tile["programs"] * columns // width // instances)
            return _Cut(tile, columns, inner, True, min(cdiv(rows, tile["rows"]), share))
    tile = tiles(kind, like.device, like.dtype, width)
    columns = tile["columns"]
    while width % columns:
        columns //= 2
    step = min(tile["step"], inner & -inner) if inner else tile.get("step", 16)
    return _Cut(tile, columns, step, False, cdiv(rows, tile["rows"]))


def field_layer(
    below: Tensor | Encoded,
    weight: Tensor,
    bias: Tensor,
    shape: tuple[int, int],
    *,
    activation: str,
    w0: float,
    y: Tensor | None = None,
    slope: Tensor | None = None,
    head: FieldHead | None = None,
) -> None:
    """A layer of ``shape`` = (instances, points).

    ``below``: activations (instances, points, inner) contiguous, or the coordinates. ``weight``:
    (instances, width, inner) for activations; (instances, width, 2, phases) for encoded ones;
    (instances, d, width) float32 for plain ones; ``bias`` (instances, width) float32. ``y`` and
    ``slope``: (instances, points, width) contiguous; ``slope`` takes f'.
    """
    instances, count = shape
    plain = isinstance(below, Encoded) and below.frequency is None
    width = weight.shape[2 if plain else 1]
    inner = 0 if isinstance(below, Encoded) else below.shape[-1]
    some = next(t for t in (y, None if head is None else head.weight) if t is not None)
    channels = 0 if head is None else head.out.shape[-1]
    kind = "field_input" if isinstance(below, Encoded) else "field_layer"
    if isinstance(below, Encoded) and not plain and slope is None:
        kind = "field_encoded"  # wide tiles form every phase once; slopes leave no registers
    cut = _cut(kind, some, shape, width, inner, channels)
    chunks = width // cut.columns if head is not None else 1
    encoded = below if isinstance(below, Encoded) else None
    launch(
        field_layer_kernel,
        (cut.programs, width // cut.columns // chunks, instances),
        {
            "x_ptr": None if encoded is not None else below,
            "coords_ptr": None if encoded is None else encoded.coords,
            "frequency_ptr": None if encoded is None else encoded.frequency,
            "axis_ptr": None if encoded is None else encoded.axis,
            "w_ptr": weight,
            "bias_ptr": bias,
            "slope_ptr": slope,
            "y_ptr": y,
            "head_ptr": None if head is None else head.weight,
            "head_bias_ptr": None if head is None else head.bias,
            "out_ptr": None if head is None else head.out,
            "count": count,
            "coords_batch_stride": 0 if encoded is None else encoded.batch_stride,
            "w_batch_stride": weight.stride(0),
            "bias_batch_stride": bias.stride(0),
            "out_batch_stride": 0 if head is None else head.out.stride(0),
            "w0": w0,
            "programs": cut.programs,
        },
        {
            "INPUT": "layer" if encoded is None else "coordinates" if plain else "encoded",
            "COORDS": 1 if encoded is None else encoded.coord_dim,
            "PHASES": weight.shape[-1] if encoded is not None and not plain else 0,
            "INNER": max(inner, 1),
            "WIDTH": width,
            "OUT": max(channels, 1),
            "OUT_PADDED": 16 if head is None else head.weight.shape[1],
            "ROWS": cut.tile["rows"],
            "COLUMNS": cut.columns,
            "CHUNKS": chunks,
            "STEP": cut.step,
            "ACTIVATION": activation,
            "OUT_ACTIVATION": "none" if head is None else head.activation,
            "SAVE": slope is not None,
            "STORE": y is not None,
            "HEAD": "none" if head is None else "slope" if head.slope else "values",
            "RESIDENT": cut.resident,
            "PRECISION": precision(some.dtype, some.device),
        },
        cut.tile,
        some.device,
    )


def field_backward(
    out: Tensor,
    *,
    above: Tensor | None = None,
    weight: Tensor | None = None,
    grad: Tensor | None = None,
    head: Tensor | None = None,
    saved: Tensor | None = None,
    activation: str,
) -> None:
    """δ of a layer into ``out`` (instances, points, width), contiguous.

    From ``above`` (instances, points, inner) and ``weight``, Wᵀ of the layer above (instances,
    width, inner); or from ``grad`` (instances, points, channels) float32 and ``head`` (instances,
    out padded, width). ``saved`` gives f': see ``field_backward_kernel``.
    """
    instances, count, width = out.shape
    inner = 0 if above is None else above.shape[-1]
    kind = "field_backward" if above is not None else "field_head_backward"
    cut = _cut(kind, out, (instances, count), width, inner, 0)
    launch(
        field_backward_kernel,
        (cut.programs, width // cut.columns, instances),
        {
            "g_ptr": above,
            "w_ptr": weight,
            "grad_ptr": grad,
            "head_ptr": head,
            "saved_ptr": saved,
            "out_ptr": out,
            "count": count,
            "w_batch_stride": 0 if weight is None else weight.stride(0),
            "programs": cut.programs,
        },
        {
            "INNER": max(inner, 1),
            "WIDTH": width,
            "OUT": 1 if grad is None else grad.shape[-1],
            "OUT_PADDED": 16 if head is None else head.shape[1],
            "ROWS": cut.tile["rows"],
            "COLUMNS": cut.columns,
            "STEP": cut.step,
            "HEAD": grad is not None,
            "ACTIVATION": activation,
            "RESIDENT": cut.resident,
            "PRECISION": precision(out.dtype, out.device),
        },
        cut.tile,
        out.device,
    )


def field_coords(g: Tensor, encoded: Encoded, weight: Tensor) -> Tensor:
    """∂v, (instances, points, d) float32, from δ of the first layer; ``weight`` as packed,
    (instances, width, 2, phases)."""
    instances, count, width = g.shape
    tile = tiles("field_coords", g.device, g.dtype, width)
    out = torch.empty(instances, count, encoded.coord_dim, device=g.device)
    launch(
        field_coords_kernel,
        (cdiv(count, tile["rows"]), instances),
        {
            "g_ptr": g,
            "coords_ptr": encoded.coords,
            "frequency_ptr": encoded.frequency,
            "axis_ptr": encoded.axis,
            "w_ptr": weight,
            "out_ptr": out,
            "count": count,
            "coords_batch_stride": encoded.batch_stride,
            "w_batch_stride": weight.stride(0),
        },
        {
            "COORDS": encoded.coord_dim,
            "COORDS_PADDED": power_of_two(encoded.coord_dim, 1),
            "PHASES": weight.shape[-1],
            "WIDTH": width,
            "ROWS": tile["rows"],
            "STEP": min(tile["step"], width & -width),
            "INNER": tile["inner"],
            "PRECISION": precision(g.dtype, g.device),
        },
        tile,
        g.device,
    )
    return out
