"""field_mlp: values and gradients of every backend and vector path against float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from field_cases import (
    EDGES,
    ENCODING,
    ENGINES,
    KINDS,
    LIMITS,
    NATIVE,
    check_accuracy,
    engine,
    evaluate,
    has_phases,
    make_coords,
    make_spec,
    make_weights,
    relative_error,
    threads,
)

import ginr_fast
from ginr_fast import BackendError, FieldSpec, FourierEncoding, field_mlp
from ginr_fast.ops import native_field
from ginr_fast.ops.field_mlp import blocked, op

FAST = [*NATIVE, "blocked"]
PAPER = {
    "mnif-s image": FieldSpec(2, 3, 64, 4, "sine", out_activation="sine"),
    "mnif-l image": FieldSpec(2, 3, 128, 5, "sine", out_activation="sine"),
    "mnif-s voxel": FieldSpec(3, 1, 64, 4, "sine", w0=50.0, out_activation="sine"),
    "mnif-s scene": FieldSpec(3, 4, 64, 4, "sine"),
    "trans-inr image": FieldSpec(2, 3, 256, 3, encoding=FourierEncoding.log_spaced(64, 1024)),
    "trans-inr scene": FieldSpec(3, 4, 256, 4, encoding=FourierEncoding.log_spaced(20, 256, 1.0)),
}


def points(spec, batch, count, dtype=torch.float32):
    return make_coords("points", batch, count, spec.coord_dim).to(dtype)


def own_formula(coords, weights, spec, directions=None):
    """Instance by instance and layer by layer, cutting the packed row by hand; ``coords``
    ``(B, N, d)``."""

    def activate(x, kind):
        return {"relu": F.relu, "sine": lambda p: torch.sin(spec.w0 * p), "none": lambda p: p}[
            kind
        ](x)

    def instance(v, row, d):
        place = 0

        def linear(x, rows):
            nonlocal place
            size = rows * x.shape[1]
            matrix = row[place : place + size].reshape(rows, x.shape[1])
            place += size
            bias = None
            if spec.bias:
                bias = row[place : place + rows]
                place += rows
            return F.linear(x, matrix, bias)

        if spec.encoding is not None:
            phases = [v[:, i] * f for i in range(v.shape[1]) for f in spec.encoding.frequencies]
            v = torch.stack([p.cos() for p in phases] + [p.sin() for p in phases], dim=1)
        for _ in range(spec.hidden_layers + 1):
            v = activate(linear(v, spec.hidden_dim), spec.activation)
        if not spec.view_dim:
            return activate(linear(v, spec.out_dim), spec.out_activation)
        view = activate(linear(d / d.norm(dim=1, keepdim=True), spec.view_dim), spec.activation)
        density = linear(v, 1)
        seen = activate(linear(torch.cat((v, view), 1), spec.hidden_dim), spec.activation)
        colour = activate(linear(seen, spec.out_dim - 1), spec.out_activation)
        return torch.cat((colour, density), 1)

    batch = weights.shape[0]
    d = [None] * batch if directions is None else directions
    return torch.stack([instance(coords[b], weights[b], d[b]) for b in range(batch)])


@pytest.mark.parametrize("case", EDGES, ids=str)
def test_the_reference_is_the_formula(case):
    changes, batch, count = case
    spec = make_spec(**changes)
    weights = make_weights(spec, batch, torch.float64)
    coords = points(spec, batch, count, torch.float64)
    with ginr_fast.backend("reference"):
        got = field_mlp(coords, weights, spec)
    torch.testing.assert_close(got, own_formula(coords, weights, spec), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("spec", PAPER.values(), ids=PAPER)
def test_paper_sizes(spec, name):
    # The phases of the reference are rounded to float32, so that it may be looser.
    inputs = points(spec, 2, 300), make_weights(spec, 2)
    check_accuracy(lambda v, w: field_mlp(v, w, spec), inputs, name, 2e-5, as_float32=True)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("case", EDGES, ids=str)
def test_every_shape(case, name):
    changes, batch, count = case
    spec = make_spec(**changes)
    inputs = points(spec, batch, count), make_weights(spec, batch)
    check_accuracy(
        lambda v, w: field_mlp(v, w, spec), inputs, name, 2e-5, as_float32=has_phases(spec)
    )


@pytest.mark.parametrize("case", EDGES, ids=str)
def test_blocked_in_float64(case):
    changes, batch, count = case
    spec = make_spec(**changes)
    inputs = points(spec, batch, count).double(), make_weights(spec, batch).double()
    check_accuracy(lambda v, w: field_mlp(v, w, spec), inputs, "blocked", 1e-13)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("wanted", [[0], [1], []], ids=["coords", "weights", "none"])
@pytest.mark.parametrize("activation", ["relu", "sine"])
def test_gradients_apart(activation, wanted, name):
    spec = make_spec(activation=activation, encoding=ENCODING if activation == "relu" else None)
    inputs = points(spec, 3, 100), make_weights(spec, 3)
    check_accuracy(
        lambda v, w: field_mlp(v, w, spec), inputs, name, 2e-5, wanted=wanted, as_float32=True
    )


@pytest.mark.parametrize("name", NATIVE[-1:] + ["blocked"])
@pytest.mark.parametrize("wanted", [["coords"], ["weights"], ["coords", "weights"]], ids=str)
def test_only_needed_gradients_are_computed(wanted, name, monkeypatch):
    asked = []
    module = blocked if name == "blocked" else native_field
    original = module.backward

    def spy(*arguments):
        asked.append(list(arguments[5 if name == "blocked" else 4]))
        found = original(*arguments)
        assert set(found) == set(asked[-1])
        return found

    monkeypatch.setattr(module, "backward", spy)
    spec = make_spec()
    inputs = points(spec, 3, 10), make_weights(spec, 3)
    indices = [("coords", "weights").index(part) for part in wanted]
    evaluate(lambda v, w: field_mlp(v, w, spec), inputs, indices, name)
    assert asked == [wanted]


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_coordinates(kind, dims, name):
    spec = make_spec(coord_dim=dims, activation="sine", hidden_layers=0)
    coords, weights = make_coords(kind, 3, 70, dims), make_weights(spec, 3)
    if kind != "grid":
        check_accuracy(
            lambda v, w: field_mlp(v, w, spec), (coords, weights), name, 2e-5, as_float32=True
        )
        return
    axes = coords.axes

    def function(weights, *axes):
        return field_mlp(ginr_fast.CoordinateGrid(axes), weights, spec)

    check_accuracy(function, (weights, *axes), name, 2e-5, as_float32=True)
    check_accuracy(function, (weights, *axes), name, 2e-5, wanted=[0], as_float32=True)
    with engine(name):
        assert function(weights, *axes).shape == (3, *coords.shape, 3)


@pytest.mark.parametrize("shape", [(2,), (5, 2), (1, 2, 3, 2), (3, 2, 5, 2), (4, 5, 2)], ids=str)
def test_shapes_of_coordinates(shape):
    spec = make_spec(hidden_layers=0)
    coords, weights = torch.rand(shape), make_weights(spec, 3)
    batched = len(shape) >= 3 and shape[0] in (1, 3)
    between = shape[1:-1] if batched else shape[:-1]
    flat = coords.reshape(shape[0] if batched else 1, -1, 2).expand(3, -1, -1)
    got = field_mlp(coords, weights, spec)
    assert got.shape == (3, *between, 3)
    torch.testing.assert_close(got.reshape(3, -1, 3), own_formula(flat, weights, spec))


VIEWED = {
    "relu": make_spec(coord_dim=3, out_dim=4, view_dim=5, hidden_layers=2),
    "sine": make_spec(coord_dim=3, out_dim=4, view_dim=1, activation="sine", w0=7.0),
    "encoded": make_spec(coord_dim=3, out_dim=2, view_dim=8, encoding=ENCODING, bias=False),
    "sine out": make_spec(coord_dim=2, out_dim=3, view_dim=4, out_activation="sine", w0=3.0),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("spec", VIEWED.values(), ids=VIEWED)
def test_view_branch(spec, shared):
    coords, weights = points(spec, 3, 70), make_weights(spec, 3)
    generator = torch.Generator().manual_seed(9)
    directions = torch.randn(1 if shared else 3, 70, 3, generator=generator)

    def function(coords, weights, directions):
        return field_mlp(coords, weights, spec, directions)

    inputs = coords, weights, directions
    check_accuracy(function, inputs, "blocked", 2e-5, as_float32=True)
    check_accuracy(function, inputs, "blocked", 2e-5, wanted=[2], as_float32=True)
    doubles = [x.double() for x in inputs]
    check_accuracy(function, doubles, "blocked", 1e-12)
    with ginr_fast.backend("reference"):
        got = function(*doubles)
    views = doubles[2].expand(3, -1, -1)
    torch.testing.assert_close(got, own_formula(doubles[0], doubles[1], spec, views))
    torch.testing.assert_close(function(coords, weights, 5 * directions), got.float())
    with ginr_fast.backend("native"), pytest.raises(BackendError, match="view branch"):
        function(*inputs)


def test_a_view_of_length_zero_counts_as_no_view():
    spec = VIEWED["relu"]
    weights, coords = make_weights(spec, 2), points(spec, 2, 4)
    directions = torch.zeros(2, 4, 3, requires_grad=True)
    for name in ("blocked", "reference"):
        with ginr_fast.backend(name):
            out = field_mlp(coords, weights, spec, directions)
        assert out.isfinite().all()
        (grad,) = torch.autograd.grad(out.sum(), directions)
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["relu", "sine", "none"])
def test_half_precision(activation, dtype, name):
    if (name, activation, dtype) == ("blocked", "sine", torch.bfloat16):
        pytest.skip("bfloat16 activations cannot carry the phases of a sine of w0 = 30")
    spec = make_spec(activation=activation, hidden_dim=64, hidden_layers=2)
    inputs = points(spec, 2, 300), make_weights(spec, 2, dtype)
    check_accuracy(lambda v, w: field_mlp(v, w, spec), inputs, name, LIMITS[dtype])
    with engine(name):
        assert field_mlp(*inputs, spec).dtype == dtype


@pytest.mark.parametrize("name", ENGINES)
def test_autocast(name):
    spec = make_spec(hidden_dim=32)
    coords, weights = points(spec, 2, 100), make_weights(spec, 2).requires_grad_()
    rounded = weights.detach().bfloat16().requires_grad_()
    with engine(name):
        with torch.autocast("cpu", torch.bfloat16):
            out = field_mlp(coords, weights, spec)
            double = field_mlp(coords, weights.double(), spec) if "native" not in name else None
        want = field_mlp(coords, rounded, spec)
        (grad,) = torch.autograd.grad(out.float().square().sum(), weights)
        (expected,) = torch.autograd.grad(want.float().square().sum(), rounded)
    assert out.dtype == torch.bfloat16 and grad.dtype == torch.float32
    assert torch.equal(out, want) and torch.equal(grad, expected.float())
    assert double is None or double.dtype == torch.float64


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize(
    "spec",
    [
        FieldSpec(2, 2, 3, 1, "sine", w0=2.0, out_activation="sine"),
        FieldSpec(1, 2, 3, 0, "none", bias=False, encoding=FourierEncoding((0.7, 1.9))),
        FieldSpec(2, 2, 4, 1, "relu", encoding=FourierEncoding((0.7,))),
        FieldSpec(2, 2, 2, 0, "sine", w0=1.5, view_dim=2),
    ],
    ids=str,
)
def test_gradcheck_and_gradgradcheck(spec, backend):
    generator = torch.Generator().manual_seed(5)
    shapes = [(2, 3, spec.coord_dim), (2, spec.parameter_count)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    if spec.view_dim:
        inputs.append(torch.randn(1, 3, 3, generator=generator, dtype=torch.float64))
    inputs = [x.requires_grad_() for x in inputs]

    def function(coords, weights, *directions):
        return field_mlp(coords, weights, spec, *directions)

    with ginr_fast.backend(backend):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("activation", ["relu", "sine"])
def test_second_order_of_native(activation, name):
    """CAVIA's inner step, and a penalty on the slope of the field."""
    spec = make_spec(activation=activation, w0=5.0, hidden_layers=2)

    def stepped(coords, weights):
        loss = field_mlp(coords, weights, spec).square().mean()
        (slope,) = torch.autograd.grad(loss, weights, create_graph=True)
        out = field_mlp(coords, weights - 0.3 * slope, spec)
        (tilt,) = torch.autograd.grad(out.sum(), coords, create_graph=True)
        return out, tilt

    inputs = points(spec, 2, 70), make_weights(spec, 2)
    check_accuracy(stepped, inputs, name, 2e-5, as_float32=True)


@pytest.mark.parametrize("case", EDGES[3:9], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(case):
    changes, batch, count = case
    spec = make_spec(**changes)
    for size in (count, 5000 // spec.hidden_dim + count):
        inputs = points(spec, batch, size), make_weights(spec, batch)
        for wanted in ([0, 1], [1]):
            found = []
            for number in (1, 2, 5):
                with threads(number):
                    found.append(
                        evaluate(lambda v, w: field_mlp(v, w, spec), inputs, wanted, "native")
                    )
            for other in found[1:]:
                assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", NATIVE)
def test_weight_gradients_over_many_parts(name):
    """More samples than one part of the sum takes, a last part that is short, and empty ones."""
    spec = make_spec(hidden_dim=7, activation="sine", w0=3.0)
    for batch, count in ((1, 16_385), (1, 17_000), (3, 6_001)):
        inputs = points(spec, batch, count), make_weights(spec, batch)
        check_accuracy(lambda v, w: field_mlp(v, w, spec), inputs, name, 2e-5, as_float32=True)


@pytest.mark.parametrize("name", FAST)
def test_huge_phases(name):
    """Phases of a hundred thousand radians: as good as float32 can tell them."""
    spec = make_spec(activation="sine", w0=1e5, hidden_layers=0)
    inputs = points(spec, 2, 65), 1e5 * make_weights(spec, 2)
    check_accuracy(
        lambda v, w: field_mlp(v, w, spec), inputs, name, 2e-5, wanted=[], as_float32=True
    )
    spec = make_spec(hidden_layers=0, encoding=FourierEncoding((1e3 * math.pi, 3e5, 1e9)))
    inputs = points(spec, 2, 65), make_weights(spec, 2)
    check_accuracy(
        lambda v, w: field_mlp(v, w, spec), inputs, name, 2e-5, wanted=[1], as_float32=True
    )


@pytest.mark.parametrize("name", NATIVE)
def test_phases_of_an_encoding_are_as_good_as_their_coordinates(name):
    """Where the reference in float32 loses digits, the kernels carry a product's rounding."""
    spec = make_spec(
        activation="none", hidden_layers=0, encoding=FourierEncoding.log_spaced(9, 1024)
    )
    coords, weights = points(spec, 1, 500), make_weights(spec, 1)
    want = own_formula(coords.double(), weights.double(), spec)
    with engine(name):
        fast = relative_error(field_mlp(coords, weights, spec), want)
    with engine("reference"):
        plain = relative_error(field_mlp(coords, weights, spec), want)
    assert plain > 1e-5
    # Only the portable path has no fused products to carry it with.
    assert fast <= (plain if "portable" in name else 2e-6)


def test_the_backend_is_told_and_so_are_the_flops():
    spec = make_spec(hidden_layers=1)
    inputs = points(spec, 2, 10), make_weights(spec, 2)
    (plan,) = ginr_fast.explain(field_mlp, *inputs, spec).plans
    assert (plan.operator, plan.backend, plan.refused) == ("field_mlp", "native", {})
    assert plan.flops == 2 * 2 * 10 * (2 * 16 + 16 * 16 + 16 * 3)
    (plan,) = ginr_fast.explain(field_mlp, inputs[0], inputs[1].double(), spec).plans
    assert plan.backend == "blocked" and "not float64" in plan.refused["native"]
    assert op._ARGUMENTS == ("coords", "weights", "directions")


def test_a_sine_at_the_end_never_sees_a_bfloat16_phase():
    spec = FieldSpec(
        coord_dim=2,
        out_dim=3,
        hidden_dim=32,
        hidden_layers=1,
        out_activation="sine",
        encoding=FourierEncoding.log_spaced(4, 8.0),
    )
    torch.manual_seed(0)
    weights = (0.3 * torch.randn(2, spec.parameter_count)).bfloat16()
    coords = torch.rand(2, 70, 2)
    with ginr_fast.backend("native"):
        got = ginr_fast.field_mlp(coords, weights, spec)
        want = ginr_fast.field_mlp(coords, weights.float(), spec)
    assert torch.equal(got, want.bfloat16())
