"""Draws docs/drawings/*.svg, diagrams and bars of the committed results: ``python docs/draw.py``.

Every picture has a light ground of its own, so that it reads the same in a light and a dark page.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).with_name("drawings")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

INK, FAINT, GROUND = "#20262c", "#6b7680", "#fbfbf8"
BLUE, ORANGE, GREEN, GREY = "#cfe0f0", "#f6dcc4", "#d3e8d0", "#e6e8ea"
OURS, COMPILED = "#3b6ea5", "#c05020"


class Drawing:
    """An SVG of boxes, arrows and lines of text."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height = width, height
        self.parts = [f"<title>{escape(title)}</title>"]
        self.rect(0, 0, width, height, GROUND, GROUND)

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, line: str = INK
    ) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'fill="{fill}" stroke="{line}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        line: str,
        anchor: str = "start",
        colour: str = INK,
        size: int = 13,
    ) -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}" '
            f'font-size="{size}">{escape(line)}</text>'
        )

    def note(self, y: float, line: str) -> None:
        """A line of small text across the picture."""
        self.text(16, y, line, size=12)

    def box(self, x: float, y: float, width: float, height: float, fill: str, *lines: str) -> None:
        """A box with centred lines, the first of them in ink and the others fainter."""
        self.rect(x, y, width, height, fill)
        top = y + height / 2 + 4.5 - 8.5 * (len(lines) - 1)
        for index, line in enumerate(lines):
            colour, size = (INK, 13) if index == 0 else (FAINT, 12)
            self.text(x + width / 2, top + 17 * index, line, "middle", colour, size)

    def arrow(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.parts.append(
            f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="{INK}" '
            f'stroke-width="1.4" marker-end="url(#head)"/>'
        )

    def svg(self) -> str:
        head = (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="sans-serif">\n'
            + "\n".join([head, *self.parts])
            + "\n</svg>\n"
        )


def blocked() -> Drawing:
    """How the blocked backend walks over coordinates on a CPU."""
    d = Drawing(760, 392, "locality_decode, blocked backend: one block of coordinates")
    d.text(16, 26, "locality_decode on a CPU: one block of at most 1536 rows, walked to its end")
    d.box(16, 44, 150, 56, GREY, "coordinates", "block of n points")
    d.box(216, 44, 240, 56, BLUE, "q = ReLU(W_q γ), f = ReLU(W_F γ)", "once for all instances")
    d.arrow(166, 72, 214, 72)
    d.rect(16, 122, 728, 208, GROUND, FAINT)
    d.text(28, 142, "for every instance of the step", colour=FAINT, size=12)
    d.box(28, 154, 138, 70, ORANGE, "keys, values", "of the tokens (R, d)")
    d.box(216, 154, 240, 70, GREEN, "P = softmax(Q Kᵀ), a = P V", "a head at a time, (n, R)")
    d.box(506, 154, 226, 70, GREEN, "M = ReLU(W_m a + b + f)", "all levels: one product")
    d.arrow(336, 100, 336, 152)
    d.arrow(166, 189, 214, 189)
    d.arrow(456, 189, 504, 189)
    d.parts.append(
        f'<polyline points="456,72 619,72 619,150" fill="none" stroke="{INK}" stroke-width="1.4" '
        'marker-end="url(#head)"/>'
    )
    d.text(610, 64, "f joins as the residual", "middle", FAINT, 12)
    d.box(506, 252, 226, 62, GREEN, "h ← ReLU(W (M + h) + b)", "y += W_out h, level by level")
    d.arrow(619, 224, 619, 250)
    d.box(216, 252, 240, 62, GREY, "values (n, 3)", "the only thing written out")
    d.arrow(506, 283, 458, 283)
    d.note(354, "What lies between boxes is reused by the next block and stays in cache; the")
    d.note(372, "backward computes a block again from coordinates and tokens, and keeps nothing.")
    return d


def tiles() -> Drawing:
    """What a tile of the Triton token decoder does."""
    d = Drawing(760, 400, "Token decoders in Triton: a layer a kernel, a tile a program")
    d.text(
        16, 26, "Token decoders on a GPU: a kernel a layer, over a span of rows, 128 rows a program"
    )
    stages = (
        ("fourier_linear", "phases on chip", "q and f tables"),
        ("layer", "Q = W q", "rows × d"),
        ("attention", "softmax(Q Kᵀ) V", "online, logits on chip"),
        ("layer, level 1", "+ f, ReLU", "h in the workspace"),
        ("layer, level L", "+ residual, head", "values"),
    )
    for index, (name, what, left) in enumerate(stages):
        x = 16 + 148 * index
        d.box(x, 44, 130, 66, BLUE, name, what, left)
        if index:
            d.arrow(x - 18, 77, x - 2, 77)
    d.text(16, 142, "One program of `layer`:")
    d.rect(16, 152, 728, 186, GROUND, FAINT)
    d.box(28, 168, 130, 72, GREY, "rows from L2", "128 × K, 64 a step")
    d.box(28, 254, 130, 72, ORANGE, "weights", "sm_90: kept resident", "in shared memory")
    d.box(226, 204, 190, 86, GREEN, "accumulator", "128 × 128, float32", "in registers")
    d.arrow(158, 204, 224, 236)
    d.arrow(158, 290, 224, 258)
    d.text(190, 250, "mma", "middle", FAINT, 12)
    d.box(
        480,
        168,
        252,
        158,
        GREEN,
        "epilogue, in registers",
        "+ bias, after the product",
        "+ feature table f, ReLU",
        "+ residual M",
        "head: sums over the row",
        "one store",
    )
    d.arrow(416, 247, 478, 247)
    d.note(
        364,
        "The workspace holds one span (135,168 rows forward) and is used again for the next, so",
    )
    d.note(
        382,
        "memory does not grow with the image. No addition is atomic: results repeat bit for bit.",
    )
    return d


def packed() -> Drawing:
    """The packed layout of a field."""
    d = Drawing(760, 250, "The packed layout of a batch of fields")
    d.text(
        16, 26, "weights (B, P): FieldSpec(coord_dim=2, out_dim=3, hidden_dim=64, hidden_layers=1)"
    )
    names = (
        ("W₁", "64 × 2", 110, ORANGE), ("b₁", "64", 60, GREY), ("W₂", "64 × 64", 250, ORANGE),
        ("b₂", "64", 60, GREY), ("W₃", "3 × 64", 120, ORANGE), ("b₃", "3", 50, GREY),
    )  # fmt: skip
    for row in range(3):
        x, y = 90.0, 44 + 44 * row
        d.text(76, y + 24, f"instance {row}", "end", FAINT, 12)
        for name, shape, width, fill in names:
            d.box(x, y, width, 36, fill, *((name, shape) if row == 0 else (name,)))
            x += width
    offsets, x = (0, 128, 192, 4288, 4352, 4544, 4547), 90.0
    for offset, width in zip(offsets, [*(w for _, _, w, _ in names), 0], strict=True):
        d.text(x, 186, str(offset), "middle", FAINT, 11)
        x += width
    d.note(
        216,
        "A weight is (out, in), row-major: row i is what neuron i multiplies. Offsets count",
    )
    d.note(
        234, "numbers; `spec.slots` lists them. The float32 CPU kernels read this row as it lies."
    )
    return d


def march() -> Drawing:
    """How a field is rendered."""
    d = Drawing(760, 226, "volume_render: sample, field, composite in one pass")
    d.text(
        16,
        26,
        "volume_render in compiled code: 64 samples at a time, all layers before the next 64",
    )
    d.box(16, 46, 128, 74, GREY, "rays", "o + t d, t in order")
    d.box(176, 46, 128, 74, BLUE, "64 samples", "positions, phases")
    d.box(
        336,
        46,
        190,
        74,
        GREEN,
        "activations [width][64]",
        "layer after layer",
        "in cache",
    )
    d.box(558, 46, 186, 74, GREEN, "composite", "colour, opacity, depth", "T ← T · (1 − α)")
    for x in (144, 304, 526):
        d.arrow(x, 83, x + 30, 83)
    d.box(336, 142, 190, 44, ORANGE, "packed weights", "of one instance")
    d.arrow(431, 142, 431, 122)
    d.note(
        210,
        "Nothing of size rays × samples × width is ever in memory. A grid may skip samples.",
    )
    return d


def bars(machine: dict, rows: list[dict]) -> Drawing:
    """Speed-ups over the eager formula, a bar a benchmark, and those of torch.compile of it."""
    left, right, step, top, width = 310, 170, 22, 96, 760
    bottom = top + step * len(rows)
    d = Drawing(width, bottom + 16, "Speed-up over the published formulation")
    least = min(0.5, *(row["speedup_over_eager"] for row in rows))
    most = max(row["speedup_over_eager"] for row in rows)
    scale = (width - left - right) / math.log(most / least)

    def place(ratio: float) -> float:
        return left + scale * math.log(max(ratio, least) / least)

    name = machine.get("gpu") or machine["cpu"]["brand_raw"]
    d.text(16, 26, f"{name}, {machine['threads']} threads: times as fast as eager float32")
    d.rect(16, 40, 12, 12, OURS, OURS)
    d.text(34, 51, "ginr_fast", colour=FAINT, size=12)
    d.rect(126, 40, 12, 12, COMPILED, COMPILED)
    d.text(144, 51, "torch.compile of the formula, where it was timed", colour=FAINT, size=12)
    for ratio in (ratio for ratio in (1, 2, 5, 10, 20, 50, 100) if ratio <= most):
        d.parts.append(f'<path d="M{place(ratio):.4g} {top - 6}V{bottom}" stroke="#c8ced4"/>')
        d.text(place(ratio), top - 12, f"{ratio}x", "middle", FAINT, 11)
    for index, row in enumerate(rows):
        y = top + step * index
        dtype = row["dtype"].removeprefix("torch.")
        dtype += ", high" if row.get("precision") == "high" else ""
        ratio, compiled = row["speedup_over_eager"], row.get("speedup_over_compiled")
        d.text(left - 8, y + 12, f"{row['name']}, {dtype}", "end", size=11)
        d.rect(left, y, place(ratio) - left, 16, OURS, OURS)
        shown = f"{ratio:.1f}x"
        if compiled is not None:
            d.rect(left, y + 11, place(ratio / compiled) - left, 5, COMPILED, COMPILED)
            shown += f", {compiled:.1f}x over compiled"
        d.text(place(ratio) + 6, y + 12, shown, size=11)
    return d


def results() -> dict[str, tuple[dict, list[dict]]]:
    """Machine and rows of every committed run, by the name of its folder."""
    found = {}
    for path in sorted(RESULTS.glob("*/results.json")):
        content = json.loads(path.read_text())
        rows = [{"name": b["group"], **b["extra_info"]} for b in content["benchmarks"]]
        rows = [row for row in rows if "speedup_over_eager" in row]
        found[path.parent.name] = content["machine_info"], rows
    return found


def drawings() -> dict[str, str]:
    """Every picture by the name of its file."""
    made = {f.__name__: f() for f in (blocked, tiles, packed, march)}
    made |= {f"bars-{name}": bars(*run) for name, run in results().items()}
    return {f"{name}.svg": drawing.svg() for name, drawing in made.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in drawings().items():
        (FOLDER / name).write_text(content)
    print(f"wrote {len(drawings())} files in {FOLDER}", file=sys.stderr)
