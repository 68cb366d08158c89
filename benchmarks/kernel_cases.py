"""Paper-size problems whose kernels are compiled ahead of time and bounded.

A case runs the forward or backward of a token decoder, of fields or of what makes their weights on
tensors without memory, at the sizes a user's call has, so that what is recorded is exactly what a
GPU would run.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

import ginr_fast
from ginr_fast.ops.anr_decode import kernels as anr_kernels
from ginr_fast.ops.anr_decode import op as anr_op
from ginr_fast.ops.field_mlp import kernels as field_kernels
from ginr_fast.ops.group_weights import kernels as group_kernels
from ginr_fast.ops.locality_decode import kernels as locality_kernels
from ginr_fast.ops.locality_decode import op as locality_op
from ginr_fast.ops.locality_decode import plan as locality_plan
from ginr_fast.ops.low_rank_weights import kernels as low_rank_kernels

PARTS = ("forward", "backward", "backward of tokens")
FIELD_GRADIENTS = {
    "backward": ["weights"],
    "backward with coordinates": ["weights", "coords"],
}
Case = Callable[[], None]
TOKENS = ("keys", "values")
_BUFFERS = ("frequencies", "query_frequencies", "band_frequencies")


def _meta(decoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``decoder`` without memory, its parameters in ``dtype``."""
    return decoder.to("meta").to(dtype)


def _coordinates(points: int | tuple[int, ...], coord_dim: int) -> tuple[torch.Tensor, list[int]]:
    """What the operators pass on: points shared by the batch, or the axes of a grid."""
    if isinstance(points, int):
        return torch.empty(1, points, coord_dim, device="meta"), []
    return torch.empty(sum(points), device="meta"), list(points)


def locality(
    points: int | tuple[int, ...],
    batch: int,
    dtype: torch.dtype = torch.bfloat16,
    part: str = "forward",
    tokens: int = 256,
    **sizes: Any,
) -> None:
    """LA-GINR: ``points`` coordinates shared by the batch, or a grid of that shape.

    ``part``: one of ``PARTS``; the last one is the backward where only the latents are fitted.
    """
    with torch.no_grad():
        decoder = ginr_fast.LocalityAwareDecoder(**sizes)
        frequencies = decoder.query_frequencies, decoder.band_frequencies
        _meta(decoder, dtype)
        latents = torch.empty(batch, tokens, decoder.token_dim, dtype=dtype, device="meta")
        keys, values = decoder.keys_and_values(latents)
        weights = decoder.weights()._replace(
            query_frequencies=frequencies[0].to("meta"), band_frequencies=frequencies[1].to("meta")
        )
        nothing_more = locality_plan.Foldings(keys=False, values=False)
        keys, values, bias, weights = locality_op.fold(keys, values, weights, nothing_more)
        coords, grid_shape = _coordinates(points, decoder.coord_dim)
        arguments = (coords, grid_shape, keys, values, bias, weights, decoder.modulation_relu)
        _run(locality_kernels, part, arguments, keys, weights)


def anr(
    points: int | tuple[int, ...],
    batch: int,
    dtype: torch.dtype = torch.bfloat16,
    part: str = "forward",
    tokens: int = 256,
    **sizes: Any,
) -> None:
    """ANR, by default as published; arguments as those of :func:`locality`."""
    with torch.no_grad():
        decoder = ginr_fast.AnrDecoder(**sizes)
        frequencies = decoder.frequencies
        _meta(decoder, dtype)
        latents = torch.empty(batch, tokens, decoder.token_dim, dtype=dtype, device="meta")
        keys, values = decoder.keys_and_values(latents)
        weights = anr_op.fold(decoder.weights()._replace(frequencies=frequencies.to("meta")))
        coords, grid_shape = _coordinates(points, decoder.coord_dim)
        settings = (decoder.threshold, decoder.activation)
        arguments = (coords, grid_shape, keys, values, weights, *settings)
        _run(anr_kernels, part, arguments, keys, weights)


def field(
    spec: ginr_fast.FieldSpec,
    points: int,
    batch: int,
    dtype: torch.dtype = torch.bfloat16,
    part: str = "forward",
    shared: bool = False,
) -> None:
    """Fields at ``points`` coordinates each, or shared; ``part``: "forward" or one of
    ``FIELD_GRADIENTS``."""
    if part not in ("forward", *FIELD_GRADIENTS):
        raise ValueError(f"part: expected forward or one of {list(FIELD_GRADIENTS)}, got {part!r}")
    coords = torch.empty(1 if shared else batch, points, spec.coord_dim, device="meta")
    weights = torch.empty(batch, spec.parameter_count, dtype=dtype, device="meta")
    with torch.no_grad():
        if part == "forward":
            field_kernels.forward(coords, weights, spec)
        else:
            grad = weights.new_empty(batch, points, spec.out_dim)
            field_kernels.backward(grad, coords, weights, spec, FIELD_GRADIENTS[part])


def group_weights(
    spec: ginr_fast.FieldSpec,
    batch: int,
    groups: int,
    dtype: torch.dtype = torch.float32,
    part: str = "forward",
) -> None:
    """TransINR's weights, ``groups`` a layer or as many as it has rows; ``part``: one of
    ``WEIGHT_PARTS``."""
    shapes = spec.layer_shapes
    _weights(
        group_kernels,
        [
            *((batch, min(groups, fan_out), fan_in) for fan_out, fan_in in shapes),
            *shapes,
            *((fan_out,) for fan_out, _ in shapes),
        ],
        (spec, "blocks"),
        sum(fan_out for fan_out, _ in shapes),
        dtype,
        part,
    )


def low_rank_weights(
    spec: ginr_fast.FieldSpec,
    batch: int,
    rank: int,
    dtype: torch.dtype = torch.float32,
    part: str = "forward",
) -> None:
    """IPC's weights, rows normalised, the second layer a product of rank ``rank``; ``part`` as for
    :func:`group_weights`."""
    fan_out, fan_in = spec.layer_shapes[1]
    shared = [slot.shape for slot in spec.slots if (slot.layer, slot.kind) != (1, "weight")]
    shapes = [(batch, rank, fan_in), (fan_out, rank), *shared]
    _weights(low_rank_kernels, shapes, (spec, 1, True), fan_out, dtype, part)


def _weights(
    kernels: ModuleType,
    shapes: Sequence[tuple[int, ...]],
    settings: tuple,
    rows: int,
    dtype: torch.dtype,
    part: str,
) -> None:
    """A part of a call of an operator that makes packed weights and normalises ``rows`` rows."""
    if part not in WEIGHT_PARTS:
        raise ValueError(f"part: expected one of {', '.join(WEIGHT_PARTS)}, got {part!r}")
    tensors = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
    with torch.no_grad():
        if part == "forward":
            kernels.forward(tensors, *settings)
            return
        batch, spec = shapes[0][0], settings[0]
        packed = torch.empty(batch, spec.parameter_count, dtype=dtype, device="meta")
        lengths = torch.empty(batch, rows, device="meta")
        wanted = range(len(tensors))
        kernels.backward(torch.empty_like(packed), tensors, packed, lengths, wanted, *settings)


def _run(
    kernels: ModuleType, part: str, arguments: tuple, keys: torch.Tensor, weights: Any
) -> None:
    """A part of a call of an operator's Triton backend."""
    if part not in PARTS:
        raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
    if part == "forward":
        kernels.forward(*arguments)
        return
    coords, grid_shape = arguments[:2]
    points = math.prod(grid_shape) if grid_shape else coords.shape[1]
    grad = keys.new_empty(keys.shape[0], points, weights.out_dim)
    needed = TOKENS if part == "backward of tokens" else (*TOKENS, *_gradients(weights))
    kernels.backward(grad, *arguments, needed)


def _gradients(weights: Any) -> list[str]:
    """The parameters that are there and are learnt."""
    named = weights._asdict()
    return [name for name, tensor in named.items() if tensor is not None and name not in _BUFFERS]


def _parts(name: str, run: Callable[..., None], parts: Sequence[str]) -> dict[str, Case]:
    return {f"{name}, {part}": functools.partial(run, part=part) for part in parts}


# TransINR's images; its radiance fields, and those of INRCT; mNIF's larger network; SIREN.
TRANS_INR_IMAGE = ginr_fast.FieldSpec(
    coord_dim=2,
    out_dim=3,
    hidden_dim=256,
    hidden_layers=3,
    encoding=ginr_fast.FourierEncoding.log_spaced(64, 1024.0),
)
RADIANCE_FIELD = ginr_fast.FieldSpec(
    coord_dim=3,
    out_dim=4,
    hidden_dim=256,
    hidden_layers=4,
    encoding=ginr_fast.FourierEncoding.log_spaced(20, 256.0, scale=1.0),
)
MNIF_LARGE = ginr_fast.FieldSpec(
    coord_dim=2,
    out_dim=3,
    hidden_dim=128,
    hidden_layers=5,
    activation="sine",
    out_activation="sine",
)
SIREN = ginr_fast.FieldSpec(2, 3, hidden_dim=256, hidden_layers=3, activation="sine")
FIELD_PARTS = ("forward", *FIELD_GRADIENTS)
WEIGHT_PARTS = ("forward", "backward")

CASES: dict[str, Case] = {
    **_parts(
        "LA-GINR, 178², batch 16, bf16", functools.partial(locality, 178 * 178, batch=16), PARTS
    ),
    **_parts(
        "LA-GINR, grid of 256², batch 16, bf16",
        functools.partial(locality, (256, 256), batch=16),
        PARTS[:1],
    ),
    **_parts(
        "LA-GINR, 256², batch 16, float32",
        functools.partial(locality, 256 * 256, batch=16, dtype=torch.float32),
        PARTS[1:2],
    ),
    **_parts(
        "LA-GINR, 8 heads, 256², batch 16, bf16",
        functools.partial(locality, 256 * 256, batch=16, heads=8),
        PARTS[1:2],
    ),
    **_parts(
        "LA-GINR, light field of 128², batch 32, bf16",
        functools.partial(locality, 128 * 128, batch=32, coord_dim=6),
        PARTS[1:2],
    ),
    **_parts("ANR, 128², batch 16, bf16", functools.partial(anr, 128 * 128, batch=16), PARTS[:2]),
    **_parts(
        "ANR with Mish, 128², batch 16, bf16",
        functools.partial(anr, 128 * 128, batch=16, activation="mish"),
        PARTS[1:2],
    ),
    **_parts(
        "TransINR field, 178², batch 4, bf16",
        functools.partial(field, TRANS_INR_IMAGE, 178 * 178, batch=4, shared=True),
        FIELD_PARTS[:2],
    ),
    **_parts(
        "TransINR field, 178², batch 4, float32",
        functools.partial(
            field, TRANS_INR_IMAGE, 178 * 178, batch=4, shared=True, dtype=torch.float32
        ),
        FIELD_PARTS[:2],
    ),
    **_parts(
        "radiance field of TransINR and INRCT, 128 × 128 samples, batch 4, bf16",
        functools.partial(field, RADIANCE_FIELD, 128 * 128, batch=4),
        FIELD_PARTS[::2],
    ),
    **_parts(
        "field of width 512, 128², batch 4, bf16",
        functools.partial(
            field, dataclasses.replace(TRANS_INR_IMAGE, hidden_dim=512), 128 * 128, 4
        ),
        FIELD_PARTS[1:2],
    ),
    **_parts(
        "SIREN of width 256, 178², batch 4, fp16",
        functools.partial(field, SIREN, 178 * 178, 4, torch.float16, shared=True),
        FIELD_PARTS[1:2],
    ),
    **_parts(
        "mNIF (L), 64², batch 32, fp16",
        functools.partial(field, MNIF_LARGE, 64 * 64, 32, torch.float16, shared=True),
        FIELD_PARTS[:2],
    ),
    **_parts(
        "mNIF (L), 64², batch 32, float32",
        functools.partial(field, MNIF_LARGE, 64 * 64, 32, torch.float32),
        FIELD_PARTS[2:],
    ),
    **_parts(
        "TransINR weights, batch 4, float32",
        functools.partial(group_weights, TRANS_INR_IMAGE, batch=4, groups=64),
        WEIGHT_PARTS,
    ),
    **_parts(
        "IPC weights of rank 256, batch 16, float32",
        functools.partial(low_rank_weights, TRANS_INR_IMAGE, batch=16, rank=256),
        WEIGHT_PARTS,
    ),
    **_parts(
        "IPC weights of rank 256, batch 16, bf16",
        functools.partial(
            low_rank_weights, TRANS_INR_IMAGE, batch=16, rank=256, dtype=torch.bfloat16
        ),
        WEIGHT_PARTS[:1],
    ),
}
"""What is compiled, by name. The name is part of the stored tables."""
