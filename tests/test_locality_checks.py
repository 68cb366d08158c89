"""locality_decode and its module: sizes and operands that do not fit get a named error."""

from __future__ import annotations

import math

import pytest
import torch
from locality_cases import SMALL, make_decoder, make_tokens

from ginr_fast import LocalityAwareDecoder
from ginr_fast.ops.locality_decode.op import locality_decode

POINTS = torch.rand(2, 5, 2)
TOKENS = torch.randn(2, 7, 11)


@pytest.fixture
def decoder() -> LocalityAwareDecoder:
    return make_decoder(**SMALL)


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
