"""Few-shot view synthesis as a task: scenes encoded from support views, shown from others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from ginr_fast.data.episodes import Episode, EvaluationScene, episode, evaluation_views
from ginr_fast.data.learnit import LearnItScenes
from ginr_fast.data.order import spread
from ginr_fast.data.scenes import Scene, Scenes, mean_view
from ginr_fast.data.srn import SrnScenes
from ginr_fast.pictures import save_png
from ginr_fast.systems.fit_instances import fit_views
from ginr_fast.systems.fitted import Fitted, Part
from ginr_fast.systems.fitting import FittingOptions, FittingTarget
from ginr_fast.systems.view_synthesis import ViewInr
from ginr_fast.training.images import comparison, shown
from ginr_fast.training.losses import reconstruction_loss
from ginr_fast.training.metrics import FieldScores, FieldSum
from ginr_fast.training.recipes import ViewsRecipe, as_plain
from ginr_fast.training.tasks.base import (
    DataOptions,
    EvaluationOptions,
    StepLoss,
    Table,
    Task,
    step_loader,
)
from ginr_fast.training.tasks.made import made_cars
from ginr_fast.training.tasks.mnif import evaluated_as, field_table, jitter_seed

_SUPPORT_STREAM = 6


class ViewsData(NamedTuple):
    """Scenes to learn from, and other scenes to evaluate with."""

    train: Scenes
    held_out: Scenes


class ViewsTask(Task):
    """Scenes seen from new places, given a few views.

    Args:
        recipe: how the model is trained.
        data: the scenes.
    """

    unit = "scenes"
    own_data = "made cars"
    tto_targets: ClassVar[tuple[FittingTarget, ...]] = ("tokens", "weights", "decoder")
    model: ViewInr

    def __init__(self, recipe: ViewsRecipe, data: ViewsData) -> None:
        self.recipe = recipe
        self.train_scenes, self.held_out = data

    @classmethod
    def open(cls, recipe: ViewsRecipe, options: DataOptions) -> ViewsData:
        """The training and test scenes of a folder, or of the cars that the recipe makes.

        Raises:
            FileNotFoundError, ValueError: there is no such folder or nothing to make, or a scene is
                broken; the message names it.
        """
        folder = options.data
        if folder is None:
            if not recipe.made_scenes:
                raise ValueError(
                    f"data: this recipe trains on scenes in the format {recipe.data_format}; "
                    "name their folder with --data"
                )
            folder = made_cars(recipe, recipe.data_format)
        size, most = recipe.image_size, recipe.training_views
        if recipe.data_format == "srn":
            return ViewsData(
                SrnScenes(folder, "train", size, most), SrnScenes(folder, "test", size)
            )
        category = recipe.category
        return ViewsData(
            LearnItScenes(folder, category, "train", size, most),
            LearnItScenes(folder, category, "test", size),
        )

    def fingerprint(self) -> str:
        return f"{self.train_scenes.fingerprint()} {self.held_out.fingerprint()}"

    def steps_per_epoch(self) -> int:
        episodes = len(self.train_scenes) * self.recipe.episodes_per_scene
        return max(1, episodes // self.recipe.batch_size)

    def build(self) -> nn.Module:
        self.model = self.recipe.build()
        return self.model

    def batches(
        self, first: int, last: int, slots: range, workers: int, pin_memory: bool
    ) -> Iterable[Episode]:
        return step_loader(partial(self.batch, slots=slots), first, last, workers, pin_memory)

    def batch(self, step: int, slots: range) -> Episode:
        """The scenes of a step, a pure function of (recipe.seed, step, slots)."""
        recipe = self.recipe
        balanced = step < recipe.foreground_balanced_epochs * self.steps_per_epoch()
        found = episode(
            recipe.seed,
            step,
            self.train_scenes,
            recipe.batch_size,
            self._support(step),
            recipe.queries,
            recipe.rays,
            slots,
            foreground_balanced=balanced,
        )
        name = self.train_scenes.names[int(found.scenes[0])]
        self._check_size(name, tuple(found.support_images.shape[-2:]))
        return found

    def _support(self, step: int) -> int:
        recipe = self.recipe
        if not recipe.any_support:
            return recipe.support
        rng = np.random.default_rng((recipe.seed, step, _SUPPORT_STREAM))
        return int(rng.integers(1, recipe.support, endpoint=True))

    def _check_size(self, name: str, size: tuple[int, ...]) -> None:
        wanted = self.recipe.image_size
        if size != (wanted, wanted):
            raise ValueError(
                f"data: expected square views, which are resized to {wanted}x{wanted} pixels, "
                f"got {size[0]}x{size[1]} in scene {name}"
            )

    def loss(
        self, forward: Callable[..., Any], batch: Episode, step: int, slots: range
    ) -> StepLoss:
        seed = jitter_seed(self.recipe.seed, step, slots, batch.origins)
        _, *given, colors = batch
        loss = reconstruction_loss(forward(*given, seed), colors)
        return StepLoss(loss, loss)

    @cached_property
    def mean_image(self) -> torch.Tensor:
        """The mean of all views of training scenes, ``(3, H, W)`` in [0, 1]."""
        first = self.train_scenes.scene(0)
        self._check_size(first.name, tuple(first.images.shape[1:3]))
        return mean_view(self.train_scenes).to(self.device)

    def known(self, index: int, support: int) -> EvaluationScene:
        """A held-out scene known by support views, always the same ones, on the device.

        Raises:
            ValueError: too few views to leave one to predict, or of another size.
        """
        found = evaluation_views(self.held_out, index, support)
        self._check_size(found.name, tuple(found.support_images.shape[-2:]))
        return found._replace(
            support_images=found.support_images.to(self.device),
            support_origins=found.support_origins.to(self.device),
            support_directions=found.support_directions.to(self.device),
        )

    @torch.no_grad()
    def tokens(self, scene: EvaluationScene, support: int) -> torch.Tensor:
        """Latent tokens of a scene from the first ``support`` of its views, ``(1, R, width)``."""
        return self.model.encode(*(part[None, :support] for part in scene[1:4]))

    def instance(
        self, scene: EvaluationScene, support: int, fitting: FittingOptions | None = None
    ) -> Fitted:
        """A scene as the first ``support`` of its views tell, after test-time optimisation if any.

        Args:
            scene: known by at least so many views.
            support: how many.
            fitting: steps on the rays of these views; None for none.
        """
        if fitting is None:
            return Fitted([Part(self.model, self.tokens(scene, support))])
        images, origins, directions = (part[None, :support] for part in scene[1:4])
        return fit_views(self.model, images, origins, directions, fitting)

    def predicted(
        self, instance: Fitted | torch.Tensor, scene: Scene, views: list[int]
    ) -> torch.Tensor:
        """Views of a scene as an instance or its tokens show them, ``(V, 3, H, W)`` in [0, 1]."""
        height, width = scene.images.shape[1:3]
        poses = scene.poses[views].to(self.device)
        if isinstance(instance, torch.Tensor):
            instance = Fitted([Part(self.model, instance)])
        return instance.each(
            lambda part, rows: part.model.render_view(
                part.instances, poses, height, width, scene.focal, center=scene.center
            )
        )[0]

    def truth(self, scene: Scene, views: list[int]) -> torch.Tensor:
        """Views of a scene as they are, ``(V, 3, H, W)`` in [0, 1]."""
        return scene.images[views].permute(0, 3, 1, 2).to(self.device).float() / 255

    def _what(self, support: int) -> str:
        return f"other views of held-out scenes, from {support}"

    def evaluate(self, rank: int, world: int) -> torch.Tensor:
        recipe, total = self.recipe, FieldSum(self.device)
        scenes = spread(len(self.held_out), recipe.scored_views)
        most = -(-recipe.scored_views // len(scenes))
        for index in scenes[rank::world]:
            known, scene = self.known(index, recipe.support), self.held_out.scene(index)
            views = [known.targets[place] for place in spread(len(known.targets), most)]
            found = self.predicted(self.tokens(known, recipe.support), scene, views)
            total.update(found, self.truth(scene, views), self.mean_image, "images")
        return total.sums

    def scores(self, sums: torch.Tensor) -> FieldScores:
        total = FieldSum()
        total.sums = sums
        return total.scores(self._what(self.recipe.support))

    def picture(self, step: int) -> Image.Image:
        return self._picture(self.recipe.support, f"rendered after {step} steps")

    def _picture(
        self, support: int, title: str, fitting: FittingOptions | None = None
    ) -> Image.Image:
        """Support views of a few held-out scenes, another view of each, and what is rendered."""
        return comparison(*self.picture_rows(support, title, fitting))

    def picture_rows(
        self, support: int, title: str, fitting: FittingOptions | None = None
    ) -> tuple[list[torch.Tensor], list[str]]:
        """The rows of a picture, ``(scenes, 3, H, W)`` each, and their titles."""
        columns = []
        for index in shown(len(self.held_out)):
            known, scene = self.known(index, support), self.held_out.scene(index)
            view = known.targets[len(known.targets) // 2 : len(known.targets) // 2 + 1]
            found = self.predicted(self.instance(known, support, fitting), scene, view)
            columns.append(torch.cat([known.support_images, self.truth(scene, view), found]))
        rows = torch.stack(columns, 1)
        titles = [f"support view {number + 1}" for number in range(support)]
        return list(rows), [*titles, "another view", title]

    def metadata(self) -> dict[str, Any]:
        return {"recipe": as_plain(self.recipe)}

    def table(self, options: EvaluationOptions) -> Table:
        """Scores over all other views of held-out scenes.

        One row for the recipe's number of support views; with ``options.support_views`` one for
        every number up to that; and as many after test-time optimisation, if it is asked for. All
        rows score the same views: those that none of them knows.
        """
        most = options.support_views or self.recipe.support
        numbers = range(1, most + 1) if options.support_views else [most]
        totals = {
            (number, fitting): FieldSum(self.device)
            for number in numbers
            for fitting in options.fittings
        }
        for index in range(min(len(self.held_out), options.instances or len(self.held_out))):
            known, scene = self.known(index, most), self.held_out.scene(index)
            truth = self.truth(scene, known.targets)
            for (number, fitting), total in totals.items():
                instance = self.instance(known, number, fitting)
                found = self.predicted(instance, scene, known.targets)
                total.update(found, truth, self.mean_image, "images")
        if options.picture is not None:
            fitting = options.fittings[-1]
            picture = self._picture(most, evaluated_as("rendered", fitting), fitting)
            save_png(picture, options.picture)
        return field_table(
            total.scores(evaluated_as(self._what(number), fitting))
            for (number, fitting), total in totals.items()
        )
