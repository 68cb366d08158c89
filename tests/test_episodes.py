"""Few-shot episodes: support views, query rays, and the choice of views for evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ginr_fast.data import (
    Episode,
    LearnItScenes,
    Scene,
    SrnScenes,
    episode,
    evaluation_views,
    target_view,
)
from ginr_fast.data.learnit import write_object, write_splits
from ginr_fast.data.srn import write_scene
from ginr_fast.rays import random_poses

SIZE, VIEWS, SCENES, FOCAL = 8, 6, 4, 8.25


def write(folder: Path, seed: int, images: np.ndarray | None = None) -> None:
    if images is None:
        shape = (VIEWS, SIZE, SIZE, 3)
        images = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    write_scene(folder, images, random_poses(len(images), 1.3, seed).numpy(), FOCAL)


@pytest.fixture
def scenes(tmp_path: Path) -> SrnScenes:
    for index in range(SCENES):
        write(tmp_path / f"scene{index}", index)
    return SrnScenes(tmp_path)


def rays_of(scene: Scene, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Origins and directions ``(H, W, 3)`` of a view, pixel by pixel, in float64."""
    height, width = scene.images.shape[1:3]
    pose = scene.poses[view].double().numpy()
    directions = np.empty((height, width, 3))
    for row in range(height):
        for column in range(width):
            x = (column + 0.5 - scene.center[0]) / float(scene.focal)
            y = (row + 0.5 - scene.center[1]) / float(scene.focal)
            directions[row, column] = pose[:3, :3] @ np.array([x, -y, -1.0])
    return np.broadcast_to(pose[:3, 3], directions.shape), directions


def found_views(scene: Scene, images: torch.Tensor) -> list[int]:
    """Which views of a scene these pictures ``(V, 3, H, W)`` are."""
    every = scene.images.permute(0, 3, 1, 2).float() / 255
    return [int((every == image).all(dim=(1, 2, 3)).nonzero()) for image in images]


def pixels_of(scene: Scene, batch: Episode, slot: int) -> list[tuple[int, int, int]]:
    """View, row and column of each query ray; its colour is that of the pixel."""
    found = []
    rays = [rays_of(scene, view) for view in range(len(scene.images))]
    origins = torch.from_numpy(np.stack([origin for origin, _ in rays]))
    directions = torch.from_numpy(np.stack([direction for _, direction in rays]))
    for origin, direction, color in zip(
        batch.origins[slot], batch.directions[slot], batch.colors[slot], strict=True
    ):
        off = (origins - origin).abs().amax(-1) + (directions - direction).abs().amax(-1)
        view, row, column = np.unravel_index(int(off.argmin()), off.shape)
        assert off[view, row, column] < 1e-5
        assert torch.equal(color, scene.images[view, row, column].float() / 255)
        found.append((int(view), int(row), int(column)))
    return found


def test_an_episode_holds_support_views_and_query_rays(scenes: SrnScenes) -> None:
    batch = episode(3, 7, scenes, 3, support=2, queries=2, rays=20)
    assert batch.scenes.shape == (3,) and batch.scenes.dtype == torch.int64
    assert batch.support_images.shape == (3, 2, 3, SIZE, SIZE)
    assert batch.support_origins.shape == batch.support_directions.shape == (3, 2, SIZE, SIZE, 3)
    assert batch.origins.shape == batch.directions.shape == batch.colors.shape == (3, 20, 3)
    assert all(part.dtype == torch.float32 for part in batch[1:])
    for slot, index in enumerate(batch.scenes.tolist()):
        scene = scenes.scene(index)
        support = found_views(scene, batch.support_images[slot])
        for at, view in enumerate(support):
            origins, directions = rays_of(scene, view)
            assert np.allclose(batch.support_origins[slot, at].numpy(), origins, atol=1e-6)
            assert np.allclose(batch.support_directions[slot, at].numpy(), directions, atol=1e-6)
        pixels = pixels_of(scene, batch, slot)
        queries = {view for view, _, _ in pixels}
        assert len(set(support)) == 2 and len(queries) == 2 and not queries & set(support)
        assert len(set(pixels)) == 20  # without repetition


def test_episodes_are_functions_of_seed_and_step(scenes: SrnScenes) -> None:
    one = episode(0, 5, scenes, 3, 2, 1, 16)
    again = episode(0, 5, SrnScenes(scenes.folder), 3, 2, 1, 16)
    assert all(map(torch.equal, one, again))
    for seed, step in ((0, 6), (1, 5)):
        other = episode(seed, step, scenes, 3, 2, 1, 16)
        assert not torch.equal(one.colors, other.colors)
        assert not torch.equal(one.support_images, other.support_images)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_any_number_of_processes_makes_the_same_batch(
    scenes: SrnScenes, processes: int, balanced: bool
) -> None:
    def made(slots: range | None) -> Episode:
        return episode(0, 9, scenes, 4, 1, 1, 16, slots, foreground_balanced=balanced)

    bounds = [4 * rank // processes for rank in range(processes + 1)]
    parts = [made(range(*pair)) for pair in zip(bounds, bounds[1:], strict=False)]
    for whole, *mine in zip(made(None), *parts, strict=True):
        assert torch.equal(whole, torch.cat(mine))


def test_every_view_is_a_support_view_and_a_query_view_at_times(scenes: SrnScenes) -> None:
    support, queries = set(), set()
    for step in range(200):
        batch = episode(0, step, scenes, 1, 1, 1, 1)
        index = int(batch.scenes[0])
        scene = scenes.scene(index)
        support.add((index, found_views(scene, batch.support_images[0])[0]))
        queries.add((index, pixels_of(scene, batch, 0)[0][0]))
    assert len(support) == len(queries) == SCENES * VIEWS


def test_support_views_are_queries_only_if_asked_for(scenes: SrnScenes) -> None:
    shared = 0
    for step in range(20):
        batch = episode(0, step, scenes, 1, 3, 3, SIZE * SIZE * 3, supports_in_queries=True)
        scene = scenes.scene(int(batch.scenes[0]))
        queries = {view for view, _, _ in pixels_of(scene, batch, 0)}
        assert len(queries) == 3
        shared += bool(queries & set(found_views(scene, batch.support_images[0])))
    assert shared > 10
    whole = episode(0, 0, scenes, 1, VIEWS, VIEWS, 1, supports_in_queries=True)
    assert whole.support_images.shape[1] == VIEWS


# Foreground


def spotted(count: int) -> np.ndarray:
    """White views with ``count`` pixels each that are not white, one of them only just."""
    images = np.full((VIEWS, SIZE * SIZE, 3), 255, dtype=np.uint8)
    for view in range(VIEWS):
        where = np.random.default_rng(view).permutation(SIZE * SIZE)[:count]
        images[view, where, view % 3] = 20 + np.arange(count)
        images[view, where[:1], view % 3] = 254
    return images.reshape(VIEWS, SIZE, SIZE, 3)


@pytest.fixture
def spots(tmp_path: Path) -> Callable[[int], SrnScenes]:
    def make(count: int) -> SrnScenes:
        write(tmp_path / "spots" / "only", 0, spotted(count))
        return SrnScenes(tmp_path / "spots")

    return make


def test_half_of_the_rays_see_the_foreground(spots: Callable[[int], SrnScenes]) -> None:
    scenes = spots(10)
    others = 0
    for step in range(40):
        batch = episode(0, step, scenes, 1, 1, 1, 13, foreground_balanced=True)
        seen = (batch.colors[0] < 1).any(-1)
        assert seen[:6].all()
        first = pixels_of(scenes.scene(0), batch, 0)[:6]
        assert len(set(first)) == 6  # there are enough
        others += int(seen[6:].sum())
    expected, deviation = 280 * 10 / 64, math.sqrt(280 * (10 / 64) * (54 / 64))
    assert abs(others - expected) < 4 * deviation  # the others are drawn from everywhere
    plain = episode(0, 0, scenes, 1, 1, 1, 64)
    assert (plain.colors[0] < 1).any(-1).sum() == 10


def test_foreground_that_is_too_small_repeats(spots: Callable[[int], SrnScenes]) -> None:
    scenes = spots(3)
    batch = episode(0, 0, scenes, 1, 1, 1, 20, foreground_balanced=True)
    assert (batch.colors[0, :10] < 1).any(-1).all()
    assert len(set(pixels_of(scenes.scene(0), batch, 0)[:10])) == 3  # each of them, at least once


def test_views_without_foreground_are_drawn_evenly(spots: Callable[[int], SrnScenes]) -> None:
    scenes = spots(0)
    batch = episode(0, 0, scenes, 1, 1, 1, 64, foreground_balanced=True)
    assert (batch.colors == 1).all()
    assert (batch.directions[0].unique(dim=0)).shape == (64, 3)  # every pixel once


# Evaluation


def test_evaluation_takes_the_same_support_views_every_time(scenes: SrnScenes) -> None:
    for index in range(SCENES):
        scene = scenes.scene(index)
        chosen: list[int] = []
        for support in range(1, VIEWS):
            found = evaluation_views(scenes, index, support)
            again = evaluation_views(SrnScenes(scenes.folder), index, support)
            assert found.name == scene.name == f"scene{index}"
            assert torch.equal(found.support_images, again.support_images)
            views = found_views(scene, found.support_images)
            assert views[: support - 1] == chosen  # those of before, and one more
            assert sorted(views + found.targets) == list(range(VIEWS))
            assert found.targets == sorted(found.targets) == again.targets
            origins, directions = rays_of(scene, views[-1])
            assert np.allclose(found.support_origins[-1].numpy(), origins, atol=1e-6)
            assert np.allclose(found.support_directions[-1].numpy(), directions, atol=1e-6)
            chosen = views
    first = [evaluation_views(scenes, index, 2).targets for index in range(SCENES)]
    other = [evaluation_views(scenes, index, 2, seed=1).targets for index in range(SCENES)]
    assert len({tuple(targets) for targets in first}) > 1 and first != other


def test_a_target_is_a_view_and_its_rays(scenes: SrnScenes) -> None:
    scene = scenes.scene(1)
    target = target_view(scene, 4)
    assert torch.equal(target.image, scene.images[4].permute(2, 0, 1).float() / 255)
    origins, directions = rays_of(scene, 4)
    assert np.allclose(target.origins.numpy(), origins, atol=1e-6)
    assert np.allclose(target.directions.numpy(), directions, atol=1e-6)
    for view in (-1, VIEWS):
        with pytest.raises(IndexError, match="view: expected 0 to 5"):
            target_view(scene, view)


def test_objects_in_learnit_format_make_the_same_episodes(
    scenes: SrnScenes, tmp_path: Path
) -> None:
    for scene in map(scenes.scene, range(SCENES)):
        opaque = np.full((*scene.images.shape[:3], 1), 255, dtype=np.uint8)
        images = np.concatenate([scene.images.numpy(), opaque], axis=-1)
        angle = 2 * math.atan(0.5 * SIZE / FOCAL)
        write_object(tmp_path / "l" / "cars" / scene.name, images, scene.poses.numpy(), angle)
    write_splits(tmp_path / "l" / "car_splits.json", {"train": scenes.names})
    objects = LearnItScenes(tmp_path / "l", "cars", "train")
    one, two = (episode(0, 0, data, 3, 2, 1, 16) for data in (scenes, objects))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, two, strict=True))


# What is wrong


def test_wrong_numbers_are_named(scenes: SrnScenes) -> None:
    names = ("scenes_per_batch", "support", "queries", "rays")
    for wrong, name in enumerate(names):
        numbers = [1, 1, 1, 1]
        numbers[wrong] = 0
        with pytest.raises(ValueError, match=f"^{name}: expected a positive integer, got 0"):
            episode(0, 0, scenes, *numbers)
    with pytest.raises(ValueError, match="slots: "):
        episode(0, 0, scenes, 1, 1, 1, 1, range(0))
    with pytest.raises(ValueError, match=r"^rays: .*64 pixels of 1 query views of scene.*got 65"):
        episode(0, 0, scenes, 1, 1, 1, 65)
    with pytest.raises(ValueError, match="^support: expected a positive integer"):
        evaluation_views(scenes, 0, 0)


def test_too_few_views_name_the_scene(scenes: SrnScenes) -> None:
    with pytest.raises(ValueError, match=r"scene scene\d has 6 views, 5 \+ 2 were asked for"):
        episode(0, 0, scenes, 1, 5, 2, 1)
    with pytest.raises(ValueError, match=r"scene scene\d has 6 views, 7 \+ 1 were asked for"):
        episode(0, 0, scenes, 1, 7, 1, 1, supports_in_queries=True)
    with pytest.raises(ValueError, match="less than the 6 views that scene scene2 has, got 6"):
        evaluation_views(scenes, 2, 6)
    with pytest.raises(IndexError, match="0 to 3"):
        evaluation_views(scenes, 4, 1)


def test_mixed_sizes_name_both_scenes(scenes: SrnScenes) -> None:
    write(scenes.folder / "scene1", 1, np.zeros((VIEWS, 4, 4, 3), dtype=np.uint8))
    mixed = SrnScenes(scenes.folder)
    with pytest.raises(ValueError, match=r"one size, got .* in scene\d and .* in scene\d") as error:
        episode(0, 0, mixed, SCENES, 1, 1, 4)
    assert "4x4 pixels in scene1" in str(error.value) and "8x8 pixels" in str(error.value)
    alike = episode(0, 0, SrnScenes(scenes.folder, image_size=4), SCENES, 1, 1, 4)
    assert alike.support_images.shape == (SCENES, 1, 3, 4, 4)
