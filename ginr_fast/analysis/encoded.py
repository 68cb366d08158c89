"""Held-out images and scenes as a trained model encodes them, ready to be taken apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.data.episodes import target_view
from ginr_fast.decoders.locality_aware import LocalityAwareDecoder
from ginr_fast.decoders.token_field import GroupedFieldDecoder
from ginr_fast.systems.light_fields import LightField
from ginr_fast.training.tasks import Task
from ginr_fast.training.tasks.images import ImagesTask
from ginr_fast.training.tasks.views import ViewsTask


@dataclass(frozen=True)
class EncodedInstance:
    """One held-out image, or one view of a held-out scene, and its tokens.

    Args:
        number: of the held-out image or scene.
        name: what to call it.
        image: as it is, ``(3, H, W)`` in [0, 1].
        tokens: ``(1, R, token_dim)``.
        decode: tokens ``(n, R, token_dim)`` to the picture they show, ``(n, H, W, 3)``, not
            clamped.
        coords: what the decoder is given of the pixels, ``(H, W)`` points; None where a pixel is
            more than one of them.
    """

    number: int
    name: str
    image: Tensor
    tokens: Tensor
    decode: Callable[[Tensor], Tensor]
    coords: Tensor | CoordinateGrid | None

    @property
    def count(self) -> int:
        """R."""
        return self.tokens.shape[1]


def encoded(task: Task, numbers: Sequence[int]) -> list[EncodedInstance]:
    """Held-out instances of a task, encoded by its model.

    Args:
        task: of images or views made from latent tokens, with its model.
        numbers: of held-out images or scenes, from 0.

    Raises:
        ValueError: a task of another kind, or a number that no instance has.
    """
    encode = _image if isinstance(task, ImagesTask) else _view
    for number in numbers:
        if not 0 <= number < held_out_count(task):
            raise ValueError(
                f"instances: expected 0 to {held_out_count(task) - 1}, the numbers of held-out "
                f"{task.unit}, got {number}"
            )
    with torch.no_grad():
        return [encode(task, number) for number in numbers]  # type: ignore[arg-type]


def held_out_count(task: Task) -> int:
    """How many held-out instances a task has.

    Raises:
        ValueError: a task of another kind than images or views made from latent tokens.
    """
    if not isinstance(task, (ImagesTask, ViewsTask)):
        raise ValueError(
            "checkpoint: expected an LA-GINR, TransINR or IPC of images or views, "
            f"got one of {type(task).__name__.removesuffix('Task')}"
        )
    return len(task.held_out)


def _image(task: ImagesTask, number: int) -> EncodedInstance:
    model, image = task.model, task.held_out[number].to(task.device).float() / 255
    where = grid(*image.shape[1:], device=task.device)
    return EncodedInstance(
        number,
        f"held-out image {number}",
        image,
        model.encode(image[None]),
        lambda tokens: model.decode(where, tokens),
        where,
    )


def _view(task: ViewsTask, number: int) -> EncodedInstance:
    """The scene from its support views, seen in the middle one of the others."""
    model, support = task.model, task.recipe.support
    known = task.known(number, support)
    seen = known.targets[len(known.targets) // 2]
    view = target_view(task.held_out.scene(number), seen)
    origins, directions = view.origins.to(task.device), view.directions.to(task.device)

    def decode(tokens: Tensor) -> Tensor:
        every = len(tokens), *origins.shape
        return model.color(origins.expand(every), directions.expand(every), tokens)

    coords = model.coords(origins, directions) if isinstance(model, LightField) else None
    return EncodedInstance(
        number,
        f"view {seen} of held-out scene {known.name}",
        view.image.to(task.device),
        task.tokens(known, support),
        decode,
        coords,
    )


def token_names(decoder: nn.Module, chosen: Sequence[int]) -> list[str]:
    """What tokens are called: their number, and of TransINR the layer whose columns they make.

    Args:
        decoder: of the model.
        chosen: numbers of tokens.
    """
    if not isinstance(decoder, GroupedFieldDecoder):
        return [str(number) for number in chosen]
    layers = [layer for layer, groups in enumerate(decoder.groups) for _ in range(groups)]
    return [f"{number} (layer {layers[number]})" for number in chosen]


def attends(decoder: nn.Module) -> bool:
    """Whether a decoder has attention of coordinates over tokens."""
    return isinstance(decoder, LocalityAwareDecoder)
