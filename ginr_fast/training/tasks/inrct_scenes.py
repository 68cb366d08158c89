"""INRCT of radiance fields as a task: one view of a scene to 3D, and noise to new scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image

from ginr_fast.generation.consistency import losses, per_instance
from ginr_fast.generation.sampling import noise
from ginr_fast.rays import orbit_poses
from ginr_fast.systems.inrct_scenes import EarlierViews, InrctScenes
from ginr_fast.training.images import comparison, shown
from ginr_fast.training.losses import reconstruction_loss
from ginr_fast.training.recipes.inrct_scenes import InrctScenesRecipe
from ginr_fast.training.tasks.base import StepLoss, step_loader
from ginr_fast.training.tasks.consistency import ConsistencyTask
from ginr_fast.training.tasks.mnif import jitter_seed
from ginr_fast.training.tasks.views import ViewsData, ViewsTask

_SUPPORT_NOISE, _QUERY_NOISE = 13, 14


class NoisyViews(NamedTuple):
    """What a training step sees; images and colours in [0, 1], noise standard normal.

    Args:
        support: ``(B, 3, H, W)``.
        support_noise: the same shape.
        origins: of the query views' rays, ``(B, R, 3)``.
        directions: the same shape.
        colors: seen along them, ``(B, R, 3)``.
        color_noise: the same shape.
    """

    support: torch.Tensor
    support_noise: torch.Tensor
    origins: torch.Tensor
    directions: torch.Tensor
    colors: torch.Tensor
    color_noise: torch.Tensor


class InrctScenesTask(ConsistencyTask, ViewsTask):
    """Scenes from one view of each, and from none.

    Args:
        recipe: how the model is trained.
        data: the scenes.
    """

    recipe: InrctScenesRecipe
    model: InrctScenes

    def __init__(self, recipe: InrctScenesRecipe, data: ViewsData) -> None:
        super().__init__(recipe, data)
        self.first_steps = recipe.first_steps(self.steps_per_epoch())

    def batches(
        self, first: int, last: int, slots: range, workers: int, pin_memory: bool
    ) -> Iterable[Any]:
        return step_loader(partial(self.noisy_batch, slots=slots), first, last, workers, pin_memory)

    def noisy_batch(self, step: int, slots: range) -> NoisyViews:
        """The scenes of a step with their noise, a pure function of (recipe.seed, step, slots)."""
        found, seed = self.batch(step, slots), self.recipe.seed
        support = found.support_images[:, 0]
        numbers = [step * self.recipe.batch_size + slot for slot in slots]
        return NoisyViews(
            support,
            noise(support.shape[1:], numbers, seed, _SUPPORT_NOISE),
            found.origins,
            found.directions,
            found.colors,
            noise(found.colors.shape[1:], numbers, seed, _QUERY_NOISE),
        )

    def loss(self, forward: Callable[..., Any], batch: Any, step: int, slots: range) -> StepLoss:
        recipe, schedule, device = self.recipe, self.recipe.model.schedule, batch.colors.device
        objective = self.objective(step)
        levels = schedule.draw(recipe.seed, step, slots, below=self.reconstructs(step))
        views, colors = batch.support * 2 - 1, batch.colors * 2 - 1
        seed = jitter_seed(recipe.seed, step, slots, batch.origins)

        def at(t: torch.Tensor, rows: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
            """Support views and colours of some instances with noise of their levels."""
            return (
                views[rows] + per_instance(t, views) * batch.support_noise[rows],
                colors[rows] + per_instance(t, colors) * batch.color_noise[rows],
            )

        earlier, rows = None, torch.empty(0, dtype=torch.int64)
        if objective.generation:
            r = schedule.earlier(levels, step - self.first_steps)
            # Where r = 0 the teacher gives what is seen: it need not be asked. Levels are drawn on
            # the CPU, so that choosing rows waits for no device.
            rows = r.nonzero()[:, 0]
        if len(rows):
            r, rows = r[rows].to(device), rows.to(device)
            views_r, colors_r = at(r, rows)
            rays = batch.origins[rows], batch.directions[rows]
            earlier = EarlierViews(views_r, r, *rays, colors_r, seed.of(rows))
        t = levels.to(device)
        views_t, colors_t = at(t, slice(None))
        found = forward(views_t, t, batch.origins, batch.directions, colors_t, earlier, seed)
        followed = colors
        if found.followed is not None:
            followed = colors.index_copy(0, rows, found.followed.to(colors))
        total = losses(objective, schedule, t, found.denoised, followed, found.signal, colors).total
        return StepLoss(total, reconstruction_loss((found.signal + 1) / 2, batch.colors))

    def picture(self, step: int) -> Image.Image:
        """Reconstructions from one view, then new scenes from noise, each from two sides."""
        rows, titles = self.picture_rows(1, f"rendered after {step} steps")
        config, scene = self.recipe.model, self.held_out.scene(0)
        drawn = self.model.draw(range(len(shown(len(self.held_out)))))
        poses = orbit_poses(2, config.camera_distance, start=35.0).to(self.device)
        size = scene.images.shape[1]
        made = self.model.render_view(drawn, poses, size, size, config.focal * size)
        return comparison([*rows, *made.unbind(1)], [*titles, "drawn from noise", "the other side"])
