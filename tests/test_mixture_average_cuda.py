"""The CUDA side of mixture_average: run on a CPU thread by thread, compiled, run on a GPU."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from test_mixture_average import PAPER, check_against_float64

import ginr_fast
from ginr_fast.fields import FieldSpec
from ginr_fast.ops import native
from ginr_fast.ops.mixture_average import mixture_average

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "csrc/mixture_average/cuda.cu"
COMPILER = os.environ.get("CXX") or shutil.which("c++")
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def name(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """cuda.cu built for the CPU, each GPU thread a coroutine."""
    if COMPILER is None or os.uname().sysname != "Linux":
        pytest.skip("needs a C++ compiler on Linux")
    library = tmp_path_factory.mktemp("emulation") / "mixture_average.so"
    folder = ROOT / "tests/cuda_emulation"
    command = f"{COMPILER} -std=c++17 -O2 -fPIC -shared -w -I{folder} -I{ROOT / 'csrc'}".split()
    subprocess.run([*command, folder / "mixture_average.cpp", "-o", library], check=True)
    return ctypes.CDLL(str(library))


def addresses(tensors):
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    return (ctypes.c_void_p * len(tensors))(*pointers)


def at(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


# Rows of 1 to 5,000 numbers, aligned to 16 bytes or not; 33 layers of 2 do not fit one launch.
CASES = {
    "odd": (3, 3, 5, [7, 1, 333, 5, 130, 3]),
    "aligned": (9, 2, 70, [128, 64, 2048, 8]),
    "long": (1, 1, 2, [5000]),
    "many": (2, 33, 3, [24, 8] * 33),
}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in ("odd", "aligned", "long") for dtype in DTYPES]
    + [("many", torch.float32)],
)
def test_kernels_thread_by_thread(emulated, case, dtype):
    batch, layers, mixtures, sizes = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    coefficients, grad = draw(batch, layers, mixtures), draw(batch, sum(sizes))
    bases = [draw(mixtures, size) for size in sizes]
    problem = (
        (ctypes.c_int64 * 3)(batch, layers, mixtures),
        ctypes.c_int64(len(sizes)),
        (ctypes.c_int64 * len(sizes))(*sizes),
    )
    per_layer = len(sizes) // layers
    alpha = [coefficients[:, index // per_layer].double() for index in range(len(sizes))]
    columns = grad.double().split(sizes, dim=1)
    limit = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]

    def close(got, want):
        return (got.double() - want).norm() <= limit * want.norm()

    out = torch.full((batch, sum(sizes)), float("nan"), dtype=dtype)
    getattr(emulated, f"average_{name(dtype)}")(
        *problem, at(coefficients), addresses(bases), at(out)
    )
    assert close(out, torch.cat([a @ b.double() for a, b in zip(alpha, bases, strict=True)], 1))

    emulated.grad_coefficients_parts.restype = ctypes.c_int64
    parts = emulated.grad_coefficients_parts(*problem)
    assert parts == max(
        sum(-(-size // 1024) for size in sizes[i : i + per_layer])
        for i in range(0, len(sizes), per_layer)
    )
    partial = torch.zeros(parts, batch, layers, mixtures)
    getattr(emulated, f"grad_coefficients_{name(dtype)}")(
        *problem, at(grad), addresses(bases), at(partial)
    )
    want = [g @ b.double().t() for g, b in zip(columns, bases, strict=True)]
    want = [sum(want[i : i + per_layer]) for i in range(0, len(sizes), per_layer)]
    assert close(partial.sum(0), torch.stack(want, 1))

    # Every other gradient only.
    grads = [
        torch.full_like(base, float("nan")) if index % 2 == 0 else None
        for index, base in enumerate(bases)
    ]
    getattr(emulated, f"grad_bases_{name(dtype)}")(
        *problem, at(grad), at(coefficients), addresses(grads)
    )
    for index in range(0, len(sizes), 2):
        assert close(grads[index], alpha[index].t() @ columns[index])


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_compiles_without_register_spills(arch, tmp_path):
    command = f"{NVCC} -std=c++17 -O3 -arch={arch} -Xptxas -v -I{ROOT / 'csrc'} -cubin".split()
    result = subprocess.run(
        [*command, SOURCE, "-o", tmp_path / "out.cubin"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    assert len(spills) == 3 * len(DTYPES)
    assert set(spills) == {("0", "0")}, result.stderr


def test_a_build_or_a_device_that_cannot_serve_is_refused():
    cuda = torch.device("cuda")
    if native.build_info()["cuda"] is None:
        reason = native.mixture_average_refusal(torch.float32, cuda, 10)
        assert reason == "the extension was built without CUDA"
    else:
        reason = native.mixture_average_refusal(torch.float64, cuda, 10)
        assert reason is not None and "float32, float16 and bfloat16" in reason
    reason = native.mixture_average_refusal(torch.float32, torch.device("meta"), 10)
    assert reason == "it serves CPU and CUDA devices, not meta"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("spec", PAPER.values(), ids=PAPER)
def test_paper_sizes_on_a_gpu(spec, dtype):
    limit = 1e-6 if dtype == torch.float32 else 1.5e-2
    for batch in (1, 8, 33):
        check_against_float64("native", spec, batch, 256, dtype, limit, "cuda")
    check_against_float64("blocked", spec, 8, 256, dtype, max(limit, 2e-3), "cuda")


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits_every_time_and_on_any_stream():
    spec = FieldSpec(2, 3, 64, 4, "sine")
    coefficients = torch.randn(8, spec.layers, 256, device="cuda", requires_grad=True)
    bases = [
        torch.randn(256, *slot.shape, device="cuda", requires_grad=True) for slot in spec.slots
    ]

    def once():
        with ginr_fast.backend("native"):
            out = mixture_average(coefficients, bases, spec)
        return [out, *torch.autograd.grad(out.square().sum(), [coefficients, *bases])]

    first = once()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        second = once()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
def test_second_order_on_a_gpu():
    spec = FieldSpec(2, 3, 16, 1)
    generator = torch.Generator().manual_seed(0)
    results = []
    for backend in ("native", "reference"):
        generator.manual_seed(0)
        coefficients = torch.randn(2, spec.layers, 4, generator=generator).cuda().requires_grad_()
        bases = [torch.randn(4, *slot.shape, generator=generator).cuda() for slot in spec.slots]
        bases = [base.requires_grad_() for base in bases]
        with ginr_fast.backend(backend):
            loss = mixture_average(coefficients, bases, spec).sin().sum()
            (slope,) = torch.autograd.grad(loss, coefficients, create_graph=True)
            results.append(torch.autograd.grad(slope.square().sum(), bases))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
