"""What every CUDA kernel of the extension compiles to, without a GPU.

    python benchmarks/cuda_report.py --write    compile, store the table, write docs/cuda-kernels.md
    python benchmarks/cuda_report.py --check    compile one source, compare with the stored table

The table is ``benchmarks/results/kernels/cuda.json``: a row is one kernel on one architecture as
ptxas reports it, and the table names the sources it was made from, so that ``--check`` need not
compile all of them (``--everything`` does).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
TABLE = ROOT / "benchmarks" / "results" / "kernels" / "cuda.json"
PAGE = ROOT / "docs" / "cuda-kernels.md"
ARCHS = ("sm_80", "sm_90a")
SAMPLE = ("volume_render/cuda.cu", "volume_render/cuda_float16.cu")
"""What ``--check`` compiles, for one architecture."""
REGISTER_SLACK = 8

Row = dict[str, Any]

# Of mangled names: what multiplies (or what lies in memory), and the padded width.
_TYPES = {
    r"Operand32": "float32",
    r"Operand16ILb0E": "float16",
    r"Operand16ILb1E": "bfloat16",
    r"_kernelIfE": "float32",
    r"_kernelI6__halfE": "float16",
    r"_kernelI13__nv_bfloat16E": "bfloat16",
}
_REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    r"(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Arguments:
    """Compile the CUDA sources and report what their kernels need.

    Args:
        write: store the table and write docs/cuda-kernels.md from it.
        check: compare with the stored table; exit with 1 where a kernel spills or got worse, or
            where the table is of other sources.
        everything: with check, compile every source for every architecture.
    """

    write: bool = False
    check: bool = False
    everything: bool = False


def nvcc() -> str | None:
    """The compiler, or None."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def nvcc_version(compiler: str) -> str:
    """Its release, like 13.0.88."""
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"V(\d+(?:\.\d+)+)", text.stdout)
    if found is None:
        raise RuntimeError(f"{compiler} --version: no version in {text.stdout!r}")
    return found[1]


def sources() -> list[str]:
    """Every CUDA source, relative to csrc."""
    return sorted(str(path.relative_to(CSRC)) for path in CSRC.rglob("*.cu"))


def digests() -> dict[str, str]:
    """Digests of everything device code is made from, comments and layout aside."""
    files = {path for kind in ("*.cu", "*.cuh") for path in CSRC.rglob(kind)}
    pending = list(files)
    while pending:
        text = pending.pop().read_text()
        for name in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE):
            path = CSRC / name
            if path not in files and path.exists():
                files.add(path)
                pending.append(path)
    result = {}
    for path in sorted(files):
        code = re.sub(r"//[^\n]*|\s+", " ", path.read_text())
        digest = hashlib.sha256(" ".join(code.split()).encode()).hexdigest()
        result[str(path.relative_to(CSRC))] = digest[:16]
    return result


def parse(report: str, source: str) -> list[Row]:
    """The rows of one compilation from what ``-Xptxas -v`` printed."""
    rows = []
    for found in _REPORT.finditer(report):
        name = found["name"]
        # Parts of a mangled name begin with their length.
        parts = [part[2][: int(part[1])] for part in re.finditer(r"(\d+)(?=([a-z]\w*))", name)]
        width = re.search(r"Li(\d+)EE", name)
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        rows.append(
            {
                "source": source,
                "kernel": next((part for part in parts if part.endswith("_kernel")), name),
                "type": next((t for pattern, t in _TYPES.items() if re.search(pattern, name)), ""),
                "width": int(width[1]) if width else 0,
                "arch": found["arch"],
                "registers": int(found["registers"]),
                "spill_store_bytes": int(found["stores"]),
                "spill_load_bytes": int(found["loads"]),
                "stack_bytes": int(found["stack"]),
                "static_shared_bytes": int(shared[1]) if shared else 0,
            }
        )
    return rows


def compile_rows(compiler: str, files: Iterable[str], archs: Sequence[str]) -> list[Row]:
    """The rows of some sources.

    Raises:
        RuntimeError: a source that does not compile or has no kernel.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for source in files:
            for arch in archs:
                options = f"-std=c++17 -O3 -arch={arch} -Xptxas -v -I{CSRC} -cubin".split()
                command = [compiler, *options, str(CSRC / source), "-o", f"{folder}/out.cubin"]
                result = subprocess.run(command, capture_output=True, text=True)
                if result.returncode:
                    raise RuntimeError(f"{source}, {arch}: {result.stderr}")
                rows += sorted(parse(result.stderr, source), key=identity)
    return rows


def identity(row: Row) -> tuple[str, str, str, int, str]:
    """What a row is found again by."""
    return row["source"], row["kernel"], row["type"], row["width"], row["arch"]


def label(row: Row) -> str:
    """A row by name, for messages."""
    width = f", width {row['width']}" if row["width"] else ""
    return f"{row['kernel']} of {row['source']}, {row['type']}{width}, {row['arch']}"


def out_of_bounds(row: Row) -> list[str]:
    """What is wrong with a row on its own: no kernel may keep registers in memory."""
    counts = [f"{row[name]} {name}" for name in ("spill_store_bytes", "spill_load_bytes")]
    return [f"{label(row)}: {text}" for text in counts if not text.startswith("0 ")]


def compare(rows: Sequence[Row], stored: Sequence[Row], whole: bool) -> list[str]:
    """What got worse, or is new or missing, since the stored table.

    Args:
        whole: whether ``rows`` should be every stored one.
    """
    before = {identity(row): row for row in stored}
    problems = []
    for row in rows:
        old = before.pop(identity(row), None)
        if old is None:
            problems.append(f"{label(row)}: not in the stored table")
        elif row["registers"] > old["registers"] + REGISTER_SLACK:
            problems.append(f"{label(row)}: registers {old['registers']} -> {row['registers']}")
        elif row["stack_bytes"] > old["stack_bytes"]:
            problems.append(f"{label(row)}: stack {old['stack_bytes']} -> {row['stack_bytes']}")
    if whole:
        problems += [f"{label(row)}: no longer compiled" for row in before.values()]
    return problems


def stored_table() -> dict[str, Any]:
    """The table as it is stored."""
    return json.loads(TABLE.read_text())


def stale(table: dict[str, Any]) -> list[str]:
    """Sources that are not those of the table."""
    now, then = digests(), table["sources"]
    return [
        f"{name}: changed since the table was made; run python benchmarks/cuda_report.py --write"
        for name in sorted({*now, *then})
        if now.get(name) != then.get(name)
    ]


def dumps(table: dict[str, Any]) -> str:
    """A table as JSON with a line a row, so that a change shows as the rows it is."""
    head = json.dumps({name: value for name, value in table.items() if name != "rows"}, indent=1)
    rows = ",\n".join(json.dumps(row) for row in table["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n'


HEAD = """# What the CUDA kernels compile to

Written by `python benchmarks/cuda_report.py --write` from `benchmarks/results/kernels/cuda.json`.
Nothing here was run: nvcc {nvcc} compiled every kernel of the extension, and a test fails when one
of them spills registers, needs more of them than here, or when the sources are no longer those of
the table.

*type* is what a kernel multiplies on tensor cores (`float32`: three products of tf32 numbers), or,
for `mixture_average`, what lies in memory. *width* is what hidden widths are padded to. *registers*
are those of a thread, *spilled* its bytes of spill stores and loads, *stack* its bytes of local
memory. Shared memory is static; `field_mlp` and `volume_render` take theirs at the launch, by depth
and width (`csrc/field_mlp/cuda_plan.h`).
"""
_COLUMNS = "| kernel | type | width | registers | spilled | stack | shared |\n" + "|---" * 7 + "|"


def page(table: dict[str, Any]) -> str:
    """docs/cuda-kernels.md."""
    parts = [HEAD.format(nvcc=table["nvcc"])]
    for arch in dict.fromkeys(row["arch"] for row in table["rows"]):
        rows = [row for row in table["rows"] if row["arch"] == arch]
        lines = [
            f"| `{Path(row['source']).parent}`, {row['kernel'].removesuffix('_kernel')} "
            f"| {row['type']} | {row['width'] or ''} | {row['registers']} "
            f"| {row['spill_store_bytes']}/{row['spill_load_bytes']} | {row['stack_bytes']} "
            f"| {row['static_shared_bytes']} |"
            for row in sorted(rows, key=lambda r: (r["source"].split("/")[0], *identity(r)[1:]))
        ]
        parts.append("\n".join([f"## {arch}\n", _COLUMNS, *lines]) + "\n")
    return "\n".join(parts)


def main(arguments: Arguments) -> int:
    """Run; the exit status."""
    compiler = nvcc()
    if compiler is None:
        raise FileNotFoundError("nvcc was found neither in CUDACXX nor on PATH")
    partial = arguments.check and not arguments.everything
    of = digests()  # before anything is compiled
    if partial:
        rows = compile_rows(compiler, SAMPLE, ARCHS[-1:])
    else:
        rows = compile_rows(compiler, sources(), ARCHS)
    problems = [problem for row in rows for problem in out_of_bounds(row)]
    if arguments.check:
        table = stored_table()
        problems += stale(table)
        if table["nvcc"] == nvcc_version(compiler):
            problems += compare(rows, table["rows"], whole=not partial)
    if arguments.write:
        table = {"nvcc": nvcc_version(compiler), "sources": of, "rows": rows}
        TABLE.write_text(dumps(table))
        PAGE.write_text(page(table))
        print(f"wrote {TABLE.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")
    if not arguments.check and not arguments.write:
        for row in rows:
            spilled = row["spill_store_bytes"] + row["spill_load_bytes"]
            print(f"{label(row)}: {row['registers']} registers, {spilled} bytes spilled")
    if problems:
        print("\n".join(problems))
        return 1
    print(f"{len(rows)} kernels: none spills")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
