"""Scenes in the format of Scene Representation Networks (SRN Cars, SRN Chairs).

A split is a folder of scenes, each with ``intrinsics.txt``, ``pose/000000.txt``, ``rgb/000000.png``
and so on. A pose file holds 16 numbers, the camera-to-world matrix with OpenCV axes (+z forwards,
+y down); here poses have OpenGL axes, see :mod:`ginr_fast.rays`. ``intrinsics.txt`` holds
``f cx cy 0.``, the scene's centre, its scale, and ``height width`` in lines of their own; older
files have the near plane as one line more, or end with a flag that says whether poses are
world-to-camera.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ginr_fast.data.images import BrokenImageError, load_image
from ginr_fast.rays import Focal, scale_focal

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
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


@dataclass(frozen=True)
class Intrinsics:
    """What ``intrinsics.txt`` says of a scene's camera.

    Args:
        focal: focal length, in pixels.
        center: principal point ``(cx, cy)``, in pixels.
        size: ``(height, width)`` that these pixels belong to.
        world_to_camera: whether the pose files hold the inverse of what they usually do.
    """

    focal: float
    center: tuple[float, float]
    size: tuple[int, int]
    world_to_camera: bool = False


class SrnScenes:
    """The scenes of one split, read when asked for and kept while there is room.

    Args:
        root: the folder of the data set, or of a split if ``split`` is None.
        split: a folder below ``root``; ``train`` also finds ``cars_train`` and the like.
        image_size: reduce or enlarge views to this many rows, by averaging areas; as they are if
            None.
        max_views: use only the first views of each scene.
        max_bytes: memory for scenes read before; the least recently used are dropped beyond it.

    Raises:
        FileNotFoundError: no such folder.
        BrokenSceneError: a scene with no view, or whose poses and pictures do not match by name.
        ValueError: no scene, several splits that fit, or a number that is not positive.
    """

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        image_size: int | None = None,
        max_views: int | None = None,
        max_bytes: int = 2 << 30,
    ) -> None:
        for name, value in (("image_size", image_size), ("max_views", max_views)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected a positive integer or None, got {value}")
        self.folder = _split_folder(Path(root), split)
        self.image_size, self.max_views, self.max_bytes = image_size, max_views, max_bytes
        folders = sorted(path.parent for path in self.folder.glob("*/intrinsics.txt"))
        folders = [folder for folder in folders if not folder.name.startswith(".")]
        if not folders:
            raise ValueError(
                f"data: {self.folder} holds no scene; expected folders with intrinsics.txt"
            )
        self._folders = folders
        self._views = [_views(folder, max_views) for folder in folders]
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
        for folder, views in zip(self._folders, self._views, strict=True):
            for path in (folder / "intrinsics.txt", *(path for view in views for path in view)):
                name = path.relative_to(self.folder).as_posix()
                digest.update(f"{name}\0{path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def _read(self, index: int) -> Scene:
        folder, views = self._folders[index], self._views[index]
        intrinsics = read_intrinsics(folder / "intrinsics.txt")
        poses = [read_pose(pose, intrinsics.world_to_camera) for pose, _ in views]
        with ThreadPoolExecutor(4) as pool:  # decoding releases the interpreter's lock
            images = list(pool.map(_read_image, (path for _, path in views)))
        for (_, path), image in zip(views, images, strict=True):
            if image.shape != images[0].shape:
                raise BrokenSceneError(
                    f"{path}: expected {_size(images[0].shape)} as in {views[0][1].name}, "
                    f"got {_size(image.shape)}"
                )
        height, width = images[0].shape[:2]
        if height * intrinsics.size[1] != width * intrinsics.size[0]:
            raise BrokenSceneError(
                f"{views[0][1]}: expected the aspect of intrinsics.txt, {_size(intrinsics.size)}, "
                f"got {_size(images[0].shape)}"
            )
        size = height, width
        if self.image_size is not None:
            size = self.image_size, round(width * self.image_size / height)
            images = [_resized(image, *size) for image in images]
        cx, cy = intrinsics.center
        return Scene(
            folder.name,
            torch.from_numpy(np.stack(images)),
            torch.from_numpy(np.stack(poses)),
            scale_focal(intrinsics.focal, intrinsics.size, size),
            (cx * size[1] / intrinsics.size[1], cy * size[0] / intrinsics.size[0]),
        )


def read_intrinsics(path: Path) -> Intrinsics:
    """Read ``intrinsics.txt``.

    Raises:
        BrokenSceneError: names the file and what is wrong with it.
        FileNotFoundError: no such file.
    """
    lines = [line.split() for line in _text(path).splitlines() if line.strip()]
    world_to_camera = False
    if len(lines) > 1 and len(lines[-1]) == 1:
        if lines[-1][0] not in ("0", "1"):
            raise BrokenSceneError(f"{path}: expected 'height width' last, got {lines[-1][0]!r}")
        world_to_camera = lines.pop()[0] == "1"
    if len(lines) < 2 or len(lines[0]) not in (3, 4) or len(lines[-1]) != 2:
        raise BrokenSceneError(
            f"{path}: expected 'f cx cy 0.' in the first line and 'height width' in the last"
        )
    numbers = _numbers(path, lines[0] + lines[-1])
    focal, cx, cy, height, width = *numbers[:3], *numbers[-2:]
    if not focal > 0:
        raise BrokenSceneError(f"{path}: expected a positive focal length, got {focal}")
    if height < 1 or width < 1 or height % 1 or width % 1:
        raise BrokenSceneError(f"{path}: expected a size in pixels, got {height} {width}")
    return Intrinsics(focal, (cx, cy), (int(height), int(width)), world_to_camera)


def read_pose(path: Path, world_to_camera: bool = False) -> np.ndarray:
    """Read a pose file: OpenCV axes in, OpenGL axes out.

    Args:
        path: a file with 16 numbers, row by row, in one line or several.
        world_to_camera: the file holds the inverse.

    Returns:
        ``(4, 4)``, float32, camera-to-world.

    Raises:
        BrokenSceneError: names the file and what is wrong with it.
        FileNotFoundError: no such file.
    """
    numbers = _numbers(path, _text(path).split())
    if len(numbers) != 16:
        raise BrokenSceneError(f"{path}: expected 16 numbers, got {len(numbers)}")
    pose = np.array(numbers).reshape(4, 4)
    rotation = pose[:3, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error > _RIGID or np.linalg.det(rotation) < 0 or np.abs(pose[3] - [0, 0, 0, 1]).max() > 0:
        raise BrokenSceneError(
            f"{path}: expected a rotation and a translation, got {pose.tolist()}"
        )
    if world_to_camera:
        pose = np.linalg.inv(pose)
    return (pose @ _OPENCV_TO_OPENGL).astype(np.float32)


def write_scene(
    folder: Path,
    images: np.ndarray,
    poses: np.ndarray,
    focal: float,
    center: tuple[float, float] | None = None,
) -> None:
    """Write a scene that :class:`SrnScenes` and other readers of the format read.

    Args:
        folder: made if need be.
        images: ``(V, H, W, 3)``, uint8.
        poses: ``(V, 4, 4)``, camera-to-world with OpenGL axes.
        focal: in pixels.
        center: principal point in pixels; the middle of the picture if None.

    Raises:
        ValueError: arrays of other shapes.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images: expected (V, H, W, 3) uint8, got {images.shape} {images.dtype}")
    if poses.shape != (len(images), 4, 4):
        raise ValueError(f"poses: expected {(len(images), 4, 4)}, got {poses.shape}")
    height, width = images.shape[1:3]
    cx, cy = (width / 2, height / 2) if center is None else center
    for part in ("pose", "rgb"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for view, (image, pose) in enumerate(zip(images, poses, strict=True)):
        Image.fromarray(image).save(folder / "rgb" / f"{view:06d}.png")
        # Nine digits carry a float32 exactly.
        numbers = (pose.astype(np.float64) @ _OPENCV_TO_OPENGL).flatten()
        text = " ".join(f"{number + 0.0:.9g}" for number in numbers)
        (folder / "pose" / f"{view:06d}.txt").write_text(text + "\n", encoding="ascii")
    (folder / "intrinsics.txt").write_text(
        f"{focal:.9g} {cx:.9g} {cy:.9g} 0.\n0. 0. 0.\n1.\n{height} {width}\n", encoding="ascii"
    )


def _split_folder(root: Path, split: str | None) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"data: {root} is no folder")
    folder = root
    if split is not None and (root / split).is_dir():
        folder = root / split
    elif split is not None:
        # One word before the split: cars_test is "test", cars_train_test is not.
        fits = re.compile(rf"[^_]+_{re.escape(split)}")
        found = sorted(
            path for path in root.iterdir() if path.is_dir() and fits.fullmatch(path.name)
        )
        if not found:
            raise FileNotFoundError(f"data: {root} holds neither {split} nor NAME_{split}")
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"split: {root} holds several that fit {split!r}: {names}")
        folder = found[0]
    if not any(folder.glob("*/intrinsics.txt")):
        # SRN's chairs lie one folder deeper than its cars.
        inner = [path for path in folder.iterdir() if any(path.glob("*/intrinsics.txt"))]
        if len(inner) == 1:
            return inner[0]
    return folder


def _views(folder: Path, at_most: int | None) -> list[tuple[Path, Path]]:
    poses = _by_name(folder / "pose", (".txt",))
    images = _by_name(folder / "rgb", _IMAGES)
    for name in sorted(poses.keys() ^ images.keys()):
        if name in images:
            missing = folder / "pose" / f"{name}.txt"
            raise BrokenSceneError(
                f"{missing}: missing; {len(images)} pictures, {len(poses)} poses"
            )
        raise BrokenSceneError(
            f"{folder / 'rgb' / name}.png: missing; {len(images)} pictures, {len(poses)} poses"
        )
    if not poses:
        raise BrokenSceneError(f"{folder}: expected pose/*.txt and rgb/*.png, found no view")
    return [(poses[name], images[name]) for name in sorted(poses)[:at_most]]


def _by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise BrokenSceneError(f"{folder}: missing")
    return {
        path.stem: path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    }


def _read_image(path: Path) -> np.ndarray:
    try:
        return load_image(path)
    except BrokenImageError as error:
        raise BrokenSceneError(str(error)) from None


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise BrokenSceneError(f"{path}: expected numbers as text, got other bytes") from None


def _numbers(path: Path, words: Sequence[str]) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise BrokenSceneError(f"{path}: expected numbers ({error})") from None
    if not np.isfinite(numbers).all():
        raise BrokenSceneError(f"{path}: expected finite numbers, got {numbers}")
    return numbers


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]} pixels"
