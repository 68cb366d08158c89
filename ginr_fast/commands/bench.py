"""``ginr-fast bench``: the table, the bars and the roofline of a benchmark run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ginr_fast.commands import common

Row = dict[str, Any]


@dataclass(frozen=True)
class BenchArguments:
    """Run the benchmarks of a source checkout, or read a finished run; print and draw the results.

    `ginr-fast bench generate` times generation and training of generative models instead.

    Args:
        json: results of `pytest benchmarks --benchmark-only --benchmark-json FILE`, of one machine
            or several; the benchmarks are run if not given.
        out: folder for bars.png and roofline.png, of the first of them.
        markdown: also write the tables here, as Markdown.
        select: run only the benchmarks whose name matches this pytest -k expression.
    """

    json: tuple[Path, ...] = ()
    out: Path = Path("runs/bench")
    markdown: Path | None = None
    select: str = ""


def main(arguments: Sequence[str]) -> None:
    """Run the command, or ``ginr-fast bench generate``."""
    if arguments[:1] == ["generate"]:
        from ginr_fast.commands import bench_generate

        bench_generate.main(arguments[1:])
        return
    given = common.parse(BenchArguments, arguments, "bench")
    given.out.mkdir(parents=True, exist_ok=True)
    sources = given.json or (_run(given.out / "results.json", given.select),)
    found = [read(source) for source in sources]
    for machine, rows in found:
        _print(machine, rows)
    if given.markdown:
        given.markdown.write_text(page([markdown(*each) for each in found]))
    rows = found[0][1]
    draw_bars(rows, given.out / "bars.png")
    draw_roofline(rows, given.out / "roofline.png")
    print(f"drawn: {given.out / 'bars.png'}, {given.out / 'roofline.png'}")


def _run(target: Path, select: str) -> Path:
    folder = Path(__file__).parents[2] / "benchmarks"
    if not folder.is_dir():
        raise FileNotFoundError(
            "json: the benchmarks are not part of an installation; run this in a source checkout "
            "or give the results of a run"
        )
    command = [sys.executable, "-m", "pytest", str(folder), "--benchmark-only", "-q"]
    command += [f"--benchmark-json={target}", *(["-k", select] if select else [])]
    if subprocess.run(command, check=False).returncode:
        raise ValueError(f"the benchmarks failed: {' '.join(command)}")
    return target


def read(path: Path) -> tuple[Row, list[Row]]:
    """The machine and one row a benchmark of a pytest-benchmark JSON file.

    Raises:
        ValueError: the file is no result of this project's benchmarks.
    """
    try:
        content = json.loads(path.read_text())
        rows = [
            {"name": b["group"], "median": b["stats"]["median"], **b["extra_info"]}
            for b in content["benchmarks"]
        ]
        machine = content["machine_info"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"json: {path} holds no benchmark results ({error})") from error
    return machine, [row for row in rows if "speedup_over_eager" in row]


def _cells(row: Row) -> list[str]:
    def ratio(name: str) -> str:
        value = row.get(f"speedup_over_{name}")
        return "" if value is None else f"{value:.2f}x"

    memory = ""
    if row.get("peak_bytes") is not None and row.get("peak_bytes_eager"):
        memory = f"1/{row['peak_bytes_eager'] / max(row['peak_bytes'], 1):.0f}"
    return [
        row["name"],
        row["dtype"].removeprefix("torch.") + (", high" if row.get("precision") == "high" else ""),
        ratio("eager"),
        ratio("frozen"),
        ratio("compiled"),
        ratio("matmul"),
        f"{row['efficiency']:.2f}",
        f"{row['efficiency_torch_mm']:.2f}",
        memory,
    ]


_COLUMNS = (
    "benchmark",
    "dtype",
    "vs eager",
    "vs frozen",
    "vs compiled",
    "vs matmul",
    "efficiency",
    "vs torch.mm peak",
    "memory of eager's",
)


def _machine(machine: Row) -> str:
    processor = machine.get("gpu") or machine.get("cpu", {}).get("brand_raw", "CPU")
    return (
        f"{processor}, {machine.get('threads')} CPU threads, torch {machine.get('torch')}, "
        f"commit {str(machine.get('commit'))[:12]}"
    )


def _print(machine: Row, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=_machine(machine))
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*_cells(row))
    Console(width=120 if not sys.stdout.isatty() else None).print(table)


def markdown(machine: Row, rows: list[Row]) -> str:
    """The table as Markdown."""
    lines = [f"{_machine(machine)}", "", "| " + " | ".join(_COLUMNS) + " |"]
    lines.append("|" + "---|" * 2 + "---:|" * (len(_COLUMNS) - 2))
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def page(tables: Sequence[str]) -> str:
    """The page on performance: what the columns mean, then a table a machine."""
    joined = "\n".join(tables)
    return f"""# Performance

A run of `pytest benchmarks --benchmark-only` on each machine, from the JSON files it wrote, by
`ginr-fast bench --json FILE ... --markdown docs/performance.md`. Before each round of ours every
rival ran once; speed-ups are ratios of medians.

- *vs eager*: over the published formulation in eager float32, with coordinates repeated for every
  instance.
- *vs frozen*: (test-time optimisation) over the same with gradients of the model switched off.
- *vs compiled*: over `torch.compile` of it, in float32.
- *vs matmul*: over one matrix product a parameter.
- *efficiency*: minimal exact FLOPs (recomputation not counted) over time and the peak of the
  fastest matrix product in reach in that run, which wide fields on AMX's tiles may exceed; *vs
  torch.mm peak*: over that of `torch.mm`, which in float32 may be much slower, so that the figure
  can exceed 1.
- *memory of eager's*: peak memory above the inputs, as a fraction of eager's.
- *float32, high*: ours under `torch.set_float32_matmul_precision("high")`, where a processor with
  AMX computes float32 products as three bfloat16 products; rivals as everywhere.

{joined}"""


def draw_bars(rows: list[Row], path: Path) -> None:
    """Speed-up over the eager reference, a bar a benchmark."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['name']} {row['dtype'].removeprefix('torch.')}" for row in rows]
    bars = axes.barh(names, [row["speedup_over_eager"] for row in rows], color="#3b6ea5")
    axes.bar_label(bars, fmt="%.1fx", padding=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("speed-up over the eager published formulation in float32")
    figure.savefig(path, dpi=150)


def draw_roofline(rows: list[Row], path: Path) -> None:
    """FLOP/s against FLOPs a byte, under the GEMM peak and copy bandwidth of the same run."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    intensity = np.logspace(-1, 5, 200)
    for color, dtype in zip(
        ("#3b6ea5", "#c05020"), sorted({r["dtype"] for r in rows}), strict=False
    ):
        own = [row for row in rows if row["dtype"] == dtype]
        name = dtype.removeprefix("torch.")
        roof = np.minimum(
            own[0]["gemm_flops_per_second"], intensity * own[0]["bandwidth_bytes_per_second"]
        )
        axes.loglog(intensity, roof / 1e9, color=color, label=f"{name}: GEMM peak and bandwidth")
        points = [(r["flops"] / r["traffic_bytes"], r["flops"] / r["median"] / 1e9) for r in own]
        axes.plot(*zip(*points, strict=True), "o", color=color, label=f"{name}: measured")
    axes.set_xlabel("exact FLOPs / minimal bytes")
    axes.set_ylabel("GFLOP/s")
    axes.grid(True, which="major", linewidth=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
