"""Stage-1 models of latent diffusion, built from what a file of latents holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.systems.mnif import Mnif
from ginr_fast.training.recipes import (
    IpcRecipe,
    LaGinrRecipe,
    MnifImagesRecipe,
    MnifRecipe,
    MnifScenesRecipe,
    MnifVoxelsRecipe,
    Recipe,
    TransInrRecipe,
    from_plain,
)

STAGE_SYSTEMS: Mapping[str, type[Recipe]] = {
    kind.system: kind
    for kind in (
        MnifImagesRecipe,
        MnifVoxelsRecipe,
        MnifScenesRecipe,
        LaGinrRecipe,
        TransInrRecipe,
        IpcRecipe,
    )
}
"""The systems whose latents can be exported, and how they are trained."""


def build_stage(
    system: str, recipe: Mapping[str, Any], weights: Mapping[str, torch.Tensor] | None
) -> Mnif | ImageInr:
    """A stage-1 model, on the CPU, in evaluation mode.

    Args:
        system: its system.
        recipe: how it was trained, as plain values.
        weights: its ``state_dict``; None leaves it untrained.

    Raises:
        ValueError: no such system, or weights that do not fit.
    """
    if system not in STAGE_SYSTEMS:
        known = ", ".join(STAGE_SYSTEMS)
        raise ValueError(f"stage 1: expected one of {known}, got {system!r}")
    try:
        chosen: Any = from_plain(STAGE_SYSTEMS[system], {"steps": 1, **recipe})
        stage = Mnif(chosen.model) if isinstance(chosen, MnifRecipe) else chosen.build()
        if weights is not None:
            stage.load_state_dict(dict(weights))
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"stage 1: {system} does not fit this version: {reason}") from None
    return stage.eval()
