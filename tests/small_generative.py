"""Small untrained generative models of every kind, for several test files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from small_training import MNIF, MODEL, RECIPE
from torch import nn

import ginr_fast
from ginr_fast.generation.denoisers import ResidualMlpConfig, TokenDenoiserConfig
from ginr_fast.generation.diffusion import DiffusionConfig
from ginr_fast.systems.inrct import Inrct, InrctConfig
from ginr_fast.systems.inrct_scenes import InrctScenesConfig
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.systems.latent_diffusion import LatentDiffusion
from ginr_fast.systems.mnif import Mnif
from ginr_fast.training.checkpoints import WEIGHTS_NAME, write_export
from ginr_fast.training.recipes import (
    InrctRecipe,
    InrctScenesRecipe,
    MnifDiffusionRecipe,
    Recipe,
    TokenDiffusionRecipe,
    as_plain,
)

INRCT = InrctRecipe(
    model=InrctConfig(
        dim=32,
        encoder_depth=1,
        decoder_depth=1,
        hyper_heads=2,
        hyper_head_dim=16,
        mlp_dim=64,
        image_size=8,
        patch_size=2,
        tokens=16,
        token_dim=16,
        hidden_dim=32,
        heads=2,
        head_dim=16,
        depth=2,
        max_frequency=8.0,
    ),
    steps=1,
)
SCENES = InrctScenesRecipe(
    model=InrctScenesConfig(
        image_size=8,
        patch_size=4,
        encoder_dim=32,
        encoder_depth=1,
        decoder_depth=1,
        encoder_heads=2,
        encoder_head_dim=16,
        encoder_mlp_dim=64,
        samples=8,
        hidden_dim=16,
        hidden_layers=1,
        frequencies=4,
        bandwidth=4.0,
        groups=4,
    ),
    rays=16,
    steps=1,
)
TOKENS = TokenDiffusionRecipe(
    denoiser=TokenDenoiserConfig(width=32, blocks=1, heads=2),
    diffusion=DiffusionConfig(sampler="ddim", steps=3, guidance=2.0),
    steps=1,
)
LATENTS = MnifDiffusionRecipe(
    denoiser=ResidualMlpConfig(width=32, blocks=1, time_dim=16),
    diffusion=DiffusionConfig(steps=4),
    steps=1,
)
KINDS = ("inrct", "inrct-nerf", "mnif-images", "mnif-voxels", "mnif-scenes", "tokens")
CLASSES = ("cat", "dog", "owl")


def _diffusion(kind: str) -> tuple[Recipe, LatentDiffusion]:
    if kind == "tokens":
        stage: Mnif | LaGinr = LaGinr(MODEL)
        shape, classes = (MODEL.latents, MODEL.token_dim), list(CLASSES)
        recipe: MnifDiffusionRecipe | TokenDiffusionRecipe = TOKENS
        about = {"system": "la-ginr", "recipe": as_plain(RECIPE)}
    else:
        first = MNIF[kind.removeprefix("mnif-")]
        first = replace(first, model=replace(first.model, initial_gain=2.0, w0=3.0))
        stage, shape, classes, recipe = Mnif(first.model), (8,), [], LATENTS
        about = {"system": first.system, "recipe": as_plain(first)}
    denoiser = recipe.denoiser.build(shape, len(classes))
    about["classes"] = classes
    ones = torch.ones(shape)
    return recipe, LatentDiffusion(stage, denoiser, 0 * ones, ones, recipe.diffusion, about)


def build(kind: str) -> tuple[Recipe, nn.Module]:
    """A small untrained model, none of whose parts is silent, as they are where training begins."""
    torch.manual_seed(1)
    if kind == "inrct":
        recipe, model = INRCT, INRCT.build()
        silent: Sequence[nn.Module] = [model.hyper_network]
    elif kind == "inrct-nerf":
        recipe, model = SCENES, SCENES.build()
        silent = [model]
    else:
        recipe, model = _diffusion(kind)
        silent = [model.denoiser]
    for part in silent:
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.1)
    if isinstance(model, Inrct):
        _brighten(model)
    return recipe, model


@torch.no_grad()
def _brighten(model: Inrct) -> None:
    """Give the decoder colours that fill their range, and change from pixel to pixel."""
    for parameter in model.decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    where = ginr_fast.grid(24, 24)
    values = model.decoder(where, model.eval().draw(range(3))).flatten(0, 2)
    last = model.decoder.layers[-1]
    spread, middle = values.std(0) / 0.2, values.mean(0)
    last.weight.div_(spread[:, None])
    last.bias.sub_(middle).div_(spread)


def export(kind: str, folder: Path) -> Path:
    """A run's folder with the weights of a small untrained model."""
    recipe, model = build(kind)
    metadata = {"recipe": as_plain(recipe)}
    write_export(folder / WEIGHTS_NAME, recipe.system, metadata, model.state_dict())
    return folder
