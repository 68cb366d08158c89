"""A model and a recipe small enough to train in a second, for several test files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from ginr_fast.data import ViewConfig
from ginr_fast.systems.la_ginr import LaGinrConfig
from ginr_fast.systems.mnif import MnifConfig
from ginr_fast.systems.mnif_adaptation import CaviaConfig
from ginr_fast.training.loop import RunOptions
from ginr_fast.training.recipes import (
    LaGinrRecipe,
    MnifImagesRecipe,
    MnifRecipe,
    MnifScenesRecipe,
    MnifVoxelsRecipe,
)

MODEL = LaGinrConfig(
    image_size=16,
    patch_size=4,
    encoder_dim=32,
    encoder_depth=1,
    encoder_heads=2,
    encoder_head_dim=16,
    encoder_mlp_dim=48,
    latents=16,
    token_dim=24,
    hidden_dim=32,
    feature_dim=32,
    bandwidths=(8.0, 4.0),
    query_bandwidth=4.0,
)
RECIPE = LaGinrRecipe(
    model=MODEL,
    views=ViewConfig(kind="crops", flip=True, shuffle_channels=True, held_out_views=6),
    steps=6,
    batch_size=4,
    coordinates=64,
    subpixel=True,
    learning_rate=1e-3,
    warmup_steps=2,
    schedule="cosine",
    gradient_clip=1.0,
)
MNIF_MODEL = MnifConfig(hidden_layers=1, hidden_dim=16, mixtures=6, latent_dim=8, w0=10.0)
MNIF: dict[str, MnifRecipe] = {
    "images": MnifImagesRecipe(
        model=MNIF_MODEL,
        cavia=CaviaConfig(inner_learning_rate=0.1),
        image_size=16,
        coordinates=100,
        views=ViewConfig(kind="crops", flip=True, held_out_views=6),
        training_views=10,
        steps=6,
        batch_size=4,
        learning_rate=1e-3,
        gradient_clip=1.0,
    ),
    "voxels": MnifVoxelsRecipe(
        model=replace(MNIF_MODEL, modality="voxels"),
        cavia=CaviaConfig(inner_learning_rate=0.1),
        made_shapes=6,
        made_held_out=3,
        made_points=512,
        points=128,
        steps=6,
        batch_size=4,
        learning_rate=1e-3,
        gradient_clip=1.0,
    ),
    "scenes": MnifScenesRecipe(
        model=replace(MNIF_MODEL, modality="scene", samples=8),
        latent_std=0.1,
        image_size=12,
        made_scenes=4,
        made_views=6,
        made_held_out=2,
        novel_views=6,
        views=4,
        rays=16,
        jitter=True,
        steps=6,
        batch_size=4,
        learning_rate=1e-3,
    ),
}
QUIET = RunOptions(
    accelerator="cpu", checkpoint_every=2, evaluate_every=3, progress=False, tensorboard=False
)


class Stopped(Exception):
    """Ends a training early."""


def stop_at(last: int) -> Callable[[int, torch.Tensor], None]:
    """What to call after each step so that training ends with :class:`Stopped` in this one."""

    def stop(step: int, loss: torch.Tensor) -> None:
        if step == last:
            raise Stopped

    return stop


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights a run exported."""
    return load_file(folder / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal, bit for bit."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )
