"""What the tests of operators that make packed weights share: calls, and formulas of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from field_cases import make_spec, relative_error
from torch import Tensor

import ginr_fast
from ginr_fast import FieldSpec, FourierEncoding, group_weights, low_rank_weights

ENCODING = FourierEncoding.log_spaced(7, 64)
SPECS = {
    "small": make_spec(hidden_dim=6),
    "encoded": make_spec(hidden_dim=12, hidden_layers=2, encoding=ENCODING),
    "no bias": make_spec(hidden_dim=8, hidden_layers=0, bias=False),
    "views": make_spec(coord_dim=3, out_dim=4, hidden_dim=12, view_dim=6),
}
IMAGE = FieldSpec(2, 3, 256, 3, encoding=FourierEncoding.log_spaced(64, 1024.0))
"""TransINR's images."""
Call = Callable[..., Tensor]


def randn(
    *shapes: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


def group_counts(spec: FieldSpec, most: int) -> list[int]:
    """The largest number of groups up to ``most`` that divides the rows of each layer."""
    return [
        max(count for count in range(1, most + 1) if rows % count == 0)
        for rows, _ in spec.layer_shapes
    ]


def grouped(
    spec: FieldSpec,
    batch: int = 3,
    most: int = 3,
    layout: str = "blocks",
    dtype: torch.dtype = torch.float32,
) -> tuple[Call, list[Tensor]]:
    """``group_weights`` as a function of a flat list of tensors, and such tensors."""
    counts, layers = group_counts(spec, most), spec.layers
    tensors = randn(
        *(
            (batch, count, fan_in)
            for count, (_, fan_in) in zip(counts, spec.layer_shapes, strict=True)
        ),
        *spec.layer_shapes,
        *((rows,) for rows, _ in spec.layer_shapes if spec.bias),
        dtype=dtype,
    )

    def call(*given: Tensor) -> Tensor:
        biases = given[2 * layers :] if spec.bias else None
        groups, bases = given[:layers], given[layers : 2 * layers]
        return group_weights(groups, bases, spec, biases=biases, layout=layout)

    return call, tensors


def plain_groups(spec: FieldSpec, layout: str, *given: Tensor) -> Tensor:
    """The formula, a row at a time."""
    layers, out = spec.layers, []
    for instance in range(given[0].shape[0]):
        row = []
        for layer, (rows, _) in enumerate(spec.layer_shapes):
            u, base = given[layer][instance], given[layers + layer]
            count = u.shape[0]
            for i in range(rows):
                v = u[i // (rows // count) if layout == "blocks" else i % count] * base[i]
                row.append(v / v.square().sum().clamp_min(1e-24).sqrt())
            if spec.bias:
                row.append(given[2 * layers + layer])
        out.append(torch.cat(row))
    return torch.stack(out)


def low_rank(
    spec: FieldSpec,
    batch: int = 3,
    rank: int = 4,
    layer: int = 1,
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Call, list[Tensor]]:
    """``low_rank_weights`` as a function of a flat list of tensors, and such tensors."""
    rows, fan_in = spec.layer_shapes[layer]
    shapes = [s.shape for s in spec.slots if (s.layer, s.kind) != (layer, "weight")]
    tensors = randn((batch, rank, fan_in), (rows, rank), *shapes, dtype=dtype)

    def call(patterns: Tensor, mixing: Tensor, *parameters: Tensor) -> Tensor:
        return low_rank_weights(
            patterns, mixing, parameters, spec, layer=layer, normalize=normalize
        )

    return call, tensors


def plain_low_rank(
    spec: FieldSpec, layer: int, normalize: bool, patterns: Tensor, mixing: Tensor, *given: Tensor
) -> Tensor:
    """The formula, slot by slot and instance by instance."""
    out = []
    for pattern in patterns:
        parameters, row = iter(given), []
        for slot in spec.slots:
            own = (slot.layer, slot.kind) == (layer, "weight")
            value = mixing @ pattern if own else next(parameters)
            if normalize and slot.kind == "weight":
                value = value / value.square().sum(1, keepdim=True).clamp_min(1e-24).sqrt()
            row.append(value.flatten())
        out.append(torch.cat(row))
    return torch.stack(out)


def outcome(call: Call, tensors: Sequence[Tensor], backend: str | None = None) -> list[Tensor]:
    """The packed weights and the gradients of every tensor, for a random gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    if backend is None:
        out = call(*leaves)
        return _differentiated(out, leaves)
    with ginr_fast.backend(backend):
        return _differentiated(call(*leaves), leaves)


def _differentiated(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator).bfloat16().to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def check(call: Call, formula: Call, tensors: Sequence[Tensor], backend: str, limit: float) -> None:
    """A backend against the formula in float64; gradients may be off five times as far."""
    want = outcome(formula, [tensor.double().cpu() for tensor in tensors])
    got = outcome(call, tensors, backend)
    for index, (result, expected) in enumerate(zip(got, want, strict=True)):
        assert result.dtype == tensors[0].dtype and result.shape == expected.shape, index
        bound = limit if index == 0 else 5 * limit
        assert relative_error(result.cpu(), expected) <= bound, (index, backend)
