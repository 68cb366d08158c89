"""What only a GPU can show of the operators that make packed weights: the compiled kernels."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from field_cases import LIMITS, make_spec
from weight_cases import IMAGE, SPECS, check, grouped, low_rank, outcome, plain_groups

import ginr_fast
from ginr_fast import FourierEncoding

pytestmark = pytest.mark.gpu
WIDE = make_spec(
    coord_dim=3, hidden_dim=40, hidden_layers=0, encoding=FourierEncoding.log_spaced(45, 64)
)
CASES = {**SPECS, "wide": WIDE}


def cuda(tensors):
    return [tensor.cuda() for tensor in tensors]


def check_on_gpu(call, tensors, limit):
    """The reference in float64 on the CPU is the formula: its own tests hold it to that."""

    def formula(*given):
        with ginr_fast.backend("reference"):
            return call(*given)

    check(call, formula, cuda(tensors), "triton", limit)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("layout", ["blocks", "tiled"])
@pytest.mark.parametrize("spec", [IMAGE, *CASES.values()], ids=["image", *CASES])
def test_group_weights(spec, layout, dtype):
    for most in (1, 64):
        check_on_gpu(*grouped(spec, 4, most, layout, dtype), LIMITS[dtype])


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("spec", [IMAGE, *CASES.values()], ids=["image", *CASES])
def test_low_rank_weights(spec, normalize, dtype):
    for layer, rank in ((0, 3), (1, 256)):
        check_on_gpu(*low_rank(spec, 4, rank, layer, normalize, dtype), LIMITS[dtype])


def test_tf32():
    torch.set_float32_matmul_precision("high")
    try:
        check_on_gpu(*low_rank(IMAGE, 4, 256), 2e-3)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_short_rows_and_nan():
    spec = SPECS["small"]
    call, tensors = grouped(spec, 2, 2)
    tensors[0][0, 0] = 0.0
    tensors[0][1, 1] *= 1e-14
    check(call, partial(plain_groups, spec, "blocks"), cuda(tensors), "triton", 1e-5)
    tensors[0][1, 0, 0] = float("nan")
    with ginr_fast.backend("triton"):
        weight = spec.unpack(call(*cuda(tensors)))[0][0]
    assert weight[1, :3].isnan().all() and weight[0].isfinite().all()


@pytest.mark.parametrize("make", [grouped, low_rank], ids=["groups", "low rank"])
def test_triton_is_chosen_and_the_same_bit_for_bit(make):
    call, tensors = make(IMAGE, 4)
    (plan,) = ginr_fast.explain(call, *cuda(tensors)).plans
    assert plan.backend == "triton"
    first, second = (outcome(call, cuda(tensors)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("make", [grouped, low_rank], ids=["groups", "low rank"])
def test_inside_torch_compile_and_a_cuda_graph(make):
    call, tensors = make(SPECS["encoded"], 4)
    tensors = cuda(tensors)
    torch.compiler.reset()
    want = call(*tensors)
    torch.testing.assert_close(torch.compile(call, fullgraph=True)(*tensors), want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(*tensors)
    out.zero_()
    graph.replay()
    assert torch.equal(out, want)


@pytest.mark.parametrize("make", [grouped, low_rank], ids=["groups", "low rank"])
def test_blocked_agrees(make):
    call, tensors = make(SPECS["encoded"], 4)
    for got, want in zip(
        outcome(call, cuda(tensors), "blocked"), outcome(call, cuda(tensors), "triton"), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [grouped, low_rank], ids=["groups", "low rank"])
def test_autocast_and_double_backward(make):
    call, tensors = make(SPECS["small"], 2)
    tensors = cuda(tensors)
    with torch.autocast("cuda", torch.bfloat16):
        out = call(tensors[0].bfloat16(), *tensors[1:]) if make is low_rank else call(*tensors)
    assert out.dtype == torch.float32
    found = []
    for name in ("triton", "reference"):
        leaf = tensors[0].clone().requires_grad_()
        with ginr_fast.backend(name):
            value = call(leaf, *tensors[1:]).pow(3).sum()
            (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
            found += torch.autograd.grad(slope.square().sum(), leaf)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
