"""mixture_average: contract, checks, autograd.

The operation is bilinear in coefficients and bases, so each of its two gradients is a contraction
of the same kind, and so are theirs in turn: three operators, each the derivative of the others,
make it differentiable any number of times through the fast kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ginr_fast.fields import FieldSpec
from ginr_fast.ops import dispatch, native
from ginr_fast.ops.checks import check_tensor
from ginr_fast.ops.mixture_average import blocked, reference
from ginr_fast.profiling import annotate

Tensors = Sequence[torch.Tensor]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def mixture_average(coefficients: torch.Tensor, bases: Tensors, spec: FieldSpec) -> torch.Tensor:
    """The weighted average of M basis networks, for B instances and every layer at once.

    θ̄⁽ⁱ⁾ = Σ_m α_m⁽ⁱ⁾ θ_m⁽ⁱ⁾ for the parameters θ⁽ⁱ⁾ = (W⁽ⁱ⁾, b⁽ⁱ⁾) of layer i, written straight
    into the packed layout that :class:`FieldSpec` describes ("Generative Neural Fields by Mixtures
    of Neural Implicit Functions", NeurIPS 2023, eq. 8).

    Args:
        coefficients: α, ``(B, spec.layers, M)``; float32, float64, float16 or bfloat16.
        bases: θ_m, one tensor a parameter in layer order: weight ``(M, out, in)``, bias
            ``(M, out)`` (if ``spec.bias``), next weight, …; dtype and device of ``coefficients``.
            Under autocast the coefficients may have a lower precision and are converted.
        spec: the field the bases share.

    Returns:
        Packed weights, ``(B, P)`` with P = ``spec.parameter_count``, in the dtype of ``bases``.
        Differentiable any number of times in coefficients and bases. float16 and bfloat16 sums are
        accumulated in float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device, by name.
        BackendError: a forced backend cannot serve the call.

    Example:
        >>> import torch, ginr_fast
        >>> spec = ginr_fast.FieldSpec(coord_dim=2, out_dim=3, hidden_dim=16, hidden_layers=1)
        >>> bases = [torch.randn(4, *slot.shape) for slot in spec.slots]
        >>> coefficients = torch.full((8, spec.layers, 4), 1 / 4)
        >>> ginr_fast.mixture_average(coefficients, bases, spec).shape
        torch.Size([8, 371])
    """
    coefficients, bases = _checked(coefficients, bases, spec)
    batch, _, mixtures = coefficients.shape
    packed = spec.parameter_count
    refused = {
        "native": native.mixture_average_refusal(coefficients.dtype, coefficients.device, packed),
        "blocked": None,
        "reference": None,
    }
    backend = dispatch.choose("mixture_average", refused)
    if dispatch.recording():
        flops = 2 * batch * mixtures * packed
        reasons = {name: reason for name, reason in refused.items() if reason is not None}
        dispatch.record(dispatch.Plan("mixture_average", backend, (), flops, flops, reasons))
    if backend == "reference":
        return reference.mixture_average(coefficients, bases)
    flat = [base.reshape(mixtures, -1) for base in bases]
    return _average(coefficients, flat, backend)


def _checked(
    coefficients: torch.Tensor, bases: Tensors, spec: FieldSpec
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    if not isinstance(spec, FieldSpec):
        raise TypeError(f"spec: expected a FieldSpec, got {type(spec).__name__}")
    _check_dense("coefficients", coefficients, ("B", spec.layers, "M"), dtypes=_DTYPES)
    mixtures = coefficients.shape[2]
    if mixtures == 0:
        raise ValueError("coefficients: expected at least one mixture component, got M = 0")
    if isinstance(bases, torch.Tensor) or not hasattr(bases, "__iter__"):
        raise TypeError(f"bases: expected a sequence of tensors, got {type(bases).__name__}")
    bases = list(bases)
    if len(bases) != len(spec.slots):
        raise ValueError(f"bases: expected {len(spec.slots)} tensors, got {len(bases)}")
    # A linear layer under autocast hands over float16 or bfloat16 coefficients.
    if _autocast_is_on(coefficients.device) and isinstance(bases[0], torch.Tensor):
        dtype = bases[0].dtype
        coefficients = coefficients.to(dtype) if dtype in _DTYPES else coefficients
    for index, (base, slot) in enumerate(zip(bases, spec.slots, strict=True)):
        _check_dense(
            f"bases[{index}]",
            base,
            (mixtures, *slot.shape),
            dtypes=[coefficients.dtype],
            device=coefficients.device,
        )
    return coefficients, bases


def _check_dense(argument: str, value: object, shape: Sequence[Any], **wanted: Any) -> None:
    tensor = check_tensor(argument, value, shape, **wanted)
    if tensor.layout != torch.strided:
        raise TypeError(f"{argument}: expected a dense tensor, got layout {tensor.layout}")


def _autocast_is_on(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def _as_stored(tensor: torch.Tensor) -> torch.autocast:
    """Kernels compute in the dtype they are given, whatever autocast would make of a product."""
    return torch.autocast(tensor.device.type, enabled=False)


@annotate("mixture_average")
def _run_average(coefficients: torch.Tensor, bases: Tensors, backend: str) -> torch.Tensor:
    if backend == "native":
        return native.mixture_average(coefficients, bases)
    with _as_stored(coefficients):
        return blocked.average(coefficients, bases)


@annotate("mixture_average.grad_coefficients")
def _run_grad_coefficients(
    grad: torch.Tensor, bases: Tensors, layers: int, backend: str
) -> torch.Tensor:
    if backend == "native":
        return native.mixture_average_grad_coefficients(grad, bases, layers)
    with _as_stored(grad):
        return blocked.grad_coefficients(grad, bases, layers)


@annotate("mixture_average.grad_bases")
def _run_grad_bases(
    grad: torch.Tensor,
    coefficients: torch.Tensor,
    sizes: Sequence[int],
    wanted: Sequence[int],
    backend: str,
) -> list[torch.Tensor]:
    if backend == "native":
        return native.mixture_average_grad_bases(grad, coefficients, sizes, wanted)
    with _as_stored(grad):
        return blocked.grad_bases(grad, coefficients, sizes, wanted)


# Bases are (M, size) here, `sizes` lists those sizes, `wanted` the parameters a gradient is for.
_average = torch.library.custom_op(
    "ginr_fast::mixture_average",
    _run_average,
    mutates_args=(),
    schema="(Tensor coefficients, Tensor[] bases, str backend) -> Tensor",
)
_grad_coefficients = torch.library.custom_op(
    "ginr_fast::mixture_average_grad_coefficients",
    _run_grad_coefficients,
    mutates_args=(),
    schema="(Tensor grad, Tensor[] bases, int layers, str backend) -> Tensor",
)
_grad_bases = torch.library.custom_op(
    "ginr_fast::mixture_average_grad_bases",
    _run_grad_bases,
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor coefficients, SymInt[] sizes, int[] wanted, str backend) -> Tensor[]"
    ),
)


@_average.register_fake
def _(coefficients: torch.Tensor, bases: Tensors, backend: str) -> torch.Tensor:
    return coefficients.new_empty(coefficients.shape[0], sum(base.shape[1] for base in bases))


@_grad_coefficients.register_fake
def _(grad: torch.Tensor, bases: Tensors, layers: int, backend: str) -> torch.Tensor:
    return grad.new_empty(grad.shape[0], layers, bases[0].shape[0])


@_grad_bases.register_fake
def _(
    grad: torch.Tensor,
    coefficients: torch.Tensor,
    sizes: Sequence[int],
    wanted: Sequence[int],
    backend: str,
) -> list[torch.Tensor]:
    return [grad.new_empty(coefficients.shape[2], sizes[index]) for index in wanted]


def _save_average(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    coefficients, bases, ctx.backend = inputs
    ctx.save_for_backward(coefficients, *bases)


def _average_backward(ctx: Any, grad: torch.Tensor) -> tuple:
    coefficients, *bases = ctx.saved_tensors
    return (
        _coefficients_or_none(ctx, 0, grad, bases, coefficients.shape[1]),
        _bases_or_nones(ctx.needs_input_grad[1], ctx, grad, coefficients, bases),
        None,
    )


def _save_grad_coefficients(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    grad, bases, _, ctx.backend = inputs
    ctx.save_for_backward(grad, *bases)


def _grad_coefficients_backward(ctx: Any, tangent: torch.Tensor) -> tuple:
    grad, *bases = ctx.saved_tensors
    return (
        _average(tangent, bases, ctx.backend) if ctx.needs_input_grad[0] else None,
        _bases_or_nones(ctx.needs_input_grad[1], ctx, grad, tangent, bases),
        None,
        None,
    )


def _save_grad_bases(ctx: Any, inputs: tuple, output: list[torch.Tensor]) -> None:
    grad, coefficients, ctx.sizes, ctx.wanted, ctx.backend = inputs
    ctx.save_for_backward(grad, coefficients)


def _grad_bases_backward(ctx: Any, tangents: list[torch.Tensor]) -> tuple:
    grad, coefficients = ctx.saved_tensors
    full = [grad.new_zeros(()).expand(coefficients.shape[2], size) for size in ctx.sizes]
    for index, tangent in zip(ctx.wanted, tangents, strict=True):
        full[index] = tangent
    return (
        _average(coefficients, full, ctx.backend) if ctx.needs_input_grad[0] else None,
        _coefficients_or_none(ctx, 1, grad, full, coefficients.shape[1]),
        None,
        None,
        None,
    )


def _coefficients_or_none(
    ctx: Any, argument: int, grad: torch.Tensor, bases: Tensors, layers: int
) -> torch.Tensor | None:
    if not ctx.needs_input_grad[argument]:
        return None
    return _grad_coefficients(grad, bases, layers, ctx.backend)


def _bases_or_nones(
    needed: Sequence[bool], ctx: Any, grad: torch.Tensor, coefficients: torch.Tensor, bases: Tensors
) -> list[torch.Tensor | None]:
    wanted = [index for index, need in enumerate(needed) if need]
    grads: list[torch.Tensor | None] = [None] * len(bases)
    if wanted:
        sizes = [base.shape[1] for base in bases]
        for index, tensor in zip(
            wanted, _grad_bases(grad, coefficients, sizes, wanted, ctx.backend), strict=True
        ):
            grads[index] = tensor
    return grads


_average.register_autograd(_average_backward, setup_context=_save_average)
_grad_coefficients.register_autograd(
    _grad_coefficients_backward, setup_context=_save_grad_coefficients
)
_grad_bases.register_autograd(_grad_bases_backward, setup_context=_save_grad_bases)
