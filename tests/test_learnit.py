"""Objects in LearnIt-ShapeNet's format: reading, writing, what is wrong with a broken one."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ginr_fast.data import BrokenSceneError, LearnItScenes, SrnScenes, ray_batch
from ginr_fast.data.learnit import FAR, NEAR, write_object, write_splits
from ginr_fast.rays import camera_rays, random_poses

SIZE, VIEWS, ANGLE = 8, 5, 0.7
OBJECTS = ("b", "a", "c")


def pictures(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    shape = (VIEWS, height, width, 4)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def over_white(rgba: np.ndarray) -> np.ndarray:
    values = rgba.astype(np.float64) / 255
    return 255 * (values[..., :3] * values[..., 3:] + 1 - values[..., 3:])


def write(folder: Path, seed: int = 0) -> None:
    write_object(folder, pictures(seed), random_poses(VIEWS, 4.0, seed).numpy(), ANGLE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, name in enumerate((*OBJECTS, "held-out")):
        write(tmp_path / "cars" / name, index)
    write_splits(tmp_path / "car_splits.json", {"train": OBJECTS, "test": ["held-out"]})
    return tmp_path


def test_an_object_comes_back_as_it_was_written(root: Path) -> None:
    scenes = LearnItScenes(root, "cars", "train")
    assert len(scenes) == 3 and scenes.names == OBJECTS and scenes.folder == root / "cars"
    scene = scenes.scene(1)
    assert scene.name == "a" and scene.images.shape == (VIEWS, SIZE, SIZE, 3)
    assert scene.images.dtype == torch.uint8
    assert np.abs(scene.images.numpy() - over_white(pictures(1))).max() <= 1
    assert torch.equal(scene.poses, random_poses(VIEWS, 4.0, 1))
    assert scene.focal == pytest.approx(0.5 * SIZE / math.tan(0.5 * ANGLE))
    assert scene.center == (4.0, 4.0)
    assert scenes.scene(1) is scene and len(pickle.loads(pickle.dumps(scenes))) == 3
    assert (NEAR, FAR) == (2.0, 6.0)
    with pytest.raises(IndexError, match="0 to 2"):
        scenes.scene(3)


def test_rays_are_those_of_the_published_cameras(root: Path) -> None:
    """x right, y up, z towards the eye; pixel centres at one half: pixel by pixel, in float64."""
    scene = LearnItScenes(root, "cars", "train").scene(0)
    frames = json.loads((root / "cars" / "b" / "transforms.json").read_text())["frames"]
    origins, directions = camera_rays(scene.poses, SIZE, SIZE, scene.focal, scene.center)
    focal = 0.5 * SIZE / math.tan(0.5 * ANGLE)
    for view, row, column in ((0, 0, 0), (1, 2, 7), (4, 7, 3)):
        matrix = np.array(frames[view]["transform_matrix"])
        x, y = (column + 0.5 - SIZE / 2) / focal, -(row + 0.5 - SIZE / 2) / focal
        want = x * matrix[:3, 0] + y * matrix[:3, 1] - matrix[:3, 2]
        assert np.allclose(directions[view, row, column].numpy(), want, atol=1e-6)
        assert np.allclose(origins[view, row, column].numpy(), matrix[:3, 3], atol=1e-6)
        towards = directions[view, row, column] @ -origins[view, row, column]
        assert towards > 0  # the object at the origin lies before the camera


@pytest.mark.parametrize("category", ["car", "cars"])
@pytest.mark.parametrize("splits", ["car_splits.json", "cars_splits.json"])
@pytest.mark.parametrize("folder", ["car", "cars", "."])
def test_categories_are_found_in_either_number(
    tmp_path: Path, category: str, splits: str, folder: str
) -> None:
    write(tmp_path / folder / "one")
    write_splits(tmp_path / splits, {"val": ["one"]})
    assert LearnItScenes(tmp_path, category, "val").scene(0).name == "one"


def edited(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "transforms.json"
    camera = json.loads(path.read_text())
    change(camera)
    path.write_text(json.dumps(camera))


def test_pictures_are_found_by_path_or_by_name(root: Path) -> None:
    folder = root / "cars" / "a"
    (folder / "train").mkdir()
    (folder / "r_0.png").rename(folder / "train" / "r_0.png")

    def change(camera: Any) -> None:
        names = ["./train/r_0", "/somewhere/else/r_1", "../a/r_2", "r_3.png", "views/r_4"]
        for frame, name in zip(camera["frames"], names, strict=True):
            frame["file_path"] = name

    edited(folder, change)
    scenes = LearnItScenes(root, "cars", "train")
    assert np.abs(scenes.scene(1).images.numpy() - over_white(pictures(1))).max() <= 1
    assert scenes.fingerprint()


def test_views_are_resized_with_their_camera_and_limited(root: Path) -> None:
    scene = LearnItScenes(root, "cars", "train", image_size=4, max_views=3).scene(0)
    assert scene.images.shape == (3, 4, 4, 3) and scene.poses.shape == (3, 4, 4)
    assert scene.focal == pytest.approx(0.5 * 4 / math.tan(0.5 * ANGLE))
    assert scene.center == (2.0, 2.0)
    boxes = over_white(pictures(0))[:3].reshape(3, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    assert np.abs(scene.images.numpy() - boxes).max() <= 2


def test_the_angle_is_across_the_width(tmp_path: Path) -> None:
    write_object(
        tmp_path / "car/wide", pictures(0, 4, 8), random_poses(VIEWS, 4.0, 0).numpy(), ANGLE
    )
    write_splits(tmp_path / "car_splits.json", {"test": ["wide"]})
    scene = LearnItScenes(tmp_path, "car", "test").scene(0)
    assert scene.focal == pytest.approx(4 / math.tan(0.35)) and scene.center == (4.0, 2.0)


def test_memory_is_bounded(root: Path) -> None:
    one = VIEWS * SIZE * SIZE * 3
    scenes = LearnItScenes(root, "cars", "train", max_bytes=2 * one)
    first = scenes.scene(0)
    scenes.scene(1)
    assert scenes.scene(0) is first
    scenes.scene(2)
    assert scenes.scene(0) is first  # the other one was dropped
    scenes.scene(1)
    scenes.scene(2)
    assert scenes.scene(0) is not first


def test_fingerprints_tell_data_apart(root: Path) -> None:
    def fingerprint(root: Path, split: str = "train", **options: int) -> str:
        return LearnItScenes(root, "cars", split, **options).fingerprint()

    one = fingerprint(root)
    assert fingerprint(root) == one
    others = [fingerprint(root, max_views=2), fingerprint(root, image_size=4)]
    assert len({one, *others, fingerprint(root, "test")}) == 4
    shutil.copytree(root, root / "moved")
    assert fingerprint(root / "moved") == one
    Image.new("RGB", (99, 99)).save(root / "moved" / "cars" / "c" / "r_4.png")
    assert fingerprint(root / "moved") != one


def test_rays_of_objects_make_batches_like_scenes(root: Path) -> None:
    batch = ray_batch(0, 0, LearnItScenes(root, "cars", "train"), 2, 3, 4)
    assert batch.colors.shape == (2, 12, 3)


# What is wrong


def change_frame(index: int, key: str, value: object) -> Callable[[Path], object]:
    return lambda folder: edited(folder, lambda c: c["frames"][index].__setitem__(key, value))


def change_camera(key: str, value: object) -> Callable[[Path], object]:
    return lambda folder: edited(folder, lambda camera: camera.__setitem__(key, value))


def drop(index: int | None, key: str) -> Callable[[Path], object]:
    return lambda folder: edited(
        folder, lambda c: (c if index is None else c["frames"][index]).pop(key)
    )


def scribble(text: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "transforms.json").write_bytes(text)


def truncate(folder: Path) -> None:
    path = folder / "r_2.png"
    path.write_bytes(path.read_bytes()[:-40])


def shrink(folder: Path) -> None:
    Image.fromarray(pictures(0, 4, 4)[0]).save(folder / "r_3.png")


EYE = np.eye(4).tolist()
MATRIX = r"transforms\.json: frames\[1\]: transform_matrix: "
BROKEN = {
    "no transforms": (
        lambda folder: (folder / "transforms.json").unlink(),
        r"a.transforms\.json: missing; car_splits\.json lists 3 objects in 'train', of which 1",
    ),
    "no folder": (shutil.rmtree, r"a.transforms\.json: missing"),
    "no JSON": (scribble(b"{"), r"a.transforms\.json: cannot be read as JSON"),
    "binary": (scribble(b"\xff\xfe"), r"a.transforms\.json: cannot be read as JSON"),
    "nested": (scribble(b"[" * 100_000), r"a.transforms\.json: cannot be read as JSON"),
    "a list": (scribble(b"[]"), r"a.transforms\.json: expected an object in braces, got list"),
    "no angle": (drop(None, "camera_angle_x"), r"transforms\.json: .*camera_angle_x.*missing"),
    "no frames": (drop(None, "frames"), r"transforms\.json: expected frames, which is missing"),
    "empty": (change_camera("frames", []), r"transforms\.json: frames: expected .*at least one"),
    "angle in words": (change_camera("camera_angle_x", "0.7"), r"camera_angle_x: .*got '0\.7'"),
    "angle in degrees": (change_camera("camera_angle_x", 40), "camera_angle_x: .*radians.*got 40"),
    "angle of NaN": (change_camera("camera_angle_x", math.nan), "camera_angle_x: .*got nan"),
    "angle of zero": (change_camera("camera_angle_x", 0), "camera_angle_x: .*got 0"),
    "a number as frame": (change_camera("frames", [1]), r"frames\[0\]: expected an object.*got 1"),
    "no matrix": (drop(1, "transform_matrix"), r"frames\[1\]: expected transform_matrix"),
    "no path": (drop(3, "file_path"), r"frames\[3\]: expected file_path"),
    "empty path": (change_frame(1, "file_path", ""), r"frames\[1\]: file_path: expected a name"),
    "three rows": (change_frame(1, "transform_matrix", EYE[:3]), MATRIX + "expected 4 rows of 4"),
    "three columns": (
        change_frame(1, "transform_matrix", [row[:3] for row in EYE]),
        MATRIX + "expected 4 rows of 4",
    ),
    "infinite": (
        change_frame(1, "transform_matrix", [[math.inf] * 4, *EYE[1:]]),
        MATRIX + "expected 4 rows of 4 finite",
    ),
    "huge": (
        change_frame(1, "transform_matrix", [[10**400] * 4, *EYE[1:]]),
        MATRIX + "expected 4 rows of 4 finite",
    ),
    "scaled": (
        change_frame(1, "transform_matrix", np.diag([2.0, 2, 2, 1]).tolist()),
        MATRIX + "expected a rotation",
    ),
    "mirrored": (
        change_frame(1, "transform_matrix", np.diag([1.0, 1, -1, 1]).tolist()),
        MATRIX + "expected a rotation",
    ),
    "missing picture": (
        lambda folder: (folder / "r_4.png").unlink(),
        r"a.r_4\.png: missing; .*transforms\.json: frames\[4\] names it",
    ),
    "truncated": (truncate, r"a.r_2\.png: cannot be decoded"),
    "smaller": (shrink, r"a.r_3\.png: expected 8x8 pixels as in r_0\.png, got 4x4"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_object_names_its_file(root: Path, what: str) -> None:
    harm, words = BROKEN[what]
    harm(root / "cars" / "a")
    with pytest.raises(BrokenSceneError, match=words):
        LearnItScenes(root, "cars", "train").check()


def test_missing_pictures_are_named_by_the_fingerprint(root: Path) -> None:
    (root / "cars" / "a" / "r_4.png").unlink()
    with pytest.raises(BrokenSceneError, match=r"a.r_4\.png: missing"):
        LearnItScenes(root, "cars", "train").fingerprint()


def test_splits_are_checked(root: Path) -> None:
    path = root / "car_splits.json"
    with pytest.raises(BrokenSceneError, match=r"lamps_splits\.json: missing, and so is lamp_spl"):
        LearnItScenes(root, "lamps", "train")
    with pytest.raises(BrokenSceneError, match="found car_splits.json"):
        LearnItScenes(root, "lamps", "train")
    with pytest.raises(BrokenSceneError, match="expected split 'val', found test, train"):
        LearnItScenes(root, "cars", "val")
    with pytest.raises(FileNotFoundError, match="no folder"):
        LearnItScenes(root / "absent", "cars", "train")
    with pytest.raises(ValueError, match="image_size: "):
        LearnItScenes(root, "cars", "train", image_size=0)
    for text, words in (
        ("[]", "expected an object in braces, got list"),
        ("{", "cannot be read as JSON"),
        ('{"train": "a"}', "train: expected a list, got 'a'"),
        ('{"train": ["a", 1]}', "train: expected names of folders, got 1"),
        ('{"train": ["a", "/b"]}', "train: expected names of folders, got '/b'"),
    ):
        path.write_text(text)
        with pytest.raises(BrokenSceneError, match=r"car_splits\.json: " + words):
            LearnItScenes(root, "cars", "train")
    path.write_text('{"train": []}')
    with pytest.raises(ValueError, match="lists no objects in 'train'"):
        LearnItScenes(root, "cars", "train")


def test_writing_checks_its_arrays(tmp_path: Path) -> None:
    poses = random_poses(VIEWS, 4.0, 0).numpy()
    with pytest.raises(
        ValueError, match=r"images: expected \(V, H, W, 4\) uint8, got \(5, 8, 8, 3"
    ):
        write_object(tmp_path, pictures(0)[..., :3], poses, ANGLE)
    with pytest.raises(ValueError, match="poses: "):
        write_object(tmp_path, pictures(0), poses[:2], ANGLE)


def test_both_formats_give_the_same_interface() -> None:
    public = {name for name in dir(SrnScenes) if not name.startswith("_")}
    assert public == {name for name in dir(LearnItScenes) if not name.startswith("_")}
    assert public >= {"names", "scene", "check", "fingerprint"}
