"""Latents of untrained models and recipes of their diffusion, for several test files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from small_training import MNIF_MODEL, MODEL

from ginr_fast.generation.denoisers import ResidualMlpConfig, TokenDenoiserConfig
from ginr_fast.generation.diffusion import DiffusionConfig
from ginr_fast.generation.latents import About
from ginr_fast.generation.latents_writer import write_latents
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.systems.mnif import Mnif
from ginr_fast.training.recipes import as_plain
from ginr_fast.training.recipes.latent_diffusion import MnifDiffusionRecipe, TokenDiffusionRecipe

DDIM = DiffusionConfig(sampler="ddim", steps=10)
VECTORS = MnifDiffusionRecipe(
    denoiser=ResidualMlpConfig(width=24, blocks=1, time_dim=8),
    stages=("mnif-images",),
    diffusion=DDIM,
    ema_decay=0.9,
    steps=6,
    batch_size=8,
    learning_rate=1e-2,
)
TOKENS = TokenDiffusionRecipe(
    denoiser=TokenDenoiserConfig(width=16, blocks=1, heads=2),
    stages=("la-ginr",),
    diffusion=replace(DDIM, guidance=2.0),
    class_dropout=0.5,
    steps=6,
    batch_size=8,
    learning_rate=1e-2,
)


def latents_file(path: Path, tokens: bool = False) -> Path:
    """Latents of an untrained stage 1, in two clusters; tokens have three classes."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    shape = (16, 24) if tokens else (8,)
    drawn = torch.randn(40, *shape, generator=rng) * 0.1
    drawn += torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0).view(-1, *[1] * len(shape))
    names = [str(number) for number in range(40)]
    if tokens:
        about = About("la-ginr", {"model": as_plain(MODEL)}, classes=("a", "b", "c"))
        labels = [number % 3 for number in range(40)]
        write_latents(path, [drawn], names, about, LaGinr(MODEL).state_dict(), labels)
    else:
        about = About("mnif-images", {"model": as_plain(MNIF_MODEL), "image_size": 16})
        write_latents(path, [drawn], names, about, Mnif(MNIF_MODEL).state_dict())
    return path
