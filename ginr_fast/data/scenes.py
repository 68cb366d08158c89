"""Scenes known by posed pictures, whatever the format of their files."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ginr_fast.data.images import BrokenImageError, load_image
from ginr_fast.rays import Focal

_RIGID = 1e-3  # published poses are rounded to six digits


class BrokenSceneError(ValueError):
    """A scene that cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Scene:
    """The views of one scene.

    Args:
        name: of its folder.
        images: ``(V, H, W, 3)``, uint8.
        poses: ``(V, 4, 4)``, float32, camera-to-world with OpenGL axes.
        focal: focal length in pixels of these images, or ``(fx, fy)``.
        center: principal point ``(cx, cy)`` in pixels of these images.
    """

    name: str
    images: torch.Tensor
    poses: torch.Tensor
    focal: Focal
    center: tuple[float, float]


class Scenes(ABC):
    """The scenes of one split, read when asked for and kept while there is room.

    A format adds :meth:`_read` and :meth:`_files`.

    Args:
        folder: holds the scenes' folders.
        folders: of the scenes, in order.
        image_size: reduce or enlarge views to this many rows, by averaging areas; as they are if
            None.
        max_views: use only the first views of each scene.
        max_bytes: memory for scenes read before; the least recently used are dropped beyond it.

    Raises:
        ValueError: a number that is not positive.
    """

    def __init__(
        self,
        folder: Path,
        folders: Sequence[Path],
        image_size: int | None,
        max_views: int | None,
        max_bytes: int,
    ) -> None:
        for name, value in (("image_size", image_size), ("max_views", max_views)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected a positive integer or None, got {value}")
        self.folder = folder
        self.image_size, self.max_views, self.max_bytes = image_size, max_views, max_bytes
        self._folders = list(folders)
        self._kept: OrderedDict[int, Scene] = OrderedDict()
        self._bytes = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the scenes, in order."""
        return tuple(folder.name for folder in self._folders)

    def __len__(self) -> int:
        return len(self._folders)

    def scene(self, index: int) -> Scene:
        """One scene, from memory if it is there still.

        Raises:
            IndexError: no such scene.
            BrokenSceneError: names the file and what is wrong with it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        scene = self._kept[index] = self._read(index)
        self._bytes += scene.images.nbytes
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.images.nbytes
        return scene

    def check(self) -> None:
        """Read every scene once, so that a broken one shows up now and not after hours.

        Raises:
            BrokenSceneError: names the first file that cannot be used.
        """
        for index in range(len(self)):
            self.scene(index)

    def fingerprint(self) -> str:
        """A digest of the files' names and sizes in bytes and of how they are used."""
        digest = hashlib.sha256(f"{self.image_size}\0{self.max_views}\n".encode())
        for index in range(len(self)):
            for path in self._files(index):
                name = path.relative_to(self.folder).as_posix()
                digest.update(f"{name}\0{path.stat().st_size}\n".encode())
        return digest.hexdigest()

    @abstractmethod
    def _read(self, index: int) -> Scene:
        """Read a scene's files."""

    @abstractmethod
    def _files(self, index: int) -> Sequence[Path]:
        """The files of a scene."""

    def _stacked(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Views of one size, stacked in the size asked for, ``(V, H, W, 3)``."""
        if self.image_size is not None:
            height, width = images[0].shape[:2]
            size = self.image_size, round(width * self.image_size / height)
            images = [_resized(image, *size) for image in images]
        return torch.from_numpy(np.stack(images))


def read_images(paths: Sequence[Path]) -> list[np.ndarray]:
    """Read the views of a scene, transparency over white.

    Args:
        paths: their files, at least one.

    Returns:
        Arrays ``(H, W, 3)``, uint8, all of one size.

    Raises:
        BrokenSceneError: names the file and what is wrong with it.
    """
    with ThreadPoolExecutor(4) as pool:  # decoding releases the interpreter's lock
        images = list(pool.map(_read_image, paths))
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise BrokenSceneError(
                f"{path}: expected {described_size(images[0].shape)} as in {paths[0].name}, "
                f"got {described_size(image.shape)}"
            )
    return images


def check_pose(where: object, pose: np.ndarray) -> None:
    """Refuse a ``(4, 4)`` matrix that is no rotation followed by a translation.

    Args:
        where: the file it is from, for the message.
        pose: what it holds.

    Raises:
        BrokenSceneError: names ``where``.
    """
    rotation = pose[:3, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error > _RIGID or np.linalg.det(rotation) < 0 or np.abs(pose[3] - [0, 0, 0, 1]).max() > 0:
        raise BrokenSceneError(
            f"{where}: expected a rotation and a translation, got {pose.tolist()}"
        )


def check_views(images: np.ndarray, poses: np.ndarray, channels: int) -> None:
    """Refuse pictures or poses that cannot be written.

    Args:
        images: ``(V, H, W, channels)``, uint8, wanted.
        poses: ``(V, 4, 4)`` wanted.
        channels: of the pictures.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """
    if images.ndim != 4 or images.shape[-1] != channels or images.dtype != np.uint8:
        raise ValueError(
            f"images: expected (V, H, W, {channels}) uint8, got {images.shape} {images.dtype}"
        )
    if poses.shape != (len(images), 4, 4):
        raise ValueError(f"poses: expected {(len(images), 4, 4)}, got {poses.shape}")


def described_size(shape: Sequence[int]) -> str:
    """Height and width in words."""
    return f"{shape[0]}x{shape[1]} pixels"


def _read_image(path: Path) -> np.ndarray:
    try:
        return load_image(path)
    except BrokenImageError as error:
        raise BrokenSceneError(str(error)) from None


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def mean_view(scenes: Scenes, at_most: int = 64) -> torch.Tensor:
    """The mean of all views of scenes: what a model must beat that knows nothing of a scene.

    Args:
        scenes: with views of one size.
        at_most: take it over the first so many scenes.

    Returns:
        ``(3, H, W)``, float32 in [0, 1].

    Raises:
        ValueError: views of two sizes; names both scenes.
    """
    first = scenes.scene(0)
    means = []
    for index in range(min(at_most, len(scenes))):
        scene = scenes.scene(index)
        if scene.images.shape[1:] != first.images.shape[1:]:
            raise ValueError(
                f"data: {described_size(first.images.shape[1:])} in scene {first.name}, "
                f"{described_size(scene.images.shape[1:])} in {scene.name}; set image_size"
            )
        means.append(scene.images.float().mean(0))
    return (torch.stack(means).mean(0) / 255).permute(2, 0, 1)
