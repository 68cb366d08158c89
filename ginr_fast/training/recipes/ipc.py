"""Recipes of IPC for images (CVPR 2023, arXiv 2211.13223; sizes of its published code)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ginr_fast.data.views import ViewConfig
from ginr_fast.systems.ipc import Ipc, IpcConfig
from ginr_fast.training.recipes.images import ImagesRecipe


@dataclass(frozen=True)
class IpcRecipe(ImagesRecipe):
    """How an IPC is trained to reconstruct images; see :class:`ImagesRecipe`.

    Args:
        model: the sizes of the model.
    """

    system: ClassVar[str] = "ipc"

    model: IpcConfig = field(default_factory=IpcConfig)

    def build(self) -> Ipc:
        return Ipc(self.model)


_FACES = ViewConfig(kind="whole")
_OBJECTS = ViewConfig(kind="whole", random_crop=True, flip=True)

_TINY = IpcRecipe(
    model=IpcConfig(
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
        latents=64,
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

IPC_RECIPES: Mapping[str, tuple[str, IpcRecipe]] = {
    "ipc-tiny": ("32x32 crops of photographs, minutes on two CPU cores", _TINY),
    "ipc-celeba": ("CelebA, 178x178, 300 epochs", IpcRecipe(views=_FACES, epochs=300)),
    "ipc-ffhq": ("FFHQ, 178x178, 1000 epochs", IpcRecipe(views=_FACES, epochs=1000)),
    "ipc-imagenette": (
        "ImageNette, 178x178, 4000 epochs",
        IpcRecipe(model=IpcConfig(bandwidth=128.0), views=_OBJECTS, epochs=4000),
    ),
}
