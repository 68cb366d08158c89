"""The Triton kernels of locality_decode, in Triton's interpreter, against the float64 formula."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from locality_cases import KINDS, SMALL, check_accuracy, make_coords, make_decoder, make_tokens, run
from triton_cases import RESIDENT_TILES, small_tiles

import ginr_fast
from ginr_fast.ops import triton_backend
from ginr_fast.ops.locality_decode.op import locality_decode
from ginr_fast.ops.locality_decode.weights import LocalityWeights

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu.py runs the kernels themselves"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _small_tiles():
    with small_tiles():
        yield


def check(kind="points", *, batch=2, count=37, tokens=7, dtype=torch.float32, **arguments):
    arguments = {**SMALL, **arguments}
    decoder = make_decoder(dtype, **arguments)
    coords = make_coords(kind, batch, count, arguments.get("coord_dim", 2))
    inputs = make_tokens(batch, tokens, arguments["token_dim"], dtype)
    limit = 2e-5 if dtype == torch.float32 else 1.5e-2
    check_accuracy(decoder, coords, inputs, limit, backend="triton")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_coordinates(kind):
    check(kind, batch=3)


@pytest.mark.parametrize("kind", ["points", "one set", "grid"])
def test_float16(kind):
    # Wide enough that one ReLU that rounding turns on or off does not decide a gradient.
    check(kind, dtype=torch.float16, hidden_dim=64, feature_dim=64)


@pytest.mark.parametrize("dims", [1, 3, 6])
def test_coordinates_of_other_dimensions(dims):
    check("points", coord_dim=dims)


@pytest.mark.parametrize("sizes", [(50,), (3, 1, 5), (2, 1, 3, 2, 1, 3)])
def test_grids_of_other_dimensions(sizes):
    decoder = make_decoder(**{**SMALL, "coord_dim": len(sizes)})
    check_accuracy(decoder, ginr_fast.grid(*sizes), make_tokens(2, 7, 11), 2e-5, backend="triton")


@pytest.mark.parametrize(
    "arguments",
    [
        {"bandwidths": (9,)},
        {"bandwidths": (9, 7, 5)},
        {"bandwidths": (9, 7, 5, 3), "heads": 1},
        {"heads": 8, "hidden_dim": 24},
        {"heads": 3, "head_dim": 13},
        {"hidden_dim": 70, "heads": 2, "out_dim": 1},
        {"hidden_dim": 200, "heads": 1, "feature_dim": 30, "out_dim": 8},
        {"feature_dim": 4, "out_dim": 19},
        {"modulation_relu": False},
        {"output_projection": False, "attention_bias": False},
    ],
    ids=str,
)
def test_levels_heads_and_widths(arguments):
    check("points", **arguments)


@pytest.mark.parametrize("head_dim", [300, 512])
def test_heads_wider_than_a_chunk(head_dim):
    check("one set", heads=1, head_dim=head_dim, count=20, dtype=torch.float16)


@pytest.mark.parametrize("tokens", [1, 16, 17, 100, 1000])
def test_numbers_of_tokens(tokens):
    check("one set", tokens=tokens, count=20 if tokens < 1000 else 7)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"kind": "grid"}, {"bandwidths": (9,), "tokens": 40}, {"out_dim": 9}, {"hidden_dim": 128}],
    ids=str,
)
def test_operands_that_stay_in_shared_memory(arguments):
    with small_tiles(**RESIDENT_TILES):
        check(**{"kind": "one set", "count": 70, **arguments})


def test_more_instances_than_a_span_holds():
    check("grid", batch=9, count=40)
    check("points", batch=9, count=20)


@pytest.mark.parametrize("setting", ["highest", "high"])
def test_the_precision_setting_reaches_the_kernels(setting):
    from ginr_fast.ops.kernels import launch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        found = launch.precision(torch.float32, torch.device("cpu"))
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == ("tf32x3" if setting == "highest" else "tf32")


def operands(projection: bool) -> tuple:
    """Arguments of the operator itself, with keys that carry the query projection or without."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    heads, width, query_width, value_dim, levels = 2, 20, 12, 5, 2
    key_dim = 6 if projection else query_width
    weights = LocalityWeights(
        query_frequencies=torch.tensor([1.0, 2.0, 3.0]),
        query_weight=random(query_width, 12),
        query_bias=random(query_width),
        projection_weight=random(heads * key_dim, query_width) if projection else None,
        projection_bias=random(heads * key_dim) if projection else None,
        attention_output_weight=None,
        attention_output_bias=None,
        band_frequencies=torch.tensor([[3.0, 4.0], [1.0, 2.0]]),
        band_weight=random(levels, width, 8),
        band_bias=random(levels, width),
        modulation_weight=random(levels, width, heads * value_dim),
        modulation_bias=random(levels, width),
        hidden_weight=random(levels - 1, width, width),
        hidden_bias=random(levels - 1, width),
        output_weight=random(levels, 3, width),
        output_bias=random(3),
    )
    keys, values = random(2, heads, 9, key_dim), random(2, heads, 9, value_dim)
    coords = torch.rand(2, 21, 2, generator=generator) * 2 - 1
    return coords, keys, values, weights


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("projection", [False, True])
def test_queries_without_a_projection(projection, shared):
    coords, keys, values, weights = operands(projection)
    coords = coords[0] if shared else coords
    inputs = [keys, values, *(w for w in weights if w is not None and w.requires_grad)]
    found = {}
    for backend in ("reference", "triton"):
        with ginr_fast.backend(backend):
            out = locality_decode(coords, keys, values, weights)
        found[backend] = [out, *torch.autograd.grad(out.square().sum(), inputs)]
    for got, want in zip(found["triton"], found["reference"], strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm()


def test_results_are_the_same_bit_for_bit():
    decoder = make_decoder(**SMALL)
    coords, tokens = make_coords("one set", 3, 40, 2), make_tokens(3, 17, 11)
    first, second = (run(decoder, coords, tokens, "triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.parametrize("wanted", ["tokens", "values", "output", "projection", "query"])
def test_only_needed_gradients_are_computed(wanted, monkeypatch):
    from ginr_fast.ops.kernels import decoder, launch

    coords, keys, values, weights = operands(True)
    inputs = {
        "tokens": [keys, values],
        "values": [values],
        "output": [weights.output_weight],
        "projection": [weights.projection_weight],
        "query": [weights.query_weight],
    }[wanted]
    want = torch.autograd.grad(locality_decode(coords, keys, values, weights).sum(), inputs)
    everything = [keys, values, *(w for w in weights if w is not None)]
    for tensor in everything:
        tensor.requires_grad_(any(tensor is i for i in inputs))
    names, products = [], []
    original, product = launch.launch, decoder.gemm.transposed_product

    def spy(kernel, grid, arguments, constants, tile, device):
        names.append((kernel.fn.__name__, constants))
        return original(kernel, grid, arguments, constants, tile, device)

    for module in ("attention", "attention_backward", "layers", "fourier"):
        monkeypatch.setattr(f"ginr_fast.ops.kernels.{module}.launch", spy)
    monkeypatch.setattr(
        decoder.gemm,
        "transposed_product",
        lambda x, y: products.append(1) or product(x, y),
    )
    with ginr_fast.backend("triton"):
        out = locality_decode(coords, keys, values, weights)
        names.clear()
        got = torch.autograd.grad(out.sum(), inputs)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    ran = {name for name, _ in names}
    assert ("token_gradient_kernel" in ran) == (wanted in ("tokens", "values"))
    assert ("query_gradient_kernel" in ran) == (wanted in ("tokens", "projection", "query"))
    assert ("fourier_kernel" in ran) == (wanted == "query")
    assert bool(products) == (wanted not in ("tokens", "values"))


def test_inside_torch_compile():
    decoder = make_decoder(**SMALL)
    coords, tokens = make_coords("one set", 2, 20, 2), make_tokens(2, 7, 11).requires_grad_()
    torch.compiler.reset()
    with ginr_fast.backend("triton"):
        compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
        out = compiled(coords, tokens)
        (grad,) = torch.autograd.grad(out.sum(), tokens)
        want = decoder(coords, tokens)
        (want_grad,) = torch.autograd.grad(want.sum(), tokens)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(grad, want_grad)


def test_autocast_and_double_backward():
    decoder = make_decoder(**SMALL)
    coords, tokens = make_coords("points", 2, 20, 2), make_tokens(2, 7, 11).requires_grad_()
    with ginr_fast.backend("triton"), torch.autocast("cpu", torch.float16):
        out = decoder(coords, tokens)
    assert out.dtype == torch.float16
    with ginr_fast.backend("triton"):
        (slope,) = torch.autograd.grad(decoder(coords, tokens).sum(), tokens, create_graph=True)
    (got,) = torch.autograd.grad(slope.square().sum(), tokens)
    (slope,) = torch.autograd.grad(decoder(coords, tokens).sum(), tokens, create_graph=True)
    (want,) = torch.autograd.grad(slope.square().sum(), tokens)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_empty_batches_and_no_coordinates():
    decoder = make_decoder(**SMALL)
    with ginr_fast.backend("triton"):
        assert decoder(torch.rand(5, 2), make_tokens(0, 7, 11)).shape == (0, 5, 3)
        assert decoder(torch.rand(0, 2), make_tokens(2, 7, 11)).shape == (2, 0, 3)


def test_what_it_cannot_serve_says_why(monkeypatch):
    decoder = make_decoder(**SMALL)
    tokens = make_tokens(2, 7, 11)

    def reason(decoder=decoder, coords=None, tokens=tokens):
        coords = torch.rand(4, 2) if coords is None else coords
        with ginr_fast.backend("triton"), pytest.raises(ginr_fast.BackendError) as error:
            decoder(coords, tokens)
        return str(error.value)

    double = make_decoder(torch.float64, **SMALL)
    assert "float64" in reason(double, tokens=tokens.double())
    assert "float32 coordinates" in reason(coords=torch.rand(4, 2).double())
    wide = make_decoder(**SMALL | {"heads": 1, "head_dim": 257})
    assert "at most 256 wide, got 257" in reason(wide)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "runs on a GPU, and the tensors are on cpu" in reason()
    monkeypatch.setattr(triton_backend, "_MISSING", "Triton is not installed")
    assert "Triton is not installed" in reason()


def test_values_that_carry_the_modulation_are_served_by_another_backend():
    coords, keys, _, weights = operands(True)
    weights = weights._replace(modulation_weight=None)
    values = torch.randn(2, 2, 9, weights.levels * weights.width)
    assert locality_decode(coords, keys, values, weights).shape == (2, 21, 3)
    with (
        ginr_fast.backend("triton"),
        pytest.raises(ginr_fast.BackendError, match="the values carry the modulation weights"),
    ):
        locality_decode(coords, keys, values, weights)


def test_nan_shows():
    decoder = make_decoder(**SMALL)
    tokens = make_tokens(2, 7, 11)
    tokens[1, 3] = float("nan")
    with ginr_fast.backend("triton"):
        out = decoder(make_coords("one set", 2, 20, 2), tokens)
    assert out[0].isfinite().all() and out[1].isnan().all()
