"""Recipes of INRCT of images (INRCT, Appendix B)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ginr_fast.data.views import ViewConfig
from ginr_fast.generation.consistency import ConsistencySchedule, Objective
from ginr_fast.ops.checks import check_count
from ginr_fast.systems.inrct import Inrct, InrctConfig
from ginr_fast.training.recipes.base import Recipe


@dataclass(frozen=True)
class ConsistencyRecipe(Recipe):
    """How any INRCT is trained; see :class:`Recipe`. The optimiser is RAdam.

    Args:
        objective: what is minimised; a loss is switched off by its weight.
        reconstruction_epochs: passes at first in which only the reconstruction loss counts, the
            efficient training scheduler; 0 switches it off.
        reconstruction_steps: the same in steps; takes precedence.
        averaging: μ, the highest decay of the average of weights that is the teacher and the
            model in the end; no average is taken in the first passes.

    Raises:
        ValueError: a value out of range, or neither ``epochs`` nor ``steps``.
    """

    batch_size: int = 128
    objective: Objective = field(default_factory=Objective)
    reconstruction_epochs: int = 0
    reconstruction_steps: int | None = None
    averaging: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reconstruction_epochs", "reconstruction_steps"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ValueError(f"{name}: expected an integer of at least 0, got {value!r}")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging: expected from 0 to below 1, got {self.averaging}")

    def first_steps(self, steps_per_epoch: int) -> int:
        """Steps in which only the reconstruction loss counts."""
        if self.reconstruction_steps is not None:
            return self.reconstruction_steps
        return self.reconstruction_epochs * steps_per_epoch


@dataclass(frozen=True)
class InrctRecipe(ConsistencyRecipe):
    """How an INRCT is trained on images; see :class:`ConsistencyRecipe`.

    Args:
        model: the sizes of the model.
        views: how training and held-out views are cut from images.
        made_images: pictures of coloured shapes that it draws and trains on if no data is named;
            0 for none.
        made_held_out: pictures of that kind to evaluate with.
        coordinates: pixels compared a step, the same ones for the whole batch; all if None.
        jitter: each coordinate is moved at random within this part of its pixel, 0 to 1, and the
            pixel's value stays the target (ANR): what the INR shows between pixel centres is then
            trained too.
        samples: drawn at each evaluation for the distance of their features from those of as many
            training images; 0 for none.

    Raises:
        ValueError: a value out of range, or neither ``epochs`` nor ``steps``.
    """

    system: ClassVar[str] = "inrct"

    model: InrctConfig = field(default_factory=InrctConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    made_images: int = 0
    made_held_out: int = 512
    coordinates: int | None = None
    jitter: float = 1.0
    samples: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("coordinates", self.coordinates, optional=True)
        pixels = self.model.image_size**2
        if self.coordinates is not None and self.coordinates > pixels:
            raise ValueError(
                f"coordinates: expected at most the {pixels} pixels of an image, "
                f"got {self.coordinates}"
            )
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter: expected from 0 to 1, got {self.jitter}")
        if not isinstance(self.made_images, int) or self.made_images < 0:
            raise ValueError(
                f"made_images: expected an integer of at least 0, got {self.made_images!r}"
            )
        check_count("made_held_out", self.made_held_out)
        if not isinstance(self.samples, int) or self.samples < 0 or self.samples == 1:
            raise ValueError(f"samples: expected 0 or at least 2, got {self.samples!r}")

    def build(self) -> Inrct:
        """The model, with starting values from the global random state."""
        return Inrct(self.model)


_TINY = InrctRecipe(
    model=InrctConfig(
        image_size=16,
        patch_size=4,
        dim=128,
        encoder_depth=3,
        decoder_depth=2,
        hyper_heads=4,
        hyper_head_dim=32,
        mlp_dim=256,
        token_self_attention=False,
        tokens=64,
        token_dim=64,
        hidden_dim=64,
        heads=2,
        head_dim=32,
        depth=3,
        max_frequency=8.0,
        # A small INR cannot take away the noise that c_skip lets through: a smaller σ lets less
        # through. Few steps: more of them at levels where pictures are decided, and a wider range
        # of those that count as clean.
        schedule=ConsistencySchedule(
            sigma_data=0.25,
            mean=-0.4,
            std=1.8,
            doubling=500,
            reconstruction_below=0.05,
            diffusion_below=0.2,
        ),
    ),
    views=ViewConfig(kind="whole", held_out_views=256),
    made_images=8192,
    steps=3000,
    reconstruction_steps=400,
    batch_size=32,
    coordinates=128,
    learning_rate=2e-3,
    warmup_steps=50,
    schedule="cosine",
    gradient_clip=1.0,
    averaging=0.99,
    samples=512,
)

INRCT_RECIPES: Mapping[str, tuple[str, InrctRecipe]] = {
    "inrct-tiny": ("16x16 coloured shapes that it draws, minutes on two CPU cores", _TINY),
    "inrct-cifar10": (
        "CIFAR-10, 32x32, 1725 epochs",
        InrctRecipe(
            # Eight stages in the 1600 epochs of consistency training, as many as ECT has.
            model=InrctConfig(schedule=ConsistencySchedule(doubling=78_000)),
            views=ViewConfig(kind="whole", held_out_views=10_000),
            epochs=1725,
            reconstruction_epochs=125,
        ),
    ),
    "inrct-celebahq": (
        "CelebA-HQ, 64x64, 2125 epochs",
        InrctRecipe(
            model=InrctConfig(image_size=64, schedule=ConsistencySchedule(doubling=52_500)),
            views=ViewConfig(kind="whole", held_out_views=3000),
            epochs=2125,
            reconstruction_epochs=125,
        ),
    ),
}
