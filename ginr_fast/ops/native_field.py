"""The compiled extension's door for fields: their evaluation and their rendering."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ginr_fast import _C
from ginr_fast.fields import FieldSpec
from ginr_fast.ops import native_cuda

_ACTIVATIONS = {"none": 0, "relu": 1, "sine": 2}
# float16 and bfloat16 weights are computed in float32, but for the forward of bfloat16 fields
# without sines where the processor multiplies bfloat16.
_CPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def refusal(spec: FieldSpec, batch: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the extension cannot evaluate fields of a spec, or None if it can.

    Args:
        spec: what the fields are.
        batch: how many.
        dtype: of their weights.
        device: of the same.
    """
    if spec.view_dim:
        return "it serves fields without a view branch"
    if device.type == "cpu":
        return cpu_refusal(dtype)
    return native_cuda.field_refusal(spec, field(spec), batch, dtype, device)


def cpu_refusal(dtype: torch.dtype) -> str | None:
    """Why the CPU kernels cannot serve weights of a dtype, or None if they can."""
    if dtype in _CPU_DTYPES:
        return None
    return f"it serves float32, float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"


@functools.lru_cache(maxsize=64)
def field(spec: FieldSpec) -> _C.Field:
    """The extension's description of a field."""
    return _C.Field(
        coord_dim=spec.coord_dim,
        out_dim=spec.out_dim,
        width=spec.hidden_dim,
        hidden_layers=spec.hidden_layers,
        activation=_ACTIVATIONS[spec.activation],
        out_activation=_ACTIVATIONS[spec.out_activation],
        w0=spec.w0,
        bias=spec.bias,
        frequencies=[] if spec.encoding is None else list(spec.encoding.frequencies),
    )


# Axes of a grid that the CPU kernels take, and the fewest points that repay the tables.
_GRID_DIMS = (2, 3, 4)
_SHORTEST_LAST_AXIS = 16
_LONGEST_AXES = 1 << 14
_POINTS_PER_PLACE = 8


def takes_grid(spec: FieldSpec, grid: Sequence[int], weights: Tensor) -> bool:
    """Whether the first layer is faster as a sum of tables, one an axis of a grid.

    Args:
        spec: what the fields are.
        grid: how many places each axis has.
        weights: of the fields.
    """
    return (
        spec.encoding is not None
        and weights.device.type == "cpu"
        and not _takes_bfloat16(spec, weights.dtype)
        and len(grid) in _GRID_DIMS
        and grid[-1] >= _SHORTEST_LAST_AXIS
        and sum(grid) <= min(_LONGEST_AXES, math.prod(grid) // _POINTS_PER_PLACE)
    )


def _takes_bfloat16(spec: FieldSpec, dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and "sine" not in (spec.activation, spec.out_activation)


def plain(tensor: Tensor) -> Tensor:
    """As the extension takes it: float32 and contiguous."""
    return tensor.float().contiguous()


def address(tensor: Tensor | None) -> int:
    """Where a tensor's numbers are; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def forward(coords: Tensor, weights: Tensor, spec: FieldSpec, grid: Sequence[int] = ()) -> Tensor:
    """``(B or 1, N, d)`` and ``(B, P)`` to ``(B, N, out)``, none of them empty; for a ``grid`` that
    :func:`takes_grid`, the coordinates are its axes, one after the other."""
    if weights.is_cuda:
        return native_cuda.field_forward(coords, weights, spec, field(spec))
    dtype = weights.dtype
    coords = plain(coords)
    batch, count, shared = weights.shape[0], *_points(coords, weights, spec, grid)
    threads = torch.get_num_threads()
    if _takes_bfloat16(spec, dtype):
        weights = weights.contiguous()
        out = weights.new_empty(batch, count, spec.out_dim)
        where = address(weights), address(coords), address(out)
        if _C.field_mlp_cpu_bfloat16(field(spec), batch, count, shared, *where, threads):
            return out
    weights = plain(weights)
    out = weights.new_empty(batch, count, spec.out_dim)
    where = address(weights), address(coords), address(out)
    _C.field_mlp_cpu_float32(field(spec), batch, count, shared, list(grid), *where, threads)
    return out.to(dtype)


def _points(
    coords: Tensor, weights: Tensor, spec: FieldSpec, grid: Sequence[int]
) -> tuple[int, bool]:
    """How many points an instance has, and whether all share them."""
    if grid:
        if coords.numel() != sum(grid) or not takes_grid(spec, grid, weights):
            raise ValueError(
                "grid: expected one that takes_grid, and its axes, one after the other"
            )
        return math.prod(grid), True
    return coords.shape[1], coords.shape[0] < weights.shape[0]


def backward(
    grad: Tensor,
    coords: Tensor,
    weights: Tensor,
    spec: FieldSpec,
    needed: Sequence[str],
    grid: Sequence[int] = (),
) -> dict[str, Tensor]:
    """Gradients for those of ``coords`` and ``weights`` that are needed; nothing is empty. A
    ``grid`` as for :func:`forward`; then those of the weights alone can be had."""
    if weights.is_cuda:
        return native_cuda.field_backward(grad, coords, weights, spec, field(spec), needed)
    batch, count, shared = weights.shape[0], *_points(coords, weights, spec, grid)
    if grid and "coords" in needed:
        raise ValueError("coords: expected points where their gradient is asked for, got a grid")
    grad, coords, weights = plain(grad), plain(coords), plain(weights)
    grads = {}
    if "weights" in needed:
        grads["weights"] = torch.empty_like(weights)
    if "coords" in needed:
        grads["coords"] = coords.new_empty(batch, count, spec.coord_dim)
    _C.field_mlp_backward_cpu_float32(
        field(spec),
        batch,
        count,
        shared,
        list(grid),
        address(weights),
        address(coords),
        address(grad),
        address(grads.get("weights")),
        address(grads.get("coords")),
        torch.get_num_threads(),
    )
    if shared and "coords" in needed:
        grads["coords"] = grads["coords"].sum(0, keepdim=True)
    return grads


def second(
    along: Tensor, grad: Tensor, coords: Tensor, weights: Tensor, spec: FieldSpec
) -> tuple[Tensor, Tensor]:
    """The gradient of Σ along · ∂weights, in ``grad`` and in ``weights``; on a CPU."""
    shared = coords.shape[0] < weights.shape[0]
    along, grad, coords, weights = plain(along), plain(grad), plain(coords), plain(weights)
    grad_grad, grad_weights = torch.empty_like(grad), torch.empty_like(weights)
    _C.field_mlp_second_cpu_float32(
        field(spec),
        weights.shape[0],
        coords.shape[1],
        shared,
        address(weights),
        address(along),
        address(coords),
        address(grad),
        address(grad_grad),
        address(grad_weights),
        torch.get_num_threads(),
    )
    return grad_grad, grad_weights
