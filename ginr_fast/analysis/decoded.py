"""Pictures of what latents stand for, whatever system they are of: images, shapes, scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ginr_fast.analysis.orbits import (
    COLOR,
    Orbit,
    Pictures,
    orbit_pictures,
)
from ginr_fast.analysis.pictures import CameraOptions, image_of, orbit, shape_of
from ginr_fast.coords import grid
from ginr_fast.data.cars import FOCAL
from ginr_fast.pictures import to_frames
from ginr_fast.rays import orbit_poses
from ginr_fast.systems.fitted import view_of
from ginr_fast.systems.inrct import Inrct
from ginr_fast.systems.latent_diffusion import LatentDiffusion
from ginr_fast.systems.mnif import Mnif

Shown = Literal["image", "voxels", "scene"]

# Pixels decoded at a time, over all pictures of a call of `render`.
_PIXELS_AT_ONCE = 1 << 20


def decoder_of(model: nn.Module) -> Any:
    """The system that decodes a model's latents: itself, or the first stage of one of two."""
    return model.decoder_model if isinstance(model, LatentDiffusion) else model


def shown_by(model: nn.Module) -> Shown:
    """What a model's latents stand for.

    Raises:
        TypeError: it decodes neither images nor shapes nor scenes.
    """
    decoder = decoder_of(model)
    if isinstance(decoder, Mnif):
        return decoder.config.modality
    if hasattr(decoder, "color"):
        return "scene"
    if hasattr(decoder, "render"):
        return "image"
    raise TypeError(f"model: expected one that decodes pictures, got {type(decoder).__name__}")


def own_size(model: nn.Module) -> int | None:
    """Height and width of the pictures that a model was trained on; None where it keeps no such
    number."""
    if isinstance(model, LatentDiffusion):
        return model.image_size
    size = getattr(decoder_of(model).config, "image_size", None)
    return size if isinstance(size, int) else None


def pictures_of(
    model: nn.Module,
    latents: torch.Tensor,
    size: int,
    camera: CameraOptions,
    jitter: int | None = None,
) -> Iterator[np.ndarray]:
    """One picture of each latent.

    Args:
        model: of images (``render(latents, grid)``), of scenes (``color(origins, directions,
            latents)``), an mNIF of any modality, or a latent diffusion over one of these.
        latents: ``(n, ...)``, as ``draw`` or ``encode`` gives them.
        size: height and width, in pixels.
        camera: where scenes and shapes are seen from.
        jitter: (INRCT of images) move each point at random within its pixel, the same way in every
            picture; the seed of these moves, None for none.

    Yields:
        ``(size, size, 3)``, uint8.

    Raises:
        TypeError: a model of another kind.
        ValueError: jitter, and not INRCT of images.
    """
    shown, decoder = shown_by(model), decoder_of(model)
    if jitter is not None and not isinstance(decoder, Inrct):
        raise ValueError(f"jitter: is for INRCT of images, not for {type(decoder).__name__}")
    if shown == "image" and not isinstance(decoder, Mnif):
        yield from _images(decoder, latents, size, jitter)
        return
    for latent in latents.split(1):
        if shown == "image":
            yield image_of(decoder, latent, size)
        elif shown == "voxels":
            yield shape_of(decoder, latent, size, camera)
        else:
            yield to_frames(next(_views(decoder, latent, 1, size, camera))[COLOR][None])[0]


def orbits_of(
    model: nn.Module,
    latents: torch.Tensor,
    names: Sequence[str],
    views: int,
    size: int,
    camera: CameraOptions,
) -> Iterator[Orbit]:
    """Scenes from circles around them.

    Args:
        model: of scenes, see :func:`pictures_of`.
        latents: ``(n, ...)``.
        names: of the scenes.
        views: of each, evenly spaced.
        size: height and width of a view, in pixels.
        camera: where from.
    """
    decoder = decoder_of(model)
    for name, latent in zip(names, latents.split(1), strict=True):
        yield Orbit(name, _views(decoder, latent, views, size, camera))


@torch.no_grad()
def _images(
    model: Any, latents: torch.Tensor, size: int, jitter: int | None
) -> Iterator[np.ndarray]:
    where = grid(size, size, device=latents.device)
    options = {} if jitter is None else {"jitter": 1.0, "seed": jitter}
    for part in latents.split(max(1, _PIXELS_AT_ONCE // size**2)):
        values = model.render(part, where, **options).permute(0, 2, 3, 1)
        yield from to_frames(values.expand(-1, -1, -1, 3))  # grey in three channels, too


def _views(
    model: Any, latent: torch.Tensor, views: int, size: int, camera: CameraOptions
) -> Iterator[Pictures]:
    if isinstance(model, Mnif):
        for seen in orbit(model, latent, views, size, camera, occupancy=views > 1):
            yield {COLOR: seen.color}
        return
    config = model.config
    if camera.samples is not None and camera.samples != config.samples:
        model = view_of(model)
        model.config = replace(config, samples=camera.samples)
    radius = config.camera_distance if camera.radius is None else camera.radius
    focal = FOCAL if camera.focal is None else camera.focal
    poses = orbit_poses(views, radius, camera.elevation, start=camera.azimuth).to(latent.device)
    yield from orbit_pictures(
        lambda *rays: {COLOR: model.color(*rays, latent)}, poses, size, focal * size
    )
