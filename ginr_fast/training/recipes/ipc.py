"""Recipes of IPC for images (CVPR 2023, arXiv 2211.13223; sizes of its published code)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ginr_fast.systems.ipc import Ipc, IpcConfig
from ginr_fast.training.recipes.images import (
    FACES,
    OBJECTS,
    TINY_BUDGET,
    TINY_ENCODER,
    ImagesRecipe,
)


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


_TINY = IpcRecipe(
    model=IpcConfig(
        **TINY_ENCODER,
        hidden_dim=128,
        frequencies=32,
        bandwidth=16.0,
        latents=64,
    ),
    **TINY_BUDGET,
)

IPC_RECIPES: Mapping[str, tuple[str, IpcRecipe]] = {
    "ipc-tiny": ("32x32 crops of photographs, minutes on two CPU cores", _TINY),
    "ipc-celeba": ("CelebA, 178x178, 300 epochs", IpcRecipe(views=FACES, epochs=300)),
    "ipc-ffhq": ("FFHQ, 178x178, 1000 epochs", IpcRecipe(views=FACES, epochs=1000)),
    "ipc-imagenette": (
        "ImageNette, 178x178, 4000 epochs",
        IpcRecipe(model=IpcConfig(bandwidth=128.0), views=OBJECTS, epochs=4000),
    ),
}
