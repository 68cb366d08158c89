"""Recipes of Learned Init (arXiv:2012.02189, its code tancik/learnit, and kakaobrain/ginr-ipc)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ginr_fast.data.views import ViewConfig
from ginr_fast.ops.checks import check_count
from ginr_fast.systems.learned_init import LearnedInitConfig
from ginr_fast.training.recipes.base import Recipe


@dataclass(frozen=True)
class LearnedInitRecipe(Recipe):
    """How an initialisation is meta-learned: Adam's settings are the outer loop's.

    Args:
        model: the field and its inner loop.

    Raises:
        ValueError: a value out of range, neither ``epochs`` nor ``steps``, or mixed precision.
    """

    model: LearnedInitConfig = field(default_factory=LearnedInitConfig)

    modality: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.modality != self.modality:
            raise ValueError(
                f"model.modality: expected {self.modality!r}, got {self.model.modality!r}"
            )
        if self.precision != "32-true":
            raise ValueError(
                f"precision: gradients of gradients need '32-true', got {self.precision!r}"
            )


@dataclass(frozen=True)
class LearnedInitImagesRecipe(LearnedInitRecipe):
    """How an initialisation of images is meta-learned; see :class:`LearnedInitRecipe`.

    Args:
        image_size: height and width of the images, in pixels.
        coordinates: pixels that a training step decodes, the same ones for the whole batch and all
            inner steps; all if None.
        views: how training and held-out views are cut from images.
    """

    system: ClassVar[str] = "learned-init-images"
    modality: ClassVar[str] = "image"

    image_size: int = 178
    coordinates: int | None = None
    views: ViewConfig = field(default_factory=ViewConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("image_size", self.image_size)
        check_count("coordinates", self.coordinates, optional=True)
        pixels = self.image_size**2
        if self.coordinates is not None and self.coordinates > pixels:
            raise ValueError(
                f"coordinates: expected at most the {pixels} pixels of an image, "
                f"got {self.coordinates}"
            )


@dataclass(frozen=True)
class LearnedInitScenesRecipe(LearnedInitRecipe):
    """How an initialisation of radiance fields is meta-learned; see :class:`LearnedInitRecipe`.

    Args:
        image_size: views are resized to this many pixels; as they are if None.
        views: of each scene a step.
        rays: of each of these views. Each inner step, and the outer loss if the order has one, sees
            an equal part of them.
        jitter: move the samples of a ray within their intervals while training.
        known_views: views of a held-out scene that its field is fitted to when it is scored during
            training; the others are scored.
        scored_views: how many of these, over all held-out scenes.
        made_scenes: scenes that are made to train on if no folder is named; 0 for none.
        made_views: views of each.
        made_held_out: scenes to evaluate with.
    """

    system: ClassVar[str] = "learned-init-scenes"
    modality: ClassVar[str] = "scene"

    model: LearnedInitConfig = field(default_factory=lambda: LearnedInitConfig("scene"))
    image_size: int | None = None
    views: int = 32
    rays: int = 128
    jitter: bool = True
    known_views: int = 8
    scored_views: int = 32
    made_scenes: int = 0
    made_views: int = 50
    made_held_out: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("image_size", self.image_size, optional=True)
        for name in (
            "views",
            "rays",
            "known_views",
            "scored_views",
            "made_views",
            "made_held_out",
        ):
            check_count(name, getattr(self, name))
        if self.made_scenes < 0:
            raise ValueError(f"made_scenes: expected at least 0, got {self.made_scenes}")
        if self.views * self.rays < self.parts:
            raise ValueError(
                f"views, rays: expected at least {self.parts} rays of a scene, one for each part "
                f"of a step, got {self.views * self.rays}"
            )

    @property
    def parts(self) -> int:
        """Parts that a step's rays are divided in: inner steps and, but with Reptile, the loss."""
        return self.model.inner_steps + (self.model.order != "reptile")


# tancik/learnit, meta_demo.ipynb: a SIREN on coordinates in [0, 1), MAML with two steps of SGD.
_CELEBA = LearnedInitImagesRecipe(
    model=LearnedInitConfig(
        activation="sine",
        w0=200.0,
        frequencies=0,
        inner_learning_rate=0.01,
        normalize_weights=False,
        scale=0.5,
    ),
    views=ViewConfig(kind="whole"),
    steps=150_000,
    batch_size=3,
    learning_rate=1e-5,
)

# kakaobrain/ginr-ipc, imagenette178_learned_init.yaml.
_IMAGENETTE = LearnedInitImagesRecipe(
    views=ViewConfig(kind="whole", random_crop=True, flip=True), epochs=800
)

# tancik/learnit, shapenet.ipynb: Reptile, 32 steps of 128 rays. Its cameras are 4 away from the
# object, those of SRN Cars 1.3: scaled, near, far, frequencies and densities mean the same.
_CARS = LearnedInitScenesRecipe(
    model=LearnedInitConfig(
        "scene",
        hidden_layers=4,
        frequencies=20,
        bandwidth=256.0,
        order="reptile",
        inner_steps=32,
        inner_learning_rate=0.5,
        normalize_weights=False,
        scale=4 / 1.3,
    ),
    steps=100_000,
    batch_size=1,
    learning_rate=5e-4,
)

_IMAGES_TINY = LearnedInitImagesRecipe(
    model=LearnedInitConfig(
        hidden_dim=64,
        frequencies=16,
        bandwidth=16.0,
        step_sizes="layer",
        inner_learning_rate=0.03,
    ),
    image_size=32,
    coordinates=256,
    views=ViewConfig(kind="crops", flip=True, shuffle_channels=True, held_out_views=192),
    steps=1500,
    batch_size=16,
    learning_rate=5e-3,
    warmup_steps=50,
    schedule="cosine",
    gradient_clip=1.0,
)

_CARS_TINY = LearnedInitScenesRecipe(
    model=LearnedInitConfig(
        "scene",
        hidden_dim=64,
        frequencies=8,
        bandwidth=16.0,
        order="reptile",
        inner_steps=16,
        inner_learning_rate=0.5,
        normalize_weights=False,
        samples=32,
        scale=4 / 1.3,
    ),
    image_size=64,
    made_scenes=64,
    views=16,
    rays=128,
    steps=500,
    batch_size=4,
    learning_rate=4e-3,
    warmup_steps=20,
    schedule="cosine",
)

LEARNED_INIT_RECIPES: Mapping[str, tuple[str, LearnedInitRecipe]] = {
    "learned-init-tiny": ("32x32 crops of photographs, minutes on two CPU cores", _IMAGES_TINY),
    "learned-init-celeba": ("CelebA, 178x178, MAML of a SIREN, 150000 steps", _CELEBA),
    "learned-init-imagenette": ("ImageNette, 178x178, MAML, 800 epochs", _IMAGENETTE),
    "learned-init-cars-tiny": ("synthetic cars, 64x64, minutes on two CPU cores", _CARS_TINY),
    "learned-init-cars": ("SRN Cars, 128x128, Reptile, 100000 steps", _CARS),
}
