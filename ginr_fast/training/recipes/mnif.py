"""Recipes of mNIF ("Generative Neural Fields by Mixtures of Neural Implicit Functions", A.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ginr_fast.data.views import ViewConfig
from ginr_fast.ops.checks import check_count
from ginr_fast.systems.mnif import MNIF_SIZES, MnifConfig
from ginr_fast.systems.mnif_adaptation import CaviaConfig
from ginr_fast.training.recipes.base import Recipe


@dataclass(frozen=True)
class AutoDecodingConfig:
    """Latents trained beside the model (Algorithm 2), and fitted to new instances.

    Args:
        learning_rate: of the latents, as a multiple of the recipe's.
        weight_decay: factor of ½‖φ‖² in the loss, for each instance of the batch.
        fit_steps: gradient steps on the latent of an instance that training never saw.
        fit_learning_rate: of these steps, at the first one.

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 1.0
    weight_decay: float = 1e-4
    fit_steps: int = 200
    fit_learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        check_count("fit_steps", self.fit_steps)
        for name in ("learning_rate", "fit_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected above 0, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: expected at least 0, got {self.weight_decay}")


@dataclass(frozen=True)
class MnifRecipe(Recipe):
    """How an mNIF is trained (NeurIPS 2023, Appendix A.2).

    Args:
        adaptation: cavia: latents by a few gradient steps, and the model trained through them
            (Algorithm 1); auto-decoding: latents trained beside it (Algorithm 2).
        cavia: of the inner loop.
        auto_decoding: of the latents.
        latent_std: σ of the latents that training, or the inner loop, starts from.
        output_learning_rate: of the bases' last layer, as a multiple of the recipe's.
        model: the sizes of the model.
        precision: 32-true.

    Raises:
        ValueError: a value out of range, neither ``epochs`` nor ``steps``, or mixed precision.
    """

    adaptation: Literal["cavia", "auto-decoding"] = "cavia"
    cavia: CaviaConfig = field(default_factory=CaviaConfig)
    auto_decoding: AutoDecodingConfig = field(default_factory=AutoDecodingConfig)
    latent_std: float = 1e-4
    output_learning_rate: float = 1.0
    model: MnifConfig = field(default_factory=MnifConfig)

    modality: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.modality != self.modality:
            raise ValueError(
                f"model.modality: expected {self.modality!r}, got {self.model.modality!r}"
            )
        if self.adaptation not in ("cavia", "auto-decoding"):
            raise ValueError(
                f"adaptation: expected 'cavia' or 'auto-decoding', got {self.adaptation!r}"
            )
        if not 0 < self.output_learning_rate < math.inf:
            raise ValueError(
                f"output_learning_rate: expected above 0, got {self.output_learning_rate}"
            )
        if not 0 <= self.latent_std < math.inf:
            raise ValueError(f"latent_std: expected at least 0, got {self.latent_std}")
        if self.precision != "32-true":
            raise ValueError(
                f"precision: the phases of sine networks need '32-true', got {self.precision!r}"
            )


@dataclass(frozen=True)
class MnifImagesRecipe(MnifRecipe):
    """How an mNIF of images is trained (Appendix A.2.1); see :class:`MnifRecipe`.

    Args:
        image_size: height and width of the images, in pixels.
        coordinates: pixels that a training step decodes, the same ones for the whole batch; all if
            None.
        views: how images are cut. Meta-learning sees other views in every epoch; auto-decoding
            trains on fixed ones.
        training_views: (auto-decoding, views.kind crops) how many.
    """

    system: ClassVar[str] = "mnif-images"
    modality: ClassVar[str] = "image"

    model: MnifConfig = field(default_factory=MnifConfig)
    image_size: int = 64
    coordinates: int | None = None
    views: ViewConfig = field(default_factory=ViewConfig)
    training_views: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("image_size", self.image_size)
        check_count("training_views", self.training_views)
        check_count("coordinates", self.coordinates, optional=True)
        if self.coordinates is not None and self.coordinates > self.image_size**2:
            raise ValueError(
                f"coordinates: expected at most the {self.image_size**2} pixels of an image, "
                f"got {self.coordinates}"
            )


@dataclass(frozen=True)
class MnifVoxelsRecipe(MnifRecipe):
    """How an mNIF of voxel shapes is trained (Appendix A.2.2); see :class:`MnifRecipe`.

    Args:
        points: points of a shape a step.
        resolution: sampling resolution of the points in the file, 16, 32 or 64.
        made_shapes: shapes that are made to train on if no file is named; 0 for none.
        made_held_out: and to evaluate with.
        made_points: points of each.
    """

    system: ClassVar[str] = "mnif-voxels"
    modality: ClassVar[str] = "voxels"

    model: MnifConfig = field(default_factory=lambda: MNIF_SIZES["voxels-s"])
    points: int = 4096
    resolution: int = 64
    made_shapes: int = 0
    made_held_out: int = 32
    made_points: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("points", "resolution", "made_points", "made_held_out"):
            check_count(name, getattr(self, name))
        if self.made_shapes < 0:
            raise ValueError(f"made_shapes: expected at least 0, got {self.made_shapes}")


@dataclass(frozen=True)
class MnifScenesRecipe(MnifRecipe):
    """How an mNIF of radiance fields is trained (Appendix A.2.3); see :class:`MnifRecipe`.

    Args:
        image_size: views are resized to this many pixels; as they are if None.
        views: of each scene a step.
        rays: of each of these views.
        jitter: move the samples of a ray within their intervals while training.
        made_scenes: scenes that are made to train on if no folder is named; 0 for none.
        made_views: views of each.
        made_held_out: scenes to evaluate with.
        novel_views: views of training scenes that are scored in an evaluation, at most.
    """

    system: ClassVar[str] = "mnif-scenes"
    modality: ClassVar[str] = "scene"

    model: MnifConfig = field(default_factory=lambda: MNIF_SIZES["scenes-s"])
    adaptation: Literal["cavia", "auto-decoding"] = "auto-decoding"
    image_size: int | None = None
    views: int = 32
    rays: int = 512
    jitter: bool = False
    made_scenes: int = 0
    made_views: int = 50
    made_held_out: int = 4
    novel_views: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("image_size", self.image_size, optional=True)
        for name in ("views", "rays", "made_views", "made_held_out", "novel_views"):
            check_count(name, getattr(self, name))
        if self.made_scenes < 0:
            raise ValueError(f"made_scenes: expected at least 0, got {self.made_scenes}")


_FACES = ViewConfig(kind="whole", held_out_views=3000)


def _celeba(size: str) -> MnifImagesRecipe:
    return MnifImagesRecipe(
        model=MNIF_SIZES[f"images-{size}"],
        views=_FACES,
        epochs=800,
        batch_size=32,
        schedule="cosine",
    )


def _shapenet(size: str) -> MnifVoxelsRecipe:
    return MnifVoxelsRecipe(
        model=MNIF_SIZES[f"voxels-{size}"],
        epochs=400,
        batch_size=32,
        schedule="cosine",
        gradient_clip=1.0,
    )


# Bases √M times as large make the first networks SIRENs, which learn soon, but also move an
# instance's network √M times as far with its latent: the steps of latents are smaller for it.
_IMAGES_TINY = MnifImagesRecipe(
    model=MnifConfig(hidden_layers=3, mixtures=64, latent_dim=192, initial_gain=8.0),
    cavia=CaviaConfig(inner_learning_rate=1 / 256),
    image_size=32,
    coordinates=256,
    views=ViewConfig(kind="crops", flip=True, shuffle_channels=True, held_out_views=192),
    steps=2000,
    batch_size=16,
    learning_rate=5e-4,
    warmup_steps=50,
    schedule="cosine",
    gradient_clip=1.0,
)

_VOXELS_TINY = MnifVoxelsRecipe(
    model=MnifConfig(
        "voxels", hidden_layers=3, mixtures=64, latent_dim=128, w0=20.0, initial_gain=8.0
    ),
    cavia=CaviaConfig(inner_learning_rate=1 / 512),
    latent_std=1e-3,
    resolution=32,
    made_shapes=256,
    points=256,
    steps=1500,
    batch_size=16,
    learning_rate=5e-4,
    warmup_steps=50,
    schedule="cosine",
    gradient_clip=1.0,
)

_SCENES_TINY = MnifScenesRecipe(
    model=MnifConfig(
        "scene",
        mixtures=64,
        latent_dim=64,
        w0=20.0,
        initial_gain=8.0,
        initial_color=0.5,
        initial_density=1.0,
    ),
    latent_std=1e-3,
    image_size=64,
    made_scenes=64,
    views=16,
    rays=16,
    jitter=True,
    output_learning_rate=10.0,
    auto_decoding=AutoDecodingConfig(learning_rate=0.5, fit_learning_rate=3e-3),
    steps=3000,
    batch_size=8,
    learning_rate=5e-4,
    warmup_steps=50,
    schedule="cosine",
)

MNIF_RECIPES: Mapping[str, tuple[str, MnifRecipe]] = {
    "mnif-images-tiny": ("32x32 crops of photographs, minutes on two CPU cores", _IMAGES_TINY),
    "mnif-images-celeba-s": ("CelebA-HQ, 64x64, mNIF (S), 800 epochs", _celeba("s")),
    "mnif-images-celeba-l": ("CelebA-HQ, 64x64, mNIF (L), 800 epochs", _celeba("l")),
    "mnif-voxels-tiny": ("synthetic furniture, minutes on two CPU cores", _VOXELS_TINY),
    "mnif-voxels-s": ("ShapeNet voxels, mNIF (S), 400 epochs", _shapenet("s")),
    "mnif-voxels-l": ("ShapeNet voxels, mNIF (L), 400 epochs", _shapenet("l")),
    "mnif-scenes-tiny": ("synthetic cars, 64x64, minutes on two CPU cores", _SCENES_TINY),
    "mnif-scenes-cars": (
        "SRN Cars, 128x128, mNIF (S), 2000 epochs",
        MnifScenesRecipe(epochs=2000, batch_size=8, schedule="cosine"),
    ),
}
