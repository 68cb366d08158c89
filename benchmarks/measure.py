"""What every benchmark shares: alternating rivals, peaks of this machine in this run, memory."""

from __future__ import annotations

import ctypes
import functools
import gc
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import ginr_fast
from ginr_fast.coords import CoordinateGrid
from ginr_fast.ops import gemm

Contestant = Callable[[], object]


def seconds(function: Contestant) -> float:
    """One call's wall time, device included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def decoder_call(
    decoder: nn.Module,
    coords: Tensor | CoordinateGrid,
    tokens: Tensor,
    train: bool,
    backend: str | None = None,
) -> Contestant:
    """A call of the decoder, with its backward if ``train``, on the backend named if one is."""

    def forward() -> Tensor:
        if backend is None:
            return decoder(coords, tokens)
        with ginr_fast.backend(backend):
            return decoder(coords, tokens)

    def step() -> None:
        decoder.zero_grad(set_to_none=True)
        tokens.grad = None
        forward().float().square().mean().backward()

    def evaluate() -> None:
        with torch.no_grad():
            forward()

    tokens.requires_grad_(train)
    return step if train else evaluate


@functools.cache
def gemm_peaks(dtype: torch.dtype, device: str) -> dict[str, float]:
    """FLOP/s of the best matrix product at the sizes of the decoders: PyTorch's own ``mm``, and the
    fastest library in reach. Measured once a run."""
    rates = {"torch.mm": 0.0, "best": 0.0}
    for rows, inner, columns in ((1024, 256, 256), (1024, 256, 512), (2048, 2048, 2048)):
        x = torch.randn(rows, inner, device=device).to(dtype)
        weight = torch.randn(columns, inner, device=device).to(dtype)
        repeats = max(1, int(2e9 / (2 * rows * inner * columns)))
        work = 2 * rows * inner * columns * repeats

        def mm(x=x, weight=weight, repeats=repeats):
            for _ in range(repeats):
                torch.mm(x, weight.t())

        def linear(x=x, weight=weight, repeats=repeats):
            for _ in range(repeats):
                gemm.linear(x, weight)

        for _ in range(9):
            rates["torch.mm"] = max(rates["torch.mm"], work / seconds(mm))
            rates["best"] = max(rates["best"], work / seconds(linear))
    rates["best"] = max(rates.values())
    return rates


@functools.cache
def bandwidth(device: str) -> float:
    """Bytes a second of a large copy, read and write counted."""
    source = torch.randn(1 << 25, device=device)
    target = torch.empty_like(source)
    return max(2 * source.nbytes / seconds(lambda: target.copy_(source)) for _ in range(7))


def release_memory() -> None:
    """Give memory that the C allocator keeps from earlier calls back to the system."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def peak_memory(function: Contestant) -> int | None:
    """Bytes above the present that a call needs at its peak; None where that cannot be read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None

    def field(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

    release_memory()  # memory kept from earlier calls would hide what this one needs
    before = field("VmRSS")
    clear.write_text("5")  # resets the high-water mark
    function()
    return max(field("VmHWM") - before, 0)


def at_precision(function: Contestant, precision: str) -> Contestant:
    """The call under ``torch.set_float32_matmul_precision(precision)``."""

    def run() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            function()
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def contest(
    benchmark,
    ours: Contestant,
    rivals: Mapping[str, Contestant],
    *,
    rounds: int,
    flops: int,
    traffic: int,
    dtype: torch.dtype,
    device: str,
    memory: bool = False,
    precision: str = "highest",
) -> dict[str, float]:
    """Time ``ours``; before each of its rounds every rival runs once, so that all see the same
    machine. Speed-ups over the rivals are ratios of medians and land in ``extra_info``.

    Args:
        flops: minimal exact FLOPs of a call (recomputation not counted).
        traffic: bytes of inputs, parameters and outputs.
        memory: also compare peak memory with the first rival.
        precision: of ours, see ``torch.set_float32_matmul_precision``; rivals run at "highest".
    """
    if precision != "highest":
        ours = at_precision(ours, precision)
    times: dict[str, list[float]] = {name: [] for name in rivals}
    if not benchmark.enabled:  # --benchmark-disable: once, nothing timed, nothing compiled
        for name, rival in rivals.items():
            if name != "compiled":
                rival()
        benchmark(ours)
        return {}
    for function in (*rivals.values(), ours):
        function()

    def run_rivals() -> None:
        for name, function in rivals.items():
            times[name].append(seconds(function))

    timed = ours
    if torch.cuda.is_available():

        def timed() -> None:
            ours()
            torch.cuda.synchronize()

    benchmark.pedantic(timed, setup=run_rivals, rounds=rounds)
    peaks = gemm_peaks(dtype, device)
    info = benchmark.extra_info
    info.update(dtype=str(dtype), device=device, flops=flops, traffic_bytes=traffic)
    info["precision"] = precision
    info["gemm_flops_per_second"] = peaks["best"]
    info["torch_mm_flops_per_second"] = peaks["torch.mm"]
    info["bandwidth_bytes_per_second"] = bandwidth(device)
    median = benchmark.stats.stats.median
    info["efficiency"] = flops / (median * peaks["best"])
    info["efficiency_torch_mm"] = flops / (median * peaks["torch.mm"])
    ratios = {name: statistics.median(spent) / median for name, spent in times.items()}
    for name, ratio in ratios.items():
        info[f"speedup_over_{name}"] = ratio
        info[f"median_{name}"] = statistics.median(times[name])
    if memory:
        info["peak_bytes"] = peak_memory(ours)
        first = next(iter(rivals))
        info[f"peak_bytes_{first}"] = peak_memory(rivals[first])
    return ratios


def commit() -> str:
    """The commit of this checkout, marked if it has changes; empty outside one."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip()
