"""group_weights: every backend against the formula, a row at a time, in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from field_cases import make_spec
from weight_cases import IMAGE, SPECS, check, grouped, outcome, plain_groups, randn

import ginr_fast
from ginr_fast import group_weights
from ginr_fast.ops import dispatch, unit_rows
from ginr_fast.ops.group_weights import op

BACKENDS = ["reference", "blocked"]
LAYOUTS = ["blocks", "tiled"]
SMALL = SPECS["small"]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("most", [1, 4, 12])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend, most, layout, spec):
    formula = partial(plain_groups, spec, layout)
    for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        call, tensors = grouped(spec, 3, most, layout, dtype)
        check(call, formula, tensors, backend, limit)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, backend):
    call, tensors = grouped(SPECS["encoded"], dtype=dtype)
    formula = partial(plain_groups, SPECS["encoded"], "blocks")
    check(call, formula, tensors, backend, 5e-3)


def test_half_precision_is_computed_in_float32():
    """u ⊙ w̄ beyond the largest float16, and a square below the smallest."""
    spec = make_spec(hidden_dim=4, hidden_layers=0, bias=False)
    call, tensors = grouped(spec, dtype=torch.float16)
    for size in (1e3, 1e-3):
        scaled = [tensor * size for tensor in tensors]
        check(call, partial(plain_groups, spec, "blocks"), scaled, "blocked", 2e-3)


def test_paper_size_and_blocks_of_instances(monkeypatch):
    call, tensors = grouped(IMAGE, batch=5, most=64)
    want = outcome(call, [tensor.double() for tensor in tensors], "reference")
    monkeypatch.setattr(unit_rows, "CPU_BLOCK", 2 * 256 * 256)
    got = outcome(call, tensors, "blocked")
    for result, expected in zip(got, want, strict=True):
        assert (result - expected).norm() <= 2e-6 * expected.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_differ_in_which_rows_share_a_group(backend):
    spec = make_spec(hidden_dim=6, hidden_layers=0, bias=False)
    groups = [torch.ones(1, 2, 2), torch.ones(1, 1, 6)]
    groups[0][0, 1] = torch.tensor([1.0, -1.0])
    bases = [torch.ones(6, 2), torch.ones(3, 6)]
    with ginr_fast.backend(backend):
        for layout, second in (("blocks", [0, 0, 0, 1, 1, 1]), ("tiled", [0, 1, 0, 1, 0, 1])):
            packed = group_weights(groups, bases, spec, layout=layout)
            weight = spec.unpack(packed)[0][0]
            assert (weight[0, :, 1] < 0).int().tolist() == second


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_gradgradcheck(backend):
    call, tensors = grouped(make_spec(hidden_dim=2, hidden_layers=0), 2, 2, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in tensors]
    with ginr_fast.backend(backend):
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


def test_third_derivative():
    spec = make_spec(hidden_dim=2, hidden_layers=0)

    def third(backend):
        call, tensors = grouped(spec, 2, 2, dtype=torch.float64)
        u = tensors[0].requires_grad_()
        with ginr_fast.backend(backend):
            value = call(u, *tensors[1:]).pow(3).sum()
            for _ in range(3):
                (slope,) = torch.autograd.grad(value, u, create_graph=True)
                value = slope.square().sum()
        return slope

    torch.testing.assert_close(third("blocked"), third("reference"))


def test_rows_of_zeros_and_shorter_than_epsilon():
    """There the length is ε, a constant: w = v/ε, ∂v = g/ε."""
    call, tensors = grouped(SMALL, 2, 2, dtype=torch.float64)
    tensors[0][0, 0] = 0.0
    tensors[0][1, 1] *= 1e-14
    for backend in BACKENDS:
        check(call, partial(plain_groups, SMALL, "blocks"), tensors, backend, 1e-12)


def test_only_needed_gradients_are_computed(monkeypatch):
    call, tensors = grouped(SMALL)
    wanted = []
    original = op.blocked.backward

    def spy(grad, tensors, packed, lengths, asked, *rest):
        found = original(grad, tensors, packed, lengths, asked, *rest)
        wanted.append((list(asked), sorted(found)))
        return found

    monkeypatch.setattr(op.blocked, "backward", spy)
    for index in (1, 4, 8):
        leaves = [tensor.clone() for tensor in tensors]
        leaves[index].requires_grad_()
        call(*leaves).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [i == index for i in range(9)]
    assert wanted == [([1], [1]), ([4], [4]), ([8], [8])]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strange_strides_and_shared_instances(backend):
    call, tensors = grouped(SMALL, 4, 3, dtype=torch.float64)
    tensors[:3] = [tensor[:1].expand(4, -1, -1) for tensor in tensors[:3]]
    strange = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors[:6]]
    assert not strange[3].is_contiguous()
    formula = partial(plain_groups, SMALL, "blocks")
    check(call, formula, [*tensors[:3], *strange[3:6], *tensors[6:]], backend, 1e-14)
    check(call, formula, [*strange, *tensors[6:]], backend, 1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    call, tensors = grouped(SMALL, batch=0)
    out, *grads = outcome(call, tensors, backend)
    assert out.shape == (0, SMALL.parameter_count)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, tensors, strict=True))


def test_nan_stays_in_its_row():
    call, tensors = grouped(SMALL)
    tensors[0][1, 0, 0] = float("nan")
    for backend in BACKENDS:
        with ginr_fast.backend(backend):
            weight = SMALL.unpack(call(*tensors))[0][0]
        assert weight[1, :2].isnan().all() and weight[1, 2:].isfinite().all()
        assert weight[[0, 2]].isfinite().all()


def test_parameter_lists_are_sequences():
    _, tensors = grouped(SMALL)
    parameters = torch.nn.ParameterList(tensors[3:6])
    out = group_weights(tuple(tensors[:3]), parameters, SMALL, biases=iter(tensors[6:]))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in parameters)


def test_opcheck():
    spec = make_spec(hidden_dim=6, hidden_layers=0, bias=False)
    _, tensors = grouped(spec, 2)
    inputs = [tensor.requires_grad_() for tensor in tensors]
    settings = (spec.key, "tiled", "blocked")
    torch.library.opcheck(op._operator.forward, (inputs, *settings))
    packed, lengths = (t.detach() for t in op._operator.forward(inputs, *settings))
    grad = torch.randn_like(packed).requires_grad_()
    arguments = (grad, inputs, packed, lengths, [0, 1, 3], *settings)
    torch.library.opcheck(op._operator.backward, arguments)


def test_compiles_into_one_graph_of_any_batch():
    torch._dynamo.reset()

    def step(*tensors):
        return call(*(2 * tensor for tensor in tensors)).sin()

    spec = make_spec(hidden_dim=6, hidden_layers=0)
    call, _ = grouped(spec)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        tensors = grouped(spec, batch)[1]
        for got, want in zip(outcome(compiled, tensors), outcome(step, tensors), strict=True):
            torch.testing.assert_close(got, want)
    with ginr_fast.backend("reference"):
        reference = torch.compile(step, fullgraph=True, backend="eager")
        torch.testing.assert_close(reference(*tensors), step(*tensors))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_keeps_the_precision_of_the_bases(backend):
    call, tensors = grouped(SMALL)
    low = [tensor.bfloat16() for tensor in tensors[:3]]
    with ginr_fast.backend(backend):
        want = call(*(u.float() for u in low), *tensors[3:])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = call(*low, *tensors[3:])
    assert got.dtype == torch.float32 and torch.equal(got, want)
    with pytest.raises(TypeError, match=r"bases\[0\]: expected dtype bfloat16"):
        call(*low, *tensors[3:])


def test_plan():
    call, tensors = grouped(SMALL, 2)
    (plan,) = ginr_fast.explain(call, *tensors).plans
    assert (plan.operator, plan.backend) == ("group_weights", "blocked")
    assert plan.flops == plan.naive_flops == 4 * 2 * (6 * 2 + 6 * 6 + 3 * 6)
    with ginr_fast.backend("native"), pytest.raises(dispatch.BackendError, match="no such backend"):
        call(*tensors)


def test_meta_tensors_have_the_right_shape():
    call, tensors = grouped(SMALL, 2)
    out = call(*(tensor.to("meta") for tensor in tensors))
    assert out.device.type == "meta" and out.shape == (2, SMALL.parameter_count)


TENSORS = grouped(SMALL, 2)[1]
GOOD = {"groups": TENSORS[:3], "bases": TENSORS[3:6], "spec": SMALL, "biases": TENSORS[6:]}


def but(name, index, value):
    return {**GOOD, name: [*GOOD[name][:index], value, *GOOD[name][index + 1 :]]}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({**GOOD, "spec": "spec"}, TypeError, "spec: expected a FieldSpec, got str"),
        ({**GOOD, "groups": TENSORS[0]}, TypeError, "groups: expected a sequence of tensors, got"),
        ({**GOOD, "groups": TENSORS[:2]}, ValueError, "groups: expected 3 tensors, .* got 2"),
        ({**GOOD, "bases": None}, TypeError, "bases: expected a sequence of tensors, got NoneType"),
        ({**GOOD, "bases": TENSORS}, ValueError, "bases: expected 3 tensors, .* got 9"),
        ({**GOOD, "biases": None}, ValueError, "biases: expected 3 tensors, .* got None"),
        ({**GOOD, "layout": "rows"}, ValueError, "layout: expected one of blocks, tiled, got 'ro"),
        (but("groups", 0, 1.0), TypeError, r"groups\[0\]: expected a tensor, got float"),
        (but("groups", 0, TENSORS[0].long()), TypeError, r"groups\[0\]: expected dtype .* int64"),
        (but("groups", 1, TENSORS[1].double()), TypeError, r"groups\[1\]: expected dtype float32"),
        (but("groups", 1, TENSORS[1][:1]), ValueError, r"groups\[1\]: expected shape \(2, G, 6\)"),
        (but("groups", 2, TENSORS[2][0]), ValueError, r"groups\[2\]: expected shape \(2, G, 6\)"),
        (but("groups", 0, torch.ones(2, 4, 2)), ValueError, r"groups\[0\]: .* divides the 6 .* 4"),
        (but("groups", 0, torch.ones(2, 0, 2)), ValueError, r"groups\[0\]: .* got 0"),
        (but("groups", 0, TENSORS[0].to_sparse()), TypeError, r"groups\[0\]: .* a dense tensor"),
        (but("bases", 0, TENSORS[3].t()), ValueError, r"bases\[0\]: expected shape \(6, 2\)"),
        (but("bases", 1, TENSORS[4].half()), TypeError, r"bases\[1\]: expected dtype float32"),
        (but("bases", 1, TENSORS[4].to("meta")), ValueError, r"bases\[1\]: expected device cpu"),
        (but("biases", 2, torch.ones(2)), ValueError, r"biases\[2\]: expected shape \(3\)"),
    ],
)
def test_bad_input_is_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        group_weights(**arguments)


def test_biases_without_a_place_are_refused():
    spec = SPECS["no bias"]
    _, tensors = grouped(spec)
    with pytest.raises(ValueError, match="biases: expected None"):
        group_weights(tensors[:2], tensors[2:4], spec, biases=randn((8,), (3,)))
