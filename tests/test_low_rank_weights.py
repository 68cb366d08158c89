"""low_rank_weights: every backend against the formula, slot by slot, in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from field_cases import make_spec
from weight_cases import IMAGE, SPECS, check, low_rank, outcome, plain_low_rank

import ginr_fast
from ginr_fast import low_rank_weights
from ginr_fast.ops import dispatch
from ginr_fast.ops.low_rank_weights import op

BACKENDS = ["reference", "blocked"]
SMALL = SPECS["small"]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("rank", [2, 7])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend, rank, normalize, spec):
    for layer in range(spec.layers):
        formula = partial(plain_low_rank, spec, layer, normalize)
        for dtype, limit in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
            call, tensors = low_rank(spec, 3, rank, layer, normalize, dtype)
            check(call, formula, tensors, backend, limit)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, backend, normalize):
    spec = SPECS["encoded"]
    call, tensors = low_rank(spec, 3, 16, 1, normalize, dtype)
    check(call, partial(plain_low_rank, spec, 1, normalize), tensors, backend, 1e-2)


@pytest.mark.parametrize("normalize", [False, True])
def test_paper_size(normalize):
    call, tensors = low_rank(IMAGE, batch=3, rank=256, normalize=normalize)
    want = outcome(call, [tensor.double() for tensor in tensors], "reference")
    for result, expected in zip(outcome(call, tensors, "blocked"), want, strict=True):
        assert (result - expected).norm() <= 5e-6 * expected.norm()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_gradgradcheck(backend, normalize):
    spec = make_spec(coord_dim=1, out_dim=2, hidden_dim=3, hidden_layers=0)
    call, tensors = low_rank(spec, 2, 2, 1, normalize, torch.float64)
    inputs = [tensor.requires_grad_() for tensor in tensors]
    with ginr_fast.backend(backend):
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


def test_rows_of_zeros_and_shorter_than_epsilon():
    call, tensors = low_rank(SMALL, 2, 3, 1, True, torch.float64)
    tensors[1][0] = 0.0
    tensors[1][1] *= 1e-14
    tensors[2][2] = 0.0
    for backend in BACKENDS:
        check(call, partial(plain_low_rank, SMALL, 1, True), tensors, backend, 1e-12)


def test_only_needed_gradients_are_computed(monkeypatch):
    call, tensors = low_rank(SMALL)
    products = []
    original = op.blocked.torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: products.append(1) or original(*a, **k))
    for index, count in ((0, 6), (1, 3), (3, 3)):  # 3 forward; ∂V takes one an instance
        leaves = [tensor.clone() for tensor in tensors]
        leaves[index].requires_grad_()
        call(*leaves).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [
            i == index for i in range(len(tensors))
        ]
        assert len(products) == count
        products.clear()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strange_strides(backend):
    call, tensors = low_rank(SMALL, 4, 3, 1, True, torch.float64)
    tensors[0] = tensors[0][:1].expand(4, -1, -1)
    strange = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors]
    formula = partial(plain_low_rank, SMALL, 1, True)
    check(call, formula, [tensors[0], *strange[1:]], backend, 1e-13)
    check(call, formula, strange, backend, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    call, tensors = low_rank(SMALL, batch=0, normalize=True)
    out, *grads = outcome(call, tensors, backend)
    assert out.shape == (0, SMALL.parameter_count)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, tensors, strict=True))


@pytest.mark.parametrize("normalize", [False, True])
def test_opcheck(normalize):
    spec = make_spec(hidden_dim=6, hidden_layers=0, bias=False)
    _, tensors = low_rank(spec, 2)
    inputs = [tensor.requires_grad_() for tensor in tensors]
    settings = (spec.key, 1, normalize, "blocked")
    torch.library.opcheck(op._operator.forward, (inputs, *settings))
    packed, lengths = (t.detach() for t in op._operator.forward(inputs, *settings))
    grad = torch.randn_like(packed).requires_grad_()
    arguments = (grad, inputs, packed, lengths, [0, 1, 2], *settings)
    torch.library.opcheck(op._operator.backward, arguments)


def test_compiles_into_one_graph_of_any_batch():
    torch._dynamo.reset()

    def step(*tensors):
        return call(*(2 * tensor for tensor in tensors)).sin()

    spec = make_spec(hidden_dim=6, hidden_layers=0)
    call, _ = low_rank(spec, normalize=True)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        tensors = low_rank(spec, batch)[1]
        for got, want in zip(outcome(compiled, tensors), outcome(step, tensors), strict=True):
            torch.testing.assert_close(got, want)
    with ginr_fast.backend("reference"):
        reference = torch.compile(step, fullgraph=True, backend="eager")
        torch.testing.assert_close(reference(*tensors), step(*tensors))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_keeps_the_precision_of_the_parameters(backend):
    call, tensors = low_rank(SMALL)
    low = tensors[0].bfloat16()
    with ginr_fast.backend(backend):
        want = call(low.float(), *tensors[1:])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = call(low, *tensors[1:])
    assert got.dtype == torch.float32 and torch.equal(got, want)
    with pytest.raises(TypeError, match="mixing: expected dtype bfloat16"):
        call(low, *tensors[1:])


def test_plan():
    call, tensors = low_rank(SMALL, 2, 4)
    (plan,) = ginr_fast.explain(call, *tensors).plans
    assert (plan.operator, plan.backend) == ("low_rank_weights", "blocked")
    assert plan.flops == plan.naive_flops == 2 * 2 * 6 * 4 * 6
    with ginr_fast.backend("native"), pytest.raises(dispatch.BackendError, match="no such backend"):
        call(*tensors)


def test_meta_tensors_have_the_right_shape():
    call, tensors = low_rank(SMALL, 2)
    out = call(*(tensor.to("meta") for tensor in tensors))
    assert out.device.type == "meta" and out.shape == (2, SMALL.parameter_count)


V, U, *REST = low_rank(SMALL, 2)[1]


@pytest.mark.parametrize(
    ("arguments", "settings", "kind", "message"),
    [
        ((V, U, REST, None), {}, TypeError, "spec: expected a FieldSpec, got NoneType"),
        ((V, U, REST, SMALL), {"layer": 3}, ValueError, "layer: expected 0 to 2, got 3"),
        ((V, U, REST, SMALL), {"layer": -1}, ValueError, "layer: expected 0 to 2, got -1"),
        ((V, U, REST, SMALL), {"layer": True}, TypeError, "layer: expected an integer, got True"),
        ((V, U, REST, SMALL), {"normalize": 1}, TypeError, "normalize: expected True or False"),
        ((V[0], U, REST, SMALL), {}, ValueError, r"patterns: expected shape \(B, R, 6\)"),
        ((V.long(), U, REST, SMALL), {}, TypeError, "patterns: expected dtype .* got int64"),
        ((V[:, :0], U[:, :0], REST, SMALL), {}, ValueError, "patterns: .* got R = 0"),
        ((V, U[:, :3], REST, SMALL), {}, ValueError, r"mixing: expected shape \(6, 4\)"),
        ((V, U.double(), REST, SMALL), {}, TypeError, "mixing: expected dtype float32"),
        ((V, U, REST[:-1], SMALL), {}, ValueError, "parameters: expected 5 tensors, .* got 4"),
        ((V, U, REST[0], SMALL), {}, TypeError, "parameters: expected a sequence .* got Tensor"),
        ((V, U, [*REST[:2], 1, *REST[3:]], SMALL), {}, TypeError, r"parameters\[2\]: .* got int"),
        ((V, U, REST[::-1], SMALL), {}, ValueError, r"parameters\[0\]: expected shape \(6, 2\)"),
        (
            (V, U, [p.to("meta") for p in REST], SMALL),
            {},
            ValueError,
            r"parameters\[0\]: expected device cpu, got meta",
        ),
    ],
)
def test_bad_input_is_named(arguments, settings, kind, message):
    with pytest.raises(kind, match=message):
        low_rank_weights(*arguments, **settings)
