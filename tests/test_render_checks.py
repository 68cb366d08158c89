"""volume_render and composite: wrong input gets a named error, odd input a right answer; what wraps
the operators."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from field_cases import ENGINES, engine, make_spec, make_weights, relative_error
from test_composite import make_samples
from test_volume_render import SPEC, make_rays

import ginr_fast
from ginr_fast import BackendError, RaySeed, RenderConvention, composite, volume_render

EVERY = ["native", "blocked", "reference"]
ORIGINS, DIRECTIONS = make_rays(2, 5)
WEIGHTS = make_weights(SPEC, 2)
GOOD: dict[str, Any] = {
    "origins": ORIGINS,
    "directions": DIRECTIONS,
    "weights": WEIGHTS,
    "spec": SPEC,
    "near": 0.8,
    "far": 1.8,
    "samples": 7,
    "convention": "mnif",
    "seed": None,
    "occupancy": None,
}
WRONG = [
    ("spec", None, TypeError, "expected a FieldSpec, got NoneType"),
    ("spec", make_spec(), ValueError, "expected 3 coordinates and at least 2 values .* got 2 and"),
    ("spec", make_spec(coord_dim=3, out_dim=1), ValueError, "expected 3 .* got 3 and 1"),
    ("weights", None, TypeError, "expected a tensor, got NoneType"),
    ("weights", WEIGHTS[0], ValueError, r"expected shape \(B, 404\), got \(404\)"),
    ("weights", WEIGHTS[:, 1:], ValueError, r"expected shape \(B, 404\), got \(2, 403\)"),
    ("weights", WEIGHTS.long(), TypeError, "expected dtype float32 or .*, got int64"),
    ("weights", WEIGHTS[:1], ValueError, "expected shape"),
    ("weights", WEIGHTS.to_sparse(), TypeError, "expected a dense tensor"),
    ("origins", None, TypeError, "expected a tensor, got NoneType"),
    ("origins", ORIGINS.tolist(), TypeError, "expected a tensor, got list"),
    ("origins", ORIGINS.half(), TypeError, "expected dtype float32 or float64, got float16"),
    ("origins", ORIGINS.long(), TypeError, "expected dtype .*, got int64"),
    ("origins", ORIGINS[:1], ValueError, r"expected shape \(2, ..., 3\), got \(1, 5, 3\)"),
    ("origins", ORIGINS[..., :2], ValueError, r"expected shape .*, got \(2, 5, 2\)"),
    ("origins", torch.zeros(3), ValueError, r"expected shape \(2, 3\), got \(3\)"),
    ("origins", torch.tensor(1.0), ValueError, r"expected shape \(2, 3\), got \(\)"),
    ("origins", ORIGINS.to("meta"), ValueError, "expected device cpu, got meta"),
    ("directions", None, TypeError, "expected a tensor, got NoneType"),
    ("directions", DIRECTIONS.half(), TypeError, "expected dtype .*, got float16"),
    ("directions", DIRECTIONS[:, :4], ValueError, r"expected shape \(2, 5, 3\), got \(2, 4, 3\)"),
    ("directions", DIRECTIONS[0], ValueError, r"expected shape \(2, 5, 3\), got \(5, 3\)"),
    ("directions", DIRECTIONS.to("meta"), ValueError, "expected device cpu, got meta"),
    ("near", "0", TypeError, "expected a number, got '0'"),
    ("near", None, TypeError, "expected a number, got None"),
    ("near", True, TypeError, "expected a number, got True"),
    ("near", math.nan, ValueError, "expected a finite number, got nan"),
    ("near", 1e300, ValueError, "expected a finite number, got 1e.300"),
    ("far", 10**400, ValueError, "expected a finite number, got 10"),
    ("far", math.inf, ValueError, "expected a finite number, got inf"),
    ("far", 0.8, ValueError, r"expected above near \(0.8\), got 0.8"),
    ("far", torch.tensor(2.0), TypeError, "expected a number, got tensor"),
    ("samples", 0, ValueError, "expected 1 to 1048576, got 0"),
    ("samples", 1 << 21, ValueError, "expected 1 to 1048576, got 2097152"),
    ("samples", 7.0, TypeError, "expected an integer, got 7.0"),
    ("samples", True, TypeError, "expected an integer, got True"),
    ("seed", -1, ValueError, r"expected 0 to 2\^63 - 1, got -1"),
    ("seed", 1 << 63, ValueError, r"expected 0 to 2\^63 - 1, got 9223372036854775808"),
    ("seed", 0.5, TypeError, "expected an integer, a RaySeed or None, got 0.5"),
    ("seed", False, TypeError, "expected an integer, a RaySeed or None, got False"),
    ("convention", "NeRF", ValueError, "expected one of mnif, functa, trans_inr, nerf, got 'NeRF'"),
    ("convention", None, TypeError, "expected a name or a RenderConvention, got NoneType"),
    ("convention", {}, TypeError, "expected a name or a RenderConvention, got dict"),
    ("occupancy", 3, TypeError, "expected an OccupancyGrid, got int"),
]


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize(("argument", "value", "error", "message"), WRONG)
def test_wrong_arguments_of_volume_render(argument, value, error, message, backend):
    # The batch is that of the weights, so that a wrong one shows in the rays.
    named = "origins" if argument == "weights" and message == "expected shape" else argument
    with ginr_fast.backend(backend), pytest.raises(error, match=f"^{named}: {message}"):
        volume_render(**{**GOOD, argument: value})


FIRST = torch.tensor([0, 5])
WRONG_NUMBERS = [
    (None, FIRST, TypeError, "seed: expected an integer, a RaySeed or None, got None"),
    (7, None, TypeError, "first_rays: expected a"),
    (0.5, FIRST, TypeError, "seed: expected an integer, a RaySeed or None, got 0.5"),
    (-1, FIRST, ValueError, r"seed: expected 0 to 2\^63 - 1, got -1"),
    (1, 5, TypeError, "first_rays: expected a tensor, got int"),
    (1, [0, 5], TypeError, "first_rays: expected a tensor, got list"),
    (1, FIRST.float(), TypeError, "first_rays: expected dtype int64, got float32"),
    (1, FIRST.int(), TypeError, "first_rays: expected dtype int64, got int32"),
    (1, FIRST[:1], ValueError, r"first_rays: expected shape \(2\), got \(1\)"),
    (1, FIRST[:, None], ValueError, r"first_rays: expected shape \(2\), got \(2, 1\)"),
    (1, FIRST - 3, ValueError, "first_rays: expected 0 up, got -3"),
    (1, FIRST.to("meta"), ValueError, "first_rays: expected device cpu, got meta"),
]


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize(("seed", "first", "error", "message"), WRONG_NUMBERS)
def test_wrong_numbers_of_rays(seed, first, error, message, backend):
    with ginr_fast.backend(backend), pytest.raises(error, match=f"^{message}"):
        volume_render(**{**GOOD, "seed": RaySeed(seed, first)})


VALUES, T, WAYS = make_samples(4, 9)
WRONG_SAMPLES = [
    ("values", None, TypeError, "expected a tensor, got NoneType"),
    ("values", VALUES.tolist(), TypeError, "expected a tensor, got list"),
    ("values", VALUES.long(), TypeError, "expected dtype float32 or .*, got int64"),
    ("values", VALUES[..., 0], ValueError, "expected shape"),
    ("values", torch.zeros(4), ValueError, r"expected shape \(..., S, C \+ 1\), got \(4,\)"),
    ("values", VALUES[:, :0], ValueError, r"expected shape \(..., S, C \+ 1\), got \(4, 0, 4\)"),
    ("values", VALUES[..., :1], ValueError, r"expected shape .*, got \(4, 9, 1\)"),
    ("values", VALUES.to_sparse(), TypeError, "expected a dense tensor"),
    ("t", None, TypeError, "expected a tensor, got NoneType"),
    ("t", T[:, :8], ValueError, r"expected shape \(4, 9\), got \(4, 8\)"),
    ("t", T[0, :8], ValueError, r"expected shape \(9\), got \(8\)"),
    ("t", T[:3], ValueError, r"expected shape \(4, 9\), got \(3, 9\)"),
    ("t", T.to("meta"), ValueError, "expected device cpu, got meta"),
    ("directions", None, TypeError, "expected a tensor, got NoneType"),
    ("directions", WAYS[:3], ValueError, r"expected shape \(4, 3\), got \(3, 3\)"),
    ("directions", WAYS[0], ValueError, r"expected shape \(4, 3\), got \(3\)"),
    ("directions", WAYS.to("meta"), ValueError, "expected device cpu, got meta"),
    ("convention", "white", ValueError, "expected one of mnif, functa, trans_inr, nerf"),
    ("convention", 1, TypeError, "expected a name or a RenderConvention, got int"),
]


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize(("argument", "value", "error", "message"), WRONG_SAMPLES)
def test_wrong_arguments_of_composite(argument, value, error, message, backend):
    good = {"values": VALUES, "t": T, "directions": WAYS, "convention": "mnif"}
    given = {**good, argument: value}
    # (4, 9) values are nine samples of a ray of eight colours: the positions do not fit.
    named = "t" if argument == "values" and message == "expected shape" else argument
    with ginr_fast.backend(backend), pytest.raises(error, match=f"^{named}: {message}"):
        composite(**given)


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("color", "rgb", ValueError, "expected one of none, sigmoid, got 'rgb'"),
        ("color", None, ValueError, "expected one of none, sigmoid, got None"),
        ("density", "softplus", ValueError, "expected one of relu, shifted_elu, none"),
        ("jitter", True, ValueError, "expected one of midpoints, forward, got True"),
        ("scale_by_norm", 1, TypeError, "expected True or False, got 1"),
        ("white_background", None, TypeError, "expected True or False, got None"),
        ("last_interval", -1.0, ValueError, "expected a finite number from 0 up, got -1.0"),
        ("last_interval", math.inf, ValueError, "expected a finite number from 0 up, got inf"),
        ("last_interval", "1e10", TypeError, "expected a number, got '1e10'"),
        ("epsilon", math.nan, ValueError, "expected a finite number from 0 up, got nan"),
        ("epsilon", True, TypeError, "expected a number, got True"),
    ],
)
def test_wrong_conventions(argument, value, error, message):
    with pytest.raises(error, match=f"^{argument}: {message}"):
        RenderConvention(**{argument: value})


def test_a_convention_survives_its_key():
    convention = RenderConvention(epsilon=1 / 3, density="none", last_interval=1e10)
    assert RenderConvention.from_key(convention.key) == convention
    assert RenderConvention().key != convention.key


def test_what_native_refuses():
    double = {**GOOD, "weights": WEIGHTS.double()}
    with (
        ginr_fast.backend("native"),
        pytest.raises(BackendError, match="volume_render.*not float64"),
    ):
        volume_render(**double)
    with ginr_fast.backend("native"), pytest.raises(BackendError, match="composite.*not float64"):
        composite(VALUES.double(), T, WAYS)
    for function in (lambda: volume_render(**GOOD), lambda: composite(VALUES, T, WAYS)):
        with ginr_fast.backend("triton"), pytest.raises(BackendError, match="triton"):
            function()


def test_the_backend_is_told_and_so_are_the_flops():
    (plan,) = ginr_fast.explain(volume_render, **GOOD).plans
    assert (plan.operator, plan.backend, plan.refused) == ("volume_render", "native", {})
    assert plan.flops == 2 * 2 * 5 * 7 * (3 * 16 + 16 * 16 + 16 * 4)


# --- odd input, right answers ---


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (2, 3, 0), (0,), (0, 0)], ids=str)
def test_nothing_to_render(shape, create_graph, backend):
    weights = make_weights(SPEC, shape[0])
    inputs = [torch.zeros(*shape, 3), torch.ones(*shape, 3), weights]
    inputs = [x.requires_grad_() for x in inputs]
    with ginr_fast.backend(backend):
        out = volume_render(*inputs, SPEC, near=0.8, far=1.8, samples=7)
    assert out.color.shape == (*shape, 3) and out.opacity.shape == out.depth.shape == shape
    grads = torch.autograd.grad(out.color.sum() + out.depth.sum(), inputs, None, None, create_graph)
    assert all(g.shape == x.shape and not g.any() for g, x in zip(grads, inputs, strict=True))


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("shape", [(0, 9), (2, 0, 9)], ids=str)
def test_nothing_to_composite(shape, backend):
    inputs = [x.requires_grad_() for x in make_samples(*shape)]
    with ginr_fast.backend(backend):
        out = composite(*inputs)
    assert out.color.shape == (*shape[:-1], 3) and out.opacity.shape == shape[:-1]
    grads = torch.autograd.grad(out.color.sum(), inputs)
    assert all(g.shape == x.shape for g, x in zip(grads, inputs, strict=True))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (1, 1, 1)], ids=str)
def test_shapes_of_rays(shape):
    origins, directions = make_rays(2, max(1, math.prod(shape)))
    want = volume_render(**{**GOOD, "origins": origins, "directions": directions})
    given = {"origins": origins.view(2, *shape, 3), "directions": directions.view(2, *shape, 3)}
    got = volume_render(**{**GOOD, **given})
    assert got.color.shape == (2, *shape, 3) and got.opacity.shape == (2, *shape)
    assert torch.equal(got.color.flatten(), want.color.flatten())
    assert torch.equal(got.depth.flatten(), want.depth.flatten())


@pytest.mark.parametrize("name", ENGINES)
def test_strange_strides(name):
    origins = torch.randn(3, 5, 2).permute(2, 1, 0)
    directions = torch.randn(2, 1, 6)[..., ::2].expand(-1, 5, -1)
    weights = make_weights(SPEC, 4)[1::2]
    inputs = [x.detach().requires_grad_() for x in (origins, directions, weights)]
    plain = [x.detach().clone().contiguous().requires_grad_() for x in inputs]
    found = []
    with engine(name):
        for leaves in (inputs, plain):
            named = dict(zip(("origins", "directions", "weights"), leaves, strict=True))
            out = volume_render(**{**GOOD, **named})
            grads = torch.autograd.grad(out.color.sum() + out.opacity.sum(), leaves)
            found.append([*out, *grads])
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_shows(bad, name):
    spec = make_spec(coord_dim=3, out_dim=4)
    weights = make_weights(spec, 2)
    fine = volume_render(**{**GOOD, "spec": spec, "weights": weights})
    for argument in ("origins", "directions"):
        broken = GOOD[argument].clone()
        broken[1, 2, 0] = bad
        with engine(name):
            given = {"spec": spec, "weights": weights, argument: broken}
            out = volume_render(**{**GOOD, **given})
        if math.isnan(bad):
            assert out.color[1, 2].isnan().all() and out.depth[1, 2].isnan()
        out.color[1, 2] = fine.color[1, 2]
        torch.testing.assert_close(out.color, fine.color)
    spoilt = weights.clone()
    spoilt[1, -1] = math.nan  # the density's bias
    with engine(name):
        out = volume_render(**{**GOOD, "spec": spec, "weights": spoilt})
    assert out.color[1].isnan().all() and out.color[0].isfinite().all()


# --- what wraps the operators ---


@pytest.mark.parametrize("backend", ["native", "blocked"])
@pytest.mark.parametrize(("seed", "first"), [(None, None), (3, None), (3, FIRST)])
def test_opcheck(seed, first, backend):
    convention = RenderConvention().key
    settings = SPEC.key, convention, 0.8, 1.8, 4, seed, backend
    inputs = [x.clone().requires_grad_() for x in (ORIGINS, DIRECTIONS, WEIGHTS)]
    arguments = *inputs, first, *settings
    torch.library.opcheck(torch.ops.ginr_fast.volume_render.default, arguments)
    arguments = *[x.detach() for x in inputs], first, *settings
    for needed in (["origins", "directions", "weights"], ["weights"]):
        given = torch.randn(2, 5, 5), *arguments, needed
        torch.library.opcheck(torch.ops.ginr_fast.volume_render_backward.default, given)
    values, t, directions = make_samples(4, 9)
    samples = [values.requires_grad_(), t.requires_grad_(), directions.norm(dim=-1)]
    given = *samples, convention, backend
    torch.library.opcheck(torch.ops.ginr_fast.composite.default, given)
    given = torch.randn(4, 5), *[x.detach() for x in samples], convention, backend
    torch.library.opcheck(torch.ops.ginr_fast.composite_backward.default, given)


def rendered(origins, directions, weights, seed=2):
    out = volume_render(
        origins, 2 * directions, weights.tanh(), SPEC, near=0.8, far=1.8, samples=7, seed=seed
    )
    return torch.cat((out.color, out.opacity.unsqueeze(-1), out.depth.unsqueeze(-1)), -1)


def renumbered(origins, directions, weights):
    seed = RaySeed(2, 40 + 3 * torch.arange(len(weights)))
    return rendered(origins, directions, weights, seed.of(slice(None)))


def composited(values, t, directions):
    out = composite(2 * values, t, directions, "functa")
    return torch.cat((out.color, out.opacity.unsqueeze(-1), out.depth.unsqueeze(-1)), -1)


@pytest.mark.parametrize(
    ("function", "backend"),
    [
        *((function, backend) for function in (rendered, composited) for backend in EVERY),
        *((renumbered, backend) for backend in ("native", "blocked")),
    ],
)
def test_compiled(function, backend):
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, count in ((2, 9), (3, 12)):
        if function is not composited:
            inputs = *make_rays(batch, count), make_weights(SPEC, batch)
        else:
            inputs = make_samples(batch, count, 9 + batch)
        results = []
        with ginr_fast.backend(backend):
            for run in (compiled, function):
                leaves = [x.detach().requires_grad_() for x in inputs]
                out = run(*leaves)
                results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["native", "blocked"])
def test_exported(backend, tmp_path):
    class Renderer(torch.nn.Module):
        def forward(self, origins, directions, weights, first_rays):
            return rendered(origins, directions, weights, RaySeed(2, first_rays))

    inputs = ORIGINS, DIRECTIONS, WEIGHTS
    with ginr_fast.backend(backend):
        exported = torch.export.export(Renderer(), (*inputs, FIRST))
        torch.export.save(exported, tmp_path / "rays.pt2")
        loaded = torch.export.load(tmp_path / "rays.pt2").module()
        for first in (FIRST, 9 * FIRST + 2):
            want = rendered(*inputs, RaySeed(2, first))
            torch.testing.assert_close(loaded(*inputs, first), want)
