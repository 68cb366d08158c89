"""How an operator that makes packed weights is declared: custom ops, dispatch, any derivative.

Such an operator maps a list of tensors to ``(B, P)``; the first tensor of the list has B instances.
It keeps the lengths of rows it has normalised for its backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops.checks import VALUE_DTYPES, autocasts, check_tensor
from ginr_fast.ops.unit_rows import sum_dtype
from ginr_fast.profiling import annotate

Tensors = Sequence[Tensor]


class Backend(Protocol):
    """What a module of an operator's backend offers; ``settings`` are the operator's own."""

    def forward(self, tensors: Tensors, spec: FieldSpec, *settings: Any) -> tuple[Tensor, Tensor]:
        """The packed weights (B, P), and lengths (B, normalised rows)."""

    def backward(
        self,
        grad: Tensor,
        tensors: Tensors,
        packed: Tensor,
        lengths: Tensor,
        wanted: Sequence[int],
        spec: FieldSpec,
        *settings: Any,
    ) -> dict[int, Tensor]:
        """The gradients of the tensors ``wanted``, by index."""


@dataclass(frozen=True)
class PackedOperator:
    """The custom ops of an operator."""

    forward: Any
    """``(tensors, spec key, *settings, backend) -> (packed, lengths)``."""
    backward: Any
    """``(grad, tensors, packed, lengths, wanted, spec key, *settings, backend) -> gradients``."""

    def __call__(
        self, tensors: Tensors, spec: FieldSpec, settings: Sequence[Any], backend: str
    ) -> Tensor:
        return self.forward(list(tensors), spec.key, *settings, backend)[0]


def check_sequence(argument: str, values: object, count: int, what: str) -> list[Any]:
    """``values`` as a list, if it is a sequence of ``count`` things."""
    if isinstance(values, (Tensor, str)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{argument}: expected a sequence of tensors, got {type(values).__name__}")
    found = list(values)
    if len(found) != count:
        raise ValueError(f"{argument}: expected {count} tensors, {what}, got {len(found)}")
    return found


def check_spec(spec: object) -> FieldSpec:
    if not isinstance(spec, FieldSpec):
        raise TypeError(f"spec: expected a FieldSpec, got {type(spec).__name__}")
    return spec


def in_stored_dtype(value: Any, stored: object) -> Any:
    """What a layer under autocast handed over, in the dtype of the parameter ``stored``."""
    if not (isinstance(value, Tensor) and isinstance(stored, Tensor)):
        return value
    convertible = value.is_floating_point() and value.layout == torch.strided
    if convertible and stored.dtype in VALUE_DTYPES and autocasts(value):
        return value.to(stored.dtype)
    return value


def check_like(argument: str, value: object, shape: Sequence[Any], like: Tensor | None) -> Tensor:
    """A tensor of a shape, in the dtype and on the device of ``like`` if that is given."""
    dtypes = VALUE_DTYPES if like is None else [like.dtype]
    return check_tensor(
        argument, value, shape, dtypes=dtypes, device=None if like is None else like.device
    )


def declare(
    name: str,
    settings: str,
    backend_of: Callable[[str], Backend],
    formula: Callable[..., Tensor],
    normalized_rows: Callable[..., int],
) -> PackedOperator:
    """Register an operator and its backward, differentiable any number of times.

    Args:
        name: of the operator.
        settings: its own arguments as a schema has them, ``"int layer, bool normalize"``.
        backend_of: the module of a backend's name.
        formula: ``(tensors, spec, *settings) -> packed``, differentiable.
        normalized_rows: ``(spec, *settings)`` -> how many lengths an instance has.
    """
    forward = torch.library.custom_op(
        f"ginr_fast::{name}",
        _runs_forward(name, backend_of),
        mutates_args=(),
        schema=f"(Tensor[] tensors, str spec, {settings}, str backend) -> (Tensor, Tensor)",
    )
    backward = torch.library.custom_op(
        f"ginr_fast::{name}_backward",
        _runs_backward(name, backend_of),
        mutates_args=(),
        schema=(
            "(Tensor grad, Tensor[] tensors, Tensor packed, Tensor lengths, int[] wanted, "
            f"str spec, {settings}, str backend) -> Tensor[]"
        ),
    )

    @forward.register_fake
    def _(tensors: Tensors, key: str, *rest: Any) -> tuple[Tensor, Tensor]:
        first, spec = tensors[0], FieldSpec.from_key(key)
        batch, rows = first.shape[0], normalized_rows(spec, *rest[:-1])
        lengths = first.new_empty(batch, rows, dtype=sum_dtype(first.dtype))
        return first.new_empty(batch, spec.parameter_count), lengths

    @backward.register_fake
    def _(
        grad: Tensor, tensors: Tensors, packed: Tensor, lengths: Tensor, wanted: list[int], *_: Any
    ) -> list[Tensor]:
        return [tensors[index].new_empty(tensors[index].shape) for index in wanted]

    def save_forward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        tensors, *ctx.settings = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    def forward_backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
        *tensors, packed, lengths = ctx.saved_tensors
        grads: list[Tensor | None] = [None] * len(tensors)
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[0]) if needed]
        # To the backward its first derivative, a function of the tensors alone, packed and lengths
        # are known numbers.
        known = packed.detach(), lengths.detach()
        found = backward(grad.contiguous(), tensors, *known, wanted, *ctx.settings)
        for index, tensor in zip(wanted, found, strict=True):
            grads[index] = tensor
        return grads, *[None] * len(ctx.settings)

    def save_backward(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
        grad, tensors, _, _, ctx.wanted, *ctx.settings = inputs
        ctx.save_for_backward(grad, *tensors)

    def backward_backward(ctx: Any, tangents: Sequence[Tensor | None]) -> tuple:
        key, *own = ctx.settings[:-1]
        spec = FieldSpec.from_key(key)
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[1]]
        of_grad, *rest = _second(
            lambda tensors: formula(tensors, spec, *own),
            ctx.saved_tensors,
            ctx.wanted,
            tangents,
            needed,
        )
        return of_grad, rest, None, None, None, *[None] * len(ctx.settings)

    forward.register_autograd(forward_backward, setup_context=save_forward)
    backward.register_autograd(backward_backward, setup_context=save_backward)
    return PackedOperator(forward, backward)


def _runs_forward(name: str, backend_of: Callable[[str], Backend]) -> Callable[..., Any]:
    @annotate(name)
    def run(tensors: Tensors, key: str, *rest: Any) -> tuple[Tensor, Tensor]:
        *settings, backend = rest
        with torch.autocast(tensors[0].device.type, enabled=False):
            return backend_of(backend).forward(tensors, FieldSpec.from_key(key), *settings)

    return run


def _runs_backward(name: str, backend_of: Callable[[str], Backend]) -> Callable[..., Any]:
    @annotate(f"{name}_backward")
    def run(
        grad: Tensor,
        tensors: Tensors,
        packed: Tensor,
        lengths: Tensor,
        wanted: Sequence[int],
        key: str,
        *rest: Any,
    ) -> list[Tensor]:
        *settings, backend = rest
        spec = FieldSpec.from_key(key)
        with torch.autocast(grad.device.type, enabled=False):
            found = backend_of(backend).backward(
                grad, tensors, packed, lengths, wanted, spec, *settings
            )
        return [found[index].to(tensors[index].dtype).contiguous() for index in wanted]

    return run


def _second(
    formula: Callable[[list[Tensor]], Tensor],
    saved: Tensors,
    wanted: Sequence[int],
    tangents: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradient of Σ tangent · gradient in (grad, *tensors), where ``needed``."""
    asked = [index for index, wish in enumerate(needed) if wish]
    with torch.enable_grad():
        # Views, because an argument may be a function of another, or the same tensor twice.
        views = [t.view_as(t) for t in saved]
        for view in views:
            if not view.requires_grad:
                view.requires_grad_()
        grad, *tensors = views
        gradients = torch.autograd.grad(
            formula(tensors), [tensors[index] for index in wanted], grad, create_graph=True
        )
        pairs = [(g, t) for g, t in zip(gradients, tangents, strict=True) if t is not None]
    seconds = torch.autograd.grad(
        [gradient for gradient, _ in pairs],
        [views[index] for index in asked],
        [tangent for _, tangent in pairs],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )
    found: list[Tensor | None] = [None] * len(views)
    for index, second in zip(asked, seconds, strict=True):
        found[index] = second
    return found
