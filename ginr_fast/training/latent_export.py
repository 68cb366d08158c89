"""The latents of a data set's instances under a trained stage-1 model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch

from ginr_fast.data.images import ImageFiles, StoredImage
from ginr_fast.data.order import spread
from ginr_fast.data.views import HeldOutViews, still_views
from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.systems.mnif import Mnif
from ginr_fast.systems.mnif_adaptation import AutoDecoder, PointSamples
from ginr_fast.training.stage_one import STAGE_SYSTEMS
from ginr_fast.training.tasks import Task
from ginr_fast.training.tasks.images import ImagesTask
from ginr_fast.training.tasks.mnif import parts
from ginr_fast.training.tasks.mnif_images import MnifImagesTask
from ginr_fast.training.tasks.mnif_scenes import MnifScenesTask
from ginr_fast.training.tasks.mnif_voxels import MnifVoxelsTask

Split = Literal["train", "held-out", "all"]
_SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")


class Instances(NamedTuple):
    """Instances whose latents can be had.

    Args:
        names: of all of them.
        labels: their classes; None without.
        classes: names of the classes.
        latents: those of some of them by number, ``(B, ...)``, on the model's device.
    """

    names: list[str]
    labels: list[int] | None
    classes: tuple[str, ...]
    latents: Callable[[list[int]], torch.Tensor]

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """The latents of all of them in order, at most ``size`` at a time."""
        for part in parts(range(len(self.names)), size):
            yield self.latents(part)


def stage_of(task: Task) -> Mnif | ImageInr:
    """The model of a task whose instances have latents.

    Raises:
        ValueError: of another system.
    """
    if isinstance(task, (MnifImagesTask, MnifVoxelsTask, MnifScenesTask)):
        return task.mnif
    if isinstance(task, ImagesTask):
        return task.model
    known = ", ".join(STAGE_SYSTEMS)
    raise ValueError(f"checkpoint: expected one of {known}, got {task.recipe.system}")


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """A digest of weights, by names and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def instances_of(task: Task, split: Split, count: int | None = None) -> list[Instances]:
    """The instances of a trained task's data, split by split.

    Args:
        task: with its model in evaluation mode, on its device.
        split: train, held-out, or all: both, training instances first.
        count: use at most this many of each. Where a recipe cuts crops from images it is how many
            training crops are cut, 4,096 if None; but where latents were trained beside the model
            there are those.

    Raises:
        ValueError: no such split, or a system without latents.
    """
    if split not in get_args(Split):
        raise ValueError(f"split: expected {', '.join(get_args(Split))}, got {split!r}")
    if count is not None and count < 1:
        raise ValueError(f"instances: expected a positive integer, got {count}")
    stage_of(task)
    wanted = {"train": [False], "held-out": [True], "all": [False, True]}[split]
    return [_limited(_instances(task, held_out, count), count) for held_out in wanted]


def joined(found: Sequence[Instances], size: int) -> tuple[Instances, Iterator[torch.Tensor]]:
    """Several sets of instances as one, and its latents in order.

    Args:
        found: of :func:`instances_of`.
        size: latents at a time.
    """
    names = [name for each in found for name in each.names]
    labels: list[int] | None = [label for each in found for label in each.labels or ()]
    if any(each.labels is None for each in found):
        labels = None
    batches = (batch for each in found for batch in each.batches(size))
    return found[0]._replace(names=names, labels=labels), batches


def _limited(found: Instances, count: int | None) -> Instances:
    labels = None if found.labels is None else found.labels[:count]
    return found._replace(names=found.names[:count], labels=labels)


def _instances(task: Task, held_out: bool, count: int | None) -> Instances:
    if isinstance(task, MnifVoxelsTask):
        return _voxels(task, held_out)
    if isinstance(task, MnifScenesTask):
        return _scenes(task, held_out)
    assert isinstance(task, (ImagesTask, MnifImagesTask))
    return _images(task, held_out, count)


def _images(task: ImagesTask | MnifImagesTask, held_out: bool, count: int | None) -> Instances:
    files, recipe = task.files, task.recipe
    chosen = files.held_out if held_out else files.train
    kept = _kept_latents(task) if not held_out else None
    config, size = recipe.views, task.held_out.size
    if held_out:
        # All of them, not only those a run is evaluated with; but as many crops.
        every = replace(config, held_out_views=len(chosen)) if config.kind == "whole" else config
        views = HeldOutViews(files, every, size)
    else:
        views = still_views(files, config, size, count if kept is None else len(kept))
    owners = [index * len(chosen) // len(views) for index in range(len(views))]
    crops = len(views) != len(chosen) or config.kind == "crops"
    names = [
        _name(files, chosen[owner]) + (f" crop {index}" if crops else "")
        for index, owner in enumerate(owners)
    ]
    classes, labels = _labels(files, [chosen[owner] for owner in owners])

    def latents(indices: list[int]) -> torch.Tensor:
        if kept is not None:
            return kept[indices]
        images = torch.stack([views[index] for index in indices]).to(task.device)
        if isinstance(task, ImagesTask):
            with torch.no_grad():
                return task.model.encode(images.float() / 255)
        values = images.permute(0, 2, 3, 1).float() / 127.5 - 1
        return task.latents(PointSamples(task.grid, values), len(indices))

    return Instances(names, labels, classes, latents)


def _voxels(task: MnifVoxelsTask, held_out: bool) -> Instances:
    shapes = task.held_out if held_out else task.train_shapes
    kept = _kept_latents(task) if not held_out else None

    def latents(indices: list[int]) -> torch.Tensor:
        if kept is not None:
            return kept[indices]
        # All points of a shape, not those of a training step (Appendix A.2.2).
        points = shapes.shapes(torch.tensor(indices))
        data = points.coords.to(task.device), points.occupancy.to(task.device)
        return task.latents(task.samples(data, 0), len(indices))

    names = [f"{shapes.path.name} {index}" for index in range(len(shapes))]
    return Instances(names, None, (), latents)


def _scenes(task: MnifScenesTask, held_out: bool) -> Instances:
    scenes = task.held_out if held_out else task.train_scenes
    kept = _kept_latents(task) if not held_out else None

    def latents(indices: list[int]) -> torch.Tensor:
        if kept is not None:
            return kept[indices]
        found = []
        for index in indices:
            scene = scenes.scene(index)
            views = spread(len(scene.images), task.recipe.views)
            found.append(task.scene_latent(scene, views, None))
        return torch.cat(found)

    return Instances(list(scenes.names), None, (), latents)


def _kept_latents(task: Task) -> torch.Tensor | None:
    """Latents that were trained beside the model, if there are any."""
    model = task.model
    return model.latents.weight.detach() if isinstance(model, AutoDecoder) else None


def _name(files: ImageFiles, image: Path | StoredImage) -> str:
    if isinstance(image, StoredImage):
        return image.name
    return image.relative_to(files.root).as_posix()


def _labels(
    files: ImageFiles, images: Sequence[Path | StoredImage]
) -> tuple[tuple[str, ...], list[int] | None]:
    """Classes as the data set names them, or as its subfolders do: below train and val, if any.

    All of its images have a say in what the classes are, so that both splits number them alike.
    """
    if files.classes:
        stored = [image.label for image in images if isinstance(image, StoredImage)]
        labels = [label for label in stored if label is not None]
        return files.classes, labels if len(labels) == len(images) else None
    every = [_folder(files, image) for image in (*files.train, *files.held_out)]
    classes = tuple(sorted({each for each in every if each is not None}))
    if None in every or len(classes) < 2:
        return (), None
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [numbers[_folder(files, image) or ""] for image in images]


def _folder(files: ImageFiles, image: Path | StoredImage) -> str | None:
    names = list(Path(_name(files, image)).parts[:-1])
    if names and names[0] in _SPLIT_FOLDERS:
        names = names[1:]
    return names[0] if names else None
