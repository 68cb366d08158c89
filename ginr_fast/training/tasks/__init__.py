"""Systems as the training loop sees them: one task a system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ginr_fast.training.recipes import (
    AudioIpcRecipe,
    FfnetRecipe,
    InrctRecipe,
    InrctScenesRecipe,
    IpcLightFieldRecipe,
    IpcRecipe,
    IpcViewsRecipe,
    LaGinrLightFieldRecipe,
    LaGinrRecipe,
    LearnedInitImagesRecipe,
    LearnedInitScenesRecipe,
    MnifDiffusionRecipe,
    MnifImagesRecipe,
    MnifScenesRecipe,
    MnifVoxelsRecipe,
    Recipe,
    TokenDiffusionRecipe,
    TransInrRecipe,
    TransInrViewsRecipe,
    from_plain,
)
from ginr_fast.training.tasks.audio import AudioIpcTask
from ginr_fast.training.tasks.base import DataOptions, EvaluationOptions, Task
from ginr_fast.training.tasks.ffnet import FfnetTask
from ginr_fast.training.tasks.images import ImagesTask
from ginr_fast.training.tasks.inrct_images import InrctImagesTask
from ginr_fast.training.tasks.inrct_scenes import InrctScenesTask
from ginr_fast.training.tasks.latent_diffusion import LatentDiffusionTask
from ginr_fast.training.tasks.learned_init_images import LearnedInitImagesTask
from ginr_fast.training.tasks.learned_init_scenes import LearnedInitScenesTask
from ginr_fast.training.tasks.mnif_images import MnifImagesTask
from ginr_fast.training.tasks.mnif_scenes import MnifScenesTask
from ginr_fast.training.tasks.mnif_voxels import MnifVoxelsTask
from ginr_fast.training.tasks.views import ViewsTask

if TYPE_CHECKING:
    from ginr_fast.training.checkpoints import Saved

__all__ = [
    "SYSTEMS",
    "DataOptions",
    "EvaluationOptions",
    "Task",
    "open_data",
    "restored",
    "task_for",
]

SYSTEMS: Mapping[str, tuple[type[Recipe], type[Task]]] = {
    LaGinrRecipe.system: (LaGinrRecipe, ImagesTask),
    TransInrRecipe.system: (TransInrRecipe, ImagesTask),
    IpcRecipe.system: (IpcRecipe, ImagesTask),
    AudioIpcRecipe.system: (AudioIpcRecipe, AudioIpcTask),
    LearnedInitImagesRecipe.system: (LearnedInitImagesRecipe, LearnedInitImagesTask),
    LearnedInitScenesRecipe.system: (LearnedInitScenesRecipe, LearnedInitScenesTask),
    MnifImagesRecipe.system: (MnifImagesRecipe, MnifImagesTask),
    MnifVoxelsRecipe.system: (MnifVoxelsRecipe, MnifVoxelsTask),
    MnifScenesRecipe.system: (MnifScenesRecipe, MnifScenesTask),
    TransInrViewsRecipe.system: (TransInrViewsRecipe, ViewsTask),
    IpcViewsRecipe.system: (IpcViewsRecipe, ViewsTask),
    LaGinrLightFieldRecipe.system: (LaGinrLightFieldRecipe, ViewsTask),
    IpcLightFieldRecipe.system: (IpcLightFieldRecipe, ViewsTask),
    FfnetRecipe.system: (FfnetRecipe, FfnetTask),
    MnifDiffusionRecipe.system: (MnifDiffusionRecipe, LatentDiffusionTask),
    TokenDiffusionRecipe.system: (TokenDiffusionRecipe, LatentDiffusionTask),
    InrctRecipe.system: (InrctRecipe, InrctImagesTask),
    InrctScenesRecipe.system: (InrctScenesRecipe, InrctScenesTask),
}


def open_data(recipe: Recipe, options: DataOptions | None = None) -> Any:
    """The data a recipe is for.

    Raises:
        ValueError, FileNotFoundError: there is none, or it is broken; the message says what.
    """
    return SYSTEMS[recipe.system][1].open(recipe, options or DataOptions())


def task_for(recipe: Recipe, data: Any) -> Task:
    """The task of a recipe.

    Args:
        recipe: how its system is trained.
        data: what :func:`open_data` gives for it.
    """
    make: Any = SYSTEMS[recipe.system][1]
    return make(recipe, data)


def restored(saved: Saved, options: DataOptions, device: torch.device) -> Task:
    """The task of a trained model, its model in evaluation mode on a device.

    Args:
        saved: what its file holds.
        options: which data it is for.
        device: where the model shall be.

    Raises:
        CheckpointError: of no system known here, or its contents do not fit.
        ValueError, FileNotFoundError: see :func:`open_data`.
    """
    if saved.system not in SYSTEMS:
        raise saved.misfit(ValueError(f"expected one of {', '.join(SYSTEMS)}, got {saved.system}"))
    kind = SYSTEMS[saved.system][0]
    try:
        # An export may hold less than the whole recipe: how long training took is not among it.
        recipe = from_plain(kind, {"steps": 1, **saved.recipe})
    except (TypeError, ValueError) as error:
        raise saved.misfit(error) from None
    task = task_for(recipe, open_data(recipe, options))
    model = task.build()
    saved.restore(model)
    model.to(device).eval()
    task.place(device)
    return task
