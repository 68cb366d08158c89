"""Writes docs/kernels.md from the stored tables of ``kernel_report.py``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]

ROOFLINE_FAMILY = "sm_90"
HEAD = """# What the Triton kernels compile to

Written by `python benchmarks/kernel_report.py --write` from the tables in
`benchmarks/results/kernels`, one for each version of Triton. Nothing here was run: the kernels are
compiled ahead of time for each chip family, at the sizes of the papers, and a test compares what
the compiler makes of them now with these tables.

A line is one specialisation of a kernel. *cases* are numbered as below; *variant* says which parts
of the kernel are compiled in; *tile* is rows × columns (or tokens) × step, warps and pipeline
stages. *registers* are those of a thread, *spilled* its bytes of spill stores and loads, *shared*
the bytes of a block. The rest are instructions in the machine code, not executions: *tensor*
(tensor-core products; *wgmma* those of a whole warp group, in the PTX), *special* (special-function
unit), *global* and *shared* loads and stores, *local* (memory of a thread, where spills go). For
`small`, consumer chips of compute capability 8.9, only the shared memory is bound.

Bounds: no spills in the attention kernels and at most 128 bytes of spill stores elsewhere; shared
memory within the chip's limit; on sm_90 wgmma wherever a kernel multiplies 16-bit operands. Against
the table, registers may rise by 8, spills not at all, and tensor and special-function instructions
may not change.
"""
ROOFLINE = """## Roofline, on paper

For an H200 and 16-bit operands. Work and traffic are counted from the launches of a case, as
executed: padded rows
count, and so does every byte a program moves between the chip and the L2 cache. *from memory* are
the bytes of the distinct tensors; they count as a limit only for launches whose tensors exceed the
L2 cache. A case takes at least the sum of its kernels' least times; library products between the
kernels (weight gradients) are not part of it.

Peaks a second: {peaks}. The bfloat16 peak and the memory's were measured on such a chip; the L2
cache's is assumed, and so is the clock of 1.7 GHz behind the last two.
"""
TILE = ("ROWS", "COLUMNS", "TOKENS", "STEP", "INNER")


def page(tables: Mapping[str, Row]) -> str:
    """The page: what the columns mean, the cases, then a section for each version of Triton."""
    cases = list(dict.fromkeys(row["case"] for table in tables.values() for row in table["rows"]))
    numbers = {case: index + 1 for index, case in enumerate(cases)}
    parts = [HEAD, "\n".join(f"{number}. {case}" for case, number in numbers.items()) + "\n"]
    for version, table in tables.items():
        parts.append(f"## Triton {version}\n")
        tools = ", ".join(f"{value} {name}" for name, value in table["assembler"].items())
        parts.append(f"ptxas {tools}.\n")
        for family in dict.fromkeys(row["family"] for row in table["rows"]):
            rows = [row for row in table["rows"] if row["family"] == family]
            lines = _lines(rows, numbers)
            parts += [f"### {family}\n", _table(_LINES[: len(lines[0])], lines)]
    for version, table in list(tables.items())[-1:]:
        parts.append(ROOFLINE.format(peaks=_peaks(table["roofline"])))
        parts.append(f"Tiles of {ROOFLINE_FAMILY}, Triton {version}.\n")
        rows = [row for row in table["rows"] if row["family"] == ROOFLINE_FAMILY]
        parts.append(_table(_ROOFLINE, _roofline(rows, numbers)))
    return "\n".join(parts)


_LINES = (
    "cases", "kernel", "variant", "tile", "registers", "spilled", "shared", "tensor", "wgmma",
    "special", "global", "shared memory", "local",
)  # fmt: skip
_ROOFLINE = (
    "case", "kernel", "launches", "tensor GFLOP", "L2 MB", "from memory MB", "float32 Gop",
    "special Gop", "least µs", "limit",
)  # fmt: skip


def _table(columns: tuple[str, ...], lines: Iterable[list[str]]) -> str:
    text = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*text, *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def tile(row: Row) -> str:
    """Tile sizes, warps and stages of a row."""
    constants = row["constants"]
    sizes = [str(constants[name]) for name in TILE[:4] if name in constants]
    if row["kernel"].startswith("fourier"):
        sizes.append(str(constants["INNER"]))  # elsewhere the width of the operand
    return f"{'×'.join(sizes)}, {row['warps']}w {row['stages']}s"


def variant(row: Row) -> str:
    """The switches that are on, by name."""
    on = []
    for name, value in row["constants"].items():
        if value is True:
            on.append(name.lower())
        elif isinstance(value, str) and name != "PRECISION" and value != "none":
            on.append(f"{name.lower()} {value}")
    return ", ".join(on)


def _lines(rows: list[Row], numbers: Mapping[str, int]) -> list[list[str]]:
    """One line for equal rows of several cases."""
    found: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        line = [
            f"`{row['kernel'].removesuffix('_kernel')}`",
            variant(row),
            tile(row),
            str(row["registers"]),
            f"{row['spill_store_bytes']}/{row['spill_load_bytes']}",
            str(row["shared_bytes"]),
        ]
        if counts := row["counts"]:
            line += [
                str(counts["tensor"]),
                str(row["wgmma"]),
                str(counts["special"]),
                f"{counts['global_load']}/{counts['global_store']}",
                f"{counts['shared_load']}/{counts['shared_store']}",
                str(counts["local"]),
            ]
        cases = found.setdefault(tuple(line), [])
        if numbers[row["case"]] not in cases:
            cases.append(numbers[row["case"]])
    return [[", ".join(map(str, cases)), *line] for line, cases in found.items()]


def _peaks(chip: Mapping[str, float]) -> str:
    return (
        f"{chip['tensor'] / 1e12:.0f} TFLOP (bfloat16), {chip['l2'] / 1e12:.1f} TB from the L2 "
        f"cache, {chip['memory'] / 1e12:.1f} TB from memory, {chip['float32'] / 1e12:.1f} T "
        f"float32 instructions, {chip['special'] / 1e12:.1f} T special functions"
    )


def _roofline(rows: list[Row], numbers: Mapping[str, int]) -> list[list[str]]:
    """A line a kernel of each case with 16-bit operands, then the case's sum."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows if row["half_dots"]):
        members = [row for row in rows if row["case"] == case]
        for kernel in dict.fromkeys(row["kernel"] for row in members):
            lines.append(_sum(str(numbers[case]), kernel, members))
        lines.append(_sum(f"**{numbers[case]}**", "", members))
    return lines


def _sum(case: str, kernel: str, members: list[Row]) -> list[str]:
    rows = [row for row in members if kernel in ("", row["kernel"])]

    def total(name: str, unit: float) -> str:
        return f"{sum(row['cost'][name] for row in rows) / unit:.3g}"

    slowest = max(rows, key=lambda row: row["microseconds"])
    return [
        case,
        f"`{kernel.removesuffix('_kernel')}`" if kernel else "all",
        str(sum(row["launches"] for row in rows)),
        total("tensor", 1e9),
        total("l2", 1e6),
        total("memory", 1e6),
        total("float32", 1e9),
        total("special", 1e9),
        f"{sum(row['microseconds'] for row in rows):.0f}",
        slowest["limit"] if kernel else "",
    ]
