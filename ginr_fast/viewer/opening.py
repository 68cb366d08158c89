"""Trained models as something to view, with the instances that they can show."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ginr_fast.analysis.decoded import decoder_of, own_size, shown_by
from ginr_fast.analysis.instances import FitOptions, open_instances
from ginr_fast.analysis.pictures import image_decoder
from ginr_fast.analysis.view_pictures import (
    SCENE_SYSTEMS,
    SupportOptions,
    check_support,
    scene_focal,
    scene_radius,
)
from ginr_fast.data.cars import FOCAL
from ginr_fast.data.order import spread
from ginr_fast.generation.sampling import Between, SamplingOptions
from ginr_fast.ops.checks import check_count
from ginr_fast.options import refuse_set
from ginr_fast.systems.ffnet import Ffnet
from ginr_fast.systems.fitted import view_of
from ginr_fast.systems.latent_diffusion import LatentDiffusion
from ginr_fast.systems.light_fields import LightField
from ginr_fast.systems.mnif import Mnif
from ginr_fast.systems.radiance_views import RadianceViews
from ginr_fast.systems.view_synthesis import ViewInr
from ginr_fast.training.checkpoints import CheckpointError, Saved, load_saved
from ginr_fast.training.generative import load_generative
from ginr_fast.training.recipes import (
    AudioIpcRecipe,
    FfnetRecipe,
    LearnedInitImagesRecipe,
    LearnedInitScenesRecipe,
    MnifRecipe,
    from_plain,
)
from ginr_fast.training.tasks import SYSTEMS, Task, restored
from ginr_fast.training.tasks.base import DataOptions
from ginr_fast.training.tasks.images import ImagesTask
from ginr_fast.training.tasks.inrct_images import InrctImagesTask
from ginr_fast.training.tasks.latent_diffusion import LATENT_DIFFUSION_SYSTEMS
from ginr_fast.training.tasks.learned_init_images import LearnedInitImagesTask
from ginr_fast.training.tasks.learned_init_scenes import LearnedInitScenesTask
from ginr_fast.training.tasks.views import ViewsTask
from ginr_fast.viewer.attention import attention_of
from ginr_fast.viewer.subjects import (
    ImageSubject,
    Instances,
    March,
    SceneSubject,
    ShapeSubject,
    Subject,
)

_SAMPLES = 10_000


@dataclass(frozen=True)
class Shown:
    """Which instances are viewed.

    Args:
        generated: samples of a generative model; else data.
        sampling: how samples are drawn.
        fit: what latents are fitted to, where they are.
        support_views: (view synthesis) views that a scene is encoded from; the recipe's number if
            None.
        source: the data that held-out instances are of.
    """

    generated: bool = False
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    support_views: int | None = None
    source: DataOptions = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        check_count("support_views", self.support_views, optional=True)

    def only(self, system: str, *used: str) -> None:
        """Refuse options other than those that a system has a use for.

        Raises:
            ValueError: names the first.
        """
        if "fit" in used:
            SupportOptions(self.support_views).refuse(system, "set fit_views and fit_steps")
        refuse_set(self, f"is of no use to {system}", but=("generated", *used))


def open_subject(path: Path | str, shown: Shown, device: torch.device) -> Subject[Any]:
    """A trained model with its instances.

    Args:
        path: the folder of a run, a .pt checkpoint, or exported .safetensors.
        shown: which instances.
        device: where the model shall be.

    Raises:
        FileNotFoundError: nothing there, or no data.
        CheckpointError: damaged, or of a system that has nothing to see.
        ValueError: an option that the system has no use for, by name.
    """
    saved = load_saved(path)
    kind = SYSTEMS.get(saved.system, (None, None))[0]
    if saved.system == AudioIpcRecipe.system or kind is None:
        raise CheckpointError(
            f"{saved.path}: {saved.system} has nothing to see; expected a model of images, of "
            "scenes or of shapes"
        )
    if shown.generated or saved.system in LATENT_DIFFUSION_SYSTEMS:
        model = load_generative(saved, device).model.requires_grad_(False)
        shown.only(f"samples of {saved.system}", "sampling")
        return _generated(model, saved.system, shown.sampling, device)
    if issubclass(kind, FfnetRecipe):
        shown.only(saved.system)
        return _ffnet(saved, device)
    if issubclass(kind, MnifRecipe):
        shown.only(saved.system, "fit", "source")
        return _mnif(saved, shown, device)
    fits = issubclass(kind, LearnedInitImagesRecipe | LearnedInitScenesRecipe)
    encodes = saved.system in SCENE_SYSTEMS and not fits
    used = ("fit",) if fits else ("support_views",) if encodes else ()
    shown.only(saved.system, "source", *used)
    task = restored(saved, shown.source, device)
    task.model.requires_grad_(False)
    if saved.system in SCENE_SYSTEMS:
        return _scenes(task, saved.system, shown)
    return _images(task, saved.system, shown.fit.fit_steps)


def _generated(
    model: Any, system: str, options: SamplingOptions, device: torch.device
) -> Subject[Any]:
    model.evaluations(options)  # refuses options that the model does not have

    def draw(number: int) -> Tensor:
        with torch.no_grad():
            return model.draw([number], options)

    def between(first: int, second: int, share: float) -> Tensor:
        """Generated anew from what lies between the noises."""
        return draw(Between((first, second, first, second), 0.0, share))

    straight = isinstance(model, LatentDiffusion)
    instances = Instances("samples", _SAMPLES, draw, None if straight else between)
    decoder = decoder_of(model)
    if isinstance(decoder, Mnif):
        return _of_mnif(decoder, system, instances, own_size(model), device)
    if shown_by(model) == "image":
        return _tokens_image(decoder, system, instances, own_size(model), device)
    config = decoder.config
    return _of_views(decoder, system, instances, config.camera_distance, config.focal, device)


def _images(task: Task, system: str, fit_steps: int | None) -> Subject[Any]:
    assert isinstance(task, ImagesTask | InrctImagesTask | LearnedInitImagesTask)
    held_out, device = task.held_out, task.device
    model: Any = task.model

    def image(number: int) -> Tensor:
        return held_out[number][None].to(device).float() / 255

    if isinstance(task, LearnedInitImagesTask):
        init = task.model

        def fit(number: int) -> Tensor:
            return init.adapt(init.image_samples(image(number)), fit_steps)

        instances = Instances("held-out images", len(held_out), fit)
        size = task.recipe.image_size
        return ImageSubject(system, instances, _as_it_is, device, init.decode, size)
    instances = Instances("held-out images", len(held_out), lambda n: model.encode(image(n)))
    return _tokens_image(model, system, instances, own_size(model), device)


def _tokens_image(
    model: Any, system: str, instances: Instances, size: int | None, device: torch.device
) -> Subject[Any]:
    attention = attention_of(model.decoder)
    return ImageSubject(system, instances, _as_it_is, device, model.decode, size, attention)


def _scenes(task: Task, system: str, shown: Shown) -> Subject[Any]:
    assert isinstance(task, ViewsTask | LearnedInitScenesTask)
    first = task.held_out.scene(0)
    radius, focal = scene_radius(first), scene_focal(first)
    if isinstance(task, ViewsTask):
        views = task
        support = shown.support_views or views.recipe.support
        check_support(first, support)

        def encode(number: int) -> Tensor:
            return views.tokens(views.known(number, support), support)

        instances = Instances("held-out scenes", len(task.held_out), encode)
        return _of_views(task.model, system, instances, radius, focal, task.device)
    fitting, options = task, shown.fit

    def fit(number: int) -> Tensor:
        scene = fitting.held_out.scene(number)
        known = spread(len(scene.images), min(options.fit_views, len(scene.images)))
        return fitting.fit(scene, known, options.fit_steps)

    def color(origins: Tensor, directions: Tensor, weights: Tensor, samples: int) -> Tensor:
        return fitting.model.render(origins, directions, weights, samples).color

    config = task.model.config
    instances = Instances("held-out scenes", len(task.held_out), fit)
    march = March(config.near / config.scale, config.samples)
    return SceneSubject(system, instances, _as_it_is, task.device, color, radius, focal, march)


def _of_views(
    model: ViewInr,
    system: str,
    instances: Instances,
    distance: float,
    focal: float,
    device: torch.device,
) -> Subject[Any]:
    if isinstance(model, RadianceViews):
        fields, config = view_of(model), model.config

        def march(origins: Tensor, directions: Tensor, weights: Tensor, samples: int) -> Tensor:
            fields.config = replace(config, samples=samples)
            return fields.march(origins, directions, weights).color

        ends = March(config.near, config.samples)
        prepare = model.decoder.weights
        return SceneSubject(system, instances, prepare, device, march, distance, focal, ends)
    assert isinstance(model, LightField)
    light = model

    def color(origins: Tensor, directions: Tensor, tokens: Tensor, samples: int) -> Tensor:
        return light.color(origins, directions, tokens)

    return SceneSubject(
        system,
        instances,
        _as_it_is,
        device,
        color,
        distance,
        focal,
        None,
        model.coords,
        attention_of(model.decoder),
    )


def _mnif(saved: Saved, shown: Shown, device: torch.device) -> Subject[Any]:
    known = open_instances(saved, shown.fit, shown.source, device)
    instances = Instances(known.what, known.count, lambda n: known.latents([n]))
    size = saved.recipe.get("image_size")
    return _of_mnif(known.model, saved.system, instances, size, device)


def _of_mnif(
    model: Mnif, system: str, instances: Instances, size: int | None, device: torch.device
) -> Subject[Any]:
    model.requires_grad_(False)
    config = model.config
    if config.modality == "image":
        decode = image_decoder(model)
        return ImageSubject(system, instances, model.weights, device, decode, size)
    if config.modality == "voxels":
        return ShapeSubject(system, instances, model.weights, device, config.spec)

    def color(origins: Tensor, directions: Tensor, weights: Tensor, samples: int) -> Tensor:
        return model.decoder.render(
            origins,
            directions,
            weights,
            near=config.near,
            far=config.far,
            samples=samples,
            convention="mnif",
        ).color

    distance = (config.near + config.far) / 2
    return SceneSubject(
        system,
        instances,
        model.weights,
        device,
        color,
        distance,
        FOCAL,
        March(config.near, config.samples),
    )


def _ffnet(saved: Saved, device: torch.device) -> Subject[Any]:
    """One image, by heart: no data is needed."""
    try:
        recipe = from_plain(FfnetRecipe, {"steps": 1, **saved.recipe})
        model = Ffnet(recipe.model)
    except (TypeError, ValueError) as error:
        raise saved.misfit(error) from None
    saved.restore(model)
    model.to(device).eval().requires_grad_(False)
    instances = Instances("fitted image", 1, lambda number: model.weights)
    return ImageSubject(
        saved.system,
        instances,
        _as_it_is,
        device,
        lambda coords, _: model.decode(coords),
        recipe.image_size,
    )


def _as_it_is(latent: Tensor) -> Tensor:
    return latent
