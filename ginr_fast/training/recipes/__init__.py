"""Recipes: everything that determines what a training run ends with, as typed values."""

from __future__ import annotations

from collections.abc import Mapping

from ginr_fast.training.recipes.audio import AUDIO_RECIPES, AudioIpcRecipe
from ginr_fast.training.recipes.base import (
    Precision,
    Recipe,
    as_plain,
    differences,
    from_plain,
)
from ginr_fast.training.recipes.ffnet import FFNET_RECIPES, FfnetRecipe
from ginr_fast.training.recipes.images import ImagesRecipe
from ginr_fast.training.recipes.inrct import INRCT_RECIPES, ConsistencyRecipe, InrctRecipe
from ginr_fast.training.recipes.inrct_scenes import INRCT_SCENES_RECIPES, InrctScenesRecipe
from ginr_fast.training.recipes.ipc import IPC_RECIPES, IpcRecipe
from ginr_fast.training.recipes.la_ginr import LA_GINR_RECIPES, LaGinrRecipe
from ginr_fast.training.recipes.latent_diffusion import (
    LATENT_DIFFUSION_RECIPES,
    LatentDiffusionRecipe,
    MnifDiffusionRecipe,
    TokenDiffusionRecipe,
)
from ginr_fast.training.recipes.learned_init import (
    LEARNED_INIT_RECIPES,
    LearnedInitImagesRecipe,
    LearnedInitRecipe,
    LearnedInitScenesRecipe,
)
from ginr_fast.training.recipes.mnif import (
    MNIF_RECIPES,
    AutoDecodingConfig,
    MnifImagesRecipe,
    MnifRecipe,
    MnifScenesRecipe,
    MnifVoxelsRecipe,
)
from ginr_fast.training.recipes.trans_inr import TRANS_INR_RECIPES, TransInrRecipe
from ginr_fast.training.recipes.views import (
    VIEWS_RECIPES,
    IpcLightFieldRecipe,
    IpcViewsRecipe,
    LaGinrLightFieldRecipe,
    TransInrViewsRecipe,
    ViewsRecipe,
)

__all__ = [
    "FFNET_RECIPES",
    "INRCT_RECIPES",
    "INRCT_SCENES_RECIPES",
    "LATENT_DIFFUSION_RECIPES",
    "LEARNED_INIT_RECIPES",
    "MNIF_RECIPES",
    "RECIPES",
    "VIEWS_RECIPES",
    "AudioIpcRecipe",
    "AutoDecodingConfig",
    "ConsistencyRecipe",
    "FfnetRecipe",
    "ImagesRecipe",
    "InrctRecipe",
    "InrctScenesRecipe",
    "IpcLightFieldRecipe",
    "IpcRecipe",
    "IpcViewsRecipe",
    "LaGinrLightFieldRecipe",
    "LaGinrRecipe",
    "LatentDiffusionRecipe",
    "LearnedInitImagesRecipe",
    "LearnedInitRecipe",
    "LearnedInitScenesRecipe",
    "MnifDiffusionRecipe",
    "MnifImagesRecipe",
    "MnifRecipe",
    "MnifScenesRecipe",
    "MnifVoxelsRecipe",
    "Precision",
    "Recipe",
    "TokenDiffusionRecipe",
    "TransInrRecipe",
    "TransInrViewsRecipe",
    "ViewsRecipe",
    "as_plain",
    "differences",
    "from_plain",
    "recipe",
]

RECIPES: Mapping[str, tuple[str, Recipe]] = {
    **LA_GINR_RECIPES,
    **TRANS_INR_RECIPES,
    **IPC_RECIPES,
    **AUDIO_RECIPES,
    **LEARNED_INIT_RECIPES,
    **MNIF_RECIPES,
    **VIEWS_RECIPES,
    **FFNET_RECIPES,
    **LATENT_DIFFUSION_RECIPES,
    **INRCT_RECIPES,
    **INRCT_SCENES_RECIPES,
}


def recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        ValueError: no such recipe; the message lists the names.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name][1]
