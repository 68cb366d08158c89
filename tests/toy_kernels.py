"""Small kernels with known faults, and a program that compiles them and prints the reports.

Run as a program, without ``TRITON_INTERPRET``: ``python tests/toy_kernels.py``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import triton
import triton.language as tl

from ginr_fast.ops.kernels.launch import Launch


@triton.jit
def copy_kernel(x_ptr, y_ptr, count, scale, ROWS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x = tl.load(x_ptr + rows, mask=rows < count)
    tl.store(y_ptr + rows, tl.exp2(x.to(tl.float32) * scale), mask=rows < count)


@triton.jit
def product_kernel(x_ptr, y_ptr, out_ptr, steps, ROWS: tl.constexpr, INNER: tl.constexpr):
    rows = tl.arange(0, ROWS)
    inner = tl.arange(0, INNER)
    total = tl.zeros([ROWS, ROWS], tl.float32)
    for step in range(steps):
        x = tl.load(x_ptr + rows[:, None] * INNER + inner[None, :] + step * ROWS * INNER)
        y = tl.load(y_ptr + rows[:, None] * INNER + inner[None, :] + step * ROWS * INNER)
        total = tl.dot(x, y.T, total)
    tl.store(out_ptr + rows[:, None] * ROWS + rows[None, :], total)


def copy(count: int = 1000) -> Launch:
    """An elementwise kernel: a special function, no products."""
    x = torch.empty(count, dtype=torch.bfloat16, device="meta")
    y = torch.empty(count, device="meta")
    arguments = {"x_ptr": x, "y_ptr": y, "count": count, "scale": 1.5}
    return Launch("copy_kernel", copy_kernel, (8,), arguments, {"ROWS": 128}, 4, 2)


def product(rows: int, warps: int) -> Launch:
    """A product of bfloat16 tiles: ``rows``² accumulators in the registers of ``warps`` warps."""
    x = torch.empty(rows, 64, dtype=torch.bfloat16, device="meta")
    out = torch.empty(rows, rows, device="meta")
    arguments = {"x_ptr": x, "y_ptr": x, "out_ptr": out, "steps": 5}
    constants = {"ROWS": rows, "INNER": 64}
    return Launch("product_kernel", product_kernel, (1,), arguments, constants, warps, 2)


LAUNCHES = {
    "copy": copy(),
    "aligned copy": copy(1024),
    "small product": product(64, warps=4),
    "large product": product(128, warps=4),
    "spilling product": product(128, warps=1),
}


def main() -> None:
    """Print the reports for sm_80 and sm_90, and the distinct specialisations of the copies."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from kernel_compile import compile_all, compile_launch, specialize

    reports = {
        f"{name}, sm_{arch}": asdict(compile_launch(launch, arch))
        for name, launch in LAUNCHES.items()
        for arch in (80, 90)
    }
    wanted = [specialize(copy(count), 90) for count in (1000, 1001, 1024, 2048)]
    again = compile_all(wanted, processes=2)  # the kernels named above, from Triton's cache
    print(
        json.dumps(
            {
                "reports": reports,
                "attributes": [dict(which.signature)["count"] for which in wanted],
                "distinct": len(again),
                "again": asdict(again[wanted[0]]),
            }
        )
    )


if __name__ == "__main__":
    main()
