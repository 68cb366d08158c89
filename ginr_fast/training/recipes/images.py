"""What recipes of images as latent tokens have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ginr_fast.data.views import ViewConfig
from ginr_fast.ops.checks import check_count
from ginr_fast.systems.image_inr import ImageConfig, ImageInr
from ginr_fast.training.recipes.base import Recipe


@dataclass(frozen=True)
class ImagesRecipe(Recipe):
    """How a model is trained to reconstruct images from the latent tokens it encodes them in.

    Args:
        model: the sizes of the model.
        views: how training and held-out views are cut from images.
        coordinates: pixels decoded a step, the same ones for the whole batch; all if None.
        subpixel: each coordinate is moved within its pixel, and its target interpolated
            (bicubic): what the model shows between pixel centres is then trained too.

    Raises:
        ValueError: a value out of range, or neither ``epochs`` nor ``steps``.
    """

    model: ImageConfig = field(default_factory=ImageConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    coordinates: int | None = None
    subpixel: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("coordinates", self.coordinates, optional=True)
        pixels = self.model.image_size**2
        if self.coordinates is not None and self.coordinates > pixels:
            raise ValueError(
                f"coordinates: expected at most the {pixels} pixels of an image, "
                f"got {self.coordinates}"
            )

    @abstractmethod
    def build(self) -> ImageInr:
        """The model, with starting values from the global random state."""


FACES = ViewConfig(kind="whole")
OBJECTS = ViewConfig(kind="whole", random_crop=True, flip=True)

# What the tiny recipes have in common: crops of photographs, minutes on two CPU cores.
TINY_ENCODER: Mapping[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "encoder_dim": 128,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "encoder_head_dim": 64,
    "encoder_mlp_dim": 512,
}
TINY_BUDGET: Mapping[str, Any] = {
    "views": ViewConfig(kind="crops", flip=True, shuffle_channels=True, held_out_views=192),
    "steps": 3000,
    "batch_size": 32,
    "coordinates": 256,
    "subpixel": True,
    "learning_rate": 2e-3,
    "warmup_steps": 100,
    "schedule": "cosine",
    "gradient_clip": 1.0,
}
