"""Finds the tile sizes of the Triton kernels on the GPU at hand and stores them for its family.

    python benchmarks/tune_tiles.py            tune every kernel, rewrite ginr_fast's tiles.json
    python benchmarks/tune_tiles.py --dry-run  the same, but print the table

For every kind of kernel and every (bits, width) class of the table, the operator that runs it is
timed at paper size. The search starts at the entry in use, changes one size at a time, moves to the
fastest, and stops where nothing is clearly faster. An entry is taken only if the operator gives the
same results with it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

import ginr_fast
from ginr_fast.fields import ParameterSlot
from ginr_fast.ops.field_mlp import kernels as field_kernels
from ginr_fast.ops.kernels import launch

Tiles = dict[str, int]
Table = dict[str, list[dict[str, Any]]]
Timer = Callable[[str, int, int, Tiles], "float | None"]
"""(kind, bits, width class, tiles) to milliseconds, or None where they do not work."""

WARPS = (4, 8)
STAGES = (1, 2, 3, 4)
Axes = dict[str, tuple[int, ...]]
_ATTENTION: Axes = {"rows": (32, 64, 128, 256), "tokens": (16, 32, 64, 128)}
_RESIDENT: Axes = {
    "rows": (32, 64, 128),
    "columns": (64, 128, 256),
    "programs": (108, 132, 148, 216, 264, 296),
}
_LAYER: Axes = {"rows": (32, 64, 128, 256), "columns": (64, 128, 256), "step": (32, 64, 128)}
_FIELD_INPUT: Axes = {
    "rows": (32, 64, 128, 256),
    "columns": (32, 64, 128, 256),
    "step": (16, 32, 64),
}
_CHAIN: Axes = {"rows": (32, 64, 128), "step": (16, 32, 64)}
AXES: dict[str, Axes] = {
    "fourier_linear": {
        "rows": (32, 64, 128, 256),
        "columns": (64, 128, 256),
        "inner": (16, 32, 64),
    },
    "fourier": {"rows": (16, 32, 64, 128), "inner": (16, 32, 64)},
    "expand_grid": {"rows": (8, 16, 32), "columns": (64, 128, 256)},
    "layer": _LAYER,
    "layer_backward": _LAYER,
    "resident_layer": _RESIDENT,
    "resident_layer_backward": _RESIDENT,
    "attention": _ATTENTION,
    "resident_attention": {
        "rows": (64, 128),
        "tokens": (32, 64, 128),
        "programs": (108, 132, 148, 264),
    },
    "query_gradient": _ATTENTION,
    "token_gradient": {**_ATTENTION, "programs": (132, 264, 528, 1056)},
    "field_input": _FIELD_INPUT,
    "field_encoded": _FIELD_INPUT,
    "field_layer": _LAYER,
    "field_backward": _LAYER,
    "resident_field_layer": _RESIDENT,
    "resident_field_backward": _RESIDENT,
    "field_head_backward": {"rows": (16, 32, 64, 128), "columns": (64, 128, 256)},
    "field_coords": {"rows": (32, 64, 128), "step": (32, 64, 128), "inner": (16, 32, 64)},
    "field_chain": _CHAIN,
    "field_chain_saved": _CHAIN,
    "field_chain_backward": {"rows": (32, 64, 128)},
    "field_span": {  # KiB
        "forward": (32768, 65536, 131072, 262144, 524288),
        "backward": (65536, 131072, 262144, 524288, 1048576),
    },
    "span": {
        "forward": (12672, 16896, 25344, 33792, 50688, 67584),
        "backward": (4224, 8448, 12672, 16896, 25344, 33792),
    },
}
"""The values tried for each size of a kind, beside the one in use."""

HEAD_KINDS = ("attention", "resident_attention", "query_gradient", "token_gradient")
"""Kinds whose width class is the width of a head, not of a layer."""
FORWARD = (
    "fourier_linear",
    "expand_grid",
    "layer",
    "resident_layer",
    "attention",
    "resident_attention",
    "field_encoded",
    "field_layer",
    "resident_field_layer",
    "field_chain",
)
"""Kinds that a forward runs; the others need a backward."""
WITH_SLOPES = ("field_input", "field_chain_saved", "field_chain_backward")
"""Kinds that a network of sines runs, or for which it is the heavier case."""
GAIN = 0.02
"""An entry is replaced only by one this much faster: less is noise."""
TOLERANCE = {16: 2e-2, 32: 2e-3}


@dataclass(frozen=True)
class Arguments:
    """Tune the tile sizes of the GPU at hand.

    Args:
        dry_run: print the table instead of writing it.
        kinds: only these kinds of kernel.
        bits: only these widths of an operand.
        rounds: changes made to an entry at most, one size each.
        batch: instances of the problem timed.
        side: its coordinates are side × side.
    """

    dry_run: bool = False
    kinds: tuple[str, ...] = tuple(AXES)
    bits: tuple[int, ...] = (16, 32)
    rounds: int = 4
    batch: int = 16
    side: int = 178


def candidates(kind: str, present: Tiles) -> list[Tiles]:
    """Every entry that differs from ``present`` in one size, in the order of ``AXES``."""
    axes = dict(AXES[kind])
    if "warps" in present:
        axes["warps"] = WARPS
    if "stages" in present:
        axes["stages"] = STAGES
    return [
        {**present, axis: value}
        for axis, values in axes.items()
        if axis in present
        for value in values
        if value != present[axis]
    ]


def choose(times: list[tuple[Tiles, float | None]], present: Tiles, gain: float = GAIN) -> Tiles:
    """The fastest of ``times``, or ``present`` unless something is faster by ``gain``."""
    working = [(time, index) for index, (_, time) in enumerate(times) if time is not None]
    now = next((time for tiles, time in times if tiles == present), None)
    if not working:
        return present
    fastest, index = min(working)
    if now is not None and fastest > now * (1 - gain):
        return present
    return times[index][0]


def search(
    kind: str, present: Tiles, timer: Callable[[Tiles], float | None], rounds: int
) -> tuple[Tiles, float | None, float | None]:
    """The entry found from ``present``, with the times before and after in milliseconds."""
    known: dict[tuple[tuple[str, int], ...], float | None] = {}

    def timed(tiles: Tiles) -> float | None:
        key = tuple(sorted(tiles.items()))
        if key not in known:
            known[key] = timer(tiles)
        return known[key]

    best = present
    for _ in range(rounds):
        tried = [best, *candidates(kind, best)]
        found = choose([(tiles, timed(tiles)) for tiles in tried], best)
        if found == best:
            break
        best = found
    return best, timed(present), timed(best)


def classes(table: Table, kind: str, chip: str) -> Iterator[tuple[int, int, Tiles]]:
    """(bits, widest, tiles) of every entry of a kind that a chip can reach."""
    reached: set[tuple[int, int]] = set()
    for entry in table[kind]:
        bits, widest = entry["bits"], entry["max_width"]
        hidden = any(b == bits and w >= widest for b, w in reached)
        if chip in entry["chips"] and not hidden:
            reached.add((bits, widest))
            yield bits, widest, entry["tiles"]


def replaced(table: Table, kind: str, chip: str, bits: int, widest: int, tiles: Tiles) -> Table:
    """``table`` with the entry of one class replaced for one chip; other chips keep theirs.

    Raises:
        LookupError: the chip has no such class.
    """
    entries: list[dict[str, Any]] = []
    done = False
    for entry in table[kind]:
        if chip not in entry["chips"] or (entry["bits"], entry["max_width"]) != (bits, widest):
            entries.append(entry)
            continue
        if not done:
            if entry["tiles"] == tiles:
                return table
            entries.append({**entry, "chips": [chip], "tiles": tiles})
            done = True
        # The other chips keep the entry; a later one of the same class this chip never reached.
        if rest := [other for other in entry["chips"] if other != chip]:
            entries.append({**entry, "chips": rest})
    if not done:
        raise LookupError(f"{kind}: no entry for {chip}, {bits} bits, width {widest}")
    return {**table, kind: entries}


def dumps(table: Table) -> str:
    """The table as JSON, a line an entry."""
    kinds = [
        f'  "{kind}": [\n' + ",\n".join(f"    {json.dumps(e)}" for e in entries) + "\n  ]"
        for kind, entries in table.items()
    ]
    return "{\n" + ",\n".join(kinds) + "\n}\n"


def write(path: Path, table: Table) -> None:
    """Replace the file at once: a reader sees the old table or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        file.write(dumps(table))
    os.chmod(file.name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
    os.replace(file.name, path)


def tune(table: Table, chip: str, timer: Timer, arguments: Arguments) -> Table:
    """The table with every class of ``chip`` tuned, kind by kind in the order of the table.

    Raises:
        ValueError: a kind that the table does not hold.
    """
    if unknown := [kind for kind in arguments.kinds if kind not in table]:
        raise ValueError(f"kinds: expected some of {', '.join(table)}, got {', '.join(unknown)}")
    for kind in arguments.kinds:
        for bits, widest, present in list(classes(table, kind, chip)):
            if bits not in arguments.bits:
                continue

            def timed(
                tiles: Tiles, kind: str = kind, bits: int = bits, widest: int = widest
            ) -> float | None:
                return timer(kind, bits, widest, tiles)

            best, before, after = search(kind, present, timed, arguments.rounds)
            print(f"{kind}, {bits} bits, width {widest}: {_told(present, before)}", end="")
            print(" kept" if best == present else f" -> {_told(best, after)}", flush=True)
            table = replaced(table, kind, chip, bits, widest, best)
    return table


def _told(tiles: Tiles, time: float | None) -> str:
    return f"{tiles} {'fails' if time is None else f'{time:.4f} ms'}"


def sizes(kind: str, widest: int) -> dict[str, Any]:
    """Sizes of a LA-GINR decoder, or the width of a field, whose ``kind`` kernels fall into a
    width class."""
    if kind in HEAD_KINDS:
        width = min(widest, 512)
        return {"heads": max(1, 256 // width), "head_dim": width, "hidden_dim": 256}
    width = min(widest, 256)
    return {"heads": max(1, width // 128), "head_dim": min(width, 128), "hidden_dim": width}


def field_problem(
    kind: str, hidden_dim: int, dtype: torch.dtype, batch: int, points: int
) -> Callable[[], list[torch.Tensor]]:
    """Runs ``kind``'s part of the Triton backend on fields with TransINR's encoding."""
    spec = ginr_fast.FieldSpec(
        coord_dim=2,
        out_dim=3,
        hidden_dim=hidden_dim,
        hidden_layers=3,
        activation="sine" if kind in WITH_SLOPES else "relu",
        encoding=ginr_fast.FourierEncoding.log_spaced(64, 1024.0),
    )
    w0 = spec.w0 if kind in WITH_SLOPES else 1.0
    weights = torch.cat([_scaled(slot, batch, w0) for slot in spec.slots], dim=1).to("cuda", dtype)
    coords = torch.rand(batch, points, 2, device="cuda") * 2 - 1
    grad = torch.randn(batch, points, 3, device="cuda").to(dtype)

    def run() -> list[torch.Tensor]:
        if kind in FORWARD:
            return [field_kernels.forward(coords, weights, spec)]
        needed = ["weights", "coords"] if kind == "field_coords" else ["weights"]
        return list(field_kernels.backward(grad, coords, weights, spec, needed).values())

    return run


def _scaled(slot: ParameterSlot, batch: int, w0: float) -> torch.Tensor:
    """Random parameters, (batch, size), that keep the size of what passes through a layer."""
    return torch.randn(batch, slot.size) * math.sqrt(2 / slot.shape[-1]) / w0


class DeviceTimer:
    """Times an operator on the current GPU, and refuses tiles that change its results."""

    def __init__(self, batch: int, side: int):
        self.batch, self.side = batch, side
        self.problem: tuple[str, int, int] | None = None

    def _prepare(self, kind: str, bits: int, widest: int) -> None:
        dtype = torch.bfloat16 if bits == 16 else torch.float32
        torch.manual_seed(0)
        if "field" in kind:
            width = sizes(kind, widest)["hidden_dim"]
            self.run = field_problem(kind, width, dtype, self.batch, self.side**2)
            self.problem, self.expected = (kind, bits, widest), self.run()
            return
        decoder = ginr_fast.LocalityAwareDecoder(**sizes(kind, widest)).to("cuda", dtype)
        grid = ginr_fast.grid(self.side, self.side, device="cuda")
        # Scattered points: a grid's features come from tables instead.
        points = torch.rand(self.side**2, 2, device="cuda") * 2 - 1
        coords = grid if kind == "expand_grid" else points
        tokens = torch.randn(self.batch, 256, decoder.token_dim, device="cuda", dtype=dtype)
        tokens.requires_grad_(kind not in FORWARD)
        inputs = [tokens, *decoder.parameters()]

        def run() -> list[torch.Tensor]:
            with ginr_fast.backend("triton"), torch.set_grad_enabled(kind not in FORWARD):
                values = decoder(coords, tokens)
                if kind in FORWARD:
                    return [values]
                grads = torch.autograd.grad(values, inputs, torch.ones_like(values))
            return [values.detach(), *grads]

        self.run, self.problem, self.expected = run, (kind, bits, widest), run()

    def __call__(self, kind: str, bits: int, widest: int, tiles: Tiles) -> float | None:
        """Median milliseconds of the operator; None if it fails or its results change."""
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import OutOfResources, PTXASError
        from triton.testing import do_bench

        if self.problem != (kind, bits, widest):
            self._prepare(kind, bits, widest)
        # Where operands can stay resident, the kind that is timed would not run.
        without: dict[str, Tiles] = {}
        if f"resident_{kind}" in AXES:
            without = {f"resident_{kind}": {}}
        with launch.overridden(**without, **{kind: tiles}):
            try:
                found = self.run()
            except (OutOfResources, PTXASError, CompilationError, torch.OutOfMemoryError):
                return None
            except RuntimeError as error:
                if "PassManager" in str(error):  # the compiler gave up
                    return None
                raise
            if not agree(found, self.expected, TOLERANCE[bits]):
                return None
            return float(do_bench(self.run, return_mode="median"))


def agree(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> bool:
    """Whether every tensor is within ``tolerance`` of the expected one, in the norm."""
    return all(
        bool((a.double() - b.double()).norm() <= tolerance * b.double().norm())
        for a, b in zip(found, expected, strict=True)
    )


def main(arguments: Arguments) -> None:
    """Tune, and write or print the table."""
    if not torch.cuda.is_available():
        sys.exit("tuning times kernels on a GPU, and PyTorch finds none here")
    torch.set_float32_matmul_precision("high")
    chip = launch.family(torch.device("cuda"))
    timer = DeviceTimer(arguments.batch, arguments.side)
    print(f"tuning {chip} on {torch.cuda.get_device_name()}")
    table = tune(json.loads(launch.TABLE.read_text()), chip, timer, arguments)
    if arguments.dry_run:
        print(dumps(table), end="")
    else:
        write(launch.TABLE, table)
        print(f"wrote {launch.TABLE}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
