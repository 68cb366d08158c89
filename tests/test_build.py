"""The compiled extension: what it says of itself, its vector paths, its threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from ginr_fast.ops import native

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("c++")
PATHS = native.build_info()["cpu_paths_usable"]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    # Sizes that are no multiple of any vector width; 70 rows, so that every block has a remainder.
    sizes = [1, 7, 1031, 2049, 64]
    coefficients = torch.randn(11, 5, 70, generator=generator)
    bases = [torch.randn(70, size, generator=generator) for size in sizes]
    grad = torch.randn(11, sum(sizes), generator=generator)
    return coefficients, bases, grad


def contract(coefficients, bases, grad):
    sizes = [base.shape[1] for base in bases]
    return [
        native.mixture_average(coefficients, bases),
        native.mixture_average_grad_coefficients(grad, bases, coefficients.shape[1]),
        *native.mixture_average_grad_bases(grad, coefficients, sizes, range(len(sizes))),
    ]


def test_build_info_is_consistent():
    info = native.build_info()
    assert info["compiler"].split()[0] in ("gcc", "clang")
    assert info["cpu_paths"][0] == "portable"
    assert set(info["cpu_paths_usable"]) <= set(info["cpu_paths"])
    assert info["cpu_path"] in info["cpu_paths_usable"]
    assert (info["cuda"] is None) == (info["cuda_archs"] == [])


def test_fastest_path_is_the_default():
    native.force_cpu_path("portable")
    assert native.build_info()["cpu_path"] == "portable"
    native.force_cpu_path(None)
    assert native.build_info()["cpu_path"] == PATHS[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_agrees_with_float64(path, dtype, problem):
    coefficients, bases, grad = problem
    doubles = coefficients.double(), [base.double() for base in bases], grad.double()
    weight = doubles[0].transpose(0, 1)
    columns = doubles[2].split([base.shape[1] for base in bases], dim=1)
    expected = [
        torch.cat([a @ base for a, base in zip(weight, doubles[1], strict=True)], dim=1),
        torch.stack([g @ base.t() for g, base in zip(columns, doubles[1], strict=True)], dim=1),
        *[a.t() @ g for a, g in zip(weight, columns, strict=True)],
    ]
    native.force_cpu_path(path)
    try:
        assert native.build_info()["cpu_path"] == path
        got = contract(coefficients.to(dtype), [b.to(dtype) for b in bases], grad.to(dtype))
    finally:
        native._force_from_environment()
    limit = 1e-6 if dtype == torch.float32 else 1e-14
    for result, want in zip(got, expected, strict=True):
        assert result.dtype == dtype
        assert (result - want).norm() <= limit * want.norm()


def test_environment_forces_a_path():
    result = run_python(
        "from ginr_fast.ops import native; print(native.build_info()['cpu_path'])",
        GINR_FAST_CPU="portable",
    )
    assert result.stdout.strip() == "portable", result.stderr


def test_unknown_paths_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"path: expected a vector path .*portable.*'mmx'"):
        native.force_cpu_path("mmx")
    monkeypatch.setenv("GINR_FAST_CPU", "mmx")
    with pytest.raises(ValueError, match=r"GINR_FAST_CPU: expected a vector path .*'mmx'"):
        native._force_from_environment()
    assert native.build_info()["cpu_path"] in PATHS


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_results_do_not_depend_on_the_number_of_threads(threads, problem):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = contract(*problem)
        torch.set_num_threads(threads)
        for _ in range(20):
            together = contract(*problem)
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    finally:
        torch.set_num_threads(before)


def test_several_threads_may_call_at_once(problem):
    expected = contract(*problem)
    wrong = []

    def work():
        for _ in range(20):
            got = contract(*problem)
            if not all(torch.equal(a, b) for a, b in zip(expected, got, strict=True)):
                wrong.append(got)

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_thread_pool(tmp_path):
    sources = [ROOT / "tests/native/parallel.cpp", ROOT / "csrc/common/parallel.cpp"]
    command = [COMPILER, "-std=c++17", "-O1", "-pthread", f"-I{ROOT / 'csrc'}", *sources]
    subprocess.run([*command, "-o", tmp_path / "parallel"], check=True)
    result = subprocess.run([tmp_path / "parallel"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_survive_a_fork():
    result = run_python(
        """
        import os, torch
        from ginr_fast.ops import native
        torch.set_num_threads(4)
        a, bases = torch.randn(8, 1, 64), [torch.randn(64, 4096)]
        before = native.mixture_average(a, bases)
        child = os.fork()
        if child == 0:
            for _ in range(3):
                same = torch.equal(native.mixture_average(a, bases), before)
            os._exit(0 if same else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert torch.equal(native.mixture_average(a, bases), before)
        print("child", status)
        """
    )
    assert result.stdout.strip() == "child 0", result.stderr


@pytest.mark.skipif(
    "sanitized_extension" not in sys.modules, reason="needs an extension built with sanitizers"
)
@pytest.mark.parametrize("target", ["a tensor's end", "what was freed"])
def test_sanitizers_see_what_kernels_may_not_touch(target):
    """That `make sanitize` would find what it looks for."""
    result = run_python(
        f"""
        import sanitized_extension, torch
        from ginr_fast import _C
        x = torch.zeros(64)
        address, count = x.data_ptr(), 64
        if {target!r} == "what was freed":
            del x
        else:
            count += 1
        _C.vector_exponential(address, count, address)
        """
    )
    assert result.returncode != 0
    assert "AddressSanitizer" in result.stderr


@pytest.mark.skipif(COMPILER is None or shutil.which("cmake") is None, reason="needs CMake")
def test_unknown_sanitizers_are_refused(tmp_path):
    command = [shutil.which("cmake") or "cmake", "-P", str(tmp_path / "script.cmake")]
    (tmp_path / "script.cmake").write_text(
        f"set(CMAKE_CXX_COMPILER_ID MSVC)\nset(GINR_FAST_SANITIZE address)\n"
        f'include("{ROOT / "cmake/sanitize.cmake"}")\n'
    )
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "GINR_FAST_SANITIZE: needs GCC or Clang, got MSVC" in result.stderr
