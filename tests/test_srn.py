"""Scenes in SRN's format: reading, writing, what is wrong with a broken one; batches of rays."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ginr_fast.data import BrokenSceneError, SrnScenes, instance_order, ray_batch
from ginr_fast.data.scenes import mean_view
from ginr_fast.data.srn import read_intrinsics, read_pose, write_scene
from ginr_fast.rays import camera_rays, random_poses

SIZE, VIEWS = 8, 5


def pictures(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    shape = (VIEWS, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder: Path, seed: int = 0) -> Path:
    poses = random_poses(VIEWS, 1.3, seed).numpy()
    write_scene(folder, pictures(seed), poses, 8.25)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(4):
        write(tmp_path / "cars_train" / f"scene{index}", index)
    write(tmp_path / "cars_test" / "other", 9)
    return tmp_path


def test_a_scene_comes_back_as_it_was_written(root: Path) -> None:
    scenes = SrnScenes(root, "train")
    assert len(scenes) == 4 and scenes.names == ("scene0", "scene1", "scene2", "scene3")
    scene = scenes.scene(2)
    assert scene.name == "scene2" and scene.focal == 8.25 and scene.center == (4.0, 4.0)
    assert np.array_equal(scene.images.numpy(), pictures(2))
    assert torch.equal(scene.poses, random_poses(VIEWS, 1.3, 2))
    assert scenes.scene(2) is scene
    with pytest.raises(IndexError, match="0 to 3"):
        scenes.scene(4)


def test_poses_in_files_have_opencv_axes(tmp_path: Path) -> None:
    # A camera at (1, 2, 3) that looks along the world's +z with +y downwards.
    text = "1 0 0 1 0 1 0 2 0 0 1 3 0 0 0 1\n"
    (tmp_path / "pose.txt").write_text(text)
    pose = torch.from_numpy(read_pose(tmp_path / "pose.txt"))
    origins, directions = camera_rays(pose, 1, 1, 1.0)
    assert origins.flatten().tolist() == [1, 2, 3]
    assert directions.flatten().tolist() == [0, 0, 1]
    assert (pose[:3, :3] @ torch.tensor([0.0, 1, 0])).tolist() == [0, -1, 0]
    (tmp_path / "pose.txt").write_text("1 0 0 1\n0 1 0 2\n0 0 1 3\n0 0 0 1\n")
    assert np.array_equal(read_pose(tmp_path / "pose.txt"), pose.numpy())
    inverse = read_pose(tmp_path / "pose.txt", world_to_camera=True)
    assert inverse[:3, 3].tolist() == [-1, -2, -3]


def test_intrinsics_of_all_published_forms(tmp_path: Path) -> None:
    path = tmp_path / "intrinsics.txt"
    path.write_text("131.250000 64.000000 64.000000 0.\n0. 0. 0.\n1.\n128 128\n")
    found = read_intrinsics(path)
    assert (found.focal, found.center, found.size) == (131.25, (64.0, 64.0), (128, 128))
    assert not found.world_to_camera
    path.write_text("525.0 319.5 239.5 0.\n0. 0. 0.\n0.\n1.\n480 640\n\n")
    assert read_intrinsics(path).size == (480, 640)
    path.write_text("525.0 319.5 239.5 0.\n0. 0. 0.\n1.\n480 640\n1\n")
    assert read_intrinsics(path).world_to_camera


def test_splits_are_found_by_name(root: Path) -> None:
    assert SrnScenes(root, "test").names == ("other",)
    assert SrnScenes(root, "cars_test").names == ("other",)
    assert SrnScenes(root / "cars_test").names == ("other",)
    write(root / "cars_train_test" / "same")
    assert SrnScenes(root, "test").names == ("other",)  # not cars_train_test
    assert SrnScenes(root, "cars_train_test").names == ("same",)
    (root / "chairs_train" / "chairs_2.0_train").mkdir(parents=True)
    write(root / "chairs_train" / "chairs_2.0_train" / "deep")
    assert SrnScenes(root, "chairs_train").names == ("deep",)
    with pytest.raises(ValueError, match="several that fit 'train': cars_train, chairs_train"):
        SrnScenes(root, "train")
    with pytest.raises(FileNotFoundError, match="neither val nor NAME_val"):
        SrnScenes(root, "val")
    with pytest.raises(FileNotFoundError, match="no folder"):
        SrnScenes(root / "absent")
    with pytest.raises(ValueError, match="holds no scene"):
        SrnScenes(root / "cars_test" / "other" / "rgb")


def test_views_are_resized_with_their_camera_and_limited(root: Path) -> None:
    scene = SrnScenes(root, "train", image_size=4, max_views=3).scene(0)
    assert scene.images.shape == (3, 4, 4, 3) and scene.poses.shape == (3, 4, 4)
    assert scene.focal == 8.25 / 2 and scene.center == (2.0, 2.0)
    boxes = pictures(0)[:3].reshape(3, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    assert np.abs(scene.images.numpy() - boxes).max() <= 1


def test_intrinsics_of_another_resolution_are_scaled(root: Path) -> None:
    path = root / "cars_test" / "other" / "intrinsics.txt"
    path.write_text("66. 32. 32. 0.\n0. 0. 0.\n1.\n64 64\n")
    scene = SrnScenes(root, "test").scene(0)
    assert scene.focal == 8.25 and scene.center == (4.0, 4.0)


def test_transparent_views_lie_over_white(root: Path) -> None:
    folder = root / "cars_test" / "other"
    pixels = np.zeros((SIZE, SIZE, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "rgb" / "000000.png")
    assert (SrnScenes(root, "test").scene(0).images[0] == 255).all()


def test_memory_is_bounded(root: Path) -> None:
    one = VIEWS * SIZE * SIZE * 3
    scenes = SrnScenes(root, "train", max_bytes=2 * one)
    first = scenes.scene(0)
    scenes.scene(1)
    assert scenes.scene(0) is first  # now the most recent
    scenes.scene(2)
    assert scenes.scene(0) is first
    scenes.scene(3)
    scenes.scene(2)
    assert scenes.scene(0) is not first
    assert len(pickle.loads(pickle.dumps(scenes))) == 4


def test_fingerprints_tell_data_apart(root: Path) -> None:
    one = SrnScenes(root, "train").fingerprint()
    assert SrnScenes(root, "train").fingerprint() == one
    assert SrnScenes(root, "train", max_views=2).fingerprint() != one
    assert SrnScenes(root, "train", image_size=4).fingerprint() != one
    shutil.copytree(root / "cars_train", root / "moved")
    assert SrnScenes(root / "moved").fingerprint() == one
    (root / "moved" / "scene0" / "pose" / "000000.txt").write_text("0")
    assert SrnScenes(root / "moved").fingerprint() != one


def scribble(name: str, text: str) -> Callable[[Path], object]:
    return lambda scene: (scene / name).write_text(text)


def truncate(scene: Path) -> None:
    path = scene / "rgb" / "000002.png"
    path.write_bytes(path.read_bytes()[:-40])


def shrink(scene: Path) -> None:
    Image.fromarray(pictures(0, 4, 4)[0]).save(scene / "rgb" / "000003.png")


def widen(scene: Path) -> None:
    for path in (scene / "rgb").iterdir():
        Image.fromarray(pictures(0, 4, 6)[0]).save(path)


POSE = "pose/000001.txt"
BROKEN = {
    "missing pose": (lambda scene: (scene / POSE).unlink(), r"000001\.txt: missing; 5 pic.* 4 po"),
    "missing picture": (
        lambda scene: (scene / "rgb/000001.png").unlink(),
        r"rgb.000001\.png: missing; 4 pictures, 5 poses",
    ),
    "no poses": (lambda scene: shutil.rmtree(scene / "pose"), "pose: missing"),
    "15 numbers": (
        scribble(POSE, " ".join(["0"] * 15)),
        r"000001\.txt: expected 16 numbers, got 15",
    ),
    "words": (scribble(POSE, "a b"), r"000001\.txt: expected numbers"),
    "nan": (scribble(POSE, "nan " * 16), r"000001\.txt: expected finite numbers"),
    "scaled": (scribble(POSE, "2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1"), r"000001\.txt: .*rotation"),
    "mirrored": (scribble(POSE, "1 0 0 0 0 1 0 0 0 0 -1 0 0 0 0 1"), r"000001\.txt: .*rotation"),
    "projective": (scribble(POSE, "1 0 0 0 0 1 0 0 0 0 1 0 0 0 1 1"), r"000001\.txt: .*rotation"),
    "binary": (lambda s: (s / POSE).write_bytes(b"\xff\xfe"), r"000001\.txt: .*other bytes"),
    "truncated": (truncate, r"000002\.png: cannot be decoded"),
    "smaller": (shrink, r"000003\.png: expected 8x8 pixels as in 000000\.png, got 4x4"),
    "other aspect": (widen, r"rgb.000000\.png: expected the aspect .*8x8 pixels, got 4x6"),
    "empty intrinsics": (scribble("intrinsics.txt", ""), r"intrinsics\.txt: expected 'f cx cy"),
    "no size": (scribble("intrinsics.txt", "8 4 4 0.\n0 0 0\n1."), r"intrinsics\.txt: .*height"),
    "flat size": (scribble("intrinsics.txt", "8 4 4 0.\n0 8"), r"intrinsics\.txt: .*size in pix"),
    "no focal": (scribble("intrinsics.txt", "0 4 4 0.\n8 8"), r"intrinsics\.txt: .*focal"),
    "text": (scribble("intrinsics.txt", "f cx cy 0.\n8 8"), r"intrinsics\.txt: expected numbers"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_scene_names_its_file(root: Path, what: str) -> None:
    harm, words = BROKEN[what]
    harm(root / "cars_train" / "scene1")
    with pytest.raises(BrokenSceneError, match=words):
        SrnScenes(root, "train").check()


def test_writing_checks_its_arrays(tmp_path: Path) -> None:
    poses = random_poses(VIEWS, 1.0, 0).numpy()
    with pytest.raises(ValueError, match="images: "):
        write_scene(tmp_path, pictures(0).astype(np.float32), poses, 1.0)
    with pytest.raises(ValueError, match="poses: "):
        write_scene(tmp_path, pictures(0), poses[:2], 1.0)
    with pytest.raises(ValueError, match="image_size: "):
        SrnScenes(tmp_path, image_size=0)


# Batches


def test_a_batch_holds_the_rays_and_colours_of_pixels(root: Path) -> None:
    scenes = SrnScenes(root, "train")
    batch = ray_batch(3, 7, scenes, scenes_per_batch=2, views=3, rays_per_view=4)
    assert batch.scenes.shape == (2,) and batch.scenes.dtype == torch.int64
    assert batch.origins.shape == batch.directions.shape == batch.colors.shape == (2, 12, 3)
    for index, origins, directions, colors in zip(*batch, strict=True):
        scene = scenes.scene(int(index))
        every_origin, every_direction = camera_rays(scene.poses, SIZE, SIZE, 8.25)
        used = set()
        for origin, direction, color in zip(origins, directions, colors, strict=True):
            at = (every_origin == origin).all(-1) & (every_direction == direction).all(-1)
            view, row, column = at.nonzero()[0].tolist()
            assert torch.equal(color, scene.images[view, row, column].float() / 255)
            used.add(view)
        assert len(used) == 3


def test_batches_are_functions_of_seed_and_step(root: Path) -> None:
    def batch(seed: int, step: int, slots: range | None = None) -> tuple[torch.Tensor, ...]:
        return ray_batch(seed, step, SrnScenes(root, "train"), 3, 2, 4, slots)

    one = batch(0, 5)
    assert all(map(torch.equal, one, batch(0, 5)))
    assert not torch.equal(one[3], batch(0, 6)[3]) and not torch.equal(one[3], batch(1, 5)[3])
    part = batch(0, 5, range(1, 3))  # what the second of two processes makes
    assert all(torch.equal(whole[1:], mine) for whole, mine in zip(one, part, strict=True))


def test_every_epoch_sees_every_instance_once() -> None:
    seen = np.concatenate([instance_order(0, step, 6, 4) for step in range(6)])
    epochs = seen.reshape(4, 6)
    assert (np.sort(epochs, axis=1) == np.arange(6)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1
    assert len(instance_order(0, 0, 2, 7)) == 7


def test_batches_name_what_is_wrong(root: Path) -> None:
    scenes = SrnScenes(root, "train")
    with pytest.raises(ValueError, match="views: expected at most 5, as scene scene"):
        ray_batch(0, 0, scenes, 1, 6, 1)
    with pytest.raises(ValueError, match="rays_per_view: "):
        ray_batch(0, 0, scenes, 1, 1, 0)
    with pytest.raises(ValueError, match="slots: "):
        ray_batch(0, 0, scenes, 1, 1, 1, range(0))


def test_the_mean_view_is_that_of_all_scenes_and_needs_one_size(tmp_path: Path) -> None:
    poses = np.stack([np.eye(4, dtype=np.float32)] * 2)
    for name, value, size in (("a", 0, 4), ("b", 255, 4), ("c", 0, 6)):
        images = np.full((2, size, size, 3), value, np.uint8)
        write_scene(tmp_path / "cars_train" / name, images, poses, focal=4.0)
    scenes = SrnScenes(tmp_path, "train")
    assert torch.equal(mean_view(scenes, at_most=2), torch.full((3, 4, 4), 0.5))
    with pytest.raises(ValueError, match="4x4 pixels in scene a, 6x6 pixels in c; set image_size"):
        mean_view(scenes)
