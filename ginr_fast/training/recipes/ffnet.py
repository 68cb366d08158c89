"""Recipes of FFNet, a network fitted to one image (arXiv:2006.10739; its authors' sizes)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ginr_fast.ops.checks import check_count
from ginr_fast.systems.ffnet import FfnetConfig
from ginr_fast.training.recipes.base import Recipe


@dataclass(frozen=True)
class FfnetRecipe(Recipe):
    """How an FFNet is fitted to one image; a "batch" is that image.

    Args:
        model: the sizes of the network.
        image_size: the image is reduced until its shorter side has this many pixels, and a square
            cut from its middle.
        coordinates: pixels a step; all if None.

    Raises:
        ValueError: a value out of range, or neither ``epochs`` nor ``steps``.
    """

    system: ClassVar[str] = "ffnet"

    model: FfnetConfig = field(default_factory=FfnetConfig)
    batch_size: int = 1
    image_size: int = 256
    coordinates: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("image_size", self.image_size)
        check_count("coordinates", self.coordinates, optional=True)
        if self.batch_size != 1:
            raise ValueError(
                f"batch_size: expected 1, as there is one image, got {self.batch_size}"
            )
        pixels = self.image_size**2
        if self.coordinates is not None and self.coordinates > pixels:
            raise ValueError(
                f"coordinates: expected at most the {pixels} pixels of the image, "
                f"got {self.coordinates}"
            )


FFNET_RECIPES: Mapping[str, tuple[str, FfnetRecipe]] = {
    "ffnet-tiny": (
        "one image at 64x64, seconds on two CPU cores",
        FfnetRecipe(
            model=FfnetConfig(hidden_dim=128, features=128),
            image_size=64,
            steps=300,
            learning_rate=1e-3,
        ),
    ),
    "ffnet": (
        "one image at 256x256, the baseline of LA-GINR's Figure 7",
        FfnetRecipe(steps=2000, learning_rate=1e-3),
    ),
}
