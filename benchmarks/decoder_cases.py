"""What the benchmarks of the token decoders share.

The rivals run what a published training script runs: coordinates repeated for every instance, the
formula line by line, float32. On a CPU they and ours get the same tensors unless a case says
``grid``; on a GPU, where nothing may look into a tensor, ours gets shared coordinates once.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from measure import contest, decoder_call
from torch import Tensor, nn

import ginr_fast


@dataclass(frozen=True)
class Case:
    name: str
    batch: int
    side: int
    train: bool = False
    grid: bool = False
    """Ours gets a CoordinateGrid."""
    per_instance: bool = False
    """Every instance has coordinates of its own."""
    compiled: bool = False
    """torch.compile of the formula takes part."""
    activation: str = "relu"
    eager: bool = True
    """The formula in eager mode takes part; it does not where it would not fit into memory."""


def gpu_cases(side: int) -> tuple[Case, ...]:
    """Batch 16 at the published size, one instance, and one step on a whole 1024² grid."""
    return (
        Case("gpu-forward-shared", 16, side, compiled=True),
        Case("gpu-train-shared", 16, side, train=True, compiled=True),
        Case("gpu-forward-per-instance", 16, side, per_instance=True, compiled=True),
        Case("gpu-train-per-instance", 16, side, train=True, per_instance=True, compiled=True),
        Case("gpu-forward-grid", 1, side, grid=True, compiled=True),
        Case("gpu-train-1024", 1, 1024, train=True, grid=True, eager=False),
    )


def coordinates(case: Case, device: str) -> Tensor:
    """Every instance's points written out, as a published script passes them."""
    points = ginr_fast.grid(case.side, case.side, device=device).tensor()
    points = points.expand(case.batch, *points.shape).contiguous()
    if case.per_instance:
        points += 1e-3 * torch.rand(case.batch, 1, 1, 1, device=device)
    return points


def own_coordinates(case: Case, points: Tensor) -> Tensor | ginr_fast.CoordinateGrid:
    """The same points as a user of this library passes them."""
    if case.grid:
        return ginr_fast.grid(case.side, case.side, device=points.device)
    if points.is_cuda and not case.per_instance:
        return points[0].flatten(0, -2)
    return points


class Autocast(nn.Module):
    """A module under bfloat16 autocast."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, coords: Tensor, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, torch.bfloat16):
            return self.module(coords, tokens)


def run(
    benchmark, operator: str, decoder: nn.Module, case: Case, dtype: torch.dtype, device: str
) -> None:
    """Time ``decoder`` in ``dtype`` against its own reference backend in float32."""
    reference = decoder.to(device)
    own = copy.deepcopy(reference).to(dtype)
    tokens = torch.randn(case.batch, 256, reference.token_dim, device=device)
    points = coordinates(case, device)
    coords = own_coordinates(case, points)
    on_gpu = device != "cpu"

    rivals = {}
    if case.eager:
        rivals["eager"] = decoder_call(reference, points, tokens.clone(), case.train, "reference")
    if case.compiled and (on_gpu or dtype == torch.float32):
        torch.compiler.reset()
        # On a GPU the strongest form of the formula: half precision, tuned by the compiler.
        module = Autocast(reference) if on_gpu and dtype != torch.float32 else reference
        mode = "max-autotune-no-cudagraphs" if on_gpu else None
        compiled = torch.compile(module, mode=mode)
        rivals["compiled"] = decoder_call(compiled, points, tokens.clone(), case.train, "reference")
    own_tokens = tokens.to(dtype)
    ours = decoder_call(own, coords, own_tokens.clone(), case.train)
    plan = ginr_fast.explain(own, coords, own_tokens).plans[0]
    size = own_tokens.element_size()
    parameters = sum(p.numel() for p in own.parameters())
    values = case.batch * case.side**2 * reference.out_dim
    benchmark.group = f"{operator} {case.name}"
    benchmark.extra_info["backend"] = plan.backend
    contest(
        benchmark,
        ours,
        rivals,
        rounds=20 if on_gpu else 3,
        flops=plan.flops * (3 if case.train else 1),
        traffic=size * (tokens.numel() + parameters + values) * (2 if case.train else 1),
        dtype=dtype,
        device=device,
        memory=case.name in ("train-shared", "gpu-train-shared"),
    )
