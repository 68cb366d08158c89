"""``mixture_average`` at mNIF's sizes against the published broadcast and sum, and matmuls."""

from __future__ import annotations

import pytest
import torch
from measure import contest
from torch import Tensor

import ginr_fast
from ginr_fast.fields import FieldSpec

BATCH = 8


def _spec(coord_dim: int, out_dim: int, hidden_layers: int, width: int, w0: float) -> FieldSpec:
    return FieldSpec(
        coord_dim=coord_dim,
        out_dim=out_dim,
        hidden_dim=width,
        hidden_layers=hidden_layers,
        activation="sine",
        w0=w0,
    )


# (hidden layers, width, mixtures): images S and L, voxels L, scenes S.
SIZES = {
    "images-S": (_spec(2, 3, 4, 64, 30.0), 256),
    "images-L": (_spec(2, 3, 5, 128, 30.0), 384),
    "voxels-L": (_spec(3, 1, 5, 128, 30.0), 512),
    "scenes-S": (_spec(3, 4, 4, 64, 30.0), 256),
}


def _published(coefficients: Tensor, bases: list[Tensor]) -> list[Tensor]:
    """The published formulation: broadcast multiply and sum, a parameter at a time."""
    averaged = []
    for index, basis in enumerate(bases):
        layer = coefficients[:, index // 2]
        shape = (*layer.shape, *(1,) * (basis.ndim - 1))
        averaged.append((layer.view(shape) * basis.unsqueeze(0)).sum(1))
    return averaged


def _matmul(coefficients: Tensor, bases: list[Tensor]) -> list[Tensor]:
    """A matmul a parameter."""
    return [
        (coefficients[:, index // 2] @ basis.flatten(1)).unflatten(-1, basis.shape[1:])
        for index, basis in enumerate(bases)
    ]


def _runner(function, coefficients: Tensor, bases: list[Tensor], train: bool):
    def step() -> None:
        for leaf in (coefficients, *bases):
            leaf.grad = None
        out = function(coefficients, bases)
        parts = out if isinstance(out, list) else [out]
        torch.autograd.backward(parts, [torch.ones_like(part) for part in parts])

    def evaluate() -> None:
        with torch.no_grad():
            function(coefficients, bases)

    return step if train else evaluate


@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
@pytest.mark.parametrize("size", SIZES)
def test_mixture_average(benchmark, size: str, train: bool, device: str) -> None:
    torch.manual_seed(0)
    spec, mixtures = SIZES[size]
    coefficients = torch.randn(BATCH, spec.layers, mixtures, device=device, requires_grad=train)
    bases = [
        torch.randn(mixtures, *shape, device=device, requires_grad=train)
        for shape in (slot.shape for slot in spec.slots)
    ]

    def ours(coefficients: Tensor, bases: list[Tensor]) -> Tensor:
        return ginr_fast.mixture_average(coefficients, bases, spec)

    parameters = sum(basis.numel() for basis in bases)
    benchmark.group = f"mixture_average {size} {'train' if train else 'forward'}"
    contest(
        benchmark,
        _runner(ours, coefficients, bases, train),
        {
            "eager": _runner(_published, coefficients, bases, train),
            "matmul": _runner(_matmul, coefficients, bases, train),
        },
        rounds=9,
        flops=2 * BATCH * parameters * (3 if train else 1),
        traffic=4 * (parameters + BATCH * parameters // mixtures) * (2 if train else 1),
        dtype=torch.float32,
        device=device,
    )
