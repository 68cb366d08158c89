"""``ginr-fast train RECIPE``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ginr_fast.commands import common
from ginr_fast.training.loop import RunOptions, train
from ginr_fast.training.recipes import RECIPES, LaGinrRecipe, recipe


@dataclass(frozen=True)
class TrainArguments:
    """Train a model, or resume its training: the same command again goes on where it stopped.

    Args:
        recipe: what is trained and how.
        run: how it is carried out.
        data: a folder of images; without it, the photographs that come with scikit-image.
        out: the folder of the run; runs/RECIPE if not given.
        held_out: fraction of the folder's images to hold out, unless it has train and val
            subfolders.
        strict: refuse broken and non-image files instead of skipping them with a warning.
    """

    recipe: Annotated[LaGinrRecipe, arg(name="")]
    run: Annotated[RunOptions, arg(name="")] = field(default_factory=RunOptions)
    data: Path | None = None
    out: Path | None = None
    held_out: float = 0.1
    strict: bool = False


def usage() -> str:
    """The recipes."""
    width = max(map(len, RECIPES))
    lines = [f"  {name:<{width}}  {about}" for name, (about, _) in RECIPES.items()]
    return "\n".join(
        [
            "usage: ginr-fast train RECIPE [options]",
            "",
            "recipes:",
            *lines,
            "",
            "ginr-fast train RECIPE --help lists the options with the recipe's values.",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        if not arguments:
            raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}")
        print(usage())
        return
    name, *rest = arguments
    chosen = recipe(name)
    given = common.parse(
        TrainArguments, rest, f"train {name}", default=TrainArguments(recipe=chosen)
    )
    if given.data is None and chosen.views.kind == "whole":
        raise ValueError(f"data: {name} trains on a folder of images; name it with --data")
    size = given.recipe.model.image_size
    files = common.images(given.data, given.recipe.views, size, given.strict, given.held_out)
    out = given.out or Path("runs") / name
    result = train(given.recipe, files, out, given.run)
    if result.is_main:
        scores = result.scores
        print(
            f"held-out PSNR: {scores.psnr:.2f} dB, SSIM: {scores.ssim:.4f} "
            f"({scores.images} images)\nweights: {result.weights}"
        )
    sys.stdout.flush()
