"""The latents of instances, as a training run keeps them or fitted anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ginr_fast.data.order import spread
from ginr_fast.ops.checks import check_count
from ginr_fast.systems.mnif import Mnif
from ginr_fast.systems.mnif_adaptation import PointSamples
from ginr_fast.training.checkpoints import CheckpointError, Saved, load_saved
from ginr_fast.training.recipes import MnifRecipe, from_plain
from ginr_fast.training.tasks import SYSTEMS, restored
from ginr_fast.training.tasks.base import DataOptions
from ginr_fast.training.tasks.mnif import MnifTask, parts
from ginr_fast.training.tasks.mnif_images import MnifImagesTask
from ginr_fast.training.tasks.mnif_scenes import MnifScenesTask
from ginr_fast.training.tasks.mnif_voxels import MnifVoxelsTask

_LATENTS = "latents.weight"
_MODEL = "model."
_AT_ONCE = 16


@dataclass(frozen=True)
class FitOptions:
    """Where latents come from.

    Args:
        unseen: fit latents to held-out instances, which training never saw. A run of meta-learning
            keeps no latents, so that it always does.
        fit_steps: (auto-decoding) gradient steps of a fit; the recipe's number if None.
        fit_views: (scenes) views that a latent is fitted to.
    """

    unseen: bool = False
    fit_steps: int | None = None
    fit_views: int = 8

    def __post_init__(self) -> None:
        for name in ("fit_steps", "fit_views"):
            check_count(name, getattr(self, name), optional=True)


@dataclass(frozen=True)
class KnownInstances:
    """All instances of a trained model, whose latents are found when they are asked for.

    Args:
        model: without gradients, in evaluation mode.
        count: how many.
        what: they are, in words.
        latents: of their numbers, from 0, the latents ``(n, context_dim)``, on the model's device;
            ValueError for a number that none has.
    """

    model: Mnif
    count: int
    what: str
    latents: Callable[[Sequence[int]], torch.Tensor]


class Instances(NamedTuple):
    """Instances of a trained model.

    Args:
        model: in evaluation mode.
        latents: ``(n, context_dim)``, on the model's device.
        what: they are, in words.
    """

    model: Mnif
    latents: torch.Tensor
    what: str


def load_mnif(path: Path | str | Saved) -> tuple[Mnif, MnifRecipe, Saved]:
    """A trained mNIF by itself, without its data; on the CPU, in evaluation mode.

    Args:
        path: the folder of a run, a .pt checkpoint, or exported .safetensors; or what
            :func:`~ginr_fast.training.checkpoints.load_saved` gave of it.

    Returns:
        The model, its recipe (of an export, as much as the file holds), and the file's contents.

    Raises:
        FileNotFoundError: nothing there.
        CheckpointError: damaged, or of another system.
    """
    saved = path if isinstance(path, Saved) else load_saved(path)
    kind = SYSTEMS.get(saved.system, (None, None))[0]
    if kind is None or not issubclass(kind, MnifRecipe):
        raise CheckpointError(f"{saved.path}: expected a trained mNIF, got {saved.system}")
    try:
        recipe = from_plain(kind, {"steps": 1, **saved.recipe})
        model = Mnif(recipe.model)
    except (TypeError, ValueError) as error:
        raise saved.misfit(error) from None
    weights = {
        name.removeprefix(_MODEL): value
        for name, value in saved.weights.items()
        if name.startswith(_MODEL)
    }
    replace(saved, weights=weights).restore(model)
    return model.eval(), recipe, saved


def open_instances(
    path: Path | str | Saved, options: FitOptions, source: DataOptions, device: torch.device
) -> KnownInstances:
    """The instances of a run; its data is opened only where latents have to be fitted.

    Args:
        path: as :func:`load_mnif` takes it.
        options: where their latents come from.
        source: the data that held-out instances are of.
        device: where the model shall be.

    Raises:
        FileNotFoundError: nothing there.
        CheckpointError: damaged, or of another system.
    """
    model, _, saved = load_mnif(path)
    kept = saved.weights.get(_LATENTS)
    if kept is None or options.unseen:
        task = restored(saved, source, device)
        assert isinstance(task, MnifTask)
        held_out: Any = task.held_out  # type: ignore[attr-defined]  # every kind has some
        model = task.mnif.requires_grad_(False)
        find = partial(fitted, task, options=options)
        return KnownInstances(model, len(held_out), "held-out instances", find)
    latents, what = kept.to(device), "training instances"

    def take(chosen: Sequence[int]) -> torch.Tensor:
        check_numbers(chosen, len(latents), what)
        return latents[list(chosen)]

    return KnownInstances(model.to(device).requires_grad_(False), len(latents), what, take)


def load_instances(
    path: Path | str | Saved,
    chosen: Sequence[int],
    options: FitOptions,
    source: DataOptions,
    device: torch.device,
) -> Instances:
    """Some instances of a run.

    Args:
        path: see :func:`open_instances`, as the others.
        chosen: numbers of instances, from 0.
        options: see there.
        source: see there.
        device: see there.

    Raises:
        FileNotFoundError: nothing there.
        CheckpointError: damaged, or of another system.
        ValueError: none, or a number that no instance has.
    """
    if not chosen:
        raise ValueError("instances: expected at least one")
    found = open_instances(path, options, source, device)
    return Instances(found.model, found.latents(chosen), found.what)


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of, or the one it lies in."""
    if checkpoint.is_dir():
        return checkpoint
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder


def check_numbers(chosen: Sequence[int], count: int, what: str) -> None:
    """Refuse numbers that none of ``count`` instances has.

    Raises:
        ValueError: names the first.
    """
    for number in chosen:
        if not 0 <= number < count:
            raise ValueError(
                f"instances: expected 0 to {count - 1}, the numbers of {what}, got {number}"
            )


def fitted(task: MnifTask, chosen: Sequence[int], options: FitOptions) -> torch.Tensor:
    """Latents of held-out instances, found as ``ginr-fast eval`` finds them.

    Args:
        task: with its model.
        chosen: numbers of instances, from 0.
        options: how.

    Returns:
        ``(n, context_dim)``.

    Raises:
        ValueError: a number that no held-out instance has.
        TypeError: a task of another system.
    """
    if isinstance(task, MnifScenesTask):
        check_numbers(chosen, len(task.held_out), "held-out scenes")
        return torch.cat([_of_scene(task, index, options) for index in chosen])
    found = []
    for first in parts(range(len(chosen)), _AT_ONCE):
        indices = [chosen[place] for place in first]
        if isinstance(task, MnifImagesTask):
            check_numbers(indices, len(task.held_out), "held-out images")
            images = torch.stack([task.held_out[index] for index in indices]).to(task.device)
            values = images.permute(0, 2, 3, 1).float() / 127.5 - 1
            samples = PointSamples(task.grid, values)
        elif isinstance(task, MnifVoxelsTask):
            check_numbers(indices, len(task.held_out), "held-out shapes")
            shapes = task.held_out.shapes(torch.tensor(indices))
            data = shapes.coords.to(task.device), shapes.occupancy.to(task.device)
            samples = task.samples(data, 0)
        else:
            raise TypeError(f"task: expected one of an mNIF, got {type(task).__name__}")
        found.append(task.latents(samples, len(indices), options.fit_steps))
    return torch.cat(found)


def _of_scene(task: MnifScenesTask, index: int, options: FitOptions) -> torch.Tensor:
    scene = task.held_out.scene(index)
    views = spread(len(scene.images), options.fit_views)
    return task.scene_latent(scene, views, options.fit_steps)
