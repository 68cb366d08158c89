"""A model and a recipe small enough to train in a second, for several test files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from ginr_fast.data import ViewConfig
from ginr_fast.systems.la_ginr import LaGinrConfig
from ginr_fast.training.loop import RunOptions
from ginr_fast.training.recipes import LaGinrRecipe

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
QUIET = RunOptions(
    accelerator="cpu", checkpoint_every=2, evaluate_every=3, progress=False, tensorboard=False
)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights a run exported."""
    return load_file(folder / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal, bit for bit."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )
