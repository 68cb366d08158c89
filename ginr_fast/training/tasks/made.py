"""Data that recipes make for themselves, once for all runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Protocol

from ginr_fast.data.cars import CarsConfig, make_cars
from ginr_fast.data.shapes import ShapesConfig, make_shapes
from ginr_fast.progress import progress_bar
from ginr_fast.training.recipes import MnifVoxelsRecipe

CACHE_VARIABLE = "GINR_FAST_CACHE"
# Held-out shapes are another draw; the training seed of made data is 0.
_HELD_OUT_SEED = 1
_NOVEL_VIEWS = 24


class MakesCars(Protocol):
    """What :func:`made_cars` needs of a recipe; 128 pixels if it has no ``image_size``."""

    @property
    def made_scenes(self) -> int: ...

    @property
    def made_views(self) -> int: ...

    @property
    def made_held_out(self) -> int: ...

    @property
    def image_size(self) -> int | None: ...


def cache_folder() -> Path:
    """Where made data is kept: ``GINR_FAST_CACHE``, or ginr_fast in the user's cache folder."""
    from ginr_fast import __version__

    given = os.environ.get(CACHE_VARIABLE)
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(given) if given else user / "ginr_fast") / __version__


def made_cars(recipe: MakesCars, data_format: Literal["srn", "learnit"] = "srn") -> Path:
    """The folder of the cars that a recipe trains on, made if it is not there."""
    config = CarsConfig(
        scenes=recipe.made_scenes,
        views=recipe.made_views,
        test_scenes=recipe.made_held_out,
        test_views=_NOVEL_VIEWS,
        size=recipe.image_size or 128,
        format=data_format,
    )
    sizes = f"{config.scenes}x{config.views}-{config.test_scenes}x{config.test_views}"
    kind = "cars" if data_format == "srn" else f"cars-{data_format}"
    out = cache_folder() / f"{kind}-{sizes}-{config.size}px"
    with progress_bar("making cars") as progress:
        return make_cars(out, config, progress)


def made_shapes(recipe: MnifVoxelsRecipe) -> tuple[Path, Path]:
    """The files of shapes that a recipe trains on and is evaluated with, made if not there."""
    files = []
    for name, count, seed in (
        ("train", recipe.made_shapes, 0),
        ("test", recipe.made_held_out, _HELD_OUT_SEED),
    ):
        config = ShapesConfig(count, recipe.made_points, recipe.resolution, seed)
        sizes = f"{config.shapes}x{config.points}-{config.resolution}"
        out = cache_folder() / f"shapes-{sizes}-{name}.hdf5"
        with progress_bar("making shapes") as progress:
            files.append(make_shapes(out, config, progress))
    return files[0], files[1]
