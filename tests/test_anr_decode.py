"""anr_decode: values and gradients of every backend against the formula in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from anr_cases import SMALL, dropped, make_decoder, steady
from locality_cases import KINDS, check_accuracy, make_coords, make_tokens, relative_error, run

import ginr_fast
from ginr_fast import anr_decode
from ginr_fast.ops.anr_decode import attention, plan
from ginr_fast.ops.anr_decode.reference import threshold_weights

LIMITS = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 1.5e-2}


@pytest.mark.parametrize("activation", ["relu", "mish"])
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("kind", ["points", "one set", "grid"])
def test_published_sizes(kind, dtype, activation):
    decoder = make_decoder(dtype, activation=activation)
    tokens, coords = make_tokens(2, 256, 512, dtype), make_coords(kind, 2, 100, 2)
    if dtype == torch.float32 or activation == "mish":
        check_accuracy(decoder, coords, tokens, LIMITS[dtype])
        return
    # ReLUs that flip dominate the gradients in half precision, in the formula just as here.
    exact = copy.deepcopy(decoder).double()
    want, want_grads = run(exact, coords, tokens.double(), "reference")
    _, plain_grads = run(decoder, coords, tokens, "reference")
    got, got_grads = run(decoder, coords, tokens, "blocked")
    assert relative_error(got, want) <= LIMITS[dtype]
    for name, grad in want_grads.items():
        limit = max(5 * LIMITS[dtype], 1.25 * relative_error(plain_grads[name], grad))
        assert relative_error(got_grads[name], grad) <= limit, name


def test_published_sizes_drop_tokens():
    decoder, tokens = make_decoder(), make_tokens(2, 256, 512)
    share, _ = dropped(decoder, make_coords("one set", 2, 100, 2), tokens)
    assert 0.2 < share < 0.8


def test_the_reference_backend_in_float32_at_published_sizes():
    # Its phases are rounded to float32, so that it is the looser of the two.
    decoder = make_decoder(threshold=0.0, activation="mish")
    coords = make_coords("one set", 1, 50, 2)
    check_accuracy(decoder, coords, make_tokens(1, 256, 512), 1e-3, backend="reference")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_coordinates(kind, dims):
    double = make_decoder(torch.float64, coord_dim=dims, **SMALL)
    tokens = make_tokens(3, 7, 11, torch.float64)
    check_accuracy(double, make_coords(kind, 3, 37, dims), tokens, 1e-12)
    decoder = make_decoder(coord_dim=dims, **SMALL)
    check_accuracy(decoder, make_coords(kind, 3, 37, dims), tokens.float(), 2e-5)


@pytest.mark.parametrize("kind", ["points", "grid"])
@pytest.mark.parametrize("activation", ["relu", "mish"])
@pytest.mark.parametrize("depth", range(1, 9))
def test_depths_and_activations(depth, activation, kind):
    arguments = {**SMALL, "depth": depth, "activation": activation}
    decoder = make_decoder(torch.float64, **arguments)
    tokens = make_tokens(2, 7, 11, torch.float64)
    check_accuracy(decoder, make_coords(kind, 2, 29, 2), tokens, 1e-12)
    decoder, tokens = decoder.float(), tokens.float()
    check_accuracy(decoder, make_coords(kind, 2, 29, 2), tokens, 2e-5)


@pytest.mark.parametrize("kind", ["points", "grid"])
@pytest.mark.parametrize(
    "arguments",
    [
        *({"heads": heads} for heads in range(1, 9)),
        {"heads": 8, "head_dim": 1},
        {"hidden_dim": 37, "heads": 2, "head_dim": 13},
        {"hidden_dim": 1, "heads": 1, "feature_dim": 31, "out_dim": 1},
        {"feature_dim": 4, "out_dim": 9},
        {"output_scale": 0.5, "output_bias": -0.25},
    ],
    ids=str,
)
def test_heads_and_widths(arguments, kind):
    decoder = make_decoder(torch.float64, **{**SMALL, **arguments})
    tokens = make_tokens(2, 7, 11, torch.float64)
    check_accuracy(decoder, make_coords(kind, 2, 29, 2), tokens, 1e-12)
    decoder, tokens = decoder.float(), tokens.float()
    check_accuracy(decoder, make_coords(kind, 2, 29, 2), tokens, 2e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.0015, 0.2])
@pytest.mark.parametrize("kind", ["points", "grid"])
def test_one_token(kind, threshold):
    decoder = make_decoder(**{**SMALL, "threshold": threshold})
    check_accuracy(decoder, make_coords(kind, 2, 20, 2), make_tokens(2, 1, 11), 2e-5)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("kind", ["points", "one set", "grid"])
@pytest.mark.parametrize(
    ("threshold", "share", "rows"),
    [
        (0.0, (0, 0), (0, 0)),
        (0.0015, (0.0, 0.5), (0, 0)),
        (0.2, (0.5, 0.95), (0, 0.2)),
        (0.4, (0.7, 0.99), (0.05, 0.9)),
        (0.999, (1, 1), (1, 1)),
    ],
)
def test_thresholds(threshold, share, rows, kind, dtype):
    decoder = make_decoder(dtype, **{**SMALL, "threshold": threshold, "activation": "mish"})
    coords, tokens = make_coords(kind, 2, 100, 2), make_tokens(2, 9, 11, dtype)
    got = dropped(copy.deepcopy(decoder).double(), coords, tokens.double())
    assert share[0] <= got[0] <= share[1] and rows[0] <= got[1] <= rows[1], got
    if dtype == torch.float32:
        check_accuracy(decoder.double(), coords, tokens.double(), 1e-12)
        check_accuracy(decoder.float(), coords, tokens, 2e-5)
        return
    # In half precision a row whose largest weight is about the threshold may lose it or not.
    exact = copy.deepcopy(decoder).double()
    rows_to_compare = steady(exact, coords, tokens.double())
    assert threshold == 0 or rows_to_compare.double().mean() > 0.6
    values = {}
    for name, model in (("want", exact), ("plain", decoder), ("got", decoder)):
        given = tokens.to(model.layers[0].weight.dtype)
        value, grads = run(model, coords, given, "blocked" if name == "got" else "reference")
        values[name] = value.view(2, -1, 3)
        if threshold > 0:
            values[name] = values[name][rows_to_compare]
    plain = relative_error(values["plain"], values["want"])
    assert relative_error(values["got"], values["want"]) <= max(LIMITS[dtype], 1.25 * plain)
    assert all(grad.isfinite().all() for grad in grads.values())


def test_a_row_that_loses_every_token_gives_zero_and_no_gradient():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64, requires_grad=True)
    w = threshold_weights(p, 0.6)
    torch.testing.assert_close(w, torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double())
    (grad,) = torch.autograd.grad((w * torch.tensor([[1.0, 2.0]])).sum(), p)
    assert grad[0].tolist() == [0.0, 0.0]
    decoder = make_decoder(**{**SMALL, "threshold": 0.999})
    tokens = make_tokens(2, 5, 11).requires_grad_()
    out = decoder(make_coords("points", 2, 9, 2), tokens)
    torch.testing.assert_close(out, out[:1, :1].expand_as(out))
    (grad,) = torch.autograd.grad(out.sum(), tokens)
    assert not grad.any()


@pytest.mark.parametrize(
    "coords",
    [
        torch.linspace(-1, 1, 2 * 3 * 2500).view(3, 2500, 2),
        torch.linspace(-1, 1, 2 * 2500).view(2500, 2),
        ginr_fast.grid(41, 67),
        ginr_fast.grid(3, 1601),
        ginr_fast.grid(1500, 2),
    ],
    ids=["points", "one set", "many lines", "lines longer than a block", "short lines"],
)
def test_more_points_than_a_block(coords):
    decoder = make_decoder(torch.float64, **SMALL)
    check_accuracy(decoder, coords, make_tokens(3, 5, 11, torch.float64), 1e-12)


def test_more_instances_than_fit_one_block():
    decoder = make_decoder(torch.float64, **SMALL)
    tokens = make_tokens(70, 3, 11, torch.float64)
    check_accuracy(decoder, make_coords("grid", 70, 40, 2), tokens, 1e-12)
    check_accuracy(decoder, make_coords("points", 70, 40, 2), tokens, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_more_rows_than_a_tile_of_several_heads(dtype, monkeypatch):
    monkeypatch.setattr(attention, "CPU_TILE_ELEMENTS", 3 * 9 * 70)
    decoder = make_decoder(dtype, **{**SMALL, "activation": "mish"})
    tokens = make_tokens(2, 9, 11, dtype)
    limit = 1e-12 if dtype == torch.float64 else 1.5e-2
    check_accuracy(decoder, make_coords("one set", 2, 200, 2), tokens, limit)


# --- plans ---


def test_the_plan_says_what_was_folded():
    decoder, tokens = make_decoder(**SMALL), make_tokens(3, 7, 11)
    (found,) = ginr_fast.explain(decoder, ginr_fast.grid(8, 10), tokens).plans
    assert found.operator == "anr_decode" and found.backend == "blocked"
    assert found.foldings == (
        "shared coordinates: queries once, not 3 times",
        "separable grid: 18 query rows instead of 80",
        "attention output projection folded into the first layer",
    )
    points = make_coords("points", 3, 80, 2)
    (other,) = ginr_fast.explain(decoder, points, tokens).plans
    assert other.foldings == ("attention output projection folded into the first layer",)
    assert found.flops < other.flops < other.naive_flops == found.naive_flops
    with ginr_fast.backend("reference"):
        (plain,) = ginr_fast.explain(decoder, points, tokens).plans
    assert (plain.foldings, plain.flops) == ((), found.naive_flops)
    shallow = make_decoder(**{**SMALL, "depth": 1})
    (found,) = ginr_fast.explain(shallow, points[0], tokens[:1]).plans
    assert found.foldings == ("attention output projection folded into the output layer",)


def test_naive_flops_are_those_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    for depth in (1, 2, 5):
        decoder = make_decoder(**{**SMALL, "depth": depth})
        coords, tokens = make_coords("points", 2, 30, 2), make_tokens(2, 7, 11)
        keys, values = decoder.keys_and_values(tokens)
        weights = decoder.weights()
        with ginr_fast.backend("reference"), FlopCounterMode(display=False) as counter:
            anr_decode(coords, keys, values, weights)
        found = ginr_fast.explain(anr_decode, coords, keys, values, weights).plans[0]
        assert found.naive_flops == counter.get_total_flops()


def test_published_size_in_flops():
    sizes = plan.Sizes(
        batch=4,
        coordinates=128**2,
        tokens=256,
        heads=6,
        key_dim=64,
        value_dim=64,
        width=512,
        depth=5,
        out_dim=3,
        features=512,
        shared=True,
        grid_points=256,
        coord_dim=2,
        attention_output=512,
    )
    points = 4 * 128**2
    per_point = 256 * 384 * 2 + 384 * 512 + 3 * 512**2 + 512 * 3
    assert plan.executed_multiply_adds(sizes) == (
        points * per_point + 256 * 256 * 384 + 512 * 512 * 384
    )
    naive = 512 * 384 + 256 * 384 * 2 + 384 * 512 + 4 * 512**2 + 512 * 3
    assert plan.naive_multiply_adds(sizes) == points * naive
