"""How a Triton kernel is launched, and how its tile sizes are chosen.

Every launch goes through :func:`launch`, so that tools can see exactly what would run
(:func:`recording`) without a GPU. Tile sizes come from ``tiles.json``, which
``benchmarks/tune_tiles.py`` rewrites on a GPU; nothing is tuned while a user waits.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

TABLE = Path(__file__).with_name("tiles.json")

# Sizes that change from span to span or from image to image: compiling a variant for each value
# that happens to divide by 16 would make users wait for nothing.
UNSPECIALIZED = [
    *("count", "points", "q_points", "tokens", "pairs", "steps", "first", "programs"),
    *("out_batch_stride", "grad_batch_stride", "coords_batch_stride"),
    *(f"size_{axis}" for axis in range(1, 7)),
]


@dataclass(frozen=True)
class Launch:
    """One kernel launch as it would run: for compiling ahead of time and for counting."""

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    warps: int
    stages: int


_launches: list[Launch] | None = None
_family: str | None = None
_overrides: dict[str, dict[str, int]] = {}


@contextmanager
def recording(family: str) -> Iterator[list[Launch]]:
    """Collect launches instead of running them, with the tile sizes of a chip ``family``."""
    global _launches, _family
    before = _launches, _family
    _launches, _family = [], family
    try:
        yield _launches
    finally:
        _launches, _family = before


@contextmanager
def overridden(**tiles: dict[str, int]) -> Iterator[None]:
    """Replace entries of the tile table: ``overridden(layer={"rows": 16})``."""
    before = dict(_overrides)
    _overrides.update(tiles)
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


@functools.cache
def _table() -> dict[str, list[dict[str, Any]]]:
    return json.loads(TABLE.read_text())


@functools.cache
def _family_of(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    if (major, minor) == (8, 0):
        return "sm_80"
    if major == 9:
        return "sm_90"
    if major == 10:
        return "sm_100"
    return "small"  # about 100 KB of shared memory a block: consumer chips


def family(device: torch.device) -> str:
    """The entry of the tile table for a device: ``sm_80``, ``sm_90``, ``sm_100`` or ``small``."""
    if _family is not None:
        return _family
    if device.type != "cuda":
        return "sm_80"  # the interpreter takes any sizes
    return _family_of(torch.cuda.current_device() if device.index is None else device.index)


def tiles(kernel: str, device: torch.device, dtype: torch.dtype, width: int = 0) -> dict[str, int]:
    """Tile sizes of ``kernel``: the first entry of the table that fits chip, dtype and width."""
    if kernel in _overrides:
        return _overrides[kernel]
    chip = family(device)
    bits = dtype.itemsize * 8
    for entry in _table()[kernel]:
        if chip in entry["chips"] and bits == entry["bits"] and width <= entry["max_width"]:
            return entry["tiles"]
    raise LookupError(f"{kernel}: no tile sizes for {chip}, {dtype}, width {width}")


def precision(dtype: torch.dtype, device: torch.device) -> str:
    """How products of float32 operands are computed: as PyTorch's own are.

    ``tf32`` where PyTorch allows TF32 for matrix products; else three TF32 products a product,
    which restores float32 accuracy on the tensor cores.
    """
    if dtype != torch.float32:
        return "tf32"  # has no meaning for half precision operands
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def kernel(function: Any) -> Any:
    """``triton.jit`` for a kernel that :func:`launch` runs."""
    names = inspect.signature(function).parameters
    return triton.jit(do_not_specialize=[n for n in UNSPECIALIZED if n in names])(function)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: Mapping[str, Any],
    constants: Mapping[str, Any],
    tile: Mapping[str, int],
    device: torch.device,
) -> None:
    """Run ``kernel`` on the current stream of ``device``."""
    warps, stages = tile.get("warps", 4), tile.get("stages", 2)
    if _launches is not None:
        name = kernel.fn.__name__
        _launches.append(Launch(name, kernel, grid, arguments, constants, warps, stages))
        return
    guard: Any = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with guard:
        kernel[grid](**arguments, **constants, num_warps=warps, num_stages=stages)


def cdiv(a: int, b: int) -> int:
    """⌈a / b⌉."""
    return -(-a // b)


def padded(size: int, multiple: int) -> int:
    """``size`` rounded up to a multiple."""
    return cdiv(size, multiple) * multiple


def power_of_two(size: int, least: int = 16) -> int:
    """The smallest power of two not below ``size``."""
    return max(least, 1 << (size - 1).bit_length())
