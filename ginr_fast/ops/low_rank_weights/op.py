"""``low_rank_weights``: contract, checks, dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops import dispatch, triton_backend
from ginr_fast.ops.low_rank_weights import blocked, reference
from ginr_fast.ops.low_rank_weights.shared import row_count, shared_slots
from ginr_fast.ops.packed_weights import (
    check_like,
    check_sequence,
    check_spec,
    declare,
    in_stored_dtype,
)


def low_rank_weights(
    patterns: Tensor,
    mixing: Tensor,
    parameters: Sequence[Tensor],
    spec: FieldSpec,
    *,
    layer: int = 1,
    normalize: bool = False,
) -> Tensor:
    """The weights of B fields that differ in one layer, whose weight is a low-rank product.

    ``W_b = U V_b`` for that layer: V_b are R patterns of the instance, U mixes them into the rows
    of the weight and is shared, as every other parameter is. Source: instance pattern composers
    (IPC, arXiv 2211.13223), section 3.2.

    Args:
        patterns: V, ``(B, R, fan_in)``, a row a latent token; R is at least 1. float32, float64,
            float16 or bfloat16. Under autocast they may have a lower precision than ``mixing`` and
            are converted.
        mixing: U, ``(fan_out, R)``.
        parameters: one tensor a slot of ``spec.slots`` without the weight of ``layer`` (its bias is
            among them), in order, each of ``slot.shape``; dtype and device of ``mixing``.
        spec: the field; ``spec.layer_shapes[layer]`` is (fan_out, fan_in).
        layer: whose weight is the product, from 0.
        normalize: whether the rows of every layer's weight, of shared ones too, are brought to unit
            L2 length over the fan-in (‖·‖ at least 1e-12), the published ``normalize_weight``.

    Returns:
        Packed weights, ``(B, P)`` with P = ``spec.parameter_count``, in the dtype of ``mixing``.
        Differentiable any number of times in patterns, mixing and parameters; only the gradients
        asked for are computed. Sums of float16 and bfloat16 are accumulated in float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device, by name.
        BackendError: a forced backend cannot serve the call.

    Example:
        >>> import torch, ginr_fast
        >>> spec = ginr_fast.FieldSpec(coord_dim=2, out_dim=3, hidden_dim=16, hidden_layers=1)
        >>> patterns, mixing = torch.randn(8, 4, 16), torch.randn(16, 4)
        >>> slots = [slot for slot in spec.slots if (slot.layer, slot.kind) != (1, "weight")]
        >>> parameters = [torch.randn(slot.shape) for slot in slots]
        >>> ginr_fast.low_rank_weights(patterns, mixing, parameters, spec, layer=1).shape
        torch.Size([8, 371])
    """
    tensors = _checked(patterns, mixing, parameters, spec, layer, normalize)
    batch, rank, fan_in = tensors[0].shape
    first = tensors[0]
    reason = triton_backend.weights_refusal(spec, first.dtype, first.device)
    refused = triton_backend.order(first.device, reason)
    backend = dispatch.choose("low_rank_weights", refused)
    if dispatch.recording():
        flops = 2 * batch * tensors[1].shape[0] * rank * fan_in
        reasons = {name: reason for name, reason in refused.items() if reason is not None}
        dispatch.record(dispatch.Plan("low_rank_weights", backend, (), flops, flops, reasons))
    if backend == "reference":
        with torch.autocast(first.device.type, enabled=False):
            return reference.low_rank_weights(tensors, spec, layer, normalize)
    return _operator(tensors, spec, (layer, normalize), backend)


def _checked(
    patterns: object,
    mixing: object,
    parameters: object,
    spec: object,
    layer: object,
    normalize: object,
) -> list[Tensor]:
    """Patterns, mixing and parameters in one list."""
    spec = check_spec(spec)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise TypeError(f"layer: expected an integer, got {layer!r}")
    if not 0 <= layer < spec.layers:
        raise ValueError(f"layer: expected 0 to {spec.layers - 1}, got {layer}")
    if not isinstance(normalize, bool):
        raise TypeError(f"normalize: expected True or False, got {normalize!r}")
    fan_out, fan_in = spec.layer_shapes[layer]
    patterns = in_stored_dtype(patterns, mixing)
    first = check_like("patterns", patterns, ("B", "R", fan_in), None)
    rank = first.shape[1]
    if rank == 0:
        raise ValueError("patterns: expected at least one pattern, got R = 0")
    second = check_like("mixing", mixing, (fan_out, rank), first)
    slots = shared_slots(spec, layer)
    what = "one a slot but the weight of the layer"
    shared = check_sequence("parameters", parameters, len(slots), what)
    for index, slot in enumerate(slots):
        check_like(f"parameters[{index}]", shared[index], slot.shape, first)
    return [first, second, *shared]


def _backend(name: str) -> Any:
    if name == "triton":
        from ginr_fast.ops.low_rank_weights import kernels

        return kernels
    return blocked


_operator = declare(
    "low_rank_weights", "int layer, bool normalize", _backend, reference.low_rank_weights, row_count
)
