"""The Triton kernels of group_weights, in Triton's interpreter, against the float64 formula."""

from __future__ import annotations

import importlib.util
from functools import partial

import pytest
import torch
from field_cases import make_spec
from weight_cases import ENCODING, SPECS, check, grouped, outcome, plain_groups

import ginr_fast
from ginr_fast import FourierEncoding
from ginr_fast.ops import triton_backend

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="runs the interpreter"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]
LIMITS = {torch.float32: 1e-6, torch.float16: 5e-3}
SMALL = SPECS["small"]
WIDE = make_spec(
    coord_dim=3, hidden_dim=10, hidden_layers=0, encoding=FourierEncoding.log_spaced(45, 64)
)
"""Its first fan-in is 270, more than a step of the kernels."""


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("layout", ["blocks", "tiled"])
@pytest.mark.parametrize("most", [1, 4, 12])
@pytest.mark.parametrize("spec", [SMALL, SPECS["no bias"], SPECS["views"]], ids=str)
def test_values_and_gradients(spec, most, layout, dtype):
    call, tensors = grouped(spec, 2, most, layout, dtype)
    check(call, partial(plain_groups, spec, layout), tensors, "triton", LIMITS[dtype])


@pytest.mark.parametrize("layout", ["blocks", "tiled"])
def test_a_fan_in_of_several_steps(layout):
    call, tensors = grouped(WIDE, 2, 2, layout)
    check(call, partial(plain_groups, WIDE, layout), tensors, "triton", 1e-6)


def test_bfloat16():
    call, tensors = grouped(SMALL, dtype=torch.bfloat16)
    check(call, partial(plain_groups, SMALL, "blocks"), tensors, "triton", 1e-2)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_of_zeros_shorter_than_epsilon_and_of_nan():
    call, tensors = grouped(SMALL, 2, 2)
    tensors[0][0, 0] = 0.0
    tensors[0][1, 1] *= 1e-14
    check(call, partial(plain_groups, SMALL, "blocks"), tensors, "triton", 1e-5)
    tensors[0][1, 0, 0] = float("nan")
    with ginr_fast.backend("triton"):
        weight = SMALL.unpack(call(*tensors))[0][0]
    assert weight[1, :3].isnan().all() and weight[0].isfinite().all()


def test_strange_strides_and_empty_batches():
    call, tensors = grouped(SMALL, 4)
    tensors[:3] = [tensor[:1].expand(4, -1, -1) for tensor in tensors[:3]]
    tensors[3:6] = [tensor.t().contiguous().t() for tensor in tensors[3:6]]
    check(call, partial(plain_groups, SMALL, "blocks"), tensors, "triton", 1e-6)
    call, tensors = grouped(SMALL, 0)
    out, *grads = outcome(call, tensors, "triton")
    assert out.shape == (0, SMALL.parameter_count)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, tensors, strict=True))


def test_only_needed_gradients_are_computed(monkeypatch):
    from ginr_fast.ops.kernels import unit_rows

    names = []
    original = unit_rows.launch
    monkeypatch.setattr(
        unit_rows,
        "launch",
        lambda kernel, *rest: names.append(kernel.fn.__name__) or original(kernel, *rest),
    )
    call, tensors = grouped(SMALL, 2)
    dots = "row_dots_kernel"
    kinds = {0: [dots, "group_gradient_kernel"], 4: [dots, "group_base_gradient_kernel"], 8: []}
    for index, expected in kinds.items():
        leaves = [tensor.clone() for tensor in tensors]
        leaves[index].requires_grad_()
        with ginr_fast.backend("triton"):
            out = call(*leaves).sum()
            names.clear()
            out.backward()
        assert names == expected
        assert [leaf.grad is not None for leaf in leaves] == [i == index for i in range(9)]


def test_double_backward():
    found = []
    for name in ("triton", "reference"):
        call, tensors = grouped(SMALL, 2)
        u = tensors[0].requires_grad_()
        with ginr_fast.backend(name):
            out = call(u, *tensors[1:])
            (slope,) = torch.autograd.grad(out.pow(3).sum(), u, create_graph=True)
            found += torch.autograd.grad(slope.square().sum(), u)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_inside_torch_compile():
    torch.compiler.reset()
    call, tensors = grouped(make_spec(hidden_dim=4, hidden_layers=0), 2)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for got, want in zip(
        outcome(compiled, tensors, "triton"), outcome(call, tensors, "triton"), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_what_it_cannot_serve_says_why(monkeypatch):
    def reason(dtype=torch.float32, spec=SMALL):
        call, tensors = grouped(spec, 1, dtype=dtype)
        with ginr_fast.backend("triton"), pytest.raises(ginr_fast.BackendError) as error:
            call(*tensors)
        return str(error.value)

    assert "float64" in reason(torch.float64)
    wide = make_spec(coord_dim=1, out_dim=1, hidden_dim=32769, hidden_layers=0)
    assert "at most 32768 wide, got 32769" in reason(spec=wide)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "runs on a GPU, and the tensors are on cpu" in reason()
    monkeypatch.setattr(triton_backend, "_MISSING", "Triton is not installed")
    assert "Triton is not installed" in reason(spec=make_spec(encoding=ENCODING))
