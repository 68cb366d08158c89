"""volume_render: every backend and vector path against float64, that against loops over samples."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from field_cases import (
    ENGINES,
    LIMITS,
    NATIVE,
    check_accuracy,
    engine,
    evaluate,
    make_spec,
    make_weights,
    threads,
)
from test_composite import own_composite

import ginr_fast
from ginr_fast import (
    BackendError,
    FieldSpec,
    OccupancyGrid,
    RaySeed,
    RenderConvention,
    field_mlp,
    volume_render,
)
from ginr_fast.ops.volume_render import blocked
from ginr_fast.ops.volume_render.convention import CONVENTIONS, Rendering
from ginr_fast.ops.volume_render.random import uniform
from ginr_fast.ops.volume_render.reference import positions

FAST = [*NATIVE, "blocked"]
SPEC = make_spec(coord_dim=3, out_dim=4, activation="sine", w0=5.0)
RANGE = {"near": 0.8, "far": 1.8}
WORD = 0xFFFFFFFF


def make_rays(batch, count, dtype=torch.float32):
    """Origins around the unit ball and directions through it, of lengths around 1."""
    generator = torch.Generator().manual_seed(6)
    origins = torch.randn(batch, count, 3, generator=generator)
    origins = 1.3 * origins / origins.norm(dim=-1, keepdim=True)
    directions = 0.3 * torch.randn(batch, count, 3, generator=generator) - origins
    return origins.to(dtype), directions.to(dtype)


def renderer(spec=SPEC, **settings):
    settings = {**RANGE, "samples": 9, "convention": "mnif", **settings}
    return lambda o, d, w: volume_render(o, d, w, spec, **settings)


def philox(counter, key):
    """Philox4x32-10 in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & WORD, (first >> 32) ^ c[3] ^ k[1], first & WORD]
        k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
    return c


def own_uniform(seed, ray, sample):
    words = philox((ray & WORD, ray >> 32, sample // 4, 0), (seed & WORD, seed >> 32))
    return (words[sample % 4] >> 8) / 2**24


def own_positions(near, far, samples, seed, ray, jitter):
    if samples == 1:
        return [near]
    step = (far - near) / (samples - 1)
    regular = [near + k * step for k in range(samples)]
    if seed is None:
        return regular
    moved = []
    for k, t in enumerate(regular):
        u = own_uniform(seed, ray, k)
        if jitter == "forward":
            moved.append(t + u * step)
            continue
        low = t if k == 0 else (regular[k - 1] + t) / 2
        high = t if k + 1 == samples else (t + regular[k + 1]) / 2
        moved.append(low + u * (high - low))
    return moved


# Of the generator's published implementation (Random123): counter, key, result.
KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_generator_gives_the_published_numbers(counter, key, words):
    assert tuple(philox(counter, key)) == words


@pytest.mark.parametrize("seed", [0, 1, 12345, (1 << 32) + 7, (1 << 63) - 1])
def test_uniform_numbers_are_those_of_the_generator(seed):
    rays = [0, 1, 2, (1 << 32) - 1, (1 << 32) + 5, (1 << 63) - 1]
    got = uniform(seed, torch.tensor(rays), 11)
    assert got.dtype == torch.float32 and got.shape == (6, 11)
    want = [[own_uniform(seed, ray, sample) for sample in range(11)] for ray in rays]
    assert got.tolist() == want


def test_uniform_numbers_are_uniform_and_independent():
    u = uniform(7, torch.arange(2000), 64).double()
    assert u.min() >= 0 and u.max() < 1 and u.unique().numel() > 127_000
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * u.numel())
    assert abs(u.var() - 1 / 12) < 1e-3
    counts = torch.histc(u.float(), 64, 0, 1)
    expected = u.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * math.sqrt(126)
    spread = 5 / math.sqrt(u.numel())
    for a, b in ((u[:, 1:], u[:, :-1]), (u[1:], u[:-1]), (u[:, 4:], u[:, :-4])):
        assert abs(((a - 0.5) * (b - 0.5)).mean() * 12) < spread
    other = uniform(8, torch.arange(2000), 64).double()
    assert abs(((u - 0.5) * (other - 0.5)).mean() * 12) < spread


@pytest.mark.parametrize("jitter", ["midpoints", "forward"])
@pytest.mark.parametrize("samples", [1, 2, 3, 9])
def test_positions(samples, jitter):
    convention = RenderConvention(jitter=jitter)
    like = torch.zeros((), dtype=torch.float64)
    for seed in (None, 3):
        got = positions(Rendering(convention, 0.5, 2.0, samples, seed), 2, 4, like)
        for batch, ray in itertools.product(range(2), range(4)):
            want = own_positions(0.5, 2.0, samples, seed, 4 * batch + ray, jitter)
            torch.testing.assert_close(got.expand(2, 4, -1)[batch, ray].tolist(), want)
        if seed is not None:
            first = torch.tensor([7, (1 << 63) - 2])  # the last two are past 2^63
            moved = positions(Rendering(convention, 0.5, 2.0, samples, seed), 2, 4, like, first)
            for batch, ray in itertools.product(range(2), range(4)):
                number = first[batch].item() + ray
                want = own_positions(0.5, 2.0, samples, seed, number, jitter)
                torch.testing.assert_close(moved.expand(2, 4, -1)[batch, ray].tolist(), want)
        assert (got[..., 1:] > got[..., :-1]).all()  # in order, however they are moved


@pytest.mark.parametrize("seed", [None, 11])
@pytest.mark.parametrize("samples", [1, 2, 7])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_reference_is_the_loop(name, samples, seed):
    rays = make_rays(2, 3, torch.float64)
    weights = 2 * make_weights(SPEC, 2, torch.float64)
    settings = {"samples": samples, "convention": name, "seed": seed}
    with ginr_fast.backend("reference"):
        got = renderer(**settings)(*rays, weights)
    assert got.color.shape == (2, 3, 3) and got.opacity.shape == got.depth.shape == (2, 3)
    convention = CONVENTIONS[name]
    for b, n in itertools.product(range(2), range(3)):
        t = own_positions(0.8, 1.8, samples, seed, 3 * b + n, convention.jitter)
        o, d = rays[0][b, n], rays[1][b, n]
        points = torch.stack([o + tk * d for tk in t])
        values = field_mlp(points[None], weights[b : b + 1], SPEC)[0]
        norm = math.sqrt(sum(c * c for c in d.tolist()))
        color, opacity, depth = own_composite(values.tolist(), t, norm, convention)
        torch.testing.assert_close(got.color[b, n].tolist(), color)
        torch.testing.assert_close(got.opacity[b, n].item(), opacity)
        torch.testing.assert_close(got.depth[b, n].item(), depth)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_convention(convention, seed, name):
    inputs = *make_rays(2, 21), make_weights(SPEC, 2)
    function = renderer(convention=convention, seed=seed, samples=32)
    check_accuracy(function, inputs, name, 2e-5, as_float32=True)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(
    "changes",
    [
        {"density": "none", "color": "none", "last_interval": 0.1},
        {"density": "none", "color": "sigmoid", "last_interval": 0.0, "epsilon": 0.0},
        {"density": "relu", "color": "none", "white_background": False, "epsilon": 1e-3},
        {"density": "shifted_elu", "scale_by_norm": False, "jitter": "forward"},
    ],
    ids=str,
)
def test_every_switch(changes, name):
    inputs = *make_rays(2, 21), make_weights(SPEC, 2)
    for seed in (None, 5):
        function = renderer(convention=RenderConvention(**changes), seed=seed)
        check_accuracy(function, inputs, name, 2e-5, as_float32=True)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(
    ("batch", "rays", "samples"),
    [
        (1, 1, 1),
        (2, 5, 1),
        (1, 130, 7),
        (3, 5, 7),
        (1, 9, 32),
        (2, 5, 63),
        (1, 130, 64),
        (2, 17, 65),
        (1, 5, 128),
        (1, 3, 200),
        (100, 1, 7),
        (100, 5, 2),
    ],
)
def test_ragged_sizes(batch, rays, samples, name):
    spec = make_spec(coord_dim=3, out_dim=4, hidden_dim=7, hidden_layers=0)
    inputs = *make_rays(batch, rays), make_weights(spec, batch)
    function = renderer(spec, samples=samples, convention="trans_inr", seed=1)
    check_accuracy(function, inputs, name, 2e-5, as_float32=True)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(
    "spec",
    [
        FieldSpec(3, 4, 64, 4, "sine"),
        FieldSpec(3, 4, 100, 0, "none", bias=False),
        FieldSpec(3, 2, 16, 1, "relu", encoding=ginr_fast.FourierEncoding.log_spaced(5, 8, 1.0)),
        FieldSpec(3, 9, 19, 2, "sine", w0=3.0, out_activation="sine"),
    ],
    ids=str,
)
def test_other_fields(spec, name):
    inputs = *make_rays(2, 20), make_weights(spec, 2)
    check_accuracy(renderer(spec, samples=32), inputs, name, 2e-5, as_float32=True)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("channel", ["color", "opacity", "depth"])
@pytest.mark.parametrize("wanted", [[0], [1], [2], [0, 2]], ids=str)
def test_gradients_apart(wanted, channel, name):
    inputs = *make_rays(2, 21), make_weights(SPEC, 2)
    function = renderer(samples=32)
    check_accuracy(
        lambda *rays: getattr(function(*rays), channel),
        inputs,
        name,
        2e-5,
        wanted=wanted,
        as_float32=True,
    )


def constant_field(color, density):
    spec = make_spec(coord_dim=3, out_dim=4, hidden_layers=0)
    parameters = [torch.zeros(1, *slot.shape) for slot in spec.slots]
    parameters[-1] = torch.tensor([[*color, density]])
    return spec, spec.pack(parameters)


@pytest.mark.parametrize("name", ENGINES)
def test_nothing_and_opaque(name):
    rays = make_rays(1, 9)
    spec, weights = constant_field((0.2, 0.4, 0.6), -5.0)
    with engine(name):
        for convention, white in (("nerf", 0.0), ("trans_inr", 1.0)):
            out = renderer(spec, convention=convention)(*rays, weights)
            assert (out.color == white).all() and not out.opacity.any() and not out.depth.any()
    spec, weights = constant_field((0.2, 0.4, 0.6), 1e6)
    with engine(name):
        for convention in ("nerf", "trans_inr"):
            out = renderer(spec, convention=convention)(*rays, weights)
            want = torch.tensor([0.2, 0.4, 0.6]).sigmoid()
            torch.testing.assert_close(out.color, want.expand(1, 9, 3))
            torch.testing.assert_close(out.opacity, torch.ones(1, 9))
            torch.testing.assert_close(out.depth, torch.full((1, 9), 0.8))
        out = renderer(spec)(*rays, weights)  # the density is cut off at 10
        assert (out.depth > 0.8).all() and (out.opacity > 0.9999).all()
    for density in (-5.0, 1e6):
        spec, weights = constant_field((0.2, 0.4, 0.6), density)
        grads = evaluate(renderer(spec, convention="nerf"), (*rays, weights), [0, 1, 2], name)[3:]
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_directions_of_length_zero(convention, name):
    origins, directions = make_rays(2, 5)
    directions[:, 2] = 0
    inputs = origins, directions, make_weights(SPEC, 2)
    check_accuracy(renderer(convention=convention), inputs, name, 2e-5, as_float32=True)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, name):
    spec = make_spec(coord_dim=3, out_dim=4, hidden_dim=64)
    inputs = *make_rays(2, 30), make_weights(spec, 2, dtype)
    check_accuracy(renderer(spec, samples=32), inputs, name, LIMITS[dtype])
    with engine(name):
        assert all(part.dtype == torch.float32 for part in renderer(spec)(*inputs))


@pytest.mark.parametrize("name", ENGINES)
def test_autocast(name):
    inputs = *make_rays(2, 5), make_weights(SPEC, 2)
    with engine(name):
        with torch.autocast("cpu", torch.bfloat16):
            got = renderer()(*inputs)
        want = renderer()(*inputs[:2], inputs[2].bfloat16())
    assert all(part.dtype == torch.float32 for part in got)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("seed", [None, 5])
def test_blocked_in_float64(seed):
    inputs = [x.double() for x in (*make_rays(2, 21), make_weights(SPEC, 2))]
    for convention in CONVENTIONS:
        function = renderer(convention=convention, seed=seed, samples=17)
        check_accuracy(function, inputs, "blocked", 1e-12)


@pytest.mark.parametrize("name", FAST)
def test_rays_in_float64_with_float32_weights(name):
    rays, weights = make_rays(2, 5, torch.float64), make_weights(SPEC, 2)
    with engine(name):
        got = renderer()(*rays, weights)
        want = renderer()(*(x.float() for x in rays), weights)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("view_dim", [1, 8])
def test_view_branch(view_dim):
    spec = make_spec(coord_dim=3, out_dim=4, view_dim=view_dim)
    inputs = *make_rays(2, 21), make_weights(spec, 2)
    check_accuracy(renderer(spec, convention="nerf"), inputs, "blocked", 2e-5)
    doubles = [x.double() for x in inputs]
    check_accuracy(renderer(spec), doubles, "blocked", 1e-12)
    (plan,) = ginr_fast.explain(renderer(spec), *inputs).plans
    assert plan.backend == "blocked" and "view branch" in plan.refused["native"]
    with ginr_fast.backend("native"), pytest.raises(BackendError, match="volume_render.*view"):
        renderer(spec)(*inputs)


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize("convention", ["functa", "trans_inr"])
def test_gradcheck_and_gradgradcheck(convention, backend):
    spec = make_spec(coord_dim=3, out_dim=3, hidden_dim=3, hidden_layers=0, activation="sine", w0=2)
    weights = 3 * make_weights(spec, 1, torch.float64)
    inputs = [x.requires_grad_() for x in (*make_rays(1, 2, torch.float64), weights)]
    seed = RaySeed(2, torch.tensor([1 << 40]))
    function = renderer(spec, samples=3, convention=convention, seed=seed)
    with ginr_fast.backend(backend):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("seed", [None, RaySeed(3, torch.tensor([8, 400]))])
def test_second_order_of_native(seed, name):
    render = renderer(seed=seed)

    def stepped(origins, directions, weights):
        loss = render(origins, directions, weights).color.square().mean()
        (slope,) = torch.autograd.grad(loss, weights, create_graph=True)
        return render(origins, directions, weights - 0.1 * slope)

    inputs = *make_rays(2, 21), make_weights(SPEC, 2)
    check_accuracy(stepped, inputs, name, 2e-5, as_float32=True)


@pytest.mark.parametrize("seed", [None, 5, "numbered"])
@pytest.mark.parametrize(("batch", "rays", "samples"), [(1, 500, 32), (3, 70, 65), (100, 3, 7)])
def test_results_do_not_depend_on_the_number_of_threads(batch, rays, samples, seed):
    inputs = *make_rays(batch, rays), make_weights(SPEC, batch)
    if seed == "numbered":
        seed = numbered(list(range(5, 5 + 1000 * batch, 1000)))
    function = renderer(samples=samples, seed=seed)
    found = []
    for number in (1, 2, 5):
        with threads(number):
            found.append(evaluate(function, inputs, [0, 1, 2], "native"))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", ENGINES)
def test_a_seed_decides_the_picture(name):
    inputs = *make_rays(2, 9), make_weights(SPEC, 2)
    with engine(name):
        first, again, other, none = (renderer(seed=seed)(*inputs).color for seed in (4, 4, 5, None))
        high = renderer(seed=4 + (1 << 40))(*inputs).color
    assert torch.equal(first, again)
    for different in (other, none, high):
        assert ((first - different).abs().amax(-1) > 1e-6).all()
    # A ray's numbers are its own: those of the first instance do not depend on the second.
    with engine(name):
        alone = renderer(seed=4)(*(x[:1] for x in inputs)).color
    torch.testing.assert_close(alone, first[:1])


def numbered(first):
    return RaySeed(4, torch.tensor(first))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(("count", "samples"), [(10, 9), (400, 32)])
def test_parts_of_a_batch_give_what_the_whole_gives(count, samples, name, monkeypatch):
    """Values and gradients of some instances, of some rays, and by pieces within a backend."""
    inputs = *make_rays(3, count), make_weights(SPEC, 3)

    def found(origins, directions, weights, seed):
        rays = [x.detach().requires_grad_() for x in (origins, directions)]
        with engine(name):
            out = renderer(seed=seed, samples=samples)(*rays, weights)
            total = sum(part.sum() for part in out)
            return [*(part.detach() for part in out), *torch.autograd.grad(total, rays)]

    def check(got, want):
        for part, expected in zip(got, want, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)

    whole = found(*inputs, 4)
    same = found(*inputs, numbered([0, count, 2 * count]))
    assert all(torch.equal(a, b) for a, b in zip(same, whole, strict=True))
    for rows in ([0], [1, 2], [2, 0]):
        seed = numbered([row * count for row in rows])
        check(found(*(x[rows] for x in inputs), seed), [part[rows] for part in whole])
    # Another number is another picture, and a plain seed numbers the rays of the call.
    other = found(*(x[1:] for x in inputs), 4)[0]
    assert ((other - whole[0][1:]).abs().amax(-1) > 1e-6).all()
    split = count * 3 // 7
    for span in (slice(split), slice(split, None)):
        seed = numbered([row * count + (span.start or 0) for row in range(3)])
        rays = [x[:, span] for x in inputs[:2]]
        check(found(*rays, inputs[2], seed), [part[:, span] for part in whole])
    if name == "blocked":
        monkeypatch.setattr(blocked, "block_rows", lambda device: samples)
        check(found(*inputs, numbered([0, count, 2 * count])), whole)


def test_parts_of_a_batch_with_an_occupancy_grid():
    bits = torch.full((2, 1), -1, dtype=torch.int32)
    grid = OccupancyGrid(bits, 2, (-1.0,) * 3, (1.0,) * 3, 0.0)
    inputs = *make_rays(2, 12), make_weights(SPEC, 2)
    want = renderer(seed=numbered([30, 80]))(*inputs).color
    got = renderer(seed=numbered([30, 80]), occupancy=grid)(*inputs).color
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert (renderer(seed=4, occupancy=grid)(*inputs).color - want).abs().max() > 1e-3


def test_conventions_are_not_the_same():
    inputs = *make_rays(1, 5), make_weights(SPEC, 1)
    seen = {name: renderer(convention=name)(*inputs).color for name in CONVENTIONS}
    for (_, a), (_, b) in itertools.combinations(seen.items(), 2):
        assert (a - b).abs().max() > 1e-4
    given = renderer(convention=dataclasses.replace(CONVENTIONS["nerf"]))(*inputs).color
    assert torch.equal(given, seen["nerf"])
