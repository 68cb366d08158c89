"""Recipes: everything that determines what a training run ends with, as typed values."""

from __future__ import annotations

from collections.abc import Mapping

from ginr_fast.training.recipes.base import (
    Precision,
    Recipe,
    as_plain,
    differences,
    from_plain,
)
from ginr_fast.training.recipes.la_ginr import LA_GINR_RECIPES, LaGinrRecipe
from ginr_fast.training.recipes.mnif import (
    MNIF_RECIPES,
    AutoDecodingConfig,
    MnifImagesRecipe,
    MnifRecipe,
    MnifScenesRecipe,
    MnifVoxelsRecipe,
)

__all__ = [
    "MNIF_RECIPES",
    "RECIPES",
    "AutoDecodingConfig",
    "LaGinrRecipe",
    "MnifImagesRecipe",
    "MnifRecipe",
    "MnifScenesRecipe",
    "MnifVoxelsRecipe",
    "Precision",
    "Recipe",
    "as_plain",
    "differences",
    "from_plain",
    "recipe",
]

RECIPES: Mapping[str, tuple[str, Recipe]] = {**LA_GINR_RECIPES, **MNIF_RECIPES}


def recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        ValueError: no such recipe; the message lists the names.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name][1]
