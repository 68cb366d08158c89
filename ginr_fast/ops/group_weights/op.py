"""``group_weights``: contract, checks, dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops import dispatch, triton_backend
from ginr_fast.ops.group_weights import blocked, reference
from ginr_fast.ops.group_weights.layers import row_count
from ginr_fast.ops.packed_weights import (
    check_like,
    check_sequence,
    check_spec,
    declare,
    in_stored_dtype,
)

Layout = Literal["blocks", "tiled"]


def group_weights(
    groups: Sequence[Tensor],
    bases: Sequence[Tensor],
    spec: FieldSpec,
    *,
    biases: Sequence[Tensor] | None = None,
    layout: Layout = "blocks",
) -> Tensor:
    """The weights of B fields from one vector for each group of rows of every layer.

    Row i of a layer's W, the fan_in weights of one of its fan_out neurons, is
    ``w_i = normalize(u_{g(i)} · w̄_i)``: the vector of its group, times a base that all instances
    share, at unit L2 length (‖·‖ at least 1e-12). Biases are shared too. Source: TransINR
    (arXiv 2208.02801), section 3.4.

    Args:
        groups: u, one tensor a layer, ``(B, G_l, fan_in_l)``; G_l divides fan_out_l and may differ
            from layer to layer. float32, float64, float16 or bfloat16. Under autocast they may have
            a lower precision than ``bases`` and are converted.
        bases: w̄, one tensor a layer, ``(fan_out_l, fan_in_l)``; one dtype and device.
        spec: the field; its ``layer_shapes`` are ``(fan_out_l, fan_in_l)``.
        biases: one tensor a layer, ``(fan_out_l,)``; if and only if ``spec.bias``.
        layout: which rows share a group: ``"blocks"``, g(i) = ⌊i / (fan_out/G)⌋, as in the paper;
            ``"tiled"``, g(i) = i mod G, as in the published code and its checkpoints.

    Returns:
        Packed weights, ``(B, P)`` with P = ``spec.parameter_count``, in the dtype of ``bases``.
        Differentiable any number of times in groups, bases and biases; only the gradients asked for
        are computed. float16 and bfloat16 are computed in float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device, by name.
        BackendError: a forced backend cannot serve the call.

    Example:
        >>> import torch, ginr_fast
        >>> spec = ginr_fast.FieldSpec(coord_dim=2, out_dim=3, hidden_dim=16, hidden_layers=1)
        >>> groups = [torch.randn(8, 1, fan_in) for _, fan_in in spec.layer_shapes]
        >>> bases = [torch.randn(shape) for shape in spec.layer_shapes]
        >>> biases = [torch.zeros(fan_out) for fan_out, _ in spec.layer_shapes]
        >>> ginr_fast.group_weights(groups, bases, spec, biases=biases).shape
        torch.Size([8, 371])
    """
    tensors = _checked(groups, bases, spec, biases)
    if layout not in get_args(Layout):
        choices = ", ".join(get_args(Layout))
        raise ValueError(f"layout: expected one of {choices}, got {layout!r}")
    first = tensors[0]
    reason = triton_backend.weights_refusal(spec, first.dtype, first.device)
    refused = triton_backend.order(first.device, reason)
    backend = dispatch.choose("group_weights", refused)
    if dispatch.recording():
        # A product, its square and sum, a division.
        weights = sum(fan_out * fan_in for fan_out, fan_in in spec.layer_shapes)
        flops = 4 * first.shape[0] * weights
        reasons = {name: reason for name, reason in refused.items() if reason is not None}
        dispatch.record(dispatch.Plan("group_weights", backend, (), flops, flops, reasons))
    if backend == "reference":
        with torch.autocast(first.device.type, enabled=False):
            return reference.group_weights(tensors, spec, layout)
    return _operator(tensors, spec, (layout,), backend)


def _checked(groups: object, bases: object, spec: object, biases: object) -> list[Tensor]:
    """Groups, bases and biases in one list."""
    spec = check_spec(spec)
    count = spec.layers
    groups = check_sequence("groups", groups, count, "one a layer")
    bases = check_sequence("bases", bases, count, "one a layer")
    if spec.bias and biases is None:
        raise ValueError(f"biases: expected {count} tensors, as the spec has biases, got None")
    if not spec.bias and biases is not None:
        raise ValueError("biases: expected None, as the spec has no biases")
    shared = [] if biases is None else check_sequence("biases", biases, count, "one a layer")
    groups = [in_stored_dtype(group, base) for group, base in zip(groups, bases, strict=True)]
    first: Tensor | None = None
    for layer, (fan_out, fan_in) in enumerate(spec.layer_shapes):
        batch: Any = "B" if first is None else first.shape[0]
        group = check_like(f"groups[{layer}]", groups[layer], (batch, "G", fan_in), first)
        first = group if first is None else first
        if group.shape[1] == 0 or fan_out % group.shape[1]:
            raise ValueError(
                f"groups[{layer}]: expected a number of groups that divides the {fan_out} rows of "
                f"the layer, got {group.shape[1]}"
            )
        check_like(f"bases[{layer}]", bases[layer], (fan_out, fan_in), first)
        if spec.bias:
            check_like(f"biases[{layer}]", shared[layer], (fan_out,), first)
    return [*groups, *bases, *shared]


def _backend(name: str) -> Any:
    if name == "triton":
        from ginr_fast.ops.group_weights import kernels

        return kernels
    return blocked


_operator = declare("group_weights", "str layout", _backend, reference.group_weights, row_count)
