"""What every Triton kernel compiles to, at paper sizes, without a GPU.

    python benchmarks/kernel_report.py --write    compile, store the table, write docs/kernels.md
    python benchmarks/kernel_report.py --check    compile, compare with the stored table

The table of a Triton version is ``benchmarks/results/kernels/<version>.json``. A row is one kernel
of one case on one chip family; two specialisations of a kernel in one case are told apart by
``index``. Without a stored table for the Triton installed, ``--check`` tests the absolute bounds.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
import tyro
from kernel_cases import CASES
from kernel_compile import Specialization, compile_all, specialize
from kernel_costs import H200, Cost, cost, roofline
from kernel_page import ROOFLINE_FAMILY, page

from ginr_fast.ops.kernels.launch import Launch, recording

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "benchmarks" / "results" / "kernels"
PAGE = ROOT / "docs" / "kernels.md"

Row = dict[str, Any]
Case = Callable[[], None]


@dataclass(frozen=True)
class Family:
    """A column of the tile table: the architecture compiled for and its limit a block."""

    arch: int
    shared_bytes: int
    counted: bool = True
    """Whether registers, spills and instructions are bound, or the shared memory alone."""


FAMILIES: dict[str, Family] = {
    "sm_80": Family(80, 166_912),
    "sm_90": Family(90, 232_448),
    "sm_100": Family(100, 232_448),
    "small": Family(89, 101_376, counted=False),
}
ATTENTION = ("attention_kernel", "query_gradient_kernel", "token_gradient_kernel")
SPILL_STORE_BYTES = 128
"""Allowed in kernels other than those of ``ATTENTION``, which may not spill."""
REGISTER_SLACK = 8
_ROOFLINE = ("grid", "launches", "cost", "microseconds", "limit")  # kept for one family
TENSOR_MEMORY_COLUMNS = 512


@dataclass(frozen=True)
class Arguments:
    """Compile every kernel ahead of time and report what it needs.

    Args:
        write: store the table of the Triton installed and write docs/kernels.md from it.
        check: compare with the stored table; exit with 1 where a kernel got worse.
        processes: kernels compiled at a time.
        cases: only the cases whose name contains this; not with write.
        families: only these chip families; not with write.
    """

    write: bool = False
    check: bool = False
    processes: int = 2
    cases: str = ""
    families: tuple[str, ...] = tuple(FAMILIES)


def rows_of(cases: Mapping[str, Case], families: Iterable[str], processes: int = 2) -> list[Row]:
    """One row a kernel, case and family, each distinct specialisation compiled once.

    Raises:
        ValueError: a case that launches nothing.
    """
    rows: list[Row] = []
    wanted: list[Specialization] = []
    for family in families:
        for case, run in cases.items():
            with recording(family) as launches:
                run()
            if not launches:
                raise ValueError(f"cases: {case!r} launched no kernel for {family}")
            for which, row in _grouped(launches, FAMILIES[family].arch):
                if family != ROOFLINE_FAMILY:
                    row = {name: v for name, v in row.items() if name not in _ROOFLINE}
                rows.append({"case": case, "family": family, **row})
                wanted.append(which)
    uncounted = [family.arch for family in FAMILIES.values() if not family.counted]
    reports = compile_all(wanted, processes, uncounted)
    return [{**row, **asdict(reports[which])} for row, which in zip(rows, wanted, strict=True)]


def _grouped(launches: list[Launch], arch: int) -> list[tuple[Specialization, Row]]:
    """Launches of one case by specialisation: how often, at what first grid, at what total cost."""
    found: dict[Specialization, Row] = {}
    seen: Counter[str] = Counter()
    for launch in launches:
        which, spent = specialize(launch, arch), cost(launch)
        least, limit = roofline(spent)
        if which not in found:
            found[which] = {
                "kernel": launch.name,
                "index": seen[launch.name],
                "constants": {name: _plain(value) for name, value in launch.constants.items()},
                "warps": launch.warps,
                "stages": launch.stages,
                "grid": list(launch.grid),
                "launches": 0,
                "cost": asdict(Cost()),
                "microseconds": 0.0,
                "limit": limit,
            }
            seen[launch.name] += 1
        row = found[which]
        row["launches"] += 1
        row["cost"] = {name: row["cost"][name] + value for name, value in asdict(spent).items()}
        row["microseconds"] = round(row["microseconds"] + 1e6 * least, 3)
    return list(found.items())


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def identity(row: Row) -> tuple[str, str, str, int]:
    """What a row is found again by."""
    return row["case"], row["family"], row["kernel"], row["index"]


def label(row: Row) -> str:
    """A row by name, for messages."""
    suffix = f" #{row['index'] + 1}" if row["index"] else ""
    return f"{row['case']}, {row['kernel']}{suffix}, {row['family']}"


def out_of_bounds(row: Row) -> list[str]:
    """What is wrong with a row on its own."""
    family = FAMILIES[row["family"]]
    found = []
    if row["shared_bytes"] > family.shared_bytes:
        limit = family.shared_bytes
        found.append(f"shared memory {row['shared_bytes']} above the chip's {limit} bytes")
    if not family.counted:
        return [f"{label(row)}: {text}" for text in found]
    allowed = 0 if row["kernel"] in ATTENTION else SPILL_STORE_BYTES
    if row["spill_store_bytes"] > allowed:
        found.append(f"{row['spill_store_bytes']} bytes of spill stores, at most {allowed}")
    if row["tensor_memory_columns"] > TENSOR_MEMORY_COLUMNS:
        columns = row["tensor_memory_columns"]
        found.append(f"{columns} columns of tensor memory, at most {TENSOR_MEMORY_COLUMNS}")
    if row["family"] == "sm_90" and row["half_dots"] and not row["wgmma"]:
        found.append("16-bit products but no wgmma")
    return [f"{label(row)}: {text}" for text in found]


def worse(row: Row, before: Row) -> list[str]:
    """What changed for the worse, or changed at all where it must not, since ``before``."""
    if not FAMILIES[row["family"]].counted:
        return []
    found = []
    if row["registers"] > before["registers"] + REGISTER_SLACK:
        found.append(f"registers {before['registers']} -> {row['registers']}")
    for name in ("spill_store_bytes", "spill_load_bytes"):
        if row[name] > before[name]:
            found.append(f"{name} {before[name]} -> {row[name]}")
    for kind in ("tensor", "special"):
        was, now = before["counts"][kind], row["counts"][kind]
        if now != was:
            found.append(f"{kind} instructions {was} -> {now}")
    return [f"{label(row)}: {text}" for text in found]


def compare(rows: list[Row], stored: list[Row], whole: bool = True) -> list[str]:
    """Differences of ``rows`` to the ``stored`` ones that a person has to accept.

    Args:
        whole: whether ``rows`` should be every stored one, so that a missing row is a difference.
    """
    before = {identity(row): row for row in stored}
    problems = []
    for row in rows:
        old = before.pop(identity(row), None)
        problems += [f"{label(row)}: not in the stored table"] if old is None else worse(row, old)
    if whole:
        problems += [f"{label(row)}: no longer launched" for row in before.values()]
    return problems


def table_path(version: str) -> Path:
    """Where the table of a Triton version lies."""
    return TABLES / f"{version}.json"


def stored_tables() -> dict[str, Row]:
    """Every stored table by its Triton version, oldest first."""
    found = TABLES.glob("[0-9]*.json")  # beside them lies the table of the CUDA kernels
    paths = sorted(found, key=lambda path: [int(n) for n in path.stem.split(".")])
    return {path.stem: json.loads(path.read_text()) for path in paths}


def dumps(table: Row) -> str:
    """A table as JSON with a line a row, so that a change shows as the rows it is."""
    head = json.dumps({name: value for name, value in table.items() if name != "rows"}, indent=1)
    rows = ",\n".join(json.dumps(row) for row in table["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n'


def main(arguments: Arguments) -> int:
    """Run; the exit status."""
    cases = {name: run for name, run in CASES.items() if arguments.cases in name}
    families = arguments.families
    if unknown := [name for name in families if name not in FAMILIES]:
        raise ValueError(f"families: expected some of {', '.join(FAMILIES)}, got {unknown}")
    whole = len(cases) == len(CASES) and set(families) == set(FAMILIES)
    if arguments.write and not whole:
        raise ValueError("write: the table holds every case and family; leave the selection out")
    rows = rows_of(cases, families, arguments.processes)
    problems = [problem for row in rows for problem in out_of_bounds(row)]
    path = table_path(triton.__version__)
    if arguments.check and path.exists():
        problems += compare(rows, json.loads(path.read_text())["rows"], whole)
    if arguments.write:
        table = {
            "triton": triton.__version__,
            "assembler": {
                "up to sm_90": triton.knobs.nvidia.ptxas.version,
                "sm_100": triton.knobs.nvidia.ptxas_blackwell.version,
            },
            "roofline": asdict(H200),
            "rows": rows,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dumps(table))
        PAGE.write_text(page(stored_tables()))
        print(f"wrote {path.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")
    if not arguments.check and not arguments.write:
        for row in rows:
            print(
                f"{label(row)}: {row['registers']} registers, {row['spill_store_bytes']} B spilled,"
                f" {row['shared_bytes']} B shared, {row['counts']}"
            )
            if "cost" in row:
                print(f"    at least {row['microseconds']} us: {row['limit']}")
    if problems:
        print("\n".join(problems))
        return 1
    print(f"{len(rows)} rows: every kernel is within its bounds")
    return 0


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET"):
        sys.exit("TRITON_INTERPRET is set: the kernels could be interpreted, not compiled")
    sys.exit(main(tyro.cli(Arguments)))
