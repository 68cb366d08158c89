"""``AnrDecoder`` at the published size against the published formula, eager and compiled.

The rivals run what a published training script runs: coordinates repeated for every instance, the
formula line by line, float32. They and ours get the same tensors unless a case says ``grid``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from measure import contest, decoder_call
from torch import Tensor

import ginr_fast


@dataclass(frozen=True)
class Case:
    name: str
    batch: int
    train: bool = False
    grid: bool = False
    """Ours gets a CoordinateGrid."""
    per_instance: bool = False
    """Every instance has coordinates of its own."""
    compiled: bool = False
    """torch.compile of the formula takes part."""
    activation: str = "relu"
    side: int = 128


CASES = (
    Case("forward-shared", batch=4, compiled=True),
    Case("train-shared", batch=4, train=True),
    Case("forward-grid", batch=1, grid=True),
    Case("forward-per-instance", batch=2, per_instance=True),
    Case("train-mish", batch=1, train=True, activation="mish"),
)


def _coordinates(case: Case, device: str) -> Tensor:
    points = ginr_fast.grid(case.side, case.side, device=device).tensor()
    points = points.expand(case.batch, *points.shape).contiguous()
    if case.per_instance:
        points += 1e-3 * torch.rand(case.batch, 1, 1, 1, device=device)
    return points


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_anr_decode(benchmark, case: Case, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    reference = ginr_fast.AnrDecoder(activation=case.activation).to(device)
    decoder = copy.deepcopy(reference).to(dtype)
    tokens = torch.randn(case.batch, 256, 512, device=device)
    points = _coordinates(case, device)
    coords = ginr_fast.grid(case.side, case.side, device=device) if case.grid else points

    rivals = {"eager": decoder_call(reference, points, tokens.clone(), case.train, "reference")}
    if case.compiled and dtype == torch.float32:
        torch.compiler.reset()
        rivals["compiled"] = decoder_call(
            torch.compile(reference), points, tokens.clone(), case.train, "reference"
        )
    own_tokens = tokens.to(dtype)
    ours = decoder_call(decoder, coords, own_tokens.clone(), case.train)
    plan = ginr_fast.explain(decoder, coords, own_tokens).plans[0]
    size = own_tokens.element_size()
    parameters = sum(p.numel() for p in decoder.parameters())
    values = case.batch * case.side**2 * 3
    benchmark.group = f"anr_decode {case.name}"
    contest(
        benchmark,
        ours,
        rivals,
        rounds=3,
        flops=plan.flops * (3 if case.train else 1),
        traffic=size * (tokens.numel() + parameters + values) * (2 if case.train else 1),
        dtype=dtype,
        device=device,
        memory=case.train and case.name == "train-shared",
    )
