"""FFNet as a task: one network fitted to one image, and scored on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ginr_fast.coords import grid
from ginr_fast.data.images import ImageFiles
from ginr_fast.data.photos import HELD_OUT, photos
from ginr_fast.data.views import HeldOutViews, ViewConfig
from ginr_fast.pictures import save_png
from ginr_fast.systems.ffnet import Ffnet
from ginr_fast.training.images import comparison
from ginr_fast.training.losses import reconstruction_loss
from ginr_fast.training.metrics import psnr_each, ssim_each
from ginr_fast.training.recipes import FfnetRecipe, as_plain
from ginr_fast.training.tasks.base import (
    DataOptions,
    EvaluationOptions,
    StepLoss,
    Table,
    Task,
    step_loader,
)
from ginr_fast.training.tasks.images import choose_coordinates


class Photograph(NamedTuple):
    """The image that is fitted.

    Args:
        name: of its file.
        pixels: ``(3, S, S)``, uint8.
    """

    name: str
    pixels: Tensor


@dataclass(frozen=True)
class FitScores:
    """How well the image is fitted.

    Args:
        name: of the image.
        psnr: in dB.
        ssim: structural similarity; NaN for images below 11×11 pixels.
    """

    name: str
    psnr: float
    ssim: float

    def summary(self) -> str:
        """One line for the user."""
        return f"{self.name} itself: PSNR {self.psnr:.2f} dB, SSIM {self.ssim:.4f}"

    def values(self) -> dict[str, float]:
        """Numbers by name, for the log."""
        return {"psnr": self.psnr, "ssim": self.ssim}


def photograph(path: Path, size: int) -> Photograph:
    """An image file as a square of ``size`` pixels from its middle.

    Raises:
        FileNotFoundError, BrokenImageError: no such file, or no image.
    """
    views = HeldOutViews(ImageFiles(path.parent, (), (path,)), ViewConfig(kind="whole"), size)
    return Photograph(path.name, views[0])


class FfnetTask(Task):
    """One image, by heart.

    Args:
        recipe: how it is fitted.
        data: the image.
    """

    own_data = "scikit-image's astronaut"
    model: Ffnet

    def __init__(self, recipe: FfnetRecipe, data: Photograph) -> None:
        self.recipe, self.data = recipe, data

    @classmethod
    def open(cls, recipe: FfnetRecipe, options: DataOptions) -> Photograph:
        """The image that is named, or a photograph that comes with scikit-image.

        Raises:
            ValueError, FileNotFoundError: a folder, or no image.
        """
        path = options.data or photos().root / HELD_OUT[0]
        if path.is_dir():
            raise ValueError(f"data: expected one image file, got the folder {path}")
        return photograph(path, recipe.image_size)

    def fingerprint(self) -> str:
        return hashlib.sha256(self.data.pixels.numpy().tobytes()).hexdigest()

    def steps_per_epoch(self) -> int:
        return 1

    def build(self) -> nn.Module:
        self.model = Ffnet(self.recipe.model)
        return self.model

    def place(self, device: torch.device) -> None:
        size = self.recipe.image_size
        self.device = device
        self.image = self.data.pixels[None].to(device).float() / 255
        self.pixels = grid(size, size, device=device).tensor().reshape(-1, 2)
        self.values = self.image.flatten(2).transpose(1, 2)
        # The same in every step, if all pixels are seen.
        everything = self.recipe.coordinates is None
        self.features = self.model.features(self.pixels) if everything else None

    def batches(
        self, first: int, last: int, slots: range, workers: int, pin_memory: bool
    ) -> Iterable[Tensor]:
        recipe = self.recipe
        if recipe.coordinates is None:
            return (torch.empty(0) for _ in range(first, last))
        pixels = recipe.image_size**2
        choose = partial(choose_coordinates, recipe.seed, pixels=pixels, count=recipe.coordinates)
        return step_loader(choose, first, last, workers, pin_memory)

    def loss(self, forward: Callable[..., Any], batch: Tensor, step: int, slots: range) -> StepLoss:
        if self.features is not None:
            features, values = self.features, self.values
        else:
            features = self.model.features(self.pixels[batch])
            values = self.values[:, batch]
        loss = reconstruction_loss(forward(features), values)
        return StepLoss(loss, loss)

    def evaluate(self, rank: int, world: int) -> Tensor:
        found = self._fitted()
        scores = [psnr_each(found, self.image), ssim_each(found, self.image)]
        return torch.cat(scores).double() / world

    def scores(self, sums: Tensor) -> FitScores:
        psnr, ssim = sums.tolist()
        return FitScores(self.data.name, psnr, ssim)

    def picture(self, step: int) -> Image.Image:
        return comparison([self.image, self._fitted()], ["image", f"fitted in {step} steps"])

    def metadata(self) -> dict[str, Any]:
        return {"recipe": as_plain(self.recipe)}

    def table(self, options: EvaluationOptions) -> Table:
        scores, size = self.scores(self.evaluate(0, 1)), self.recipe.image_size
        if options.picture is not None:
            save_png(comparison([self.image, self._fitted()], ["image", "fitted"]), options.picture)
        columns = ("image", "size", "PSNR (dB)", "SSIM")
        row = (scores.name, f"{size}x{size}", f"{scores.psnr:.2f}", f"{scores.ssim:.4f}")
        return Table(columns, [row])

    def _fitted(self) -> Tensor:
        return self.model.reconstruct(self.image)
