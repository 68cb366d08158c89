"""Square views of images: what a model is trained and evaluated on.

Which view a training step sees is a pure function of (seed, step, slot in the batch). Nothing has
to be remembered for a run to resume, and any number of processes agree without talking.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ginr_fast.data.images import (
    ImageFiles,
    StoredImage,
    load_image,
    pyramid,
    resize_shorter_side,
)

_HELD_OUT_SEED = 20231
_CROPS = 4096  # of training images


@dataclass(frozen=True)
class ViewConfig:
    """How square views are cut from images.

    Args:
        kind: whole: an image is reduced until its shorter side fits, and a square cut from it;
            crops: squares are cut from anywhere in it, at a random scale.
        random_crop: (whole) cut the square at a random place in training; else from the centre.
        max_scale: (crops) an image is reduced by up to this factor before a crop is cut, the
            logarithm of the factor being uniform from 1.
        shorter_side: (crops) images are first reduced to at most this many pixels on the shorter
            side, so that the detail in a crop does not depend on the camera.
        flip: mirror half of the training views, left to right.
        shuffle_channels: put the colour channels of a training view in random order, so that few
            photographs teach all colours.
        held_out_views: (crops) how many views to evaluate with, in equal parts from each held-out
            image; (whole) the number of held-out images used, at most.
    """

    kind: Literal["whole", "crops"] = "whole"
    random_crop: bool = False
    max_scale: float = 4.0
    shorter_side: int = 512
    flip: bool = False
    shuffle_channels: bool = False
    held_out_views: int = 1024

    def __post_init__(self) -> None:
        if self.kind not in ("whole", "crops"):
            raise ValueError(f"kind: expected 'whole' or 'crops', got {self.kind!r}")
        if not self.max_scale >= 1:
            raise ValueError(f"max_scale: expected a number of at least 1, got {self.max_scale}")
        if self.shorter_side < 1 or self.held_out_views < 1:
            raise ValueError("shorter_side, held_out_views: expected positive integers")


class _Levels:
    """Prepared images, least recently used ones dropped beyond ``max_bytes``."""

    def __init__(
        self,
        paths: tuple[Path | StoredImage, ...],
        config: ViewConfig,
        size: int,
        max_bytes: int = 1 << 30,
    ) -> None:
        self.paths, self.config, self.size, self.max_bytes = paths, config, size, max_bytes
        self.kept: OrderedDict[int, list[np.ndarray]] = OrderedDict()
        self.bytes = 0

    def __getitem__(self, index: int) -> list[np.ndarray]:
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        levels = self.kept[index] = self.prepare(self.paths[index])
        self.bytes += sum(level.nbytes for level in levels)
        while self.bytes > self.max_bytes and len(self.kept) > 1:
            _, dropped = self.kept.popitem(last=False)
            self.bytes -= sum(level.nbytes for level in dropped)
        return levels

    def prepare(self, path: Path | StoredImage) -> list[np.ndarray]:
        size, config = self.size, self.config
        if config.kind == "whole":
            return [resize_shorter_side(load_image(path, at_least=size), size)]
        image = load_image(path, at_least=config.shorter_side)
        if min(image.shape[:2]) > config.shorter_side >= size:
            image = resize_shorter_side(image, config.shorter_side)
        return pyramid(image, size, config.max_scale)


def _square(image: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    return image[top : top + size, left : left + size]


def _centre_square(image: np.ndarray, size: int) -> np.ndarray:
    return _square(image, (image.shape[0] - size) // 2, (image.shape[1] - size) // 2, size)


def _random_square(levels: list[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    level = levels[rng.integers(len(levels))]
    top = rng.integers(level.shape[0] - size + 1)
    left = rng.integers(level.shape[1] - size + 1)
    return _square(level, top, left, size)


def _as_tensor(view: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))


class TrainingViews(Dataset[torch.Tensor]):
    """Training views, indexed by ``(step, slot)``.

    Args:
        files: the images.
        config: how views are cut.
        size: height and width of a view, in pixels.
        batch_size: slots of a step, over all processes.
        seed: of the choices.

    A view is ``(3, size, size)``, uint8. ``"crops"`` draws images at random with equal chance;
    ``"whole"`` goes through a new permutation of them every epoch.
    """

    def __init__(
        self, files: ImageFiles, config: ViewConfig, size: int, batch_size: int, seed: int
    ) -> None:
        self.config, self.size, self.batch_size, self.seed = config, size, batch_size, seed
        self.count = len(files.train)
        self.levels = _Levels(files.train, config, size)
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def steps_per_epoch(self) -> int:
        """Steps in which every image is seen about once; at least one."""
        return max(1, self.count // self.batch_size)

    def __getitem__(self, where: tuple[int, int]) -> torch.Tensor:
        step, slot = where
        rng = np.random.default_rng((self.seed, step, slot))
        if self.config.kind == "crops":
            view = _random_square(self.levels[int(rng.integers(self.count))], self.size, rng)
        else:
            epoch, position = divmod(step * self.batch_size + slot, self.count)
            levels = self.levels[int(self._permutation(epoch)[position])]
            if self.config.random_crop:
                view = _random_square(levels, self.size, rng)
            else:
                view = _centre_square(levels[0], self.size)
        if self.config.flip and rng.integers(2):
            view = view[:, ::-1]
        if self.config.shuffle_channels:
            view = view[:, :, rng.permutation(3)]
        return _as_tensor(view)

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._epoch = (epoch, rng.permutation(self.count))
        return self._epoch[1]


class HeldOutViews(Dataset[torch.Tensor]):
    """The fixed views a model is evaluated with; the same in every run, whatever its seed.

    Args:
        files: the images.
        config: how views are cut; nothing is mirrored or shuffled here.
        size: height and width of a view, in pixels.

    A view is ``(3, size, size)``, uint8.
    """

    def __init__(self, files: ImageFiles, config: ViewConfig, size: int) -> None:
        self.config, self.size = config, size
        self.files = files.held_out
        self.levels = _Levels(files.held_out, config, size)

    def __len__(self) -> int:
        wanted = self.config.held_out_views
        return wanted if self.config.kind == "crops" else min(wanted, len(self.files))

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self.config.kind == "whole":
            return _as_tensor(_centre_square(self.levels[index][0], self.size))
        # Image after image, so that a data set larger than the cache is read once.
        levels = self.levels[index * len(self.files) // len(self)]
        rng = np.random.default_rng((_HELD_OUT_SEED, index))
        return _as_tensor(_random_square(levels, self.size, rng))


def still_views(
    files: ImageFiles, config: ViewConfig, size: int, crops: int | None = None
) -> HeldOutViews:
    """Views of training images, cut as held-out ones are: neither moved nor mirrored.

    Args:
        files: the images; all of ``files.train`` are used.
        config: how views are cut.
        size: height and width of a view, in pixels.
        crops: (crops) how many; 4,096 if None.
    """
    count = len(files.train) if config.kind == "whole" else crops or _CROPS
    files = replace(files, held_out=files.train)
    return HeldOutViews(files, replace(config, held_out_views=count), size)


class _Steps(Sampler[list[tuple[int, int]]]):
    """The ``(step, slot)`` pairs of one process, step by step."""

    def __init__(self, first: int, last: int, slots: range) -> None:
        self.steps, self.slots = range(first, last), slots

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(step, slot) for slot in self.slots] for step in self.steps)


def training_batches(
    views: TrainingViews, first: int, last: int, slots: range, workers: int, pin_memory: bool
) -> DataLoader[torch.Tensor]:
    """Batches of the steps ``first … last − 1``, ``(len(slots), 3, size, size)`` uint8 each.

    Args:
        views: what they are made of.
        first: the first step.
        last: one past the last step.
        slots: the slots of a step that belong to this process.
        workers: processes that prepare batches ahead; 0 prepares them in this one.
        pin_memory: for transfers to a GPU.
    """
    return DataLoader(
        views,
        batch_sampler=_Steps(first, last, slots),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=False,
    )
