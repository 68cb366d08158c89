"""field_mlp: wrong input gets a named error, odd input a right answer; what wraps the operator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from field_cases import (
    ENCODING,
    ENGINES,
    NATIVE,
    engine,
    make_coords,
    make_spec,
    make_weights,
    relative_error,
)

import ginr_fast
from ginr_fast import BackendError, field_mlp

SPEC = make_spec()
VIEWED = make_spec(coord_dim=3, out_dim=4, view_dim=5)
COORDS = torch.rand(2, 5, 2)
WEIGHTS = make_weights(SPEC, 2)
GOOD: dict[str, Any] = {"coords": COORDS, "weights": WEIGHTS, "spec": SPEC, "directions": None}
GOOD_VIEWED: dict[str, Any] = {
    "coords": torch.rand(2, 5, 3),
    "weights": make_weights(VIEWED, 2),
    "spec": VIEWED,
    "directions": torch.randn(2, 5, 3),
}
EVERY = ["native", "blocked", "reference"]

WRONG = [
    ("spec", "sine", TypeError, "expected a FieldSpec, got str"),
    ("spec", None, TypeError, "expected a FieldSpec, got NoneType"),
    ("weights", None, TypeError, "expected a tensor, got NoneType"),
    ("weights", WEIGHTS.numpy(), TypeError, "expected a tensor, got ndarray"),
    ("weights", WEIGHTS.long(), TypeError, "expected dtype float32 or .*, got int64"),
    ("weights", WEIGHTS.to(torch.complex64), TypeError, "expected dtype .*, got complex64"),
    ("weights", WEIGHTS[0], ValueError, r"expected shape \(B, 371\), got \(371\)"),
    ("weights", WEIGHTS[:, :-1], ValueError, r"expected shape \(B, 371\), got \(2, 370\)"),
    ("weights", WEIGHTS[None], ValueError, r"expected shape \(B, 371\), got \(1, 2, 371\)"),
    ("coords", None, TypeError, "expected a tensor or CoordinateGrid, got NoneType"),
    ("coords", [[0.0, 0.0]], TypeError, "expected a tensor or CoordinateGrid, got list"),
    ("coords", COORDS.half(), TypeError, "expected dtype float32 or float64, got float16"),
    ("coords", COORDS.bfloat16(), TypeError, "expected dtype float32 .*, got bfloat16"),
    ("coords", COORDS.long(), TypeError, "expected dtype .*, got int64"),
    ("coords", torch.tensor(0.5), ValueError, r"expected shape \(..., c\), got \(\)"),
    ("coords", COORDS[..., :0], ValueError, r"expected shape \(..., c\), got \(2, 5, 0\)"),
    ("coords", COORDS[..., :1], ValueError, "expected 2 components, got 1"),
    ("coords", torch.rand(2, 5, 3), ValueError, "expected 2 components, got 3"),
    ("coords", ginr_fast.grid(4, 4, 4), ValueError, "expected 2 components, got 3"),
    ("coords", COORDS.to("meta"), ValueError, "expected device cpu, got meta"),
    ("coords", ginr_fast.grid(3, 3, device="meta"), ValueError, "expected device cpu, got meta"),
    ("directions", torch.randn(2, 5, 3), ValueError, "expected None, as the spec has no view_dim"),
]
WRONG_VIEWS = [
    ("directions", None, TypeError, "expected a tensor, got NoneType"),
    ("directions", [1.0], TypeError, "expected a tensor, got list"),
    ("directions", torch.randn(2, 5, 3).half(), TypeError, "expected dtype .*, got float16"),
    ("directions", torch.ones(2, 5, 3).long(), TypeError, "expected dtype .*, got int64"),
    ("directions", torch.randn(2, 5, 2), ValueError, r"expected shape \(..., ..., 3\), got"),
    ("directions", torch.tensor(1.0), ValueError, r"expected shape \(3\), got \(\)"),
    ("directions", torch.randn(2, 4, 3), ValueError, r"expected shape \(2, 5, 3\) or \(5, 3\)"),
    ("directions", torch.randn(5, 2, 3), ValueError, r"expected shape .*, got \(5, 2, 3\)"),
    ("directions", torch.randn(3, 5, 3), ValueError, r"expected shape .*, got \(3, 5, 3\)"),
    ("directions", torch.randn(2, 5, 3).to("meta"), ValueError, "expected device cpu, got meta"),
]


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize(("argument", "value", "error", "message"), WRONG)
def test_wrong_arguments(argument, value, error, message, backend):
    with ginr_fast.backend(backend), pytest.raises(error, match=f"^{argument}: {message}"):
        field_mlp(**{**GOOD, argument: value})


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize(("argument", "value", "error", "message"), WRONG_VIEWS)
def test_wrong_directions(argument, value, error, message, backend):
    with ginr_fast.backend(backend), pytest.raises(error, match=f"^{argument}: {message}"):
        field_mlp(**{**GOOD_VIEWED, argument: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": WEIGHTS.double()}, "float32, float16 and bfloat16, not float64"),
        (GOOD_VIEWED, "fields without a view branch"),
        ({"weights": WEIGHTS.to("meta"), "coords": COORDS.to("meta")}, "not meta"),
    ],
)
def test_what_native_refuses(changes, message):
    with ginr_fast.backend("native"), pytest.raises(BackendError, match=f"field_mlp.*{message}"):
        field_mlp(**{**GOOD, **changes})
    with ginr_fast.backend("triton"), pytest.raises(BackendError, match="field_mlp.*triton"):
        field_mlp(**{**GOOD, **changes})


def test_sparse_tensors_are_refused():
    for argument in ("weights", "coords"):
        with pytest.raises(TypeError, match=f"{argument}: expected a dense tensor"):
            field_mlp(**{**GOOD, argument: GOOD[argument].to_sparse()})


# --- odd input, right answers ---


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    ("coords", "batch", "shape"),
    [
        (torch.rand(0, 5, 2), 0, (0, 5, 3)),
        (torch.zeros(5, 2), 0, (0, 5, 3)),
        (ginr_fast.grid(3, 4), 0, (0, 3, 4, 3)),
        (torch.rand(2, 0, 2), 2, (2, 0, 3)),
        (torch.rand(1, 0, 2), 2, (2, 0, 3)),
        (torch.rand(0, 2), 2, (2, 0, 3)),
        (torch.rand(2, 4, 0, 2), 2, (2, 4, 0, 3)),
        (ginr_fast.grid(0, 4), 2, (2, 0, 4, 3)),
        (ginr_fast.grid(0, 0), 0, (0, 0, 0, 3)),
    ],
    ids=str,
)
def test_nothing_to_evaluate(coords, batch, shape, backend, create_graph):
    weights = make_weights(SPEC, batch).requires_grad_()
    inputs = [weights]
    if isinstance(coords, torch.Tensor):
        coords = coords.clone().requires_grad_()
        inputs.append(coords)
    with ginr_fast.backend(backend):
        out = field_mlp(coords, weights, SPEC)
    assert out.shape == shape and out.dtype == torch.float32
    grads = torch.autograd.grad(out.sum(), inputs, create_graph=create_graph)
    for grad, tensor in zip(grads, inputs, strict=True):
        assert grad.shape == tensor.shape and not grad.any()


@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_nothing_to_evaluate_with_views(backend):
    for batch, count in ((0, 5), (2, 0), (0, 0)):
        weights = make_weights(VIEWED, batch).requires_grad_()
        directions = torch.randn(batch, count, 3, requires_grad=True)
        with ginr_fast.backend(backend):
            out = field_mlp(torch.rand(batch, count, 3), weights, VIEWED, directions)
            shared = field_mlp(torch.rand(count, 3), weights, VIEWED, torch.randn(count, 3))
        assert out.shape == shared.shape == (batch, count, 4)
        assert not torch.autograd.grad(out.sum(), weights)[0].any()


@pytest.mark.parametrize("name", ENGINES)
def test_strange_strides(name):
    """Transposed, sliced, offset, expanded, and overlapping storage."""
    batch, count = 3, 70
    wide = torch.randn(2 * SPEC.parameter_count + 1, batch + 1) * 0.3
    generator = torch.Generator().manual_seed(3)
    strange_weights = (
        wide[1::2, 1:].T,
        wide[: SPEC.parameter_count, :batch].T,
        make_weights(SPEC, 1).expand(batch, -1),
        wide.flatten().as_strided((batch, SPEC.parameter_count), (1, 1), 5),
        make_weights(SPEC, 2 * batch)[::2],
    )
    strange_coords = (
        torch.rand(2, count, batch, generator=generator).permute(2, 1, 0),
        torch.rand(batch, 2 * count, 4, generator=generator)[:, 1::2, 1::2],
        torch.rand(batch, 1, 2, generator=generator).expand(-1, count, -1),
        torch.rand(1, count, 1, generator=generator).expand(batch, -1, 2),
        torch.rand(count + batch, generator=generator).as_strided((batch, count, 2), (1, 1, 0)),
    )
    for weights, coords in zip(strange_weights, strange_coords, strict=True):
        assert weights.shape == (batch, SPEC.parameter_count) and coords.shape == (batch, count, 2)
        leaves = [coords.detach().requires_grad_(), weights.detach().requires_grad_()]
        plain = [x.detach().double().clone().contiguous().requires_grad_() for x in leaves]
        with engine(name):
            out = field_mlp(*leaves, SPEC)
            got = torch.autograd.grad(out.square().sum(), leaves)
        with engine("reference"):
            want = field_mlp(*plain, SPEC)
            grads = torch.autograd.grad(want.square().sum(), plain)
        assert relative_error(out, want) <= 2e-5
        assert all(relative_error(a, b) <= 1e-4 for a, b in zip(got, grads, strict=True))


@pytest.mark.parametrize("name", ENGINES)
def test_a_gradient_of_strange_strides(name):
    weights = make_weights(SPEC, 2).requires_grad_()
    with engine(name):
        out = field_mlp(COORDS, weights, SPEC)
        (expanded,) = torch.autograd.grad(out, weights, torch.ones(()).expand(2, 5, 3), True)
        turned = torch.randn(3, 5, 2).permute(2, 1, 0)
        (got,) = torch.autograd.grad(out, weights, turned, True)
        (want,) = torch.autograd.grad(out, weights, turned.contiguous(), True)
        (ones,) = torch.autograd.grad(out.sum(), weights)
    assert torch.equal(got, want) and torch.equal(expanded, ones)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("activation", ["relu", "sine", "none"])
def test_what_is_not_a_number_shows(activation, bad, name):
    spec = make_spec(activation=activation, hidden_dim=19, bias=False)
    coords, weights = make_coords("points", 3, 70, 2), make_weights(spec, 3)
    broken = coords.clone()
    broken[1, 66, 0] = bad
    with engine(name):
        out = field_mlp(broken, weights, spec)
        fine = field_mlp(coords, weights, spec)
        assert not out[1, 66].isfinite().any()
        # No other coordinate is touched; a sine's neighbours in a vector are computed otherwise.
        out[1, 66] = fine[1, 66]
        assert relative_error(out, fine) <= (1e-5 if activation == "sine" else 0)
        spoilt = weights.clone()
        spoilt[1, 0] = bad  # reaches every value of instance 1 but where the coordinate is 0
        with_weight = field_mlp(coords.abs() + 0.1, spoilt, spec)
        whole = field_mlp(coords.abs() + 0.1, weights, spec)
    if bad == math.inf or math.isnan(bad) or activation != "relu":  # ReLU takes -inf to 0
        assert not with_weight[1].isfinite().any()
    assert torch.equal(with_weight[[0, 2]], whole[[0, 2]])


@pytest.mark.parametrize("name", ENGINES)
def test_gradients_show_what_is_not_a_number(name):
    spec = make_spec(activation="sine")
    weights = make_weights(spec, 3).requires_grad_()
    coords = make_coords("points", 3, 70, 2)
    coords[1, 66, 0] = math.nan
    coords.requires_grad_()
    with engine(name):
        out = field_mlp(coords, weights, spec)
        of_coords, of_weights = torch.autograd.grad(out.sum(), (coords, weights))
    assert of_weights[1].isnan().any() and of_weights[[0, 2]].isfinite().all()
    assert of_coords[1, 66].isnan().any()
    others = torch.ones(3, 70, dtype=torch.bool)
    others[1, 66] = False
    assert of_coords[others].isfinite().all()


# --- what wraps the operator ---


@pytest.mark.parametrize("backend", ["native", "blocked"])
@pytest.mark.parametrize("kind", ["points", "one set", "views"])
def test_opcheck(kind, backend):
    spec = VIEWED if kind == "views" else make_spec(coord_dim=3, encoding=ENCODING)
    backend = "blocked" if kind == "views" else backend
    coords = make_coords("one set" if kind == "one set" else "points", 2, 6, 3).requires_grad_()
    weights = make_weights(spec, 2).requires_grad_()
    directions = torch.randn(2, 6, 3).requires_grad_() if kind == "views" else None
    arguments = coords, weights, directions, [], spec.key, backend
    torch.library.opcheck(torch.ops.ginr_fast.field_mlp.default, arguments)
    grad = torch.randn(2, 6, spec.out_dim, requires_grad=True)
    needed = ["coords", "weights", *(["directions"] if directions is not None else [])]
    for part in (needed, ["weights"]):
        given = grad, *arguments, part
        # The gradient's gradient comes from the formula or from the kernel, as is asked for.
        operator = torch.ops.ginr_fast.field_mlp_backward.default
        torch.library.opcheck(operator, given, atol=1e-4, rtol=1e-4)


def stepped(coords, weights, directions=None, spec=SPEC):
    return field_mlp(2 * coords, weights.tanh(), spec, directions).sin()


def compare_with_eager(function, inputs):
    results = []
    for run in (torch.compile(function, fullgraph=True, backend="aot_eager"), function):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = run(*leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", EVERY)
def test_compiled(backend):
    torch.compiler.reset()
    with ginr_fast.backend(backend):
        compare_with_eager(stepped, (COORDS, WEIGHTS))
        compare_with_eager(stepped, (COORDS[0], WEIGHTS))
        if backend != "native":
            viewed = [GOOD_VIEWED[name] for name in ("coords", "weights", "directions")]
            compare_with_eager(lambda v, w, d: stepped(v, w, d, VIEWED), viewed)


def test_compiled_on_a_grid_and_under_autocast():
    torch.compiler.reset()
    grid = ginr_fast.grid(3, 4)

    def on_grid(weights):
        return field_mlp(grid, weights, SPEC).sin()

    compare_with_eager(on_grid, (WEIGHTS,))
    compiled = torch.compile(stepped, fullgraph=True, backend="aot_eager")
    for backend in EVERY:
        with ginr_fast.backend(backend), torch.autocast("cpu", torch.bfloat16):
            got, want = compiled(COORDS, WEIGHTS), stepped(COORDS, WEIGHTS)
        assert got.dtype == want.dtype == torch.bfloat16
        torch.testing.assert_close(got, want)


def test_compiled_with_sizes_that_change():
    torch.compiler.reset()
    compiled = torch.compile(stepped, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, count in ((2, 9), (3, 12), (4, 65)):
        coords, weights = make_coords("points", batch, count, 2), make_weights(SPEC, batch)
        weights.requires_grad_()
        got, want = compiled(coords, weights), stepped(coords, weights)
        torch.testing.assert_close(got, want)
        (grad,) = torch.autograd.grad(got.sum(), weights)
        (expected,) = torch.autograd.grad(want.sum(), weights)
        torch.testing.assert_close(grad, expected)


def test_compiled_by_inductor():
    torch.compiler.reset()
    compiled = torch.compile(stepped, fullgraph=True)
    torch.testing.assert_close(compiled(COORDS, WEIGHTS), stepped(COORDS, WEIGHTS))


@pytest.mark.parametrize("backend", EVERY)
def test_exported(backend, tmp_path):
    class Field(torch.nn.Module):
        def forward(self, coords, weights):
            return field_mlp(coords, weights, SPEC)

    with ginr_fast.backend(backend):
        exported = torch.export.export(Field(), (COORDS, WEIGHTS))
        torch.export.save(exported, tmp_path / "field.pt2")
        loaded = torch.export.load(tmp_path / "field.pt2").module()
        want = field_mlp(COORDS, WEIGHTS, SPEC)
    torch.testing.assert_close(loaded(COORDS, WEIGHTS), want)
    graph = str(exported.graph)
    assert ("ginr_fast.field_mlp" in graph) == (backend != "reference")


@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_on_the_meta_device(backend):
    with ginr_fast.backend(backend):
        out = field_mlp(COORDS.to("meta"), WEIGHTS.to("meta"), SPEC)
    assert out.shape == (2, 5, 3) and out.device.type == "meta"


def test_the_environment_forces_a_path(monkeypatch):
    """GINR_FAST_CPU decides when the library is imported; here by what reads it."""
    from ginr_fast.ops import native

    want = field_mlp(COORDS, WEIGHTS, SPEC)
    try:
        for name in NATIVE:
            path = name.removeprefix("native ")
            monkeypatch.setenv("GINR_FAST_CPU", path)
            native._force_from_environment()
            assert native.build_info()["cpu_path"] == path
            assert relative_error(field_mlp(COORDS, WEIGHTS, SPEC), want) <= 2e-5
    finally:
        monkeypatch.delenv("GINR_FAST_CPU")
        native._force_from_environment()
