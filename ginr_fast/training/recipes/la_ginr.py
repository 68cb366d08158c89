"""Recipes of LA-GINR (arXiv:2310.05624, Appendix A.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ginr_fast.systems.la_ginr import LaGinr, LaGinrConfig
from ginr_fast.training.recipes.images import (
    FACES,
    OBJECTS,
    TINY_BUDGET,
    TINY_ENCODER,
    ImagesRecipe,
)


@dataclass(frozen=True)
class LaGinrRecipe(ImagesRecipe):
    """How an LA-GINR is trained to reconstruct images; see :class:`ImagesRecipe`.

    Args:
        model: the sizes of the model.
    """

    system: ClassVar[str] = "la-ginr"

    model: LaGinrConfig = field(default_factory=LaGinrConfig)

    def build(self) -> LaGinr:
        return LaGinr(self.model)


def _high_resolution(size: int, patch: int, heads: int, doubled: bool = False) -> LaGinrRecipe:
    model = LaGinrConfig(
        image_size=size,
        patch_size=patch,
        heads=heads,
        bandwidths=(256.0, 64.0) if doubled else (128.0, 32.0),
        query_bandwidth=32.0 if doubled else 16.0,
    )
    return LaGinrRecipe(model=model, views=FACES, epochs=400, coordinates=size**2 // 10)


_TINY = LaGinrRecipe(
    model=LaGinrConfig(
        **TINY_ENCODER,
        latents=64,
        token_dim=128,
        hidden_dim=128,
        feature_dim=128,
        bandwidths=(16.0, 4.0),
        query_bandwidth=4.0,
        heads=2,
    ),
    **TINY_BUDGET,
)

LA_GINR_RECIPES: Mapping[str, tuple[str, LaGinrRecipe]] = {
    "la-ginr-tiny": ("32x32 crops of photographs, minutes on two CPU cores", _TINY),
    "la-ginr-celeba": (
        "CelebA, 178x178, 300 epochs",
        LaGinrRecipe(views=FACES, epochs=300),
    ),
    "la-ginr-ffhq": (
        "FFHQ, 178x178, 1000 epochs",
        LaGinrRecipe(views=FACES, epochs=1000),
    ),
    "la-ginr-imagenette": (
        "ImageNette, 178x178, 4000 epochs",
        LaGinrRecipe(views=OBJECTS, epochs=4000),
    ),
    "la-ginr-imagenet-256": (
        "ImageNet, 256x256, 20 epochs",
        LaGinrRecipe(
            model=LaGinrConfig(image_size=256, patch_size=16, heads=8), views=OBJECTS, epochs=20
        ),
    ),
    "la-ginr-ffhq-256": ("FFHQ, 256x256, 400 epochs", _high_resolution(256, 16, 2)),
    "la-ginr-ffhq-512": ("FFHQ, 512x512, 400 epochs", _high_resolution(512, 32, 4)),
    "la-ginr-ffhq-1024": (
        "FFHQ, 1024x1024, 400 epochs",
        _high_resolution(1024, 48, 4, doubled=True),
    ),
}
