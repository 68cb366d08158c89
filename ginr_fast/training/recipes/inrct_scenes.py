"""Recipes of INRCT of radiance fields (Appendices B.3 and C.2 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ginr_fast.generation.consistency import ConsistencySchedule
from ginr_fast.systems.inrct_scenes import InrctScenes, InrctScenesConfig
from ginr_fast.training.recipes.inrct import ConsistencyRecipe
from ginr_fast.training.recipes.views import SceneFormat, ViewsRecipe


@dataclass(frozen=True)
class InrctScenesRecipe(ConsistencyRecipe, ViewsRecipe):
    """How an INRCT is trained to take a view of a scene to 3D, and noise to new scenes.

    A step sees one support and one query view of each scene; see :class:`ConsistencyRecipe` and
    :class:`ViewsRecipe`.

    Args:
        model: the sizes of the model.

    Raises:
        ValueError: a value out of range, several views, or neither ``epochs`` nor ``steps``.
    """

    system: ClassVar[str] = "inrct-nerf"

    model: InrctScenesConfig = field(default_factory=InrctScenesConfig)
    data_format: SceneFormat = "srn"
    training_views: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("support", "queries"):
            if getattr(self, name) != 1:
                raise ValueError(f"{name}: INRCT takes one view, got {getattr(self, name)}")

    def build(self) -> InrctScenes:
        return InrctScenes(self.model)


_TINY_MODEL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "encoder_dim": 128,
    "encoder_depth": 3,
    "decoder_depth": 2,
    "encoder_heads": 2,
    "encoder_head_dim": 64,
    "encoder_mlp_dim": 512,
    "samples": 24,
    "hidden_dim": 64,
    "hidden_layers": 2,
    "frequencies": 6,
    "bandwidth": 8.0,
    "groups": 16,
}
# A short training sees few instances: more of them have high levels, which generation starts from,
# and levels that are next to none for views so small.
_TINY_SCHEDULE = ConsistencySchedule(mean=-0.5, reconstruction_below=0.05, doubling=350)
_TINY = InrctScenesRecipe(
    model=InrctScenesConfig(**_TINY_MODEL, schedule=_TINY_SCHEDULE),
    reconstruction_steps=600,
    averaging=0.995,
    made_scenes=256,
    made_views=12,
    made_held_out=8,
    rays=128,
    steps=2000,
    batch_size=16,
    learning_rate=1e-3,
    warmup_steps=100,
    gradient_clip=1.0,
)

INRCT_SCENES_RECIPES: Mapping[str, tuple[str, InrctScenesRecipe]] = {
    "inrct-cars-tiny": ("synthetic cars, 32x32, minutes on two CPU cores", _TINY),
    "inrct-cars": (
        "SRN Cars, 128x128, volume rendering, 6000 epochs",
        InrctScenesRecipe(epochs=6000, reconstruction_epochs=1000),
    ),
}
