"""The Triton kernels of anr_decode, in Triton's interpreter, against the float64 formula."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from anr_cases import SMALL, make_decoder
from locality_cases import KINDS, check_accuracy, make_coords, make_tokens, run
from triton_cases import RESIDENT_TILES, small_tiles

import ginr_fast

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu.py runs the kernels themselves"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _small_tiles():
    with small_tiles():
        yield


def check(kind="one set", *, batch=2, count=37, tokens=7, dtype=torch.float32, **arguments):
    arguments = {**SMALL, **arguments}
    decoder = make_decoder(dtype, **arguments)
    coords = make_coords(kind, batch, count, arguments.get("coord_dim", 2))
    inputs = make_tokens(batch, tokens, arguments["token_dim"], dtype)
    limit = 2e-5 if dtype == torch.float32 else 1.5e-2
    check_accuracy(decoder, coords, inputs, limit, backend="triton")


@pytest.mark.parametrize("activation", ["relu", "mish"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_coordinates(kind, activation):
    check(kind, batch=3, activation=activation)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.9])
def test_thresholds(threshold):
    # At 0.3 some rows lose most tokens, at 0.9 most rows lose all of them.
    check(threshold=threshold)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("activation", ["relu", "mish"])
def test_depths(depth, activation):
    check(depth=depth, activation=activation, count=20)


@pytest.mark.parametrize(
    "arguments",
    [
        {"heads": 1, "head_dim": 13},
        {"heads": 8, "head_dim": 4},
        {"hidden_dim": 70, "feature_dim": 30, "out_dim": 9},
        {"hidden_dim": 512, "count": 10},
        {"coord_dim": 1},
        {"coord_dim": 6, "feature_dim": 30},
        {"tokens": 1},
        {"tokens": 100},
        {"heads": 1, "head_dim": 200, "count": 20},
    ],
    ids=str,
)
def test_heads_widths_and_tokens(arguments):
    check(**arguments)


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_operands_that_stay_in_shared_memory(threshold):
    with small_tiles(**RESIDENT_TILES):
        check(threshold=threshold, activation="mish", count=70)


@pytest.mark.parametrize("activation", ["relu", "mish"])
def test_float16(activation):
    # Wide enough that one ReLU that rounding turns on or off does not decide a gradient.
    check(dtype=torch.float16, hidden_dim=64, feature_dim=64, threshold=0.0, activation=activation)


def test_results_are_the_same_bit_for_bit():
    decoder = make_decoder(**SMALL)
    coords, tokens = make_coords("one set", 3, 40, 2), make_tokens(3, 17, 11)
    first, second = (run(decoder, coords, tokens, "triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.parametrize(
    ("wanted", "layers"),
    [("tokens", 2), ("hidden_weight", 1), ("output_bias", 0), ("first_bias", 2)],
)
def test_only_needed_gradients_are_computed(wanted, layers, monkeypatch):
    from ginr_fast.ops.kernels import launch

    decoder = make_decoder(**SMALL).requires_grad_(False)
    coords = make_coords("one set", 2, 30, 2)
    tokens = make_tokens(2, 7, 11)
    source = {
        "tokens": tokens,
        "hidden_weight": decoder.layers[1].weight,
        "output_bias": decoder.layers[2].bias,
        "first_bias": decoder.layers[0].bias,
    }[wanted].requires_grad_()
    (want,) = torch.autograd.grad(decoder(coords, tokens).sum(), source)
    names: list[str] = []
    original = launch.launch

    def spy(kernel, *arguments):
        names.append(kernel.fn.__name__)
        return original(kernel, *arguments)

    for module in ("attention", "attention_backward", "layers", "fourier"):
        monkeypatch.setattr(f"ginr_fast.ops.kernels.{module}.launch", spy)
    with ginr_fast.backend("triton"):
        out = decoder(coords, tokens)
        names.clear()
        (got,) = torch.autograd.grad(out.sum(), source)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    spans = names.count("attention_kernel")
    assert names.count("layer_backward_kernel") == layers * spans
    assert ("token_gradient_kernel" in names) == (wanted == "tokens")
    assert "fourier_kernel" not in names


@pytest.mark.parametrize("activation", ["relu", "mish"])
def test_nan_shows(activation):
    decoder = make_decoder(**SMALL, activation=activation)
    tokens = make_tokens(2, 7, 11)
    tokens[1, 3] = float("nan")
    with ginr_fast.backend("triton"):
        out = decoder(make_coords("one set", 2, 20, 2), tokens)
    assert out[0].isfinite().all() and out[1].isnan().all()


def test_inside_torch_compile():
    decoder = make_decoder(**SMALL)
    coords, tokens = make_coords("one set", 2, 20, 2), make_tokens(2, 7, 11).requires_grad_()
    torch.compiler.reset()
    with ginr_fast.backend("triton"):
        out = torch.compile(decoder, fullgraph=True, backend="aot_eager")(coords, tokens)
        (grad,) = torch.autograd.grad(out.sum(), tokens)
        want = decoder(coords, tokens)
        (want_grad,) = torch.autograd.grad(want.sum(), tokens)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(grad, want_grad)


def test_empty_batches_and_no_coordinates():
    decoder = make_decoder(**SMALL)
    with ginr_fast.backend("triton"):
        assert decoder(torch.rand(5, 2), make_tokens(0, 7, 11)).shape == (0, 5, 3)
        assert decoder(torch.rand(0, 2), make_tokens(2, 7, 11)).shape == (2, 0, 3)
