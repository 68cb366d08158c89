"""composite: every backend and vector path against float64, that against a loop over samples."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from field_cases import ENGINES, LIMITS, NATIVE, check_accuracy, engine, evaluate, threads

import ginr_fast
from ginr_fast import RenderConvention, composite
from ginr_fast.ops.volume_render.convention import CONVENTIONS

FAST = [*NATIVE, "blocked"]


def own_composite(values, t, norm, convention):
    """One ray, in Python's numbers, from the formulas of RenderConvention."""
    channels, samples = len(values[0]) - 1, len(t)
    color, opacity, depth, light = [0.0] * channels, 0.0, 0.0, 1.0
    for k in range(samples):
        *rgb, x = values[k]
        if convention.color == "sigmoid":
            rgb = [1 / (1 + math.exp(-c)) for c in rgb]
        sigma = x
        if convention.density == "relu":
            sigma = max(x, 0.0)
        elif convention.density == "shifted_elu":
            sigma = min((x if x > 0 else 0.1 * (math.exp(x) - 1)) + 0.1, 10.0)
        delta = t[k + 1] - t[k] if k + 1 < samples else convention.last_interval
        passed = math.exp(-sigma * delta * (norm if convention.scale_by_norm else 1.0))
        weight = light * (1 - passed)
        color = [total + weight * c for total, c in zip(color, rgb, strict=True)]
        opacity += weight
        depth += weight * t[k]
        light *= passed + convention.epsilon
    if convention.white_background:
        color = [c + 1 - opacity for c in color]
    return color, opacity, depth


def make_samples(*shape, channels=3, dtype=torch.float32):
    """Values, ascending positions and directions of rays; ``shape`` ends in S."""
    generator = torch.Generator().manual_seed(8)
    values = torch.randn(*shape, channels + 1, generator=generator)
    steps = 0.02 + torch.rand(*shape, generator=generator) / shape[-1]
    directions = torch.randn(*shape[:-1], 3, generator=generator)
    return values.to(dtype), (0.5 + steps.cumsum(-1)).to(dtype), directions.to(dtype)


@pytest.mark.parametrize("samples", [1, 2, 9])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_reference_is_the_loop(name, samples):
    values, t, directions = make_samples(2, 3, samples, dtype=torch.float64)
    with ginr_fast.backend("reference"):
        got = composite(values, t, directions, name)
    assert got.color.shape == (2, 3, 3) and got.opacity.shape == got.depth.shape == (2, 3)
    for at in itertools.product(range(2), range(3)):
        norm = math.sqrt(sum(c * c for c in directions[at].tolist()))
        color, opacity, depth = own_composite(
            values[at].tolist(), t[at].tolist(), norm, CONVENTIONS[name]
        )
        torch.testing.assert_close(got.color[at].tolist(), color)
        torch.testing.assert_close(got.opacity[at].item(), opacity)
        torch.testing.assert_close(got.depth[at].item(), depth)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_convention(convention, name):
    check_accuracy(lambda *x: composite(*x, convention), make_samples(2, 7, 33), name, 2e-5)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(
    "changes",
    [
        {"density": "none", "color": "none", "last_interval": 0.1},
        {"density": "none", "last_interval": 0.0, "epsilon": 0.0},
        {"density": "relu", "color": "none", "white_background": False, "epsilon": 1e-3},
        {"density": "shifted_elu", "scale_by_norm": False},
    ],
    ids=str,
)
def test_every_switch(changes, name):
    rule = RenderConvention(**changes)
    check_accuracy(lambda *x: composite(*x, rule), make_samples(2, 7, 33), name, 2e-5)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize(
    "shape", [(1,), (7,), (1, 1), (130, 7), (5, 63), (2, 3, 64), (5, 65), (1, 200), (2, 1, 2, 128)]
)
def test_ragged_sizes(shape, channels, name):
    inputs = make_samples(*shape, channels=channels)
    check_accuracy(lambda *x: composite(*x, "trans_inr"), inputs, name, 2e-5, as_float32=True)
    check_accuracy(lambda *x: composite(*x, "mnif"), inputs, name, 2e-5, wanted=[0])


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("channel", ["color", "opacity", "depth"])
@pytest.mark.parametrize("wanted", [[0], [1], [2]], ids=["values", "t", "directions"])
def test_gradients_apart(wanted, channel, name):
    def function(*inputs):
        return getattr(composite(*inputs, "functa"), channel)

    check_accuracy(function, make_samples(7, 33), name, 2e-5, wanted=wanted)


@pytest.mark.parametrize("name", ENGINES)
def test_positions_shared_by_all_rays(name):
    values, t, directions = make_samples(2, 5, 12)
    shared = t[0, 0]
    check_accuracy(lambda *x: composite(*x, "functa"), (values, shared, directions), name, 2e-5)
    with engine(name):
        got = composite(values, shared, directions)
        want = composite(values, shared.expand(2, 5, 12), directions)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", FAST)
def test_extremes(name):
    """Densities from nothing to beyond what exp can carry; long rays that are dark at the end."""
    values, t, directions = make_samples(40, 32)
    scale = 10.0 ** torch.linspace(-6, 6, 40)
    values[..., -1] *= scale.view(40, 1)
    values[..., :-1] *= scale.clamp(max=60).view(40, 1, 1)
    for convention in CONVENTIONS:
        inputs = values, t, directions
        check_accuracy(lambda *x, c=convention: composite(*x, c), inputs, name, 2e-5, wanted=[])
        grads = evaluate(lambda *x, c=convention: composite(*x, c), inputs, [0, 1, 2], name)[3:]
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_not_a_number_shows(name):
    values, t, directions = make_samples(5, 9)
    fine = composite(values, t, directions)
    for index, part in enumerate((values, t, directions)):
        for bad in (math.nan, math.inf) if index == 1 else (math.nan,):
            broken = [x.clone() for x in (values, t, directions)]
            broken[index][2, 1] = bad
            assert part.isfinite().all()
            with engine(name):
                got = composite(*broken)
            assert not (got.color[2].isfinite().any() and got.depth[2].isfinite())
            others = [0, 1, 3, 4]
            torch.testing.assert_close(got.color[others], fine.color[others])


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, name):
    inputs = make_samples(7, 33, dtype=torch.float32)
    inputs = inputs[0].to(dtype), *inputs[1:]
    check_accuracy(lambda *x: composite(*x), inputs, name, LIMITS[dtype])
    with engine(name):
        assert all(part.dtype == torch.float32 for part in composite(*inputs))


def test_blocked_in_float64():
    for convention in CONVENTIONS:
        inputs = make_samples(7, 33, dtype=torch.float64)
        check_accuracy(lambda *x, c=convention: composite(*x, c), inputs, "blocked", 1e-12)
    (plan,) = ginr_fast.explain(composite, *inputs).plans
    assert (plan.operator, plan.backend) == ("composite", "blocked")
    (plan,) = ginr_fast.explain(composite, *(x.float() for x in inputs)).plans
    assert plan.backend == "native"


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize("convention", ["functa", "trans_inr"])
def test_gradcheck_and_gradgradcheck(convention, backend):
    inputs = [x.requires_grad_() for x in make_samples(2, 3, channels=2, dtype=torch.float64)]
    with ginr_fast.backend(backend):
        assert torch.autograd.gradcheck(lambda *x: composite(*x, convention), inputs)
        assert torch.autograd.gradgradcheck(lambda *x: composite(*x, convention), inputs)


def test_results_do_not_depend_on_the_number_of_threads():
    inputs = make_samples(900, 33)
    found = []
    for number in (1, 2, 5):
        with threads(number):
            found.append(evaluate(composite, inputs, [0, 1, 2], "native"))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
