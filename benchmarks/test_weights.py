"""Weights of TransINR and IPC at image size against the published formulations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from kernel_cases import TRANS_INR_IMAGE as SPEC
from measure import contest
from torch import Tensor

import ginr_fast
from ginr_fast.ops.group_weights import reference as group_formula
from ginr_fast.ops.low_rank_weights import reference as low_rank_formula

GROUPS = 64
LAYER, RANK = 1, 256
BATCH = {"group_weights": 4, "low_rank_weights": 16}
Function = Callable[..., Tensor]


def _group_weights() -> tuple[Function, Function, list[tuple[int, ...]]]:
    """Ours, the formula, and the shapes of their arguments."""
    layers = SPEC.layers

    def ours(*given: Tensor) -> Tensor:
        groups, bases, biases = given[:layers], given[layers : 2 * layers], given[2 * layers :]
        return ginr_fast.group_weights(groups, bases, SPEC, biases=biases)

    def formula(*given: Tensor) -> Tensor:
        return group_formula.group_weights(given, SPEC, "blocks")

    batch, shapes = BATCH["group_weights"], SPEC.layer_shapes
    groups = [(batch, min(GROUPS, fan_out), fan_in) for fan_out, fan_in in shapes]
    return ours, formula, [*groups, *shapes, *((fan_out,) for fan_out, _ in shapes)]


def _low_rank_weights() -> tuple[Function, Function, list[tuple[int, ...]]]:
    """The same for the product and what all instances share."""

    def ours(patterns: Tensor, mixing: Tensor, *parameters: Tensor) -> Tensor:
        return ginr_fast.low_rank_weights(patterns, mixing, parameters, SPEC, layer=LAYER)

    def formula(*given: Tensor) -> Tensor:
        return low_rank_formula.low_rank_weights(given, SPEC, LAYER, False)

    fan_out, fan_in = SPEC.layer_shapes[LAYER]
    shared = [slot.shape for slot in SPEC.slots if (slot.layer, slot.kind) != (LAYER, "weight")]
    batch = BATCH["low_rank_weights"]
    return ours, formula, [(batch, RANK, fan_in), (fan_out, RANK), *shared]


OPERATORS = {"group_weights": _group_weights, "low_rank_weights": _low_rank_weights}


def _runner(function: Function, tensors: Sequence[Tensor], grad: Tensor, train: bool):
    def step() -> None:
        torch.autograd.grad(function(*tensors), tensors, grad)

    def evaluate() -> None:
        with torch.no_grad():
            function(*tensors)

    return step if train else evaluate


@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
@pytest.mark.parametrize("name", OPERATORS)
def test_weights(benchmark, name: str, train: bool, device: str) -> None:
    torch.manual_seed(0)
    ours, formula, shapes = OPERATORS[name]()
    tensors = [torch.randn(shape, device=device, requires_grad=train) for shape in shapes]
    grad = torch.randn(BATCH[name], SPEC.parameter_count, device=device)
    torch.compiler.reset()
    rivals = {"eager": formula, "compiled": torch.compile(formula, fullgraph=True)}
    flops = 4 * grad.numel()
    if name == "low_rank_weights":
        flops = 2 * BATCH[name] * RANK * SPEC.layer_shapes[LAYER][0] * SPEC.layer_shapes[LAYER][1]
    inputs = sum(tensor.numel() for tensor in tensors)
    benchmark.group = f"{name} {'train' if train else 'forward'}"
    contest(
        benchmark,
        _runner(ours, tensors, grad, train),
        {rival: _runner(function, tensors, grad, train) for rival, function in rivals.items()},
        rounds=15,
        flops=flops * (3 if train else 1),
        traffic=4 * (inputs + grad.numel()) * (2 if train else 1),
        dtype=torch.float32,
        device=device,
        memory=True,
    )
