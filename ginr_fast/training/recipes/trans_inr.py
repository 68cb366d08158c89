"""Recipes of TransINR for images (ECCV 2022, arXiv 2208.02801, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ginr_fast.data.views import ViewConfig
from ginr_fast.systems.trans_inr import TransInr, TransInrConfig
from ginr_fast.training.recipes.images import ImagesRecipe


@dataclass(frozen=True)
class TransInrRecipe(ImagesRecipe):
    """How a TransINR is trained to reconstruct images; see :class:`ImagesRecipe`.

    Args:
        model: the sizes of the model.
    """

    system: ClassVar[str] = "trans-inr"

    model: TransInrConfig = field(default_factory=TransInrConfig)

    def build(self) -> TransInr:
        return TransInr(self.model)


_FACES = ViewConfig(kind="whole")
_OBJECTS = ViewConfig(kind="whole", random_crop=True, flip=True)

_TINY = TransInrRecipe(
    model=TransInrConfig(
        image_size=32,
        patch_size=4,
        encoder_dim=128,
        encoder_depth=2,
        encoder_heads=2,
        encoder_head_dim=64,
        encoder_mlp_dim=512,
        hidden_dim=128,
        frequencies=32,
        bandwidth=16.0,
        groups=16,
    ),
    views=ViewConfig(kind="crops", flip=True, shuffle_channels=True, held_out_views=192),
    steps=3000,
    batch_size=32,
    coordinates=256,
    subpixel=True,
    learning_rate=2e-3,
    warmup_steps=100,
    schedule="cosine",
    gradient_clip=1.0,
)

TRANS_INR_RECIPES: Mapping[str, tuple[str, TransInrRecipe]] = {
    "trans-inr-tiny": ("32x32 crops of photographs, minutes on two CPU cores", _TINY),
    "trans-inr-celeba": (
        "CelebA, 178x178, 300 epochs",
        TransInrRecipe(views=_FACES, epochs=300, schedule="step"),
    ),
    "trans-inr-imagenette": (
        "ImageNette, 178x178, 4000 epochs",
        TransInrRecipe(views=_OBJECTS, epochs=4000, schedule="step"),
    ),
}
