"""Recipes of TransINR for images (ECCV 2022, arXiv 2208.02801, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ginr_fast.systems.trans_inr import TransInr, TransInrConfig
from ginr_fast.training.recipes.images import (
    FACES,
    OBJECTS,
    TINY_BUDGET,
    TINY_ENCODER,
    ImagesRecipe,
)


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


_TINY = TransInrRecipe(
    model=TransInrConfig(
        **TINY_ENCODER,
        hidden_dim=128,
        frequencies=32,
        bandwidth=16.0,
        groups=16,
    ),
    **TINY_BUDGET,
)

TRANS_INR_RECIPES: Mapping[str, tuple[str, TransInrRecipe]] = {
    "trans-inr-tiny": ("32x32 crops of photographs, minutes on two CPU cores", _TINY),
    "trans-inr-celeba": (
        "CelebA, 178x178, 300 epochs",
        TransInrRecipe(views=FACES, epochs=300, schedule="step"),
    ),
    "trans-inr-imagenette": (
        "ImageNette, 178x178, 4000 epochs",
        TransInrRecipe(views=OBJECTS, epochs=4000, schedule="step"),
    ),
}
