"""Orbits of held-out scenes that a model knows by a few views: view synthesis and Learned Init."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from ginr_fast.analysis.instances import FitOptions, check_numbers
from ginr_fast.analysis.orbits import COLOR, Orbit, Pictures, field_pictures, orbit_pictures
from ginr_fast.analysis.pictures import CameraOptions
from ginr_fast.data.order import spread
from ginr_fast.data.scenes import Scene
from ginr_fast.ops.checks import check_count
from ginr_fast.rays import orbit_poses
from ginr_fast.systems.fitted import view_of
from ginr_fast.systems.fitting import FittingOptions, FittingTarget
from ginr_fast.systems.radiance_views import RadianceViews
from ginr_fast.training.checkpoints import CheckpointError, Saved
from ginr_fast.training.recipes import LearnedInitScenesRecipe, ViewsRecipe
from ginr_fast.training.tasks import SYSTEMS, restored
from ginr_fast.training.tasks.base import DataOptions
from ginr_fast.training.tasks.learned_init_scenes import LearnedInitScenesTask
from ginr_fast.training.tasks.views import ViewsTask

SCENE_SYSTEMS = tuple(
    name
    for name, (recipe, _) in SYSTEMS.items()
    if issubclass(recipe, (ViewsRecipe, LearnedInitScenesRecipe))
)
"""Systems whose held-out scenes can be drawn."""

SceneTask = ViewsTask | LearnedInitScenesTask
Draw = Callable[[torch.Tensor, torch.Tensor], Pictures]


@dataclass(frozen=True)
class SupportOptions:
    """What a model of view synthesis is given of a scene.

    Args:
        support_views: (view synthesis) views that a scene is encoded from, those that it is
            evaluated with; the recipe's number if None.
        tto: (view synthesis) steps of test-time optimisation on them; none if None.
        tto_target: (view synthesis) what these steps are taken on: the tokens of a scene, the
            packed weights of its field, or a decoder of its own.
    """

    support_views: int | None = None
    tto: int | None = None
    tto_target: FittingTarget = "tokens"

    def __post_init__(self) -> None:
        for name in ("support_views", "tto"):
            check_count(name, getattr(self, name), optional=True)

    @property
    def fitting(self) -> FittingOptions | None:
        """How scenes are fitted; None if they are not."""
        return None if self.tto is None else FittingOptions(self.tto, self.tto_target)

    def refuse(self, system: str, hint: str) -> None:
        """Refuse options that a system has no use for.

        Raises:
            ValueError: names the option and, with the hint, what to set instead.
        """
        for name in ("support_views", "tto"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: is for view synthesis, not for {system}; {hint}")


class KnownScene(NamedTuple):
    """A held-out scene as a model shows it.

    Args:
        scene: its cameras say where an orbit lies.
        known: the views that the model was given, ``(V, H, W, 3)``, uint8.
        draw: pictures along rays, see :func:`ginr_fast.analysis.orbits.orbit_pictures`.
    """

    scene: Scene
    known: np.ndarray
    draw: Draw


def open_scenes(saved: Saved, source: DataOptions, device: torch.device) -> SceneTask:
    """A trained model with the data that its held-out scenes are from.

    Args:
        saved: what its file holds.
        source: the data; what the recipe makes if it names none.
        device: where the model shall be.

    Raises:
        CheckpointError: damaged, or of a system that has no such scenes.
        ValueError, FileNotFoundError: the data is missing or broken.
    """
    if saved.system not in SCENE_SYSTEMS:
        names = ", ".join(SCENE_SYSTEMS)
        raise CheckpointError(f"{saved.path}: expected one of {names}, got {saved.system}")
    task = restored(saved, source, device)
    assert isinstance(task, ViewsTask | LearnedInitScenesTask)
    return task


def orbits(
    task: SceneTask,
    chosen: Sequence[int],
    views: int,
    size: int,
    camera: CameraOptions,
    fit: FitOptions | None = None,
    support: SupportOptions | None = None,
    depth: bool = False,
) -> Iterator[Orbit]:
    """Held-out scenes from circles around them; each is encoded or fitted when its turn comes.

    Args:
        task: with its model.
        chosen: numbers of held-out scenes, from 0.
        views: of each, evenly spaced.
        size: height and width of a view, in pixels.
        camera: where from. Radius and focal length are those of the scene's own cameras if it
            names none.
        fit: (Learned Init) views that the initialisation is fitted to, and steps.
        support: (view synthesis) support views, and test-time optimisation.
        depth: (radiance fields) depth, too.

    Raises:
        ValueError: no scene, a number that no held-out scene has, too few views, or an option that
            the system has no use for; names the option.
    """
    fit, support = fit or FitOptions(), support or SupportOptions()
    if not chosen:
        raise ValueError("instances: expected at least one")
    check_numbers(chosen, len(task.held_out), "held-out scenes")
    find: Callable[[int], KnownScene]
    if isinstance(task, ViewsTask):
        if not isinstance(task.model, RadianceViews) and (depth or camera.samples is not None):
            name = "depth" if depth else "samples"
            raise ValueError(f"{name}: is for radiance fields, {task.recipe.system} is none")
        find = partial(_encoded, task, support=support, samples=camera.samples, depth=depth)
    else:
        support.refuse(task.recipe.system, "set fit_views and fit_steps")
        find = partial(_adapted, task, fit=fit, samples=camera.samples, depth=depth)
    return (_orbit(find(index), index, task.device, views, size, camera) for index in chosen)


def _orbit(
    found: KnownScene,
    index: int,
    device: torch.device,
    views: int,
    size: int,
    camera: CameraOptions,
) -> Orbit:
    radius = scene_radius(found.scene) if camera.radius is None else camera.radius
    focal = scene_focal(found.scene) if camera.focal is None else camera.focal
    poses = orbit_poses(views, radius, camera.elevation, start=camera.azimuth).to(device)
    frames = orbit_pictures(found.draw, poses, size, focal * size)
    return Orbit(f"held-out-{index:05d}", frames, list(found.known))


def scene_radius(scene: Scene) -> float:
    """The median distance of a scene's cameras to the origin, in the scene's unit of length."""
    return float(scene.poses[:, :3, 3].norm(dim=-1).median())


def scene_focal(scene: Scene) -> float:
    """The focal length of a scene's cameras, in heights of the picture."""
    vertical = scene.focal[1] if isinstance(scene.focal, tuple) else scene.focal
    return vertical / scene.images.shape[1]


def check_support(scene: Scene, count: int) -> None:
    """Refuse more support views than evaluation, whose views they are, can take of a scene.

    Raises:
        ValueError: it leaves no view to predict.
    """
    if count >= len(scene.images):
        raise ValueError(
            f"support_views: expected less than the {len(scene.images)} views that scene "
            f"{scene.name} has, got {count}"
        )


def _encoded(
    task: ViewsTask, index: int, *, support: SupportOptions, samples: int | None, depth: bool
) -> KnownScene:
    """A scene as its support views tell, after test-time optimisation if it is asked for."""
    count = support.support_views or task.recipe.support
    scene = task.held_out.scene(index)
    check_support(scene, count)
    known = task.known(index, count)
    (part,) = task.instance(known, count, support.fitting).parts
    given = (known.support_images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    model, tokens = part
    if not isinstance(model, RadianceViews):
        return KnownScene(scene, given, lambda *rays: {COLOR: model.color(*rays, tokens)})
    if samples is not None:
        model = view_of(model)
        model.config = replace(model.config, samples=samples)
    with torch.no_grad():
        weights = model.decoder.weights(tokens)
    near, far = model.config.near, model.config.far

    def draw(origins: torch.Tensor, directions: torch.Tensor) -> Pictures:
        return field_pictures(model.march(origins, directions, weights), near, far, depth)

    return KnownScene(scene, given, draw)


def _adapted(
    task: LearnedInitScenesTask, index: int, *, fit: FitOptions, samples: int | None, depth: bool
) -> KnownScene:
    """A scene as the initialisation shows it after the inner loop on some of its views."""
    scene = task.held_out.scene(index)
    count = len(scene.images)
    if fit.fit_views > count:
        raise ValueError(
            f"fit_views: expected at most the {count} views that scene {scene.name} has, "
            f"got {fit.fit_views}"
        )
    known = spread(count, fit.fit_views)
    weights = task.fit(scene, known, fit.fit_steps)
    near, far = task.model.config.near, task.model.config.far

    def draw(origins: torch.Tensor, directions: torch.Tensor) -> Pictures:
        # Depths are in the field's unit of length, and so are near and far.
        seen = task.model.render(origins, directions, weights, samples)
        return field_pictures(seen, near, far, depth)

    return KnownScene(scene, scene.images[known].numpy(), draw)
