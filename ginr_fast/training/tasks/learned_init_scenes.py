"""Learned Init of radiance fields as a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property, partial

import torch
from PIL import Image

from ginr_fast.data.order import spread
from ginr_fast.data.ray_batches import RayBatch, ray_batch
from ginr_fast.data.scenes import mean_view
from ginr_fast.data.srn import Scene
from ginr_fast.ops.volume_render.random import Seed
from ginr_fast.pictures import save_png
from ginr_fast.rays import camera_rays, pixel_rays
from ginr_fast.systems.samples import RaySamples, Samples
from ginr_fast.training.images import comparison, shown
from ginr_fast.training.metrics import FieldSum
from ginr_fast.training.recipes import LearnedInitScenesRecipe
from ginr_fast.training.tasks.base import DataOptions, EvaluationOptions, Table, step_loader
from ginr_fast.training.tasks.learned_init import LearnedInitTask
from ginr_fast.training.tasks.mnif import field_table, jitter_seed
from ginr_fast.training.tasks.mnif_scenes import SceneData, open_scenes


class LearnedInitScenesTask(LearnedInitTask):
    """Scenes, each fitted by the inner loop to views from known places.

    Args:
        recipe: how the initialisation is trained.
        data: the scenes.
    """

    unit = "scenes"
    own_data = "made cars"
    recipe: LearnedInitScenesRecipe

    def __init__(self, recipe: LearnedInitScenesRecipe, data: SceneData) -> None:
        super().__init__(recipe)
        self.train_scenes, self.held_out = data.train, data.held_out
        self.evaluated = f"other views of held-out scenes, from {recipe.known_views}"

    @classmethod
    def open(cls, recipe: LearnedInitScenesRecipe, options: DataOptions) -> SceneData:
        """The splits of a folder in SRN's format, or of the cars that the recipe makes."""
        return open_scenes(recipe, options)

    def fingerprint(self) -> str:
        return f"{self.train_scenes.fingerprint()} {self.held_out.fingerprint()}"

    def steps_per_epoch(self) -> int:
        return max(1, len(self.train_scenes) // self.recipe.batch_size)

    def batches(
        self, first: int, last: int, slots: range, workers: int, pin_memory: bool
    ) -> Iterable[RayBatch]:
        return step_loader(partial(self._batch, slots=slots), first, last, workers, pin_memory)

    def _batch(self, step: int, slots: range) -> RayBatch:
        recipe = self.recipe
        return ray_batch(
            recipe.seed,
            step,
            self.train_scenes,
            recipe.batch_size,
            recipe.views,
            recipe.rays,
            slots,
        )

    def samples(self, batch: RayBatch, step: int) -> list[Samples]:
        # Rays come view by view: every n-th one is from all views.
        parts = self.recipe.parts
        _, *rays = batch
        return [RaySamples(*(each[:, part::parts] for each in rays)) for part in range(parts)]

    def jitter(self, samples: Samples, step: int, slots: range) -> Seed | None:
        if not self.recipe.jitter:
            return None
        assert isinstance(samples, RaySamples)
        return jitter_seed(self.recipe.seed, step, slots, samples.origins)

    @cached_property
    def mean_image(self) -> torch.Tensor:
        """The mean of all views of training scenes, ``(3, H, W)`` in [0, 1]."""
        return mean_view(self.train_scenes).to(self.device)

    def fit(self, scene: Scene, known: list[int], steps: int | None = None) -> torch.Tensor:
        """Packed weights of a scene that is known by some of its views, ``(1, P)``.

        Each step sees as many rays of them as one of the inner loop in training.

        Args:
            scene: the scene.
            known: which of its views.
            steps: gradient steps; the recipe's number if None.
        """
        recipe = self.recipe
        draw = random_rays(scene, known, recipe.views * recipe.rays // recipe.parts)

        def samples(step: int) -> RaySamples:
            return RaySamples(*(each[None].to(self.device) for each in draw(step)))

        return self.model.adapt(samples, steps)

    @torch.no_grad()
    def render(self, weights: torch.Tensor, scene: Scene, view: int) -> torch.Tensor:
        """A view of a scene as its field gives it, ``(3, H, W)`` in [0, 1].

        Args:
            weights: packed, ``(1, P)``.
            scene: for its camera and poses.
            view: which of its poses.
        """
        height, width = scene.images.shape[1:3]
        rays = camera_rays(scene.poses[view][None], height, width, scene.focal, scene.center)
        origins, directions = (each.to(self.device) for each in rays)
        return self.model.render(origins, directions, weights).color[0].permute(2, 0, 1).clamp(0, 1)

    def _scored(
        self, index: int, known_views: int, steps: int | None = None, most: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of a held-out scene that it is not fitted to, and what its field gives for them."""
        scene = self.held_out.scene(index)
        count = len(scene.images)
        known = spread(count, known_views)
        others = [view for view in range(count) if view not in known]
        if not others:
            raise ValueError(
                f"views: expected more than the {known_views} that scenes are fitted to, "
                f"{scene.name} has {count}"
            )
        if most is not None:
            others = [others[place] for place in spread(len(others), most)]
        truth = scene.images[others].permute(0, 3, 1, 2).to(self.device).float() / 255
        if truth.shape[1:] != self.mean_image.shape:
            raise ValueError(
                f"data: expected views of {tuple(self.mean_image.shape[1:])} pixels, "
                f"got {tuple(truth.shape[2:])}; set image_size"
            )
        weights = self.fit(scene, known, steps)
        return truth, torch.stack([self.render(weights, scene, view) for view in others])

    def evaluate(self, rank: int, world: int) -> torch.Tensor:
        recipe, total = self.recipe, FieldSum(self.device)
        scenes = spread(len(self.held_out), recipe.scored_views)
        views = -(-recipe.scored_views // len(scenes))
        for index in scenes[rank::world]:
            truth, found = self._scored(index, recipe.known_views, most=views)
            total.update(found, truth, self.mean_image, "images")
        return total.sums

    def picture(self, step: int) -> Image.Image:
        indices = shown(len(self.held_out))
        pairs = [self._scored(index, self.recipe.known_views, most=1) for index in indices]
        rows = [torch.cat(row) for row in zip(*pairs, strict=True)]
        return comparison(rows, [self.evaluated, f"rendered after {step} steps"])

    def table(self, options: EvaluationOptions) -> Table:
        total = FieldSum(self.device)
        rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        count = min(len(self.held_out), options.instances or len(self.held_out))
        for index in range(count):
            pair = self._scored(index, options.fit_views, options.fit_steps)
            total.update(pair[1], pair[0], self.mean_image, "images")
            for row, views in zip(rows, pair, strict=True):
                row.append(views[len(views) // 2])
        if options.picture is not None:
            images = [torch.stack([row[index] for index in shown(count)]) for row in rows]
            save_png(comparison(images, ["held-out scenes", "rendered"]), options.picture)
        what = f"other views of held-out scenes, from {options.fit_views}"
        return field_table([total.scores(what)])


def random_rays(
    scene: Scene, views: list[int], count: int
) -> Callable[[int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Draws of ``count`` rays from some views of a scene, a pure function of a seed.

    Returns:
        Of the seed: origins, directions and colours in [0, 1], ``(count, 3)`` each.
    """
    height, width = scene.images.shape[1:3]
    known = torch.tensor(views)

    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rng = torch.Generator().manual_seed(seed)
        chosen = known[torch.randint(len(known), (count,), generator=rng)]
        pixels = torch.randint(height * width, (count,), generator=rng)
        rows, columns = pixels // width, pixels % width
        rays = pixel_rays(
            scene.poses[chosen], rows[:, None], columns[:, None], scene.focal, scene.center
        )
        origins, directions = (each.reshape(count, 3) for each in rays)
        return origins, directions, scene.images[chosen, rows, columns].float() / 255

    return draw
