"""locality_decode: values and gradients of every backend against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from locality_cases import KINDS, SMALL, check_accuracy, make_coords, make_decoder, make_tokens, run

import ginr_fast
from ginr_fast.ops import features, gemm
from ginr_fast.ops.locality_decode import op, plan
from ginr_fast.ops.locality_decode.op import locality_decode
from ginr_fast.ops.locality_decode.reference import fourier_features
from ginr_fast.ops.locality_decode.weights import LocalityWeights

LIMITS = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 1.5e-2}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("kind", ["points", "one set", "grid"])
def test_paper_sizes(kind, dtype):
    decoder = make_decoder(dtype)
    tokens = make_tokens(2, 256, 256, dtype)
    check_accuracy(decoder, make_coords(kind, 2, 300, 2), tokens, LIMITS[dtype])


def test_the_reference_backend_in_float32_at_paper_sizes():
    # Its phases are rounded to float32, so that it is the looser of the two.
    decoder = make_decoder()
    coords = make_coords("one set", 1, 100, 2)
    check_accuracy(decoder, coords, make_tokens(1, 256, 256), 2e-4, backend="reference")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_coordinates(kind, dims):
    decoder = make_decoder(coord_dim=dims, **SMALL)
    check_accuracy(decoder, make_coords(kind, 3, 37, dims), make_tokens(3, 7, 11), 2e-5)
    double = make_decoder(torch.float64, coord_dim=dims, **SMALL)
    tokens = make_tokens(3, 7, 11, torch.float64)
    check_accuracy(double, make_coords(kind, 3, 37, dims), tokens, 1e-13)


@pytest.mark.parametrize("kind", ["points", "grid"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"bandwidths": (9,)},
        {"bandwidths": (9, 7, 5)},
        {"bandwidths": (9, 7, 5, 3), "heads": 1},
        {"heads": 1},
        {"heads": 8, "hidden_dim": 24},
        {"heads": 3, "head_dim": 13},
        {"hidden_dim": 37, "heads": 2, "head_dim": 1},
        {"coord_dim": 2, "feature_dim": 31, "hidden_dim": 1, "heads": 1, "out_dim": 1},
        {"feature_dim": 4, "out_dim": 9},
    ],
    ids=str,
)
def test_levels_heads_and_widths(arguments, kind):
    decoder = make_decoder(torch.float64, **{**SMALL, **arguments})
    tokens = make_tokens(2, 7, 11, torch.float64)
    check_accuracy(decoder, make_coords(kind, 2, 29, 2), tokens, 1e-13)
    decoder, tokens = decoder.float(), tokens.float()
    check_accuracy(decoder, make_coords(kind, 2, 29, 2), tokens, 2e-5)


@pytest.mark.parametrize("kind", ["points", "grid"])
def test_one_token(kind):
    decoder = make_decoder(**SMALL)
    check_accuracy(decoder, make_coords(kind, 2, 20, 2), make_tokens(2, 1, 11), 2e-5)


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
    tokens = make_tokens(3, 5, 11, torch.float64)
    check_accuracy(decoder, coords, tokens, 1e-13, coords_grad=True)


def test_more_instances_than_fit_one_block():
    decoder = make_decoder(torch.float64, **SMALL)
    tokens = make_tokens(70, 3, 11, torch.float64)
    check_accuracy(decoder, make_coords("grid", 70, 40, 2), tokens, 1e-13)
    check_accuracy(decoder, make_coords("points", 70, 40, 2), tokens, 1e-13)


FOLDED = {
    "keys": ({"hidden_dim": 12, "heads": 1, "head_dim": 16, "bandwidths": (9, 7, 5, 3)}, 40),
    "values": ({"hidden_dim": 40, "heads": 2, "head_dim": 6}, 5),
    "keys and values": ({"hidden_dim": 12, "heads": 2, "head_dim": 40}, 3),
}


@pytest.mark.parametrize(
    ("what", "kind"),
    # Values alone pay only where the batch shares the query projection's cost.
    [
        (what, kind)
        for what in FOLDED
        for kind in ("points", "one set", "grid")
        if (what, kind) != ("values", "points")
    ],
)
def test_foldings(what, kind, monkeypatch):
    arguments, count = FOLDED[what]
    decoder = make_decoder(torch.float64, **{**SMALL, **arguments})
    coords = make_coords(kind, 2, 900, 2)
    tokens = make_tokens(2, count, 11, torch.float64)
    chosen = []

    def spy(sizes):
        chosen.append(choose(sizes))
        return chosen[-1]

    choose = plan.choose_foldings
    monkeypatch.setattr(plan, "choose_foldings", spy)
    (explained,) = ginr_fast.explain(decoder, coords, tokens).plans
    assert chosen == [plan.Foldings("keys" in what, "values" in what)]
    assert ("query projection folded into the keys" in explained.foldings) == ("keys" in what)
    assert ("modulation weights folded into the values" in explained.foldings) == ("values" in what)
    check_accuracy(decoder, coords, tokens, 1e-12)
    check_accuracy(decoder.float(), coords, tokens.float(), 2e-5)


@pytest.mark.parametrize("frequency", [1.0, 128.0, 1024.0])
def test_phases_are_as_good_as_their_coordinates(frequency):
    coords = torch.rand(500, 2, generator=torch.Generator().manual_seed(6)) * 2 - 1
    band = torch.tensor([frequency, 0.7 * frequency])
    got = features.encode(coords, band, torch.float32)
    want = fourier_features(coords.double(), band.double())
    assert (got - want).abs().max() <= 1e-6


def test_a_folding_never_costs_more():
    base = dict(
        key_dim=8,
        value_dim=8,
        query_width=16,
        width=16,
        levels=2,
        out_dim=3,
        query_features=16,
        features=16,
        shared=True,
        grid_points=0,
        coord_dim=2,
        projected=True,
        modulated=True,
        attention_output=16,
    )
    for tokens in (1, 4, 64):
        for heads in (1, 2, 8):
            for coordinates in (1, 10, 1000):
                sizes = plan.Sizes(
                    batch=2, coordinates=coordinates, tokens=tokens, heads=heads, **base
                )
                cost = plan.executed_multiply_adds(sizes, plan.choose_foldings(sizes))
                every = [plan.Foldings(k, v) for k in (False, True) for v in (False, True)]
                assert cost == min(plan.executed_multiply_adds(sizes, f) for f in every)


def tiny_problem(coord_dim=2, levels=2):
    """Leaf tensors of the operator, as small as they come, and a function of them."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    width, heads, key, value, attended = 3, 2, 2, 1, 3
    count = 2 * coord_dim
    tensors = {
        "coords": random(2, 3, coord_dim),
        "keys": random(2, heads, 2, key),
        "values": random(2, heads, 2, value),
        "query_weight": random(2, count),
        "query_bias": random(2),
        "projection_weight": random(heads * key, 2),
        "projection_bias": random(heads * key),
        "attention_output_weight": random(attended, heads * value),
        "attention_output_bias": random(attended),
        "band_weight": random(levels, width, count),
        "band_bias": random(levels, width),
        "modulation_weight": random(levels, width, attended),
        "modulation_bias": random(levels, width),
        "hidden_weight": random(levels - 1, width, width),
        "hidden_bias": random(levels - 1, width),
        "output_weight": random(levels, 2, width),
        "output_bias": random(2),
    }

    def decode(backend, grid=None):
        names = list(tensors)

        def function(*arguments):
            named = dict(zip(names, arguments, strict=True))
            coords, keys, values = (named.pop(n) for n in ("coords", "keys", "values"))
            weights = LocalityWeights(
                query_frequencies=torch.tensor([0.7], dtype=torch.float64),
                band_frequencies=torch.linspace(0.4, 0.9, levels).double()[:, None],
                **named,
            )
            with ginr_fast.backend(backend):
                return locality_decode(coords if grid is None else grid, keys, values, weights)

        return function

    return tensors, decode


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_gradcheck(backend, levels):
    tensors, decode = tiny_problem(levels=levels)
    function = decode(backend)
    assert torch.autograd.gradcheck(function, tuple(tensors.values()))
    assert torch.autograd.gradgradcheck(function, tuple(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("folded", ["neither", "both"])
def test_gradcheck_on_a_grid(folded, monkeypatch):
    fold = folded == "both"
    monkeypatch.setattr(plan, "choose_foldings", lambda sizes: plan.Foldings(fold, fold))
    tensors, decode = tiny_problem()
    function = decode("blocked", ginr_fast.grid(2, 3))
    tensors = (tensors["coords"].detach(), *list(tensors.values())[1:])
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_axes_of_a_grid_are_differentiable():
    decoder = make_decoder(torch.float64, **SMALL)
    tokens = make_tokens(2, 3, 11, torch.float64)
    axes = [torch.linspace(-0.9, 0.8, n, dtype=torch.float64).requires_grad_() for n in (2, 3)]

    def function(*axes):
        return decoder(ginr_fast.CoordinateGrid(axes), tokens)

    assert torch.autograd.gradcheck(function, axes)
    assert torch.autograd.gradgradcheck(function, axes)


@pytest.mark.parametrize("kind", ["points", "expanded", "grid"])
@pytest.mark.parametrize("folded", ["neither", "both"])
@pytest.mark.parametrize("share_key_value", [False, True])
def test_create_graph_does_not_change_the_gradients(kind, share_key_value, folded, monkeypatch):
    # With shared keys and values one argument of the operator is a function of another.
    foldings = plan.Foldings(folded == "both", folded == "both")
    monkeypatch.setattr(plan, "choose_foldings", lambda sizes: foldings)
    decoder = make_decoder(torch.float64, **SMALL, share_key_value=share_key_value)
    coords, tokens = make_coords(kind, 2, 9, 2), make_tokens(2, 4, 11, torch.float64)
    _, want = run(decoder, coords, tokens, "reference", coords_grad=True)
    _, got = run(decoder, coords, tokens, "blocked", coords_grad=True, create_graph=True)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-11, msg=name)


def test_one_tensor_in_two_places_with_create_graph():
    tensors, decode = tiny_problem()
    tensors["band_bias"] = tensors["modulation_bias"]
    grads = {}
    for create_graph in (False, True):
        out = decode("blocked")(*tensors.values())
        (grad,) = torch.autograd.grad(out.sum(), tensors["band_bias"], create_graph=create_graph)
        grads[create_graph] = grad.detach()
    torch.testing.assert_close(grads[True], grads[False])


def test_a_penalty_on_the_gradient_of_coordinates_trains():
    decoder = make_decoder(torch.float64, **SMALL)
    tokens = make_tokens(2, 4, 11, torch.float64)

    def penalty_gradient(backend):
        coords = make_coords("points", 2, 9, 2).double().requires_grad_()
        with ginr_fast.backend(backend):
            out = decoder(coords, tokens)
        (slope,) = torch.autograd.grad(out.square().sum(), coords, create_graph=True)
        weight = decoder.band_features[0].weight
        (grad,) = torch.autograd.grad(slope.square().sum(), weight)
        return grad

    want = penalty_gradient("reference")
    assert want.norm() > 0
    torch.testing.assert_close(penalty_gradient("blocked"), want)


@pytest.mark.parametrize("kind", ["points", "one set", "grid"])
def test_only_needed_gradients_are_computed(kind, monkeypatch):
    monkeypatch.setattr(plan, "choose_foldings", lambda sizes: plan.Foldings(False, False))
    decoder = make_decoder(**SMALL)
    coords = make_coords(kind, 2, 30, 2)
    asked, products = [], []
    backward, product = op._backward_op, gemm.transposed_product

    def spy_backward(*arguments):
        asked.append(list(arguments[-1]))
        return backward(*arguments)

    def spy_product(x, y):
        products.append((x.shape[1], y.shape[1]))
        return product(x, y)

    for kept in (features.PointFeatures, features.GridFeatures):
        monkeypatch.setattr(kept, "backward", lambda *a: pytest.fail("features are not needed"))
    monkeypatch.setattr(op, "_backward_op", spy_backward)
    monkeypatch.setattr(gemm, "transposed_product", spy_product)
    tokens = make_tokens(2, 7, 11).requires_grad_()
    decoder.requires_grad_(False)
    torch.autograd.grad(decoder(coords, tokens).sum(), tokens)
    assert asked == [["keys", "values"]]
    assert {tuple(sorted(shape)) for shape in products} == {(7, decoder.head_dim)}


def test_no_backward_without_a_gradient_and_no_grad_works():
    decoder = make_decoder(**SMALL).requires_grad_(False)
    coords, tokens = make_coords("grid", 2, 30, 2), make_tokens(2, 7, 11)
    out = decoder(coords, tokens)
    assert not out.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(decoder(coords, tokens), out)
