"""Recipes of latent diffusion: mNIF's stage 2 (Appendix A.3) and LA-GINR's tokens (A.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ginr_fast.generation.denoisers import ResidualMlpConfig, TokenDenoiserConfig
from ginr_fast.generation.diffusion import DiffusionConfig
from ginr_fast.ops.checks import check_count
from ginr_fast.training.recipes.base import Recipe

_IMAGES = ("la-ginr", "trans-inr", "ipc")


@dataclass(frozen=True)
class LatentDiffusionRecipe(Recipe):
    """How a diffusion model of exported latents is trained.

    Args:
        stages: systems that the latents may be of.
        diffusion: schedule of the noise, and sampler.
        conditional: tell the network the classes of latents that have some.
        class_dropout: share of the classes that training hides from the network.
        ema_decay: of the average of the weights that samples come from.
        validation: latents that training leaves out, to be scored with; a twentieth at most.

    Raises:
        ValueError: a value out of range, or neither ``epochs`` nor ``steps``.
    """

    stages: tuple[str, ...] = ()
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    conditional: bool = False
    class_dropout: float = 0.1
    ema_decay: float = 0.9999
    validation: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("validation", self.validation)
        for name in ("class_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 0, below 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class MnifDiffusionRecipe(LatentDiffusionRecipe):
    """How a diffusion model of mNIF's latent vectors is trained (NeurIPS 2023, Appendix A.3).

    Args:
        denoiser: the sizes of the residual MLP.
        conditional: tell the network the classes of latents that have some; the published models
            are unconditional.
    """

    system: ClassVar[str] = "mnif-diffusion"

    denoiser: ResidualMlpConfig = field(default_factory=ResidualMlpConfig)


@dataclass(frozen=True)
class TokenDiffusionRecipe(LatentDiffusionRecipe):
    """How a diffusion model of latent tokens is trained (LA-GINR, arXiv:2310.05624, Appendix A.3).

    The published AdamW has no weight decay, and so is the Adam of all recipes.

    Args:
        denoiser: the sizes of the Transformer.
        diffusion: schedule of the noise, sampler and guidance.
        class_dropout: share of the classes that training hides, for classifier-free guidance.
    """

    system: ClassVar[str] = "token-diffusion"

    conditional: bool = True
    denoiser: TokenDenoiserConfig = field(default_factory=TokenDenoiserConfig)


def _mnif(stage: str) -> MnifDiffusionRecipe:
    return MnifDiffusionRecipe(
        stages=(stage,), epochs=1000, batch_size=32, learning_rate=1e-4, schedule="cosine"
    )


_MNIF_TINY = MnifDiffusionRecipe(
    denoiser=ResidualMlpConfig(width=256, blocks=3, time_dim=64),
    stages=("mnif-images", "mnif-voxels", "mnif-scenes"),
    diffusion=DiffusionConfig(sampler="ddim", steps=50),
    ema_decay=0.999,
    steps=5000,
    batch_size=64,
    learning_rate=2e-3,
    warmup_steps=100,
    schedule="cosine",
    gradient_clip=1.0,
)

_TOKENS_TINY = TokenDiffusionRecipe(
    denoiser=TokenDenoiserConfig(width=128, blocks=4, heads=4),
    stages=_IMAGES,
    diffusion=DiffusionConfig(sampler="ddim", steps=50, guidance=1.5),
    ema_decay=0.999,
    steps=3000,
    batch_size=32,
    learning_rate=1e-3,
    warmup_steps=100,
    schedule="cosine",
    gradient_clip=1.0,
)

LATENT_DIFFUSION_RECIPES: Mapping[str, tuple[str, LatentDiffusionRecipe]] = {
    "mnif-diffusion-tiny": ("exported latents of an mNIF, minutes on two CPU cores", _MNIF_TINY),
    "mnif-celebahq-diffusion": (
        "exported latents of CelebA-HQ under mNIF (S) or (L), 1000 epochs",
        _mnif("mnif-images"),
    ),
    "mnif-voxels-diffusion": (
        "exported latents of ShapeNet voxels under mNIF (S) or (L), 1000 epochs",
        _mnif("mnif-voxels"),
    ),
    "mnif-cars-diffusion": (
        "exported latents of SRN Cars under mNIF (S), 1000 epochs",
        _mnif("mnif-scenes"),
    ),
    "la-ginr-diffusion-tiny": (
        "exported tokens of images, minutes on two CPU cores",
        _TOKENS_TINY,
    ),
    "la-ginr-imagenet-diffusion": (
        "exported tokens of ImageNet, 256x256, under LA-GINR, 400 epochs",
        TokenDiffusionRecipe(
            stages=_IMAGES,
            diffusion=DiffusionConfig(sampler="ddim", steps=250, guidance=2.5),
            epochs=400,
            batch_size=256,
            learning_rate=1e-4,
        ),
    ),
}
