"""Objects in the format of LearnIt-ShapeNet (cars, chairs, lamps), the data of TransINR and others.

``car_splits.json`` holds lists of objects, ``{"train": [...], "val": [...], "test": [...]}``; each
object has a folder with ``transforms.json`` and RGBA pictures, which are seen over white. For every
frame ``transforms.json`` holds ``file_path`` and ``transform_matrix``, the camera-to-world matrix
with OpenGL axes as in :mod:`ginr_fast.rays`; for all of them ``camera_angle_x``, the horizontal
field of view in radians. The principal point is the middle of the picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ginr_fast.data.scenes import (
    BrokenSceneError,
    Scene,
    Scenes,
    check_pose,
    check_views,
    read_images,
)
from ginr_fast.files import replace_text

NEAR, FAR = 2.0, 6.0

TRANSFORMS = "transforms.json"
_LARGEST = float(np.finfo(np.float32).max)  # infinity, NaN and integers beyond are refused
_IMAGES = (".png", ".jpg", ".jpeg", ".webp")


class _View(NamedTuple):
    image: Path
    pose: np.ndarray


class LearnItScenes(Scenes):
    """The objects of one split, read when asked for and kept while there is room.

    Folders of objects are ``root/category/ID`` or ``root/ID``. A category is named as its folder or
    as its list of splits is: the published data has ``car_splits.json`` and ``cars``, and both
    ``car`` and ``cars`` find them.

    Args:
        root: the folder that holds the list of splits.
        category: of the objects.
        split: ``train``, ``val`` or ``test``, as the list has it.
        image_size: reduce or enlarge views to this many rows, by averaging areas; as they are if
            None.
        max_views: use only the first views of each object; TransINR trains on 25.
        max_bytes: memory for objects read before; the least recently used are dropped beyond it.

    Raises:
        FileNotFoundError: no such folder.
        BrokenSceneError: no such category or split, or an object without ``transforms.json``.
        ValueError: a split without objects, or a number that is not positive.
    """

    def __init__(
        self,
        root: Path | str,
        category: str,
        split: str,
        image_size: int | None = None,
        max_views: int | None = None,
        max_bytes: int = 2 << 30,
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"data: {root} is no folder")
        names = _spellings(category)
        path = _splits_file(root, category, names)
        objects = read_split(path, split)
        if not objects:
            raise ValueError(f"data: {path} lists no objects in {split!r}")
        inner = [root / name for name in names if (root / name).is_dir()]
        folder = inner[0] if inner else root
        folders = [folder / name for name in objects]
        missing = [path for path in folders if not (path / TRANSFORMS).is_file()]
        if missing:
            raise BrokenSceneError(
                f"{missing[0] / TRANSFORMS}: missing; {path.name} lists {len(folders)} objects in "
                f"{split!r}, of which {len(missing)} are missing"
            )
        super().__init__(folder, folders, image_size, max_views, max_bytes)

    def _files(self, index: int) -> Sequence[Path]:
        path = self._folders[index] / TRANSFORMS
        _, views = read_transforms(path, self.max_views)
        return [path, *(view.image for view in views)]

    def _read(self, index: int) -> Scene:
        folder = self._folders[index]
        angle, views = read_transforms(folder / TRANSFORMS, self.max_views)
        stacked = self._stacked(read_images([view.image for view in views]))
        height, width = stacked.shape[1:3]
        return Scene(
            folder.name,
            stacked,
            torch.from_numpy(np.stack([view.pose for view in views])),
            0.5 * width / math.tan(0.5 * angle),
            (width / 2, height / 2),
        )


def read_split(path: Path, split: str) -> list[str]:
    """The objects that a list of splits has in one of them.

    Raises:
        BrokenSceneError: names the file and what is wrong with it.
    """
    splits = _json(path)
    if split not in splits:
        found = ", ".join(sorted(splits)) or "none"
        raise BrokenSceneError(f"{path}: expected split {split!r}, found {found}")
    objects = splits[split]
    if not isinstance(objects, list):
        raise BrokenSceneError(f"{path}: {split}: expected a list, got {objects!r}")
    for name in objects:
        if not isinstance(name, str) or not name or PurePosixPath(name).is_absolute():
            raise BrokenSceneError(f"{path}: {split}: expected names of folders, got {name!r}")
    return objects


def read_transforms(path: Path, at_most: int | None = None) -> tuple[float, list[_View]]:
    """Read ``transforms.json``.

    Args:
        path: the file.
        at_most: read only so many frames.

    Returns:
        The horizontal field of view in radians, and for each frame the file of its picture and the
        camera-to-world matrix ``(4, 4)``, float32, OpenGL axes.

    Raises:
        BrokenSceneError: names the file and what is wrong with it.
    """
    camera = _json(path)
    for key in ("camera_angle_x", "frames"):
        if key not in camera:
            raise BrokenSceneError(f"{path}: expected {key}, which is missing")
    angle, frames = camera["camera_angle_x"], camera["frames"]
    if not _is_number(angle) or not 0 < angle < math.pi:
        raise BrokenSceneError(
            f"{path}: camera_angle_x: expected a number of radians between 0 and pi, got {angle!r}"
        )
    if not isinstance(frames, list) or not frames:
        raise BrokenSceneError(f"{path}: frames: expected a list of at least one frame")
    return float(angle), [
        _view(path, f"{path}: frames[{index}]", frame)
        for index, frame in enumerate(frames[:at_most])
    ]


def write_object(
    folder: Path, images: np.ndarray, poses: np.ndarray, camera_angle_x: float
) -> None:
    """Write an object that :class:`LearnItScenes` and other readers of the format read.

    Args:
        folder: made if need be.
        images: ``(V, H, W, 4)``, uint8, RGBA; colours are not multiplied by alpha.
        poses: ``(V, 4, 4)``, camera-to-world with OpenGL axes.
        camera_angle_x: horizontal field of view, in radians.

    Raises:
        ValueError: arrays of other shapes.
    """
    check_views(images, poses, 4)
    folder.mkdir(parents=True, exist_ok=True)
    frames = []
    for view, (image, pose) in enumerate(zip(images, poses, strict=True)):
        Image.fromarray(image).save(folder / f"r_{view}.png")
        frames.append({"file_path": f"./r_{view}", "transform_matrix": pose.tolist()})
    camera = {"camera_angle_x": camera_angle_x, "frames": frames}
    (folder / TRANSFORMS).write_text(json.dumps(camera, indent=1) + "\n", encoding="ascii")


def write_splits(path: Path, splits: Mapping[str, Sequence[str]]) -> None:
    """Write a list of splits, whole or not at all.

    Args:
        path: ``root/CATEGORY_splits.json``.
        splits: the names of the objects of each split.
    """
    content = {name: list(objects) for name, objects in splits.items()}
    replace_text(path, json.dumps(content, indent=1) + "\n")


def _spellings(category: str) -> tuple[str, ...]:
    """A category as it is named, and in the other number."""
    return (category, category[:-1] if category.endswith("s") else f"{category}s")


def _splits_file(root: Path, category: str, names: Sequence[str]) -> Path:
    wanted = [f"{name}_splits.json" for name in names]
    for name in wanted:
        if (root / name).is_file():
            return root / name
    found = ", ".join(sorted(path.name for path in root.glob("*_splits.json"))) or "none"
    raise BrokenSceneError(
        f"{root / wanted[0]}: missing, and so is {wanted[1]}; category {category!r} needs one of "
        f"them; found {found}"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenSceneError(f"{path}: missing") from None
    except (ValueError, RecursionError) as error:  # bad JSON and bytes that are no text
        raise BrokenSceneError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise BrokenSceneError(f"{path}: expected an object in braces, got {type(found).__name__}")
    return found


def _view(path: Path, where: str, frame: object) -> _View:
    if not isinstance(frame, dict):
        raise BrokenSceneError(f"{where}: expected an object in braces, got {frame!r}")
    for key in ("file_path", "transform_matrix"):
        if key not in frame:
            raise BrokenSceneError(f"{where}: expected {key}, which is missing")
    name, rows = frame["file_path"], frame["transform_matrix"]
    if not isinstance(name, str) or not PurePosixPath(name).name:
        raise BrokenSceneError(f"{where}: file_path: expected a name, got {name!r}")
    if not _is_matrix(rows):
        raise BrokenSceneError(
            f"{where}: transform_matrix: expected 4 rows of 4 finite numbers, got {rows!r}"
        )
    pose = np.array(rows, dtype=np.float64)
    check_pose(f"{where}: transform_matrix", pose)
    return _View(_picture(path.parent, PurePosixPath(name), where), pose.astype(np.float32))


def _picture(folder: Path, name: PurePosixPath, where: str) -> Path:
    """A frame's picture: where it says, or beside ``transforms.json`` if the folder was moved."""
    if name.suffix.lower() not in _IMAGES:
        name = name.with_name(f"{name.name}.png")
    beside = folder / name.name
    inside = not name.is_absolute() and ".." not in name.parts
    for path in (folder / name, beside) if inside else (beside,):
        if path.is_file():
            return path
    raise BrokenSceneError(f"{beside}: missing; {where} names it")


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _LARGEST


def _is_matrix(rows: object) -> bool:
    return (
        isinstance(rows, list)
        and len(rows) == 4
        and all(isinstance(row, list) and len(row) == 4 for row in rows)
        and all(_is_number(number) for row in rows for number in row)
    )
