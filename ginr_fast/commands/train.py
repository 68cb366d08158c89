"""``ginr-fast train RECIPE``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from tyro.conf import arg

from ginr_fast.commands import common
from ginr_fast.training.loop import RunOptions, train
from ginr_fast.training.recipes import RECIPES, Recipe, recipe
from ginr_fast.training.tasks import DataOptions, open_data

RecipeKind = TypeVar("RecipeKind", bound=Recipe)


@dataclass(frozen=True)
class TrainArguments(Generic[RecipeKind]):
    """Train a model, or resume its training: the same command again goes on where it stopped.

    Args:
        recipe: what is trained and how.
        run: how it is carried out.
        source: what it is trained on.
        out: the folder of the run; runs/RECIPE if not given.
    """

    recipe: Annotated[RecipeKind, arg(name="")]
    run: Annotated[RunOptions, arg(name="")] = field(default_factory=RunOptions)
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)
    out: Path | None = None


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
    kind: Any = TrainArguments[type(chosen)]  # type: ignore[misc]  # known when it runs
    given = common.parse(kind, rest, f"train {name}", default=kind(recipe=chosen))
    data = open_data(given.recipe, given.source)
    result = train(given.recipe, data, given.out or Path("runs") / name, given.run)
    if result.is_main:
        print(f"{result.scores.summary()}\nweights: {result.weights}")
    sys.stdout.flush()
