"""Calls of the kernels that run a whole narrow field."""

from __future__ import annotations

import torch
from torch import Tensor

from ginr_fast.ops.kernels.field_chain_kernels import (
    field_chain_backward_kernel,
    field_chain_kernel,
)
from ginr_fast.ops.kernels.field_layers import Encoded, FieldHead
from ginr_fast.ops.kernels.launch import cdiv, launch, precision, tiles


def chains(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether fields of a padded width have kernels that run them whole."""
    return width & (width - 1) == 0 and bool(tiles("field_chain", device, dtype, width))


def field_chain(
    below: Encoded,
    first: tuple[Tensor, Tensor],
    hidden: tuple[Tensor, Tensor],
    shape: tuple[int, int],
    *,
    activation: str,
    w0: float,
    y: Tensor | None = None,
    slope: Tensor | None = None,
    head: FieldHead | None = None,
) -> None:
    """The layers of a field for ``shape`` = (instances, points).

    ``first``: weight and bias as :func:`~ginr_fast.ops.kernels.field_layers.field_layer` takes
    them; ``hidden``: (instances, layers, width, width) and (instances, layers, width). ``y`` and
    ``slope`` take h and f' of every layer, (layers + 1, instances, points, width).
    """
    instances, count = shape
    weight, bias = hidden
    plain, width = below.frequency is None, weight.shape[-1]
    tile = tiles("field_chain" if y is None else "field_chain_saved", weight.device,
                 weight.dtype, width)  # fmt: skip
    launch(
        field_chain_kernel,
        (cdiv(count, tile["rows"]), instances),
        {
            "coords_ptr": below.coords,
            "frequency_ptr": below.frequency,
            "axis_ptr": below.axis,
            "first_ptr": first[0],
            "first_bias_ptr": first[1],
            "w_ptr": weight,
            "bias_ptr": bias,
            "head_ptr": None if head is None else head.weight,
            "head_bias_ptr": None if head is None else head.bias,
            "slope_ptr": slope,
            "y_ptr": y,
            "out_ptr": None if head is None else head.out,
            "count": count,
            "steps": weight.shape[1],
            "coords_batch_stride": below.batch_stride,
            "first_batch_stride": first[0].stride(0),
            "w_batch_stride": weight.stride(0),
            "bias_batch_stride": bias.stride(0),
            "out_batch_stride": 0 if head is None else head.out.stride(0),
            "w0": w0,
        },
        {
            "INPUT": "coordinates" if plain else "encoded",
            "COORDS": below.coord_dim,
            "PHASES": 0 if plain else first[0].shape[-1],
            "WIDTH": width,
            "OUT": 1 if head is None else head.out.shape[-1],
            "OUT_PADDED": 16 if head is None else head.weight.shape[1],
            "ROWS": tile["rows"],
            "STEP": tile["step"],
            "ACTIVATION": activation,
            "OUT_ACTIVATION": "none" if head is None else head.activation,
            "SAVE": slope is not None,
            "STORE": y is not None,
            "HEAD": "none" if head is None else "slope" if head.slope else "values",
            "PRECISION": precision(weight.dtype, weight.device),
        },
        tile,
        weight.device,
    )


def field_chain_backward(
    grad: Tensor, head: Tensor, weight: Tensor, saved: Tensor, out: Tensor, activation: str
) -> None:
    """δ of every layer but the last into ``out`` (layers + 1, instances, points, width).

    ``grad`` (instances, points, channels) float32 is that of the last layer, ``head`` its weight
    as packed, ``weight`` that of the hidden ones; ``saved``, shaped as ``out``, gives f'.
    """
    _, instances, count, width = out.shape
    tile = tiles("field_chain_backward", out.device, out.dtype, width)
    launch(
        field_chain_backward_kernel,
        (cdiv(count, tile["rows"]), instances),
        {
            "grad_ptr": grad,
            "head_ptr": head,
            "w_ptr": weight,
            "saved_ptr": saved,
            "out_ptr": out,
            "count": count,
            "steps": weight.shape[1],
            "w_batch_stride": weight.stride(0),
        },
        {
            "WIDTH": width,
            "OUT": grad.shape[-1],
            "OUT_PADDED": head.shape[1],
            "ROWS": tile["rows"],
            "ACTIVATION": activation,
            "PRECISION": precision(out.dtype, out.device),
        },
        tile,
        out.device,
    )
