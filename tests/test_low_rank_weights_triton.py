"""The Triton kernels of low_rank_weights, in Triton's interpreter, against the float64 formula."""

from __future__ import annotations

import importlib.util
from functools import partial

import pytest
import torch
from field_cases import make_spec
from weight_cases import SPECS, check, low_rank, outcome, plain_low_rank

import ginr_fast
from ginr_fast import FourierEncoding

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="runs the interpreter"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]
LIMITS = {torch.float32: 2e-6, torch.float16: 1e-2}
SMALL = SPECS["small"]
WIDE = make_spec(
    coord_dim=3, hidden_dim=40, hidden_layers=0, encoding=FourierEncoding.log_spaced(25, 64)
)
"""Its first layer is (40, 150): several tiles of rows and of columns."""


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("spec", [SMALL, SPECS["no bias"], SPECS["views"]], ids=str)
def test_values_and_gradients(spec, normalize, dtype):
    for layer in range(spec.layers):
        call, tensors = low_rank(spec, 2, 5, layer, normalize, dtype)
        formula = partial(plain_low_rank, spec, layer, normalize)
        check(call, formula, tensors, "triton", LIMITS[dtype])


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_several_tiles_and_steps(normalize):
    call, tensors = low_rank(WIDE, 2, 70, 0, normalize)
    check(call, partial(plain_low_rank, WIDE, 0, normalize), tensors, "triton", 2e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_of_zeros_shorter_than_epsilon_and_of_nan():
    call, tensors = low_rank(SMALL, 2, 3, 1, True)
    tensors[1][0] = 0.0
    tensors[1][1] *= 1e-14
    check(call, partial(plain_low_rank, SMALL, 1, True), tensors, "triton", 1e-5)
    tensors[1][2, 0] = float("nan")
    with ginr_fast.backend("triton"):
        weight = SMALL.unpack(call(*tensors))[1][0]
    assert weight[:, 2].isnan().all() and weight[:, 3:].isfinite().all()


def test_strange_strides_and_empty_batches():
    call, tensors = low_rank(SMALL, 4, normalize=True)
    tensors = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors]
    check(call, partial(plain_low_rank, SMALL, 1, True), tensors, "triton", 2e-6)
    call, tensors = low_rank(SMALL, 0, normalize=True)
    out, *grads = outcome(call, tensors, "triton")
    assert out.shape == (0, SMALL.parameter_count)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, tensors, strict=True))


@pytest.mark.parametrize("normalize", [False, True])
def test_only_needed_gradients_are_computed(normalize, monkeypatch):
    from ginr_fast.ops.kernels import unit_rows

    names = []
    original = unit_rows.launch
    monkeypatch.setattr(
        unit_rows,
        "launch",
        lambda kernel, *rest: names.append(kernel.fn.__name__) or original(kernel, *rest),
    )
    call, tensors = low_rank(SMALL, 2, normalize=normalize)
    rows = ["row_dots_kernel", "low_rank_rows_kernel"] if normalize else []
    for index, expected in {0: rows, 1: rows, 3: []}.items():
        leaves = [tensor.clone() for tensor in tensors]
        leaves[index].requires_grad_()
        with ginr_fast.backend("triton"):
            out = call(*leaves).sum()
            names.clear()
            out.backward()
        assert names == expected
        assert leaves[index].grad is not None


def test_inside_torch_compile():
    torch.compiler.reset()
    call, tensors = low_rank(make_spec(hidden_dim=4, hidden_layers=0), 2, normalize=True)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for got, want in zip(
        outcome(compiled, tensors, "triton"), outcome(call, tensors, "triton"), strict=True
    ):
        torch.testing.assert_close(got, want)
