"""Few-shot episodes: a scene's support views, and rays of query views to be predicted from them.

Training episodes are pure functions of (seed, step): nothing has to be remembered for a run to
resume, and any number of processes agree without talking. Evaluation takes a choice of support
views that is fixed for each scene, and all other views as targets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ginr_fast.data.order import instance_order
from ginr_fast.data.scenes import Scene, Scenes, described_size
from ginr_fast.rays import camera_rays, pixel_rays

_WHITE = 255


class Episode(NamedTuple):
    """Several scenes, each known by V support views and asked about along R rays.

    Directions are not normalised (see :func:`ginr_fast.camera_rays`).

    Args:
        scenes: ``(B,)``, int64, indices of the scenes.
        support_images: ``(B, V, 3, H, W)``, float32 in [0, 1].
        support_origins: ``(B, V, H, W, 3)``, float32, of the rays of every pixel.
        support_directions: ``(B, V, H, W, 3)``, float32.
        origins: ``(B, R, 3)``, float32, of rays of the query views.
        directions: ``(B, R, 3)``, float32.
        colors: ``(B, R, 3)``, float32 in [0, 1], seen along these rays.
    """

    scenes: torch.Tensor
    support_images: torch.Tensor
    support_origins: torch.Tensor
    support_directions: torch.Tensor
    origins: torch.Tensor
    directions: torch.Tensor
    colors: torch.Tensor


class EvaluationScene(NamedTuple):
    """A scene known by support views.

    Args:
        name: of the scene.
        support_images: ``(V, 3, H, W)``, float32 in [0, 1].
        support_origins: ``(V, H, W, 3)``, float32, of the rays of every pixel.
        support_directions: ``(V, H, W, 3)``, float32, not normalised.
        targets: the views to predict, for :func:`target_view`.
    """

    name: str
    support_images: torch.Tensor
    support_origins: torch.Tensor
    support_directions: torch.Tensor
    targets: list[int]


class TargetView(NamedTuple):
    """A view to predict and the truth.

    Args:
        origins: ``(H, W, 3)``, float32.
        directions: ``(H, W, 3)``, float32, not normalised.
        image: ``(3, H, W)``, float32 in [0, 1].
    """

    origins: torch.Tensor
    directions: torch.Tensor
    image: torch.Tensor


def episode(
    seed: int,
    step: int,
    scenes: Scenes,
    scenes_per_batch: int,
    support: int,
    queries: int,
    rays: int,
    slots: range | None = None,
    *,
    foreground_balanced: bool = False,
    supports_in_queries: bool = False,
) -> Episode:
    """What a training step of few-shot view synthesis sees.

    TransINR takes 32 scenes with 1 or 2 support views, 1 query view and 128 rays, balanced in the
    first epoch. Scenes go by :func:`instance_order`; views are drawn without repetition, and so are
    the pixels, from all query views of a scene together.

    Args:
        seed: the same seed and step give the same episode.
        step: from 0.
        scenes: where views come from.
        scenes_per_batch: B, over all processes.
        support: V, support views of each scene.
        queries: query views of each scene.
        rays: R, pixels of the query views of each scene.
        slots: which of the B slots to make, for one of several processes; all if None.
        foreground_balanced: draw the first half of the pixels (rounded down) from those that are
            not white; they repeat if there are fewer, and are drawn evenly if there is none
            ("adaptive sampling", section 4.2 of TransINR).
        supports_in_queries: whether a query view may be one of the support views.

    Raises:
        ValueError: a number that is not positive, a scene that has fewer views or pixels, or scenes
            with views of different sizes.
        BrokenSceneError: a scene that cannot be read.

    Example:
        >>> from ginr_fast.data import CarsConfig, SrnScenes, episode, make_cars
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> config = CarsConfig(2, views=4, test_scenes=1, test_views=2, size=16)
        >>> scenes = SrnScenes(make_cars(folder.name, config), "train")
        >>> episode(0, 0, scenes, 2, support=1, queries=1, rays=32).support_images.shape
        torch.Size([2, 1, 3, 16, 16])
    """
    for name, value in (
        ("scenes_per_batch", scenes_per_batch),
        ("support", support),
        ("queries", queries),
        ("rays", rays),
    ):
        if value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value}")
    if slots is not None and not len(slots):
        raise ValueError("slots: expected at least one")
    order = instance_order(seed, step, len(scenes), scenes_per_batch)
    slots = range(scenes_per_batch) if slots is None else slots
    chosen = [scenes.scene(int(order[slot])) for slot in slots]
    for scene in chosen[1:]:
        _check_same_size(chosen[0], scene)
    parts = []
    for slot, scene in zip(slots, chosen, strict=True):
        rng = np.random.default_rng((seed, step, slot))
        known, asked = _drawn_views(rng, scene, support, queries, supports_in_queries)
        query = _query_rays(rng, scene, asked, rays, foreground_balanced)
        parts.append((*_whole_views(scene, known), *query))
    return Episode(
        torch.from_numpy(order[list(slots)]),
        *(torch.stack(part) for part in zip(*parts, strict=True)),
    )


def evaluation_views(scenes: Scenes, index: int, support: int, *, seed: int = 0) -> EvaluationScene:
    """Support views of a scene, always the same ones, and all its other views as targets.

    More support views are those of before and others, so that scores by their number compare.

    Args:
        scenes: where views come from.
        index: of the scene; it seeds the choice.
        support: V, the number of support views.
        seed: another seed, another choice.

    Raises:
        IndexError: no such scene.
        ValueError: a number that is not positive, or too few views to leave a target.
        BrokenSceneError: a scene that cannot be read.
    """
    if support < 1:
        raise ValueError(f"support: expected a positive integer, got {support}")
    scene = scenes.scene(index)
    count = len(scene.images)
    if support >= count:
        raise ValueError(
            f"support: expected less than the {count} views that scene {scene.name} has, "
            f"got {support}"
        )
    order = np.random.default_rng((seed, index)).permutation(count)
    known = torch.from_numpy(order[:support])
    return EvaluationScene(
        scene.name, *_whole_views(scene, known), sorted(order[support:].tolist())
    )


def target_view(scene: Scene, view: int) -> TargetView:
    """The rays of a view's pixels, and the picture.

    Args:
        scene: the scene, as ``scenes.scene(index)`` gives it.
        view: which of its views.

    Raises:
        IndexError: no such view.
    """
    if not 0 <= view < len(scene.images):
        raise IndexError(f"view: expected 0 to {len(scene.images) - 1}, got {view}")
    images, origins, directions = _whole_views(scene, torch.tensor([view]))
    return TargetView(origins[0], directions[0], images[0])


def _check_same_size(first: Scene, other: Scene) -> None:
    if other.images.shape[1:] != first.images.shape[1:]:
        raise ValueError(
            f"scenes: expected views of one size, got {described_size(first.images.shape[1:])} in "
            f"{first.name} and {described_size(other.images.shape[1:])} in {other.name}; "
            "set image_size"
        )


def _drawn_views(
    rng: np.random.Generator, scene: Scene, support: int, queries: int, supports_in_queries: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of support views and of query views."""
    count = len(scene.images)
    needed = max(support, queries) if supports_in_queries else support + queries
    if count < needed:
        raise ValueError(
            f"support, queries: scene {scene.name} has {count} views, "
            f"{support} + {queries} were asked for"
        )
    order = rng.permutation(count)
    known, others = order[:support], order[support:]
    asked = rng.choice(count, queries, replace=False) if supports_in_queries else others[:queries]
    return torch.from_numpy(known), torch.from_numpy(asked)


def _whole_views(
    scene: Scene, views: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images ``(V, 3, H, W)``, and origins and directions ``(V, H, W, 3)``, of views."""
    height, width = scene.images.shape[1:3]
    rays = camera_rays(scene.poses[views], height, width, scene.focal, scene.center)
    images = scene.images[views].permute(0, 3, 1, 2).contiguous()
    return images.float() / 255, *rays


def _query_rays(
    rng: np.random.Generator, scene: Scene, views: torch.Tensor, rays: int, balanced: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Origins, directions and colours ``(R, 3)`` of pixels drawn from views."""
    height, width = scene.images.shape[1:3]
    total = len(views) * height * width
    if rays > total:
        raise ValueError(
            f"rays: expected at most the {total} pixels of {len(views)} query views of scene "
            f"{scene.name}, got {rays}"
        )
    pixels = np.empty(0, dtype=np.int64)
    if balanced:
        dark = (scene.images[views] < _WHITE).any(-1).flatten()
        pixels = _foreground(rng, dark.nonzero()[:, 0].numpy(), rays // 2)
    evenly = rng.choice(total, rays - len(pixels), replace=False)
    chosen = torch.from_numpy(np.concatenate([pixels, evenly]))
    view = views[chosen // (height * width)]
    rows, columns = chosen // width % height, chosen % width
    origins, directions = pixel_rays(
        scene.poses[view], rows[:, None], columns[:, None], scene.focal, scene.center
    )
    return origins[:, 0], directions[:, 0], scene.images[view, rows, columns].float() / 255


def _foreground(rng: np.random.Generator, pixels: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the pixels: without repetition if there are enough, none if there is none."""
    if count <= len(pixels):
        return rng.choice(pixels, count, replace=False)
    if not len(pixels):
        return pixels
    return np.concatenate([pixels, rng.choice(pixels, count - len(pixels))])
