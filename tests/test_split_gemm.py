"""Float32 products as three bfloat16 products on AMX: the kernel, its setting, what goes there."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from field_cases import make_spec, make_weights, relative_error, threads

import ginr_fast
from ginr_fast import FourierEncoding
from ginr_fast.ops import gemm, native, native_gemm

pytestmark = pytest.mark.skipif(
    "amx" not in native.build_info()["cpu_paths_usable"],
    reason="needs a processor with AMX, and an extension built for it",
)

LIMIT = 1e-5
HIGH_LIMIT = 2e-5  # a decoder or field as a whole; its gradients: five times that


@pytest.fixture(autouse=True)
def on_amx():
    """Tests start on the fastest path, at full precision, and leave both as they were."""
    before = torch.get_float32_matmul_precision()
    native.force_cpu_path("amx")
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
    native._force_from_environment()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def strided(value: torch.Tensor, kind: str) -> torch.Tensor:
    """The same matrix in another layout."""
    rows, columns = value.shape
    if kind == "transposed":
        return value.t().contiguous().t()
    if kind == "padded rows":
        return torch.cat((value, value), dim=1)[:, :columns]
    if kind == "padded columns":
        return torch.cat((value, value)).t().contiguous().t()[:rows]
    if kind == "every other":
        wide = value.new_full((2 * rows, 2 * columns), math.nan)
        wide[::2, ::2] = value
        return wide[::2, ::2]
    return value


LAYOUTS = ("contiguous", "transposed", "padded rows", "padded columns", "every other")


def check(x, y, bias=None, relu=False):
    exact = x.double() @ y.double().t()
    if bias is not None:
        exact += bias.double()
    exact = exact.relu() if relu else exact
    got = native_gemm.product(x, y, bias, relu)
    assert got.shape == exact.shape and got.is_contiguous()
    # A short sum may cancel: what is bounded is the error beside the size of its terms.
    terms = (x.double().abs() @ y.double().abs().t()).norm() + exact.norm()
    assert (got - exact).norm() <= LIMIT * terms


def test_ragged_sizes():
    sizes = (1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 70)
    for rows, columns, depth in itertools.product(sizes, repeat=3):
        check(randn(rows, depth), randn(columns, depth, seed=1))


@pytest.mark.parametrize("sizes", [(1536, 256, 256), (70, 600, 1100), (33, 1030, 515)], ids=str)
def test_sizes_of_several_chunks(sizes):
    rows, columns, depth = sizes
    x, y, bias = randn(rows, depth), randn(columns, depth, seed=1), randn(columns)
    exact = (x.double() @ y.double().t() + bias.double()).relu()
    got = native_gemm.product(x, y, bias, relu=True)
    assert relative_error(got, exact) <= LIMIT


@pytest.mark.parametrize("of_y", LAYOUTS)
@pytest.mark.parametrize("of_x", LAYOUTS)
def test_layouts(of_x, of_y):
    for rows, columns, depth in ((40, 37, 70), (1, 33, 5), (33, 1, 70), (40, 33, 1)):
        x = strided(randn(rows, depth), of_x)
        y = strided(randn(columns, depth, seed=1), of_y)
        check(x, y, randn(2 * columns)[::2], relu=True)


def test_broadcast_rows():
    check(randn(1, 70).expand(40, 70), randn(37, 1).expand(37, 70))


def test_random_calls():
    pick = random.Random(0)
    for _ in range(300):
        rows, columns, depth = (pick.choice([1, 3, 16, 24, 33, 64, 100, 530]) for _ in range(3))
        x = strided(randn(rows, depth), pick.choice(LAYOUTS))
        y = strided(randn(columns, depth, seed=1), pick.choice(LAYOUTS))
        bias = randn(columns) if pick.random() < 0.5 else None
        check(x, y, bias, relu=pick.random() < 0.5)


def test_sides_that_do_not_match():
    with pytest.raises(ValueError, match="y: expected 4 columns, as x has, got 5"):
        native_gemm.product(randn(3, 4), randn(3, 5))
    with pytest.raises(ValueError, match=r"bias: expected shape \(3,\), got \(2,\)"):
        native_gemm.product(randn(3, 4), randn(3, 4), randn(2))
    native.force_cpu_path("portable")
    with pytest.raises(ValueError, match="expected the vector path amx in use, got portable"):
        native_gemm.product(randn(3, 4), randn(3, 4))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_results_do_not_depend_on_the_number_of_threads(count):
    for rows, columns, depth in ((1500, 130, 600), (64, 700, 64)):
        x, y, bias = randn(rows, depth), randn(columns, depth), randn(columns)
        with threads(1):
            alone = native_gemm.product(x, y, bias), native_gemm.product(x.t(), x.t())
        with threads(count):
            for _ in range(5):
                together = native_gemm.product(x, y, bias), native_gemm.product(x.t(), x.t())
                assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_other_users_of_the_tiles_are_not_disturbed():
    x, y = randn(100, 256), randn(100, 256, seed=1)
    coarse = x.bfloat16(), y.bfloat16()
    want, want_coarse = native_gemm.product(x, y), gemm.linear(*coarse)
    for _ in range(5):
        assert torch.equal(gemm.linear(*coarse), want_coarse)
        assert torch.equal(native_gemm.product(x, y), want)


@pytest.mark.parametrize("transposed", [False, True])
def test_infinities_and_nan_stay(transposed):
    x, y = randn(40, 64), randn(36, 64, seed=1)
    y[2, 7] = 0.0
    for row, value in ((0, math.inf), (1, -math.inf), (2, math.nan)):
        x[row, 7] = value
    x[3, 7], x[3, 8] = math.inf, -math.inf
    y[5, 9] = math.inf
    if transposed:
        x, y = strided(x, "transposed"), strided(y, "transposed")
    want, got = x @ y.t(), native_gemm.product(x, y)
    assert torch.equal(got.isfinite(), want.isfinite())
    infinite = want.isinf()
    # An infinity may become NaN, as 0 · ∞ in one of the three products, but no finite number.
    assert infinite.any() and not got[~want.isfinite()].isfinite().any()
    assert torch.equal(got[infinite & ~got.isnan()], want[infinite & ~got.isnan()])
    relu = native_gemm.product(x, y, relu=True)
    assert relu[2].isnan().all()


def test_infinities_keep_their_sign():
    x, y = torch.full((40, 32), 2.0), torch.full((40, 32), 3.0)
    x[0, 0], x[1, 0], y[7, 3] = math.inf, -math.inf, math.inf
    want, got = x @ y.t(), native_gemm.product(x, y)
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-5, atol=0)


def test_largest_and_smallest_numbers():
    # From 2^128 - 2^111 on, what rounding adds may overflow. bfloat16 ends at 3.39e38.
    largest, one = 3.4027e38, torch.eye(40)
    for value in (largest, -largest, 3.3961775292304957e38, 1e-30, 2.0**-110):
        got = native_gemm.product(torch.full((40, 40), value), one)
        torch.testing.assert_close(got, torch.full((40, 40), value), rtol=2.0**-15, atol=0)
    assert native_gemm.product(torch.full((40, 40), largest), 2 * one).isposinf().all()
    tiny = native_gemm.product(torch.full((40, 40), 1e-39), one)
    assert (tiny - 1e-39).abs().max() <= 1e-38


@pytest.fixture
def spy(monkeypatch):
    """How many products went to AMX."""
    calls = []
    original = native_gemm.product

    def counted(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(native_gemm, "product", counted)
    return calls


def both(x, y, bias):
    """What gemm.py gives for the product and the transposed one."""
    return gemm.linear(x, y, bias, relu=True), gemm.transposed_product(x, x[:, :30])


def test_only_high_precision_goes_to_amx(spy):
    operands = randn(64, 48), randn(40, 48), randn(40)
    highest = both(*operands)
    assert not spy
    assert all(
        relative_error(got, want) < 1e-6
        for got, want in zip(highest, both_exact(*operands), strict=True)
    )
    torch.set_float32_matmul_precision("medium")
    both(*operands)
    assert not spy
    torch.set_float32_matmul_precision("high")
    high = both(*operands)
    assert len(spy) == 2
    for got, want, exact in zip(high, highest, both_exact(*operands), strict=True):
        assert relative_error(got, exact) <= LIMIT and not torch.equal(got, want)
    torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(a, b) for a, b in zip(both(*operands), highest, strict=True))
    assert len(spy) == 2


def both_exact(x, y, bias):
    x, y, bias = x.double(), y.double(), bias.double()
    return (x @ y.t() + bias).relu(), x.t() @ x[:, :30]


def test_what_else_stays_where_it_was(spy):
    torch.set_float32_matmul_precision("high")
    for path in native.build_info()["cpu_paths_usable"]:
        if path != "amx":
            native.force_cpu_path(path)
            both(randn(64, 48), randn(40, 48), randn(40))
    native.force_cpu_path("amx")
    for dtype in (torch.float64, torch.bfloat16):
        both(randn(64, 48).to(dtype), randn(40, 48).to(dtype), randn(40).to(dtype))
    gemm.linear(randn(64, 3), randn(40, 3))
    gemm.linear(randn(64, 40), randn(3, 40))
    gemm.linear(randn(2, 40), randn(40, 40))
    gemm.linear(randn(0, 40), randn(40, 40))
    assert not spy


@pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"), reason="needs the settings of torch 2.9"
)
def test_precision_set_in_torch_backends(spy):
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    try:
        for precision, calls in (("ieee", 0), ("bf16", 0), ("tf32", 1)):
            setting.fp32_precision = precision
            gemm.linear(randn(64, 48), randn(40, 48))
            assert len(spy) == calls
    finally:
        setting.fp32_precision = before


# Errors of products move a ReLU's argument across 0 now and then, at any precision, and a gradient
# by the whole of what that unit contributes. So gradients are held to the bound on few units, or
# without ReLU.
DECODERS = {
    "la-ginr": lambda: ginr_fast.LocalityAwareDecoder(
        token_dim=64, hidden_dim=64, feature_dim=64, bandwidths=(32, 8), heads=2
    ),
    "anr": lambda: ginr_fast.AnrDecoder(
        coord_dim=2,
        out_dim=3,
        token_dim=64,
        hidden_dim=64,
        heads=2,
        head_dim=32,
        depth=4,
        max_frequency=64,
        threshold=0.0,
        activation="mish",
    ),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_keep_their_bound(name, spy):
    torch.manual_seed(0)
    decoder, tokens = DECODERS[name](), torch.randn(2, 48, 64)
    coords, cotangent = torch.rand(60, 2) * 2 - 1, torch.randn(2, 60, 3)

    def run(module, t, v):
        t = t.clone().requires_grad_()
        out = module(v, t)
        grads = torch.autograd.grad(out, [t, *module.parameters()], cotangent.to(out))
        return [out.detach(), grads[0], torch.cat([g.flatten() for g in grads[1:]])]

    torch.set_float32_matmul_precision("high")
    got = run(decoder, tokens, coords)
    assert spy
    with ginr_fast.backend("reference"):
        want = run(decoder.double(), tokens.double(), coords.double())
    for result, exact, factor in zip(got, want, (1, 5, 5), strict=True):
        assert relative_error(result, exact) <= factor * HIGH_LIMIT


@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("shared", [False, True])
def test_wide_fields_keep_their_bound(shared, activation, spy):
    encoding = FourierEncoding.log_spaced(16, 64.0)
    spec = make_spec(hidden_dim=256, hidden_layers=2, encoding=encoding, activation=activation)
    generator = torch.Generator().manual_seed(0)
    weights = make_weights(spec, 2)
    coords = torch.rand(1 if shared else 2, 2100, 2, generator=generator) * 2 - 1
    cotangent = torch.randn(2, 2100, 3, generator=generator)

    def run(v, w):
        v, w = v.clone().requires_grad_(), w.clone().requires_grad_()
        out = ginr_fast.field_mlp(v, w, spec)
        return [out.detach(), *torch.autograd.grad(out, [v, w], cotangent.to(out))]

    torch.set_float32_matmul_precision("high")
    with ginr_fast.backend("blocked"):
        got = run(coords, weights)
    assert spy
    with ginr_fast.backend("reference"):
        want = run(coords.double(), weights.double())
    of_gradients = 5 * HIGH_LIMIT if activation == "none" else 2e-2
    for result, exact, limit in zip(
        got, want, (HIGH_LIMIT, of_gradients, of_gradients), strict=True
    ):
        assert relative_error(result, exact) <= limit


def test_which_fields_leave_the_native_backend():
    def chosen(count=2048, dtype=torch.float32, **changes):
        spec = make_spec(**{"hidden_dim": 256, **changes})
        weights, coords = make_weights(spec, 1, dtype), torch.zeros(count, 2)
        return ginr_fast.explain(ginr_fast.field_mlp, coords, weights, spec).plans[0].backend

    assert chosen() == "native"
    assert chosen(dtype=torch.bfloat16) == "blocked"
    half = {"dtype": torch.bfloat16}
    assert chosen(count=2047, **half) == "native"
    assert chosen(hidden_dim=255, **half) == "native"
    assert chosen(activation="sine", **half) == "native"
    assert chosen(out_activation="sine", **half) == "native"
    assert chosen(dtype=torch.float16) == "native"
    torch.set_float32_matmul_precision("high")
    assert chosen() == "native"
    native.force_cpu_path("avx512")
    assert chosen() == "native"
    assert chosen(dtype=torch.bfloat16) == "native"


def test_rendered_bfloat16_fields():
    spec = make_spec(coord_dim=3, out_dim=4, hidden_dim=256)
    origins, directions = randn(1, 70, 3), randn(1, 70, 3, seed=1)

    def plan(dtype):
        rays = origins, directions, make_weights(spec, 1, dtype), spec
        settings = {"near": 0.5, "far": 2.0, "samples": 32}
        return ginr_fast.explain(ginr_fast.volume_render, *rays, **settings).plans[0].backend

    assert plan(torch.bfloat16) == "blocked"
    assert plan(torch.float32) == "native"
    torch.set_float32_matmul_precision("high")
    assert plan(torch.float32) == "native"


def test_compiled_calls(spy):
    torch.set_float32_matmul_precision("high")
    spec = make_spec(hidden_dim=256)
    weights, coords = make_weights(spec, 1), randn(2048, 2)
    decoder, tokens = DECODERS["anr"](), randn(2, 48, 64)

    def function(v, w, t):
        return ginr_fast.field_mlp(v, w, spec), decoder(v, t)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        field, decoded = compiled(coords, weights, tokens)
        assert spy  # of the decoder, whose products no compiler sees
        want, want_decoded = function(coords, weights, tokens)
    assert relative_error(field, want) <= HIGH_LIMIT
    assert torch.equal(decoded, want_decoded)
