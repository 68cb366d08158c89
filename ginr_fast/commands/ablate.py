"""``ginr-fast ablate RECIPE --over WHAT``: the papers' ablations, in small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from tyro.conf import arg

from ginr_fast.analysis.ablation import Over, variants
from ginr_fast.commands import common
from ginr_fast.training.comparison import Entry, compare
from ginr_fast.training.comparison_shown import draw, draw_reconstructions, table, write_csv
from ginr_fast.training.loop import RunOptions
from ginr_fast.training.recipes import (
    RECIPES,
    ImagesRecipe,
    InrctRecipe,
    LaGinrRecipe,
    Recipe,
    TransInrRecipe,
    recipe,
)
from ginr_fast.training.tasks import DataOptions

RecipeKind = TypeVar("RecipeKind", bound=ImagesRecipe | InrctRecipe)

# The systems that have ablations, and what is varied in each if nothing is said.
_DEFAULTS: Mapping[type[Recipe], Over] = {
    LaGinrRecipe: "modules",
    TransInrRecipe: "groups",
    InrctRecipe: "losses",
}


@dataclass(frozen=True)
class AblateArguments(Generic[RecipeKind]):
    """Train variants of a recipe under one budget on the same images, and compare them.

    Each variant has a run of its own; the same command again trains only what is not finished. The
    figures of the papers, shown beside, are of other data and far longer training.

    Args:
        recipe: what is varied and how it is trained.
        over: of LA-GINR: modules (whole, without selective token aggregation, without multi-band
            modulation, without both; with --model.heads 1 as in Table 3 of the paper), aggregation,
            modulation, bandwidths (their order, Table 4), levels (one to four bands, Table 6). Of
            TransINR: groups (weight groups a layer, its Table 2). Of INRCT: losses (which there
            are, and the training scheduler, its Table 5).
        run: how it is carried out.
        source: what it is trained on.
        out: the folder of the runs, the table and the pictures; runs/ablate/RECIPE-OVER if not
            given.
    """

    recipe: Annotated[RecipeKind, arg(name="")]
    over: Over
    run: Annotated[RunOptions, arg(name="")] = field(default_factory=RunOptions)
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)
    out: Path | None = None


def usage() -> str:
    """The recipes that have ablations."""
    lines = [
        f"  {name:<22}  {about}"
        for name, (about, value) in RECIPES.items()
        if type(value) in _DEFAULTS
    ]
    return "\n".join(
        [
            "usage: ginr-fast ablate RECIPE --over WHAT [options]",
            "",
            "recipes:",
            *lines,
            "",
            "ginr-fast ablate RECIPE --help lists what can be varied, and the recipe's options.",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name = arguments[0] if arguments else ""
    chosen = recipe(name)
    if type(chosen) not in _DEFAULTS:
        systems = ", ".join(kind.system for kind in _DEFAULTS)
        raise ValueError(f"recipe: expected one of {systems}, got {name}")
    over = _DEFAULTS[type(chosen)]
    kind: Any = AblateArguments[type(chosen)]  # type: ignore[misc]  # known when it runs
    given = common.parse(kind, arguments[1:], f"ablate {name}", default=kind(chosen, over))
    out = given.out or Path("runs/ablate") / f"{name}-{given.over}"

    def started(entry: Entry, finished: bool) -> None:
        print(f"{entry.name}: {'trained before' if finished else 'training'}", flush=True)

    entries = variants(given.recipe, given.over)
    results = compare(entries, given.source, out, given.run, started)
    from rich.console import Console

    samples = ", distance of samples" if isinstance(chosen, InrctRecipe) else ""
    title = f"{name}, {given.over}: PSNR of held-out images{samples}"
    Console().print(table(results, title))
    written = [
        write_csv(results, out / "results.csv"),
        draw(results, out / "psnr.png", title),
        draw_reconstructions(results, given.recipe, out / "reconstructions.png", given.source),
    ]
    print(f"written: {', '.join(map(str, written))}")
