"""What only a GPU can show of field_mlp's Triton backend: the compiled kernels themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch
from field_cases import (
    LIMITS,
    evaluate,
    has_phases,
    make_coords,
    make_weights,
    relative_error,
)

import ginr_fast
from ginr_fast import FieldSpec, FourierEncoding, field_mlp

pytestmark = pytest.mark.gpu
IMAGE = FieldSpec(2, 3, 256, 3, encoding=FourierEncoding.log_spaced(64, 1024.0))
SPECS = {
    "trans-inr image": IMAGE,
    "trans-inr scene": FieldSpec(3, 4, 256, 4, encoding=FourierEncoding.log_spaced(20, 256, 1.0)),
    "mnif-l": FieldSpec(2, 3, 128, 5, activation="sine", out_activation="sine"),
    "mnif-s": FieldSpec(3, 4, 64, 4, activation="sine"),
    "siren": FieldSpec(3, 1, 256, 3, activation="sine"),
    "encoded sines": FieldSpec(
        2, 3, 128, 2, "sine", w0=2.0, encoding=FourierEncoding.log_spaced(7, 64)
    ),
    "wide": FieldSpec(2, 16, 512, 2, out_activation="relu"),
    "odd": FieldSpec(1, 9, 200, 1, bias=False, encoding=FourierEncoding.log_spaced(5, 32)),
    "shallow": FieldSpec(6, 3, 130, 0, activation="none", out_activation="sine", w0=2.0),
}


def check(spec, kind, batch, count, dtype, limit):
    """On the GPU against float64 on the CPU; the float32 formula's own error is allowed where
    rounding a phase costs more than the limit."""
    inputs = [make_coords(kind, batch, count, spec.coord_dim), make_weights(spec, batch, dtype)]
    function = partial(field_mlp, spec=spec)
    want = evaluate(function, [x.double() for x in inputs], (0, 1), "reference")
    plain = evaluate(function, [x.float() for x in inputs], (0, 1), "reference")
    got = evaluate_on_gpu(function, inputs)
    for index, (result, expected) in enumerate(zip(got, want, strict=True)):
        bound = limit if index == 0 else 5 * limit
        if has_phases(spec) and dtype == torch.float32:
            bound = max(bound, 1.5 * relative_error(plain[index], expected))
        assert relative_error(result, expected) <= bound, ("values", "coords", "weights")[index]


def evaluate_on_gpu(function, inputs):
    """Values and gradients for the same random gradient as :func:`field_cases.evaluate`'s."""
    leaves = [x.cuda().requires_grad_() for x in inputs]
    with ginr_fast.backend("triton"):
        out = function(*leaves)
    generator = torch.Generator().manual_seed(4)
    cotangent = torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype).cuda()
    return [t.detach().cpu() for t in (out, *torch.autograd.grad(out, leaves, cotangent))]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_values_and_gradients(spec, dtype):
    for kind, batch, count in (("points", 1, 4096), ("points", 3, 1001), ("one set", 4, 1000)):
        check(spec, kind, batch, count, dtype, LIMITS[dtype])


@pytest.mark.parametrize("spec", [SPECS["trans-inr scene"], SPECS["wide"]], ids=["scene", "wide"])
def test_tf32(spec):
    torch.set_float32_matmul_precision("high")
    try:
        check(spec, "points", 2, 1000, torch.float32, 2e-3)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_several_spans():
    from ginr_fast.ops.kernels import launch

    with launch.overridden(field_span={"forward": 256, "backward": 512, "least": 128}):
        check(IMAGE, "points", 3, 1500, torch.float16, LIMITS[torch.float16])
        check(SPECS["mnif-l"], "one set", 40, 300, torch.float16, LIMITS[torch.float16])


@pytest.mark.parametrize("size", [1e-9, 1e4])
def test_gradients_of_any_size_survive_float16(size):
    spec = SPECS["mnif-l"]
    inputs = [make_coords("points", 2, 500, 2), make_weights(spec, 2, torch.bfloat16)]

    def gradients(leaves, name):
        leaves = [x.detach().requires_grad_() for x in leaves]
        with ginr_fast.backend(name):
            out = field_mlp(*leaves, spec)
        return torch.autograd.grad(out, leaves, torch.full_like(out, size))

    want = gradients([x.double() for x in inputs], "reference")
    got = gradients([x.cuda() for x in inputs], "triton")
    for a, b in zip(got, want, strict=True):
        assert relative_error(a.cpu(), b) <= 7.5e-2


@pytest.mark.parametrize("spec", [IMAGE, SPECS["mnif-l"]], ids=["image", "mnif-l"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_results_are_the_same_bit_for_bit(spec, dtype):
    inputs = [make_coords("one set", 3, 3000, 2), make_weights(spec, 3, dtype)]
    first, second = (evaluate_on_gpu(partial(field_mlp, spec=spec), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("spec", [IMAGE, SPECS["mnif-l"]], ids=["image", "mnif-l"])
def test_inside_torch_compile_and_a_cuda_graph(spec):
    coords = make_coords("one set", 2, 3000, 2).cuda()
    weights = make_weights(spec, 2, torch.float16).cuda()
    torch.compiler.reset()
    with ginr_fast.backend("triton"):
        want = field_mlp(coords, weights, spec)
        torch.testing.assert_close(torch.compile(field_mlp, fullgraph=True)(coords, weights, spec),
                                   want)  # fmt: skip
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = field_mlp(coords, weights, spec)
        out.zero_()
        graph.replay()
    assert torch.equal(out, want)


def test_autocast_and_double_backward():
    spec = SPECS["siren"]
    coords, weights = make_coords("points", 2, 100, 3).cuda(), make_weights(spec, 2).cuda()
    weights.requires_grad_()
    with ginr_fast.backend("triton"), torch.autocast("cuda", torch.bfloat16):
        assert field_mlp(coords, weights, spec).dtype == torch.bfloat16
    found = []
    for name in ("triton", "reference"):
        with ginr_fast.backend(name):
            out = field_mlp(coords, weights, spec)
            (slope,) = torch.autograd.grad(out.sum(), weights, create_graph=True)
            found += torch.autograd.grad(slope.square().sum(), weights)
    assert relative_error(*found) <= 1e-3


@pytest.mark.parametrize("spec", [IMAGE, SPECS["mnif-l"]], ids=["image", "mnif-l"])
def test_memory_of_training_does_not_grow_with_the_points(spec):
    weights = make_weights(spec, 2, torch.float16).cuda().requires_grad_()

    def peak(points):
        coords = torch.rand(points, 2, device="cuda")
        with ginr_fast.backend("triton"):
            out = field_mlp(coords, weights, spec)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            torch.autograd.grad(out, weights, torch.ones_like(out))
        return torch.cuda.max_memory_allocated() - before

    few, many = peak(1 << 20), peak(1 << 22)
    # ∂y of a call is scaled span by span; only the largest entry is looked for in all of it.
    assert many <= few + 3 * 2 * 3 * 2 * (1 << 22)


def test_the_tuner_times_every_kind_of_field_kernel(monkeypatch):
    pytest.importorskip("tyro")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import tune_tiles

    from ginr_fast.ops.kernels import launch

    timer = tune_tiles.DeviceTimer(batch=2, side=40)
    for kind in (kind for kind in tune_tiles.AXES if "field" in kind):
        present = launch.tiles(kind, torch.device("cuda"), torch.float16, 128)
        if present:  # elsewhere W is not resident
            time = timer(kind, 16, 128, present)
            assert time is not None and 0 < time < 1000, kind


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("width", [128, 256])
def test_compute_sanitizer_finds_nothing(width, tool):
    program = textwrap.dedent(f"""
        import torch, ginr_fast
        encoding = ginr_fast.FourierEncoding.log_spaced(5, 32)
        spec = ginr_fast.FieldSpec(2, 3, {width}, 2, encoding=encoding)
        weights = torch.randn(2, spec.parameter_count, device="cuda", dtype=torch.float16) / 16
        weights.requires_grad_()
        coords = torch.rand(2, 150, 2, device="cuda", requires_grad=True)
        with ginr_fast.backend("triton"):
            ginr_fast.field_mlp(coords, weights, spec).float().sum().backward()
        torch.cuda.synchronize()
    """)
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c"]
    result = subprocess.run([*command, program], capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
