"""Recipes of few-shot view synthesis: TransINR, IPC and LA-GINR on posed views of objects.

Sizes and schedules: TransINR (ECCV 2022, section 4.2) and its code, IPC's code, LA-GINR
(arXiv:2310.05624, Appendix A.2).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from ginr_fast.ops.checks import check_count
from ginr_fast.systems.light_fields import (
    IpcLightField,
    IpcLightFieldConfig,
    LaGinrLightField,
    LaGinrLightFieldConfig,
)
from ginr_fast.systems.radiance_views import (
    IpcViews,
    IpcViewsConfig,
    TransInrViews,
    TransInrViewsConfig,
)
from ginr_fast.systems.view_synthesis import ViewInr, ViewInrConfig
from ginr_fast.training.recipes.base import Recipe

SceneFormat = Literal["learnit", "srn"]


@dataclass(frozen=True)
class ViewsRecipe(Recipe):
    """How a model is trained to show a scene from new places, given a few posed views of it.

    Args:
        model: the sizes of the model.
        data_format: of the scenes' files: learnit (LearnIt-ShapeNet) or srn (SRN Cars and Chairs).
        category: (learnit) of the objects: cars, chairs, lamps.
        training_views: only the first views of a training scene are used; all if None.
        support: support views a scene is known by.
        any_support: in each step they are any number from 1 to that, drawn at random.
        queries: other views of it that a step asks for.
        rays: pixels of these views, for each scene.
        foreground_balanced_epochs: in so many first epochs half of the pixels are not white.
        episodes_per_scene: how often an epoch takes each scene.
        scored_views: views of held-out scenes scored in an evaluation during training, at most.
        made_scenes: scenes that are made to train on if no folder is named; 0 for none.
        made_views: views of each.
        made_held_out: scenes to evaluate with.
        batch_size: scenes a step, over all devices.

    Raises:
        ValueError: a value out of range, or neither ``epochs`` nor ``steps``.
    """

    model: ViewInrConfig = field(default_factory=ViewInrConfig)
    batch_size: int = 32
    data_format: SceneFormat = "learnit"
    category: str = "cars"
    training_views: int | None = 25
    support: int = 1
    any_support: bool = False
    queries: int = 1
    rays: int = 128
    foreground_balanced_epochs: int = 1
    episodes_per_scene: int = 1
    scored_views: int = 64
    made_scenes: int = 0
    made_views: int = 50
    made_held_out: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_format not in get_args(SceneFormat):
            raise ValueError(f"data_format: expected 'learnit' or 'srn', got {self.data_format!r}")
        for name in (
            "support",
            "queries",
            "rays",
            "episodes_per_scene",
            "scored_views",
            "made_views",
            "made_held_out",
        ):
            check_count(name, getattr(self, name))
        check_count("training_views", self.training_views, optional=True)
        for name in ("made_scenes", "foreground_balanced_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        asked = self.support + self.queries
        if self.training_views is not None and asked > self.training_views:
            raise ValueError(
                f"support, queries: expected together at most the {self.training_views} "
                f"training_views, got {self.support} and {self.queries}"
            )
        pixels = self.queries * self.model.image_size**2
        if self.rays > pixels:
            raise ValueError(
                f"rays: expected at most the {pixels} pixels of the query views, got {self.rays}"
            )

    @property
    def image_size(self) -> int:
        """Height and width that views are resized to: those the model encodes."""
        return self.model.image_size

    @abstractmethod
    def build(self) -> ViewInr:
        """The model, with starting values from the global random state."""


@dataclass(frozen=True)
class TransInrViewsRecipe(ViewsRecipe):
    """How a TransINR of radiance fields is trained; see :class:`ViewsRecipe`.

    Args:
        model: the sizes of the model.
    """

    system: ClassVar[str] = "trans-inr-nerf"

    model: TransInrViewsConfig = field(default_factory=TransInrViewsConfig)

    def build(self) -> TransInrViews:
        return TransInrViews(self.model)


@dataclass(frozen=True)
class IpcViewsRecipe(ViewsRecipe):
    """How an IPC of radiance fields is trained; see :class:`ViewsRecipe`.

    Args:
        model: the sizes of the model.
    """

    system: ClassVar[str] = "ipc-nerf"

    model: IpcViewsConfig = field(default_factory=IpcViewsConfig)

    def build(self) -> IpcViews:
        return IpcViews(self.model)


@dataclass(frozen=True)
class LaGinrLightFieldRecipe(ViewsRecipe):
    """How an LA-GINR of light fields is trained; see :class:`ViewsRecipe`.

    Args:
        model: the sizes of the model.
    """

    system: ClassVar[str] = "la-ginr-lightfield"

    model: LaGinrLightFieldConfig = field(default_factory=LaGinrLightFieldConfig)

    def build(self) -> LaGinrLightField:
        return LaGinrLightField(self.model)


@dataclass(frozen=True)
class IpcLightFieldRecipe(ViewsRecipe):
    """How an IPC of light fields is trained; see :class:`ViewsRecipe`.

    Args:
        model: the sizes of the model.
    """

    system: ClassVar[str] = "ipc-lightfield"

    model: IpcLightFieldConfig = field(default_factory=IpcLightFieldConfig)

    def build(self) -> IpcLightField:
        return IpcLightField(self.model)


# How often an epoch takes each object, in the code of TransINR and IPC.
_EPISODES = {"cars": 2, "chairs": 1, "lamps": 3}


def _published() -> dict[str, tuple[str, ViewsRecipe]]:
    recipes: dict[str, tuple[str, ViewsRecipe]] = {}
    for category, episodes in _EPISODES.items():
        lamps = category == "lamps"
        data = f"LearnIt-ShapeNet {category}, 128x128"
        recipes[f"trans-inr-nerf-{category}"] = (
            f"{data}, volume rendering, 1000 epochs",
            TransInrViewsRecipe(
                category=category, episodes_per_scene=episodes, epochs=1000, schedule="step"
            ),
        )
        epochs = 400 if lamps else 1000
        recipes[f"ipc-nerf-{category}"] = (
            f"{data}, volume rendering, {epochs} epochs",
            IpcViewsRecipe(category=category, episodes_per_scene=episodes, epochs=epochs),
        )
        epochs = 500 if lamps else 1000
        recipes[f"la-ginr-lightfield-{category}"] = (
            f"{data}, light fields, {epochs} epochs",
            LaGinrLightFieldRecipe(category=category, episodes_per_scene=episodes, epochs=epochs),
        )
        recipes[f"ipc-lightfield-{category}"] = (
            f"{data}, light fields, {epochs} epochs",
            IpcLightFieldRecipe(category=category, episodes_per_scene=episodes, epochs=epochs),
        )
    return recipes


_ENCODER: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "encoder_dim": 128,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "encoder_head_dim": 64,
    "encoder_mlp_dim": 512,
}
_RADIANCE: dict[str, Any] = {
    **_ENCODER,
    "samples": 32,
    "hidden_dim": 64,
    "hidden_layers": 2,
    "frequencies": 6,
    "bandwidth": 8.0,
}
_TRAINING: dict[str, Any] = {
    "made_scenes": 96,
    "made_views": 24,
    "made_held_out": 8,
    "training_views": None,
    "support": 3,
    "any_support": True,
    "queries": 4,
    "rays": 256,
    "steps": 2000,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "warmup_steps": 100,
    "schedule": "cosine",
    "gradient_clip": 1.0,
}
_TINY = {
    "trans-inr-nerf-tiny": TransInrViewsRecipe(
        model=TransInrViewsConfig(**_RADIANCE, groups=16), **_TRAINING
    ),
    "ipc-nerf-tiny": IpcViewsRecipe(model=IpcViewsConfig(**_RADIANCE, latents=64), **_TRAINING),
    "la-ginr-lightfield-tiny": LaGinrLightFieldRecipe(
        model=LaGinrLightFieldConfig(
            **_ENCODER, latents=64, token_dim=128, hidden_dim=128, feature_dim=132
        ),
        **_TRAINING,
    ),
    "ipc-lightfield-tiny": IpcLightFieldRecipe(
        model=IpcLightFieldConfig(**_ENCODER, hidden_dim=128, frequencies=11, latents=64),
        **_TRAINING,
    ),
}

VIEWS_RECIPES: Mapping[str, tuple[str, ViewsRecipe]] = {
    **{name: ("synthetic cars, 32x32, minutes on two CPU cores", _TINY[name]) for name in _TINY},
    **_published(),
}
