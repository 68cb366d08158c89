"""locality_decode and its module: wrong input gets a named error, odd input a right answer."""

from __future__ import annotations

import math

import pytest
import torch
from locality_cases import (
    SMALL,
    make_coords,
    make_decoder,
    make_tokens,
    own_formula,
    relative_error,
)

import ginr_fast
from ginr_fast import BackendError, LocalityAwareDecoder
from ginr_fast.ops.locality_decode.op import locality_decode

POINTS = torch.rand(2, 5, 2)
TOKENS = torch.randn(2, 7, 11)


@pytest.fixture
def decoder() -> LocalityAwareDecoder:
    return make_decoder(**SMALL)


@pytest.mark.parametrize(
    ("coords", "tokens", "error", "message"),
    [
        ([[0.0, 0.0]], TOKENS, TypeError, "coords: expected a tensor or CoordinateGrid, got list"),
        (None, TOKENS, TypeError, "coords: .*got NoneType"),
        (POINTS.half(), TOKENS, TypeError, "coords: .*float32 or float64, got float16"),
        (POINTS.bfloat16(), TOKENS, TypeError, "coords: .*got bfloat16"),
        (POINTS.long(), TOKENS, TypeError, "coords: .*got int64"),
        (POINTS[..., :1], TOKENS, ValueError, r"coords: expected 2 coordinates a point"),
        (torch.rand(2, 5, 3), TOKENS, ValueError, r"coords: .*\(2, 5, 3\)"),
        (torch.tensor(0.5), TOKENS, ValueError, "coords: "),
        (torch.rand(2, 5, 0), TOKENS, ValueError, "coords: "),
        (ginr_fast.grid(4, 4, 4), TOKENS, ValueError, "coords: expected 2 coordinates.*got 3"),
        (POINTS.to("meta"), TOKENS, ValueError, "coords: expected device cpu, got meta"),
        (ginr_fast.grid(3, 3, device="meta"), TOKENS, ValueError, "coords: .*cpu, got meta"),
        (POINTS, None, TypeError, "tokens: expected a tensor, got NoneType"),
        (POINTS, TOKENS.numpy(), TypeError, "tokens: expected a tensor, got ndarray"),
        (POINTS, TOKENS[0], ValueError, r"tokens: expected shape \(B, R, 11\), got \(7, 11\)"),
        (POINTS, TOKENS[None], ValueError, r"tokens: expected shape \(B, R, 11\)"),
        (POINTS, TOKENS[..., :10], ValueError, r"tokens: .*got \(2, 7, 10\)"),
        (POINTS, TOKENS[:, :0], ValueError, "tokens: expected at least one token"),
        (POINTS, TOKENS.long(), TypeError, "tokens: expected dtype .*float32, got .*int64"),
        (POINTS, TOKENS.double(), TypeError, "tokens: expected dtype .*float32, got .*float64"),
        (POINTS, TOKENS.bfloat16(), TypeError, "tokens: expected dtype .*float32, got .*bfloat16"),
        (POINTS, TOKENS.to("meta"), ValueError, "tokens: expected device cpu, got meta"),
    ],
)
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_wrong_inputs(decoder, coords, tokens, error, message, backend):
    with ginr_fast.backend(backend), pytest.raises(error, match=message):
        decoder(coords, tokens)


def test_integer_tokens_under_autocast(decoder):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="tokens: "):
        decoder(POINTS, TOKENS.long())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *(
            ({name: 0}, ValueError, f"{name}: expected a positive integer, got 0")
            for name in ("coord_dim", "out_dim", "token_dim", "hidden_dim", "heads", "head_dim")
        ),
        *(
            ({name: 1.5}, (ValueError, TypeError), f"{name}: .*got 1.5")
            for name in (
                "coord_dim",
                "out_dim",
                "token_dim",
                "hidden_dim",
                "heads",
                "head_dim",
                "feature_dim",
            )
        ),
        ({"heads": 5}, ValueError, "heads: 5 do not divide hidden_dim 18; give head_dim"),
        ({"feature_dim": 3}, ValueError, "feature_dim: expected at least 4"),
        ({"feature_dim": "22"}, (ValueError, TypeError), "feature_dim: "),
        ({"bandwidths": ()}, ValueError, "bandwidths: expected at least one band"),
        ({"bandwidths": 128}, (ValueError, TypeError), "bandwidths: "),
        ({"bandwidths": (128, 0)}, ValueError, "bandwidths: expected positive"),
        ({"bandwidths": (128, math.nan)}, ValueError, "bandwidths: "),
        ({"bandwidths": (128, math.inf)}, ValueError, "bandwidths: "),
        ({"bandwidths": ("128",)}, (ValueError, TypeError), "bandwidths: "),
        ({"query_bandwidth": -1}, ValueError, "query_bandwidth: "),
        ({"lowest_frequency": 0}, ValueError, "lowest_frequency: "),
        ({"frequencies": []}, ValueError, "frequencies: expected at least one band"),
        ({"frequencies": [torch.ones(2), torch.ones(3)]}, ValueError, "frequencies: .*one length"),
        ({"frequencies": [torch.ones(2, 2)]}, ValueError, "frequencies: expected 1-D"),
        ({"frequencies": [torch.ones(0)]}, ValueError, "frequencies: "),
        ({"query_frequencies": torch.ones(2, 2)}, ValueError, "query_frequencies: expected 1-D"),
        ({"query_frequencies": torch.tensor(1.0)}, ValueError, "query_frequencies: expected 1-D"),
        ({"query_frequencies": torch.ones(0)}, ValueError, "query_frequencies: "),
    ],
    ids=str,
)
def test_wrong_constructor_arguments(arguments, error, message):
    with pytest.raises(error, match="^" + message):
        LocalityAwareDecoder(**{**SMALL, **arguments})


def operands(decoder, batch=2):
    keys, values = decoder.keys_and_values(make_tokens(batch, 7, 11))
    return keys.detach(), values.detach(), decoder.weights()


@pytest.mark.parametrize(
    ("replace", "error", "message"),
    [
        ({"keys": None}, TypeError, "keys: expected a tensor"),
        ({"keys": torch.zeros(2, 7, 18)}, ValueError, "keys: expected shape"),
        ({"keys": torch.zeros(2, 2, 7, 9, dtype=torch.int32)}, TypeError, "keys: expected dtype"),
        ({"keys": torch.zeros(2, 2, 7, 0)}, ValueError, "keys: expected at least one"),
        ({"keys": torch.zeros(2, 2, 7, 8)}, ValueError, "weights.projection_weight: "),
        ({"keys": torch.zeros(2, 2, 7, 9).double()}, TypeError, "values: .*got float32"),
        ({"values": None}, TypeError, "values: expected a tensor"),
        ({"values": torch.zeros(3, 2, 7, 9)}, ValueError, r"values: .* \(2, 2, 7, dv\)"),
        ({"values": torch.zeros(2, 2, 6, 9)}, ValueError, "values: expected shape"),
        ({"values": torch.zeros(2, 2, 7, 0)}, ValueError, "values: "),
        ({"values": torch.zeros(2, 2, 7, 9).half()}, TypeError, "values: .*got float16"),
        ({"values": torch.zeros(2, 2, 7, 9, device="meta")}, ValueError, "values: .*got meta"),
        ({"weights": None}, TypeError, "weights: expected LocalityWeights"),
        ({"weights": (1, 2)}, TypeError, "weights: expected LocalityWeights, got tuple"),
        ({"scale": "1"}, TypeError, "scale: expected a number"),
    ],
    ids=str,
)
def test_wrong_operands(decoder, replace, error, message):
    keys, values, weights = operands(decoder)
    arguments = {"coords": POINTS, "keys": keys, "values": values, "weights": weights, **replace}
    with pytest.raises(error, match=message):
        locality_decode(**arguments)


@pytest.mark.parametrize("name", make_decoder(**SMALL).weights()._fields)
def test_every_wrong_weight_is_named(decoder, name):
    keys, values, weights = operands(decoder)
    right = getattr(weights, name)
    wrong = {
        "shape": torch.cat((right, right), dim=-1),
        "rank": right[None],
        "dtype": right.half(),
        "device": right.to("meta"),
        "list": right.tolist(),
    }
    for what, value in wrong.items():
        # Twice the frequencies is also half of the features the weights should have.
        named = f"weights.{name}"
        if what == "shape" and name.endswith("frequencies"):
            named = f"weights.{name.removesuffix('_frequencies')}_weight"
        elif what == "shape" and name in ("band_weight", "attention_output_weight"):
            named = "weights."
        with pytest.raises((TypeError, ValueError), match=named):
            locality_decode(POINTS, keys, values, weights._replace(**{name: value}))


def test_folded_forms_that_do_not_fit(decoder):
    keys, values, weights = operands(decoder)
    with pytest.raises(ValueError, match="keys: without a query projection"):
        locality_decode(
            POINTS, keys, values, weights._replace(projection_weight=None, projection_bias=None)
        )
    with pytest.raises(ValueError, match="values: without modulation weights"):
        locality_decode(POINTS, keys, values, weights._replace(modulation_weight=None))


@pytest.mark.parametrize("name", ["native"])
def test_a_forced_backend_that_cannot_serve(decoder, name, monkeypatch):
    with ginr_fast.backend(name), pytest.raises(BackendError, match=f"locality_decode.*{name}"):
        decoder(POINTS, TOKENS)
    monkeypatch.setenv("GINR_FAST_BACKEND", name)
    with pytest.raises(BackendError, match=f"locality_decode.*{name}"):
        decoder(POINTS, TOKENS)


# --- odd input, right answers ---


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    ("coords", "batch", "shape"),
    [
        (torch.rand(0, 5, 2), 0, (0, 5, 3)),
        (torch.rand(5, 2), 0, (0, 5, 3)),
        (ginr_fast.grid(3, 4), 0, (0, 3, 4, 3)),
        (torch.rand(2, 0, 2), 2, (2, 0, 3)),
        (torch.rand(1, 0, 2), 2, (2, 0, 3)),
        (torch.rand(0, 2), 2, (2, 0, 3)),
        (torch.rand(2, 4, 0, 2), 2, (2, 4, 0, 3)),
        (ginr_fast.grid(0, 4), 2, (2, 0, 4, 3)),
        (ginr_fast.grid(4, 0), 2, (2, 4, 0, 3)),
        (ginr_fast.grid(0, 0), 0, (0, 0, 0, 3)),
    ],
    ids=str,
)
def test_nothing_to_decode(decoder, coords, batch, shape, backend, create_graph):
    tokens = torch.randn(batch, 7, 11, requires_grad=True)
    inputs = [tokens, *decoder.parameters()]
    if isinstance(coords, torch.Tensor):
        coords = coords.clone().requires_grad_()
        inputs.append(coords)
    with ginr_fast.backend(backend):
        out = decoder(coords, tokens)
    assert out.shape == shape and out.dtype == torch.float32
    grads = torch.autograd.grad(out.sum(), inputs, create_graph=create_graph)
    for grad, tensor in zip(grads, inputs, strict=True):
        assert grad.shape == tensor.shape and not grad.any()


def check_against_own_formula(decoder, coords, tokens, points):
    """``coords`` as given against the plain formula on ``points`` (B, N, c)."""
    with torch.no_grad():
        got = decoder(coords, tokens)
        want = own_formula(decoder, points, tokens)
    assert relative_error(got.reshape(want.shape), want) <= 2e-5
    return got


def test_non_contiguous_inputs(decoder):
    coords = torch.rand(2, 2, 9).transpose(1, 2)[:, ::2]
    tokens = torch.randn(11, 14, 2).permute(2, 1, 0)[:, ::2]
    assert not coords.is_contiguous() and not tokens.is_contiguous()
    check_against_own_formula(decoder, coords, tokens, coords)


def test_expanded_tokens(decoder):
    tokens = torch.randn(1, 7, 11).expand(3, -1, -1)
    coords = make_coords("points", 3, 5, 2)
    check_against_own_formula(decoder, coords, tokens, coords)
    tokens = torch.randn(2, 1, 11).expand(2, 7, 11)
    check_against_own_formula(decoder, coords[:2], tokens, coords[:2])


def test_gradients_of_expanded_and_non_contiguous_inputs(decoder):
    tokens = torch.randn(1, 11, 7).requires_grad_()
    coords = torch.rand(1, 2, 5).requires_grad_()
    grads = {}
    for backend in ("blocked", "reference"):
        with ginr_fast.backend(backend):
            out = decoder(coords.mT.expand(3, -1, -1), tokens.mT.expand(3, -1, -1))
        grads[backend] = torch.autograd.grad(out.square().sum(), (tokens, coords))
    for got, want in zip(grads["blocked"], grads["reference"], strict=True):
        assert relative_error(got, want) <= 2e-4  # the float32 reference's phases


def test_one_coordinate(decoder):
    point = torch.tensor([0.3, -0.4])
    got = check_against_own_formula(decoder, point, TOKENS, point.expand(2, 1, 2))
    assert got.shape == (2, 3)
    got = check_against_own_formula(decoder, point[None], TOKENS, point.expand(2, 1, 2))
    assert got.shape == (2, 1, 3)


def test_two_dimensional_coordinates_are_shared_even_with_as_many_as_instances(decoder):
    coords = torch.rand(2, 2)
    got = check_against_own_formula(decoder, coords, TOKENS, coords.expand(2, 2, 2))
    assert got.shape == (2, 2, 3)


def test_one_set_and_unbatched_images_of_coordinates(decoder):
    coords = torch.rand(1, 6, 2)
    got = check_against_own_formula(decoder, coords, TOKENS, coords.expand(2, 6, 2))
    assert got.shape == (2, 6, 3)
    image = torch.rand(4, 5, 2)  # the first dimension is neither 2 nor 1
    got = check_against_own_formula(decoder, image, TOKENS, image.view(1, 20, 2).expand(2, -1, -1))
    assert got.shape == (2, 4, 5, 3)
    images = torch.rand(2, 4, 5, 2)
    got = check_against_own_formula(decoder, images, TOKENS, images.view(2, 20, 2))
    assert got.shape == (2, 4, 5, 3)


def test_a_float64_grid_and_coordinates_with_float32_parameters(decoder):
    grid = ginr_fast.grid(4, 5, dtype=torch.float64)
    points = grid.tensor().float().view(1, 20, 2).expand(2, -1, -1)
    assert check_against_own_formula(decoder, grid, TOKENS, points).dtype == torch.float32
    check_against_own_formula(decoder, grid.tensor(), TOKENS, points)


def test_on_the_meta_device():
    decoder = make_decoder(**SMALL).to("meta")
    out = decoder(torch.rand(2, 5, 2, device="meta"), TOKENS.to("meta"))
    assert out.shape == (2, 5, 3) and out.device.type == "meta"
