"""What only a GPU can show of the token decoders: the Triton kernels themselves."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor, nn

import ginr_fast

pytestmark = pytest.mark.gpu
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 1.5e-2}
BACKENDS = ["triton", "blocked"]
DECODERS = {
    "locality": lambda **kw: ginr_fast.LocalityAwareDecoder(**kw),
    "anr": lambda **kw: ginr_fast.AnrDecoder(**kw),
}


def make(name: str, dtype: torch.dtype = torch.float32, **arguments) -> nn.Module:
    torch.manual_seed(0)
    decoder = DECODERS[name](**arguments)
    if name == "anr":  # by default its attention is too even for the threshold to drop anything
        with torch.no_grad():
            decoder.query_projection.weight *= 8
    return decoder.cuda().to(dtype)


def make_tokens(decoder: nn.Module, batch: int, count: int = 256) -> Tensor:
    dtype = next(decoder.parameters()).dtype
    return torch.randn(batch, count, decoder.token_dim, device="cuda", dtype=dtype)


def make_coords(kind: str, batch: int, dims: int = 2):
    if kind == "grid":
        return ginr_fast.grid(*([40, 60] if dims == 2 else [7] * dims), device="cuda")
    shape = (batch, 2000, dims) if kind == "points" else (2000, dims)
    return torch.rand(shape, device="cuda") * 2 - 1


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def values_and_gradients(decoder: nn.Module, coords, tokens: Tensor, backend: str):
    inputs = {"tokens": tokens.detach().requires_grad_(), **dict(decoder.named_parameters())}
    if isinstance(coords, Tensor):
        inputs["coords"] = coords = coords.detach().requires_grad_()
    with ginr_fast.backend(backend):
        values = decoder(coords, inputs["tokens"])
    generator = torch.Generator("cuda").manual_seed(1)
    weights = torch.randn(values.shape, generator=generator, device="cuda").bfloat16()
    grads = torch.autograd.grad(values, list(inputs.values()), weights.to(values.dtype))
    return values.detach(), dict(zip(inputs, grads, strict=True))


def check(decoder: nn.Module, coords, tokens: Tensor, bound: float, backend: str = "triton"):
    exact = copy.deepcopy(decoder).double()
    want, want_grads = values_and_gradients(exact, coords, tokens.double(), "reference")
    got, got_grads = values_and_gradients(decoder, coords, tokens, backend)
    assert relative(got, want) <= bound
    largest = max(grad.norm() for grad in want_grads.values())
    for name, grad in want_grads.items():
        if grad.norm() > 1e-6 * largest:
            assert relative(got_grads[name], grad) <= 5 * bound, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("kind", ["grid", "points", "shared"])
@pytest.mark.parametrize("name", DECODERS)
def test_values_and_gradients_at_published_sizes(name, kind, dtype, backend):
    decoder = make(name, dtype)
    check(decoder, make_coords(kind, 3), make_tokens(decoder, 3), BOUNDS[dtype], backend)


@pytest.mark.parametrize("name", DECODERS)
def test_tf32(name):
    torch.set_float32_matmul_precision("high")
    try:
        decoder = make(name)
        check(decoder, make_coords("shared", 2), make_tokens(decoder, 2), 2e-3)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("name", "arguments", "tokens"),
    [
        ("locality", {"bandwidths": (9, 7, 5, 3), "heads": 8}, 100),
        ("locality", {"bandwidths": (9,), "heads": 1, "hidden_dim": 512, "feature_dim": 512}, 1000),
        ("locality", {"coord_dim": 6, "feature_dim": 256, "out_dim": 8}, 17),
        ("locality", {"hidden_dim": 80, "heads": 3, "head_dim": 20, "coord_dim": 1}, 1),
        ("anr", {"depth": 1}, 64),
        ("anr", {"depth": 8, "activation": "mish", "hidden_dim": 192}, 300),
        ("anr", {"threshold": 0.0, "heads": 2, "head_dim": 256}, 256),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_sizes(name, arguments, tokens, dtype):
    if dtype == torch.float32 and arguments.get("hidden_dim") == 512:
        arguments = {**arguments, "heads": 2}  # float32 heads are at most 256 wide
    decoder = make(name, dtype, **arguments)
    coords = make_coords("shared", 2, decoder.coord_dim)
    check(decoder, coords, make_tokens(decoder, 2, tokens), BOUNDS[dtype])


@pytest.mark.parametrize("name", DECODERS)
def test_the_triton_backend_is_chosen(name):
    decoder = make(name)
    plans = ginr_fast.explain(decoder, make_coords("grid", 2), make_tokens(decoder, 2)).plans
    assert [plan.backend for plan in plans] == ["triton"]


@pytest.mark.parametrize("name", DECODERS)
def test_results_are_the_same_bit_for_bit(name):
    decoder = make(name, torch.bfloat16)
    coords, tokens = make_coords("shared", 4), make_tokens(decoder, 4)
    first, second = (values_and_gradients(decoder, coords, tokens, "triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][key], second[1][key]) for key in first[1])


@pytest.mark.parametrize("name", DECODERS)
def test_compiled_whole(name):
    decoder = make(name)
    coords, tokens = make_coords("grid", 2), make_tokens(decoder, 2)
    compiled = torch.compile(decoder, fullgraph=True)
    torch.testing.assert_close(compiled(coords, tokens), decoder(coords, tokens))


@pytest.mark.parametrize("name", DECODERS)
def test_autocast(name):
    decoder = make(name)
    coords, tokens = make_coords("grid", 2), make_tokens(decoder, 2)
    with torch.autocast("cuda", torch.bfloat16):
        got = decoder(coords, tokens)
    assert got.dtype == torch.bfloat16
    assert relative(got, decoder(coords, tokens)) <= 1.5e-2


@pytest.mark.parametrize("name", DECODERS)
def test_inside_a_cuda_graph(name):
    decoder = make(name, torch.bfloat16)
    coords, tokens = make_coords("grid", 2), make_tokens(decoder, 2)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            decoder(coords, tokens)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = decoder(coords, tokens)
    tokens.copy_(torch.randn_like(tokens))
    graph.replay()
    torch.cuda.synchronize()
    with torch.no_grad():
        assert torch.equal(out, decoder(coords, tokens))


@pytest.mark.parametrize("name", DECODERS)
def test_another_stream(name):
    decoder = make(name, torch.bfloat16)
    coords, tokens = make_coords("shared", 2), make_tokens(decoder, 2)
    want = values_and_gradients(decoder, coords, tokens, "triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # a launch on the wrong stream would overtake this
        late = tokens + 0
        got = values_and_gradients(decoder, coords, late, "triton")
    stream.synchronize()
    assert torch.equal(got[0], want[0])
    assert all(torch.equal(got[1][key], want[1][key]) for key in want[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", DECODERS)
def test_another_device(name):
    decoder = make(name)
    coords, tokens = make_coords("shared", 2), make_tokens(decoder, 2)
    want = decoder(coords, tokens)
    got = decoder.to("cuda:1")(coords.to("cuda:1"), tokens.to("cuda:1"))
    torch.testing.assert_close(got.to("cuda:0"), want)


@pytest.mark.parametrize("name", DECODERS)
def test_memory_of_training_stays_below_an_eighth_of_the_reference(name):
    decoder = make(name, torch.bfloat16)
    eager = make(name)
    points = ginr_fast.grid(128, 128, device="cuda").tensor().reshape(-1, 2)

    def peak(module: nn.Module, coords: Tensor, backend: str) -> int:
        tokens = make_tokens(module, 16).requires_grad_()
        module.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with ginr_fast.backend(backend):
            module(coords, tokens).float().square().mean().backward()
        return torch.cuda.max_memory_allocated() - before

    repeated = points.expand(16, -1, -1).contiguous()
    assert 8 * peak(decoder, points, "triton") <= peak(eager, repeated, "reference")


@pytest.mark.parametrize("name", DECODERS)
def test_a_whole_1024_grid_trains_in_one_step(name):
    decoder = make(name, torch.bfloat16)
    tokens = make_tokens(decoder, 1).requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    decoder(ginr_fast.grid(1024, 1024, device="cuda"), tokens).float().square().mean().backward()
    assert torch.cuda.max_memory_allocated() - before < 2 << 30
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("name", DECODERS)
def test_compute_sanitizer_finds_nothing(name, tool):
    decoder = "LocalityAwareDecoder" if name == "locality" else "AnrDecoder"
    program = textwrap.dedent(f"""
        import torch, ginr_fast
        decoder = ginr_fast.{decoder}(token_dim=24, hidden_dim=40, heads=2, head_dim=16)
        decoder = decoder.cuda().bfloat16()
        tokens = torch.randn(2, 37, 24, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        decoder(torch.rand(2, 150, 2, device="cuda"), tokens).float().sum().backward()
        torch.cuda.synchronize()
    """)
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c"]
    result = subprocess.run([*command, program], capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
