"""Real instances that the samples of a generative model are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ginr_fast.data.images import ImageFiles
from ginr_fast.data.order import spread
from ginr_fast.data.views import HeldOutViews, still_views
from ginr_fast.systems.latent_diffusion import LatentDiffusion, notes_from_bytes
from ginr_fast.training.generative import Generator
from ginr_fast.training.recipes import from_plain
from ginr_fast.training.stage_one import STAGE_SYSTEMS
from ginr_fast.training.tasks import SYSTEMS, open_data
from ginr_fast.training.tasks.base import DataOptions
from ginr_fast.training.tasks.mnif import parts


class Source(NamedTuple):
    """The data that a generative model is to resemble.

    Args:
        recipe: how the model, or the first stage of one of two, was trained.
        data: the recipe's data.
        name: of the data.
    """

    recipe: Any
    data: Any
    name: str


class ImageReferences(NamedTuple):
    """Real images at the resolution of training.

    Args:
        training: seen in training, uint8 ``(3, size, size)`` each.
        held_out: never seen.
        size: height and width, in pixels.
    """

    training: HeldOutViews
    held_out: HeldOutViews
    size: int


def source_of(generator: Generator, options: DataOptions) -> Source:
    """The data of a model: its own, or that which its first stage encoded.

    Args:
        generator: the model.
        options: which data; of a latent diffusion that of its first stage, not the latents.

    Raises:
        ValueError, FileNotFoundError: none is named and the recipe has none, or it is broken.
    """
    saved, model = generator.saved, generator.model
    system, plain, kind = saved.system, saved.recipe, SYSTEMS[saved.system][0]
    if isinstance(model, LatentDiffusion):
        about = notes_from_bytes(model.about)
        system, plain = about["system"], about["recipe"]
        kind = STAGE_SYSTEMS[system]
    try:
        recipe = from_plain(kind, {"steps": 1, **plain})
    except (TypeError, ValueError) as error:
        raise saved.misfit(error) from None
    own = SYSTEMS[system][1].own_data
    return Source(recipe, open_data(recipe, options), str(options.data or own))


def image_references(source: Source, count: int | None = None) -> ImageReferences:
    """The images of a source, as they are trained on but neither mirrored nor moved.

    Args:
        source: of images.
        count: how many training images at most, spread over all; where a recipe cuts crops, how
            many crops, 4,096 if None.

    Raises:
        ValueError: another kind of source.
    """
    recipe, files = source.recipe, source.data
    if not isinstance(files, ImageFiles):
        raise ValueError(f"data: expected images, got {type(files).__name__}")
    size = getattr(recipe, "image_size", None) or recipe.model.image_size
    held_out = HeldOutViews(files, recipe.views, size)
    if recipe.views.kind == "whole" and count is not None:
        train = tuple(files.train[index] for index in spread(len(files.train), count))
        files = replace(files, train=train)
    return ImageReferences(still_views(files, recipe.views, size, count), held_out, size)


def image_batches(
    views: HeldOutViews, indices: Sequence[int], batch: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Views as uint8 ``(B, 3, size, size)``.

    Args:
        views: where they come from.
        indices: which of them.
        batch: how many at a time.
        device: where they shall be.
    """
    for part in parts(range(len(indices)), batch):
        yield torch.stack([views[indices[place]] for place in part]).to(device)
