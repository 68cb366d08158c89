"""Batches of rays for auto-decoding: pure functions of (seed, step).

Nothing has to be remembered for a run to resume, and any number of processes agree without talking.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ginr_fast.data.order import instance_order
from ginr_fast.data.scenes import Scenes
from ginr_fast.rays import pixel_rays


class RayBatch(NamedTuple):
    """Rays of several scenes and the colours seen along them; R = views · rays_per_view.

    Args:
        scenes: ``(B,)``, int64, indices of the scenes.
        origins: ``(B, R, 3)``, float32.
        directions: ``(B, R, 3)``, float32, not normalised (see :func:`ginr_fast.camera_rays`).
        colors: ``(B, R, 3)``, float32 in [0, 1].
    """

    scenes: torch.Tensor
    origins: torch.Tensor
    directions: torch.Tensor
    colors: torch.Tensor


def ray_batch(
    seed: int,
    step: int,
    scenes: Scenes,
    scenes_per_batch: int,
    views: int,
    rays_per_view: int,
    slots: range | None = None,
) -> RayBatch:
    """The rays that a training step sees; mNIF takes 8 scenes, 32 views, 512 rays.

    Scenes go by :func:`instance_order`. The views of a scene are drawn without repetition, the
    pixels of a view evenly with repetition. Only the rays of these pixels are computed.

    Args:
        seed: the same seed and step give the same rays.
        step: from 0.
        scenes: where they come from.
        scenes_per_batch: B, over all processes.
        views: views of each scene.
        rays_per_view: pixels of each view.
        slots: which of the B slots to make, for one of several processes; all if None.

    Raises:
        ValueError: a number that is not positive, or a scene that has fewer views.
        BrokenSceneError: a scene that cannot be read.
    """
    for name, value in (
        ("scenes_per_batch", scenes_per_batch),
        ("views", views),
        ("rays_per_view", rays_per_view),
    ):
        if value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value}")
    if slots is not None and not len(slots):
        raise ValueError("slots: expected at least one")
    order = instance_order(seed, step, len(scenes), scenes_per_batch)
    slots = range(scenes_per_batch) if slots is None else slots
    parts = [
        _rays(seed, step, slot, scenes, int(order[slot]), views, rays_per_view) for slot in slots
    ]
    origins, directions, colors = (torch.stack(part) for part in zip(*parts, strict=True))
    return RayBatch(torch.from_numpy(order[list(slots)]), origins, directions, colors)


def _rays(
    seed: int, step: int, slot: int, scenes: Scenes, index: int, views: int, rays: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scene = scenes.scene(index)
    count, height, width = scene.images.shape[:3]
    if count < views:
        raise ValueError(f"views: expected at most {count}, as scene {scene.name} has, got {views}")
    rng = np.random.default_rng((seed, step, slot))
    chosen = torch.from_numpy(rng.choice(count, views, replace=False))
    pixels = torch.from_numpy(rng.integers(height * width, size=(views, rays)))
    rows, columns = pixels // width, pixels % width
    origins, directions = pixel_rays(scene.poses[chosen], rows, columns, scene.focal, scene.center)
    colors = scene.images[chosen[:, None], rows, columns].float() / 255
    return origins.reshape(-1, 3), directions.reshape(-1, 3), colors.reshape(-1, 3)
