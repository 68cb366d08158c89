"""anr_decode and its module: sizes and operands that do not fit get a named error."""

from __future__ import annotations

import math

import pytest
import torch
from anr_cases import SMALL, keys_values_weights, make_decoder, own_formula
from locality_cases import make_coords, make_tokens

import ginr_fast
from ginr_fast import AnrDecoder, anr_decode

POINTS = torch.rand(2, 5, 2)
TOKENS = torch.randn(2, 7, 11)
SIZES = ("coord_dim", "out_dim", "token_dim", "hidden_dim", "heads", "head_dim", "depth")


@pytest.fixture
def decoder() -> AnrDecoder:
    return make_decoder(**SMALL)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *(
            ({name: wrong}, ValueError, f"{name}: expected a positive integer, got {wrong}")
            for name in (*SIZES, "feature_dim")
            for wrong in (0, -2, 1.5)
        ),
        ({"feature_dim": 3}, ValueError, "feature_dim: expected at least 4"),
        ({"feature_dim": None, "hidden_dim": 3}, ValueError, "feature_dim: expected at least 4"),
        ({"max_frequency": 0}, ValueError, "max_frequency: expected a positive number"),
        ({"max_frequency": math.inf}, ValueError, "max_frequency: "),
        ({"max_frequency": math.nan}, ValueError, "max_frequency: "),
        ({"max_frequency": "9"}, ValueError, "max_frequency: "),
        ({"threshold": -0.1}, ValueError, "threshold: expected 0 <= threshold < 1, got -0.1"),
        ({"threshold": 1}, ValueError, "threshold: .*got 1"),
        ({"threshold": math.nan}, ValueError, "threshold: .*got nan"),
        ({"threshold": math.inf}, ValueError, "threshold: .*got inf"),
        ({"threshold": "0.1"}, TypeError, "threshold: expected a number, got str"),
        ({"threshold": None}, TypeError, "threshold: expected a number, got NoneType"),
        ({"activation": "gelu"}, ValueError, "activation: expected relu or mish, got 'gelu'"),
        ({"activation": None}, ValueError, "activation: .*got None"),
        ({"frequencies": torch.ones(2, 2)}, ValueError, "frequencies: expected 1-D"),
        ({"frequencies": torch.ones(0)}, ValueError, "frequencies: expected 1-D"),
        ({"output_scale": math.nan}, ValueError, "output_scale: expected a finite number"),
        ({"output_bias": "0"}, ValueError, "output_bias: expected a finite number"),
    ],
    ids=str,
)
def test_wrong_constructor_arguments(arguments, error, message):
    with pytest.raises(error, match="^" + message):
        AnrDecoder(**{**SMALL, **arguments})


@pytest.mark.parametrize(
    ("replace", "error", "message"),
    [
        ({"keys": None}, TypeError, "keys: expected a tensor"),
        ({"keys": torch.zeros(2, 7, 18)}, ValueError, "keys: expected shape"),
        ({"keys": torch.zeros(2, 3, 7, 5, dtype=torch.int32)}, TypeError, "keys: expected dtype"),
        ({"keys": torch.zeros(2, 3, 7, 0)}, ValueError, "keys: expected at least one"),
        ({"keys": torch.zeros(2, 3, 7, 8)}, ValueError, "weights.query_weight: "),
        ({"keys": torch.zeros(2, 3, 7, 5).double()}, TypeError, "values: .*got float32"),
        ({"values": None}, TypeError, "values: expected a tensor"),
        ({"values": torch.zeros(3, 3, 7, 5)}, ValueError, r"values: .* \(2, 3, 7, dv\)"),
        ({"values": torch.zeros(2, 3, 6, 5)}, ValueError, "values: expected shape"),
        ({"values": torch.zeros(2, 3, 7, 0)}, ValueError, "values: "),
        ({"values": torch.zeros(2, 3, 7, 4)}, ValueError, "weights.attention_output_weight: "),
        ({"values": torch.zeros(2, 3, 7, 5).half()}, TypeError, "values: .*got float16"),
        ({"values": torch.zeros(2, 3, 7, 5, device="meta")}, ValueError, "values: .*got meta"),
        ({"weights": None}, TypeError, "weights: expected AnrWeights"),
        ({"weights": (1, 2)}, TypeError, "weights: expected AnrWeights, got tuple"),
        ({"scale": "1"}, TypeError, "scale: expected a number"),
        ({"threshold": 1.0}, ValueError, "threshold: expected 0 <= threshold < 1, got 1.0"),
        ({"threshold": "0"}, TypeError, "threshold: expected a number, got str"),
        ({"activation": "tanh"}, ValueError, "activation: expected relu or mish, got 'tanh'"),
    ],
    ids=str,
)
def test_wrong_operands(decoder, replace, error, message):
    keys, values, weights = keys_values_weights(decoder, TOKENS)
    arguments = {"coords": POINTS, "keys": keys, "values": values, "weights": weights, **replace}
    with pytest.raises(error, match=message):
        anr_decode(**arguments)


@pytest.mark.parametrize("name", make_decoder(**SMALL).weights()._fields)
def test_every_wrong_weight_is_named(decoder, name):
    keys, values, weights = keys_values_weights(decoder, TOKENS)
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
        named = "weights.query_weight" if (name, what) == ("frequencies", "shape") else name
        with pytest.raises((TypeError, ValueError), match=named):
            anr_decode(POINTS, keys, values, weights._replace(**{name: value}))


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"first_weight": None}, "weights.first_bias: expected None, as first_weight is None"),
        ({"first_bias": None}, "weights.first_bias: expected a tensor"),
        ({"attention_output_weight": None}, "weights.attention_output_bias: expected None"),
        ({"first_weight": None, "first_bias": None}, "weights.hidden_weight: "),
        (
            {"attention_output_weight": None, "attention_output_bias": None},
            "weights.first_weight: ",
        ),
    ],
    ids=str,
)
def test_half_of_a_layer(decoder, replace, message):
    keys, values, weights = keys_values_weights(decoder, TOKENS)
    with pytest.raises((TypeError, ValueError), match=message):
        anr_decode(POINTS, keys, values, weights._replace(**replace))


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize("depth", [1, 3])
def test_without_an_output_projection(backend, depth):
    decoder = make_decoder(torch.float64, **{**SMALL, "depth": depth, "hidden_dim": 15})
    tokens, coords = make_tokens(2, 7, 11, torch.float64), make_coords("points", 2, 9, 2)
    with torch.no_grad():
        decoder.output_projection.weight.copy_(torch.eye(15))
        decoder.output_projection.bias.zero_()
    keys, values, weights = keys_values_weights(decoder, tokens)
    weights = weights._replace(attention_output_weight=None, attention_output_bias=None)
    with ginr_fast.backend(backend):
        got = anr_decode(coords, keys, values, weights, threshold=decoder.threshold)
    torch.testing.assert_close(got, own_formula(decoder, coords.double(), tokens))


def test_large_logits_do_not_overflow():
    decoder = make_decoder(torch.float64, sharpness=1e4, **SMALL)
    tokens, coords = make_tokens(2, 7, 11, torch.float64), make_coords("points", 2, 50, 2).double()
    got = decoder(coords, tokens)
    assert got.isfinite().all()
    torch.testing.assert_close(got, own_formula(decoder, coords, tokens), rtol=1e-6, atol=1e-6)
