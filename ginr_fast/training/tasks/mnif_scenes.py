"""mNIF of radiance fields as a task."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from PIL import Image

from ginr_fast.data.order import spread
from ginr_fast.data.ray_batches import ray_batch
from ginr_fast.data.scenes import mean_view
from ginr_fast.data.srn import Scene, SrnScenes
from ginr_fast.ops.volume_render.random import Seed
from ginr_fast.pictures import save_png
from ginr_fast.rays import camera_rays, pixel_rays
from ginr_fast.systems.fitted import Fitted, Part
from ginr_fast.systems.mnif_adaptation import AutoDecoder, RaySamples, Samples
from ginr_fast.training.images import comparison, shown
from ginr_fast.training.metrics import FieldScores, FieldSum
from ginr_fast.training.recipes import MnifScenesRecipe
from ginr_fast.training.tasks.base import DataOptions, EvaluationOptions, Table
from ginr_fast.training.tasks.made import MakesCars, made_cars
from ginr_fast.training.tasks.mnif import (
    MnifBatch,
    MnifTask,
    evaluated_as,
    field_table,
    jitter_seed,
)


class SceneData(NamedTuple):
    """Scenes to learn from, the same ones from other places (or None), and other scenes."""

    train: SrnScenes
    novel: SrnScenes | None
    held_out: SrnScenes


def open_scenes(recipe: MakesCars, options: DataOptions) -> SceneData:
    """The splits of a folder in SRN's format, or of the cars that the recipe makes.

    Splits are named like train, test and, for training scenes seen from other places,
    train_novel.
    """
    folder = options.data
    if folder is None:
        if not recipe.made_scenes:
            raise ValueError(
                "data: this recipe trains on scenes in SRN's format; name their folder with --data"
            )
        folder = made_cars(recipe)
    size = recipe.image_size
    novel = [path for path in folder.glob("*train_novel") if path.is_dir()]
    return SceneData(
        SrnScenes(folder, "train", size),
        SrnScenes(novel[0], None, size) if novel else None,
        SrnScenes(folder, "test", size),
    )


class MnifScenesTask(MnifTask):
    """Scenes, known by views from known places; colours in [0, 1].

    Args:
        recipe: how it is trained.
        data: the scenes.
    """

    unit = "scenes"
    own_data = "made cars"
    value_range = 1.0
    recipe: MnifScenesRecipe

    def __init__(self, recipe: MnifScenesRecipe, data: SceneData) -> None:
        super().__init__(recipe)
        self.train_scenes, self.novel, self.held_out = data
        if self.novel is not None and self.novel.names != self.train_scenes.names:
            raise ValueError(
                f"data: expected the scenes of {self.train_scenes.folder} in {self.novel.folder}"
            )
        self.views = self.novel or self.train_scenes
        kind = "novel" if self.novel is not None else "training"
        self.evaluated = f"{kind} views of training scenes"

    @classmethod
    def open(cls, recipe: MnifScenesRecipe, options: DataOptions) -> SceneData:
        """See :func:`open_scenes`."""
        return open_scenes(recipe, options)

    def fingerprint(self) -> str:
        return f"{self.train_scenes.fingerprint()} {self.held_out.fingerprint()}"

    @property
    def instances(self) -> int:
        return len(self.train_scenes)

    def batch(self, step: int, slots: range) -> MnifBatch:
        recipe = self.recipe
        scenes, *rays = ray_batch(
            recipe.seed,
            step,
            self.train_scenes,
            recipe.batch_size,
            recipe.views,
            recipe.rays,
            slots,
        )
        return MnifBatch(scenes, tuple(rays))

    def samples(self, data: tuple[torch.Tensor, ...], step: int) -> RaySamples:
        return RaySamples(*data)

    def jitter(self, samples: Samples, step: int, slots: range) -> Seed | None:
        if not self.recipe.jitter:
            return None
        assert isinstance(samples, RaySamples)
        return jitter_seed(self.recipe.seed, step, slots, samples.origins)

    @cached_property
    def mean_image(self) -> torch.Tensor:
        """The mean of all views of training scenes, ``(3, H, W)`` in [0, 1]."""
        return mean_view(self.train_scenes).to(self.device)

    def _rays(self, scene: Scene, view: int) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = scene.images.shape[1:3]
        pose = scene.poses[view][None]
        origins, directions = camera_rays(pose, height, width, scene.focal, scene.center)
        return origins.to(self.device), directions.to(self.device)

    @torch.no_grad()
    def render(self, instance: Fitted | torch.Tensor, scene: Scene, view: int) -> torch.Tensor:
        """A view of a scene as what represents it gives it.

        Args:
            instance: its latent, ``(1, context_dim)``, or that after test-time optimisation.
            scene: for its camera and poses.
            view: which of its poses.

        Returns:
            ``(3, H, W)``, in [0, 1].
        """
        rays = self._rays(scene, view)
        if isinstance(instance, torch.Tensor):
            instance = Fitted([Part(self.mnif, instance)])
        color = instance.each(lambda part, rows: part.model.render(*rays, part.instances).color)
        return color[0].permute(2, 0, 1).clamp(0, 1)

    def _truth(self, scene: Scene, view: int) -> torch.Tensor:
        return scene.images[view].permute(2, 0, 1).to(self.device).float() / 255

    def scene_latent(self, scene: Scene, views: list[int], steps: int | None) -> torch.Tensor:
        """The latent of a scene that is known by some of its views, ``(1, context_dim)``.

        Each gradient step sees as many rays of them as one of training sees of a scene.

        Args:
            scene: the scene.
            views: which of its views.
            steps: (auto-decoding) gradient steps; the recipe's number if None.
        """
        return self.latents(self._known(scene, views, None), 1, steps)

    def _known(
        self, scene: Scene, views: list[int], rays: int | None
    ) -> Callable[[int], RaySamples]:
        """Random rays of some views of a scene for each step, a pure function of it."""
        count = rays or self.recipe.views * self.recipe.rays
        height, width = scene.images.shape[1:3]
        known = torch.tensor(views)

        def draw(step: int) -> RaySamples:
            rng = torch.Generator().manual_seed(step)
            chosen = known[torch.randint(len(known), (count,), generator=rng)]
            pixels = torch.randint(height * width, (count,), generator=rng)
            rows, columns = (pixels // width)[:, None], (pixels % width)[:, None]
            found = pixel_rays(scene.poses[chosen], rows, columns, scene.focal, scene.center)
            colors = scene.images[chosen, rows[:, 0], columns[:, 0]].float() / 255
            parts = (*found, colors)
            return RaySamples(*(part.reshape(1, count, 3).to(self.device) for part in parts))

        return draw

    def _training_latent(self, index: int) -> torch.Tensor:
        if isinstance(self.model, AutoDecoder):
            return self.model.latents.weight[index : index + 1].detach()
        scene = self.train_scenes.scene(index)
        return self.scene_latent(scene, spread(len(scene.images), self.recipe.views), None)

    def _scored(self) -> list[tuple[int, int]]:
        """Scene and view of everything scored during training, spread over both."""
        views = len(self.views.scene(0).images)
        total = len(self.views) * views
        count = min(total, self.recipe.novel_views)
        scenes = spread(len(self.views), count)
        each = -(-count // len(scenes))
        pairs = [(scene, view) for view in spread(views, each) for scene in scenes]
        return sorted(pairs[:count])

    def _sum(self, pairs: list[tuple[int, int]]) -> FieldSum:
        total = FieldSum(self.device)
        latents: dict[int, torch.Tensor] = {}
        for index, view in pairs:
            if index not in latents:
                latents = {index: self._training_latent(index)}
            scene = self.views.scene(index)
            found = self.render(latents[index], scene, view)
            truth = self._truth(scene, view)
            total.update(found[None], truth[None], self._mean(truth), "images")
        return total

    def _mean(self, truth: torch.Tensor) -> torch.Tensor:
        if self.mean_image.shape != truth.shape:
            raise ValueError(
                f"data: expected views of {tuple(self.mean_image.shape[1:])} pixels, "
                f"got {tuple(truth.shape[1:])}; set image_size"
            )
        return self.mean_image

    def evaluate(self, rank: int, world: int) -> torch.Tensor:
        return self._sum(self._scored()[rank::world]).sums

    def picture(self, step: int) -> Image.Image:
        pairs = self._scored()
        chosen = [pairs[index] for index in shown(len(pairs))]
        truth = [self._truth(self.views.scene(index), view) for index, view in chosen]
        found = [
            self.render(self._training_latent(index), self.views.scene(index), view)
            for index, view in chosen
        ]
        titles = [self.evaluated, f"rendered after {step} steps"]
        return comparison([torch.stack(truth), torch.stack(found)], titles)

    def table(self, options: EvaluationOptions) -> Table:
        scenes = min(self.instances, options.instances or self.instances)
        pairs = [
            (index, view)
            for index in range(scenes)
            for view in range(len(self.views.scene(index).images))
        ]
        scores: list[FieldScores] = [self._sum(pairs).scores(self.evaluated)]
        fittings = options.fittings
        totals = [FieldSum(self.device) for _ in fittings]
        rows: list[list[torch.Tensor]] = [[] for _ in range(1 + len(fittings))]
        for index in range(min(len(self.held_out), options.instances or len(self.held_out))):
            scene = self.held_out.scene(index)
            known = spread(len(scene.images), options.fit_views)
            others = [view for view in range(len(scene.images)) if view not in known]
            if not others:
                raise ValueError(
                    f"fit_views: expected less than the {len(scene.images)} views of {scene.name}, "
                    f"got {options.fit_views}"
                )
            latent = self.scene_latent(scene, known, options.fit_steps)
            rays = self._known(scene, known, options.tto_points)
            instances = [self.instances_of(latent, rays, fitting) for fitting in fittings]
            for view in others:
                truth = self._truth(scene, view)
                found = [self.render(instance, scene, view) for instance in instances]
                for total, image in zip(totals, found, strict=True):
                    total.update(image[None], truth[None], self._mean(truth), "images")
                if view == others[len(others) // 2]:
                    for row, image in zip(rows, [truth, *found], strict=True):
                        row.append(image)
        what = f"other views of held-out scenes, from {options.fit_views}"
        for total, fitting in zip(totals, fittings, strict=True):
            scores.append(total.scores(evaluated_as(what, fitting)))
        if options.picture is not None:
            chosen = shown(len(rows[0]))
            images = [torch.stack([row[index] for index in chosen]) for row in rows]
            rendered = [evaluated_as("rendered", fitting) for fitting in fittings]
            save_png(comparison(images, ["held-out scenes", *rendered]), options.picture)
        return field_table(scores)
