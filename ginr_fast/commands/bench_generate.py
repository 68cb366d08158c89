"""``ginr-fast bench generate``: what fast decoding is worth where samples are generated."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from ginr_fast.commands import common
from ginr_fast.generation.sampling import SamplingOptions
from ginr_fast.ops.checks import check_count
from ginr_fast.training.recipes.base import Precision

if TYPE_CHECKING:
    from ginr_fast.analysis.generation_speed import Comparison

_SIZE = 32


@dataclass(frozen=True)
class BenchGenerateArguments:
    """Time drawing samples and decoding them, and a training step, on both kinds of backends.

    The reference backend is what published code runs; it and the automatic one take turns, in the
    same precision, and ratios of medians are printed. The last column is ours over the reference in
    float32. What is drawn does not matter, so that recipes are timed untrained.

    Args:
        model: a generative recipe of INRCT, untrained; or the folder of a run, a .pt checkpoint, or
            exported .safetensors of any generative model.
        samples: drawn and decoded at once.
        size: height and width of the pictures, in pixels; those of training if not given.
        batch: instances of a training step (INRCT of images).
        precision: of both backends. auto is 32-true, and bf16-mixed too where the processor
            multiplies bfloat16 natively.
        rounds: how often each is timed.
        training: time a training step, too.
        sampling: how samples are drawn.
    """

    model: Positional[str] = "inrct-cifar10"
    samples: int = 64
    size: int | None = None
    batch: int = 8
    precision: Literal["auto"] | Precision = "auto"
    rounds: int = 3
    training: bool = True
    sampling: Annotated[SamplingOptions, arg(name="")] = field(default_factory=SamplingOptions)

    def __post_init__(self) -> None:
        for name in ("samples", "size", "batch", "rounds"):
            check_count(name, getattr(self, name), optional=True)


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(BenchGenerateArguments, arguments, "bench generate")
    from rich.console import Console
    from rich.table import Table

    model = opened(given.model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    title = f"{given.model}, {parameters / 1e6:.3g} million parameters, {common.best_device()}"
    table = Table(title=title)
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if index < 2 else "right")
    published: dict[str, float] = {}
    for what, precision, found in compared(model, given):
        if precision == "32-true":
            published[what] = found.reference.whole
        shares = [f"{cost.share:.0%}" for cost in (found.reference, found.ours)]
        ratios = [f"{ratio:.2f}x" for ratio in (found.decoder, found.whole)]
        over = f"{published[what] / found.ours.whole:.2f}x" if what in published else ""
        table.add_row(what, precision, *shares, *ratios, over)
    Console(width=120 if not sys.stdout.isatty() else None).print(table)


_COLUMNS = (
    "what",
    "precision",
    "decoding, reference",
    "decoding, ours",
    "decoder",
    "whole",
    "whole, over float32",
)


def opened(name: str) -> Any:
    """The model of a recipe, untrained, or of a run.

    Raises:
        ValueError: neither a recipe that can be built without data nor a file.
    """
    import torch

    from ginr_fast.training.generative import load_generative
    from ginr_fast.training.recipes import RECIPES, InrctRecipe, InrctScenesRecipe

    if Path(name).exists():
        return load_generative(name, common.best_device()).model
    recipe = RECIPES[name][1] if name in RECIPES else None
    if not isinstance(recipe, InrctRecipe | InrctScenesRecipe):
        kinds = InrctRecipe, InrctScenesRecipe
        known = ", ".join(each for each in RECIPES if isinstance(RECIPES[each][1], kinds))
        raise ValueError(f"model: expected a file or one of {known}, got {name!r}")
    torch.manual_seed(0)
    return recipe.build().to(common.best_device()).eval()


def compared(
    model: Any, given: BenchGenerateArguments
) -> Iterator[tuple[str, Precision, Comparison]]:
    """What was timed in words, its precision, and what was found."""
    from ginr_fast.analysis.decoded import own_size
    from ginr_fast.analysis.generation_speed import compare_generation, compare_training_step
    from ginr_fast.systems.inrct import Inrct

    if given.precision != "auto":
        precisions: list[Precision] = [given.precision]
    else:
        precisions = list(dict.fromkeys(("32-true", common.native_precision())))
    size = given.size or own_size(model) or _SIZE
    for precision in precisions:
        found = compare_generation(
            model, given.samples, size, given.sampling, precision, given.rounds
        )
        calls = model.evaluations(given.sampling)
        what = f"generate {given.samples} at {size}x{size}, NFE {calls}"
        yield what, precision, found
    if given.training and isinstance(model, Inrct):
        for precision in precisions:
            found = compare_training_step(model, given.batch, precision, given.rounds)
            yield f"training step, batch {given.batch}", precision, found
