"""Trained models that instances can be drawn from, without the data they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ginr_fast.training.checkpoints import CheckpointError, Saved, load_saved
from ginr_fast.training.recipes import InrctRecipe, InrctScenesRecipe, from_plain
from ginr_fast.training.tasks.latent_diffusion import (
    LATENT_DIFFUSION_SYSTEMS,
    load_latent_diffusion,
)

_INRCT: Mapping[str, Any] = {kind.system: kind for kind in (InrctRecipe, InrctScenesRecipe)}

GENERATIVE_SYSTEMS = (*_INRCT, *LATENT_DIFFUSION_SYSTEMS)
"""The systems that can generate."""


class Generator(NamedTuple):
    """A trained generative model.

    Args:
        model: a :class:`ginr_fast.generation.sampling.Generative` module in evaluation mode, with
            the average of its weights where training keeps one.
        saved: what its file holds.
    """

    model: Any
    saved: Saved


def load_generative(path: Path | str | Saved, device: torch.device | str = "cpu") -> Generator:
    """A trained generative model by itself, without its data.

    Args:
        path: the folder of a run, a .pt checkpoint, or exported .safetensors; or what
            :func:`~ginr_fast.training.checkpoints.load_saved` gave of it.
        device: where the model shall be.

    Raises:
        FileNotFoundError: nothing there.
        CheckpointError: damaged, without what it needs, or of a system that cannot generate; the
            message lists those that can.
    """
    saved = path if isinstance(path, Saved) else load_saved(path)
    if saved.system in LATENT_DIFFUSION_SYSTEMS:
        model: Any = load_latent_diffusion(saved)
    elif saved.system in _INRCT:
        try:
            model = from_plain(_INRCT[saved.system], {"steps": 1, **saved.recipe}).build()
        except (TypeError, ValueError) as error:
            raise saved.misfit(error) from None
        saved.restore(model)
    else:
        raise CheckpointError(
            f"{saved.path}: {saved.system} cannot generate; "
            f"expected one of {', '.join(GENERATIVE_SYSTEMS)}"
        )
    return Generator(model.to(device).eval(), saved)
