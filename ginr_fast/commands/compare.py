"""``ginr-fast compare``: the decoders of LA-GINR, IPC and TransINR under one budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ginr_fast.commands import common
from ginr_fast.ops.checks import check_count
from ginr_fast.systems.image_inr import ImageConfig
from ginr_fast.training.comparison import Entry, compare
from ginr_fast.training.comparison_shown import draw, draw_reconstructions, table, write_csv
from ginr_fast.training.loop import RunOptions
from ginr_fast.training.recipes import ImagesRecipe, LaGinrRecipe, recipe
from ginr_fast.training.recipes.base import Precision
from ginr_fast.training.tasks.base import DataOptions

# LA-GINR's Table 1, CelebA at 178x178 (arXiv:2310.05624); columns of the others as it has them.
_PUBLISHED = {"LA-GINR": 50.74, "IPC": 35.93, "TransINR": 33.33}
_TINY_TOKENS = 67  # what TransINR's tiny field takes: 4 layers of 16 groups, and 3


@dataclass(frozen=True)
class CompareArguments:
    """Train the decoders of LA-GINR, IPC and TransINR under one budget and compare them.

    All three get the same encoder, as many latent tokens of the same width, the same images, steps,
    learning rate and coordinates: the paper's Table 1 (LA-GINR, arXiv:2310.05624) in small. The
    same command again goes on where it stopped.

    Args:
        out: the folder of the runs and of the results.
        steps: optimiser steps of each.
        seed: of the starting weights and the training views.
        precision: auto takes bfloat16 where the processor multiplies it natively.
        source: the images; photographs that scikit-image ships if none are named.
        run: how the runs are carried out.
    """

    out: Path = Path("runs/compare")
    steps: int = 3000
    seed: int = 0
    precision: Literal["auto"] | Precision = "auto"
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)
    run: Annotated[RunOptions, arg(name="")] = field(default_factory=RunOptions)


def entries(steps: int, seed: int, precision: Precision) -> list[Entry]:
    """The three, with one encoder, one number of tokens and one budget.

    Args:
        steps: optimiser steps.
        seed: of the starting weights and the training views.
        precision: see :class:`ginr_fast.training.recipes.Recipe`.
    """
    local = recipe("la-ginr-tiny")
    assert isinstance(local, LaGinrRecipe)
    encoder = {one.name: getattr(local.model, one.name) for one in fields(ImageConfig)}
    budget = {
        one.name: getattr(local, one.name) for one in fields(ImagesRecipe) if one.name != "model"
    }
    budget.update(steps=steps, seed=seed, precision=precision)
    budget["warmup_steps"] = min(local.warmup_steps, steps // 10)
    sizes: dict[str, dict[str, Any]] = {
        "la-ginr": {"latents": _TINY_TOKENS},
        "ipc": {"latents": _TINY_TOKENS},
        "trans-inr": {},
    }
    found = []
    for (system, own), name in zip(sizes.items(), _PUBLISHED, strict=True):
        chosen = recipe(f"{system}-tiny")
        assert isinstance(chosen, ImagesRecipe)
        model: Any = chosen.model
        model = replace(model, **encoder, **own, token_dim=local.model.token_dim)
        found.append(Entry(name, replace(chosen, model=model, **budget), _PUBLISHED[name]))
    return found


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(CompareArguments, arguments, "compare")
    check_count("steps", given.steps)
    precision: Precision = (
        common.native_precision() if given.precision == "auto" else given.precision
    )
    chosen = entries(given.steps, given.seed, precision)

    def started(entry: Entry, finished: bool) -> None:
        print(f"{entry.name}: {'trained before' if finished else 'training'}", flush=True)

    results = compare(chosen, given.source, given.out, given.run, started)
    from rich.console import Console

    about = f"{given.steps} steps, {precision}; held-out images"
    Console().print(table(results, about))
    pictures = [
        draw(results, given.out / "psnr.png", f"PSNR of held-out images after {given.steps} steps"),
        draw_reconstructions(
            results, chosen[0].recipe, given.out / "reconstructions.png", given.source
        ),
    ]
    written = [write_csv(results, given.out / "results.csv"), *pictures]
    print(f"written: {', '.join(map(str, written))}")
