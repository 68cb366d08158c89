"""Scenes in the format of Scene Representation Networks (SRN Cars, SRN Chairs).

A split is a folder of scenes, each with ``intrinsics.txt``, ``pose/000000.txt``, ``rgb/000000.png``
and so on. A pose file holds 16 numbers, the camera-to-world matrix with OpenCV axes (+z forwards,
+y down); here poses have OpenGL axes, see :mod:`ginr_fast.rays`. ``intrinsics.txt`` holds
``f cx cy 0.``, the scene's centre, its scale, and ``height width`` in lines of their own; older
files have the near plane as one line more, or end with a flag that says whether poses are
world-to-camera.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ginr_fast.data.scenes import (
    BrokenSceneError,
    Scene,
    Scenes,
    check_pose,
    check_views,
    described_size,
    read_images,
)
from ginr_fast.rays import scale_focal

NEAR, FAR = 0.8, 1.8  # of SRN Cars: cameras at 1.3 around objects within a sphere of radius 1/2

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


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


class SrnScenes(Scenes):
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
        folder = _split_folder(Path(root), split)
        folders = sorted(path.parent for path in folder.glob("*/intrinsics.txt"))
        folders = [path for path in folders if not path.name.startswith(".")]
        super().__init__(folder, folders, image_size, max_views, max_bytes)
        if not folders:
            raise ValueError(f"data: {folder} holds no scene; expected folders with intrinsics.txt")
        self._views = [_views(path, max_views) for path in folders]

    def _files(self, index: int) -> Sequence[Path]:
        views = (path for view in self._views[index] for path in view)
        return [self._folders[index] / "intrinsics.txt", *views]

    def _read(self, index: int) -> Scene:
        folder, views = self._folders[index], self._views[index]
        intrinsics = read_intrinsics(folder / "intrinsics.txt")
        poses = [read_pose(pose, intrinsics.world_to_camera) for pose, _ in views]
        images = read_images([path for _, path in views])
        height, width = images[0].shape[:2]
        if height * intrinsics.size[1] != width * intrinsics.size[0]:
            raise BrokenSceneError(
                f"{views[0][1]}: expected the aspect of intrinsics.txt, "
                f"{described_size(intrinsics.size)}, got {described_size(images[0].shape)}"
            )
        stacked = self._stacked(images)
        size = stacked.shape[1], stacked.shape[2]
        cx, cy = intrinsics.center
        return Scene(
            folder.name,
            stacked,
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
    check_pose(path, pose)
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
    check_views(images, poses, 3)
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
