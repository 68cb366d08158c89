"""Orbits around scenes, whatever shows them: pictures of rays, and files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from ginr_fast.analysis.pictures import CameraOptions, depth_picture, orbit
from ginr_fast.decoders.field import MAX_RAYS
from ginr_fast.ops.volume_render.convention import RenderedRays
from ginr_fast.pictures import contact_sheet, save_frames, save_gif, save_mp4, save_png, to_frames
from ginr_fast.rays import camera_rays
from ginr_fast.systems.mnif import Mnif
from ginr_fast.training.images import sheet

COLOR, DEPTH = "", "-depth"
"""Kinds of pictures, as they are added to the names of files."""

SHEET_NAME = "views.png"
_SHEET_VIEWS = 8
_SHEET_SIZE = 128

FileFormat = Literal["gif", "mp4", "png"]
Pictures = Mapping[str, torch.Tensor]
"""Pictures of one view by kind, ``(..., 3)`` in [0, 1]."""


class Orbit(NamedTuple):
    """A scene from a circle around it.

    Args:
        name: of its files.
        frames: its views one after the other, made when they are asked for.
        known: views that the model was given of it, ``(H, W, 3)`` uint8; none if empty.
    """

    name: str
    frames: Iterator[Pictures]
    known: Sequence[np.ndarray] = ()


def mnif_orbits(
    model: Mnif,
    latents: torch.Tensor,
    names: Sequence[str],
    views: int,
    size: int,
    camera: CameraOptions,
    occupancy: bool = False,
    depth: bool = False,
) -> Iterator[Orbit]:
    """Scenes of an mNIF from circles around them.

    Args:
        model: of scenes.
        latents: ``(n, context_dim)``.
        names: of the scenes.
        views: of each, evenly spaced.
        size: height and width of a view, in pixels.
        camera: where from.
        occupancy: see :func:`ginr_fast.analysis.pictures.orbit`.
        depth: depth, too.
    """
    near, far = model.config.near, model.config.far

    def frames(latent: torch.Tensor) -> Iterator[Pictures]:
        for seen in orbit(model, latent, views, size, camera, occupancy):
            yield field_pictures(seen, near, far, depth)

    for name, latent in zip(names, latents.split(1), strict=True):
        yield Orbit(name, frames(latent))


def field_pictures(seen: RenderedRays, near: float, far: float, depth: bool) -> Pictures:
    """The pictures of a radiance field.

    Args:
        seen: along some rays.
        near: depth that is shown white.
        far: depth that is shown black.
        depth: whether depth is wanted, too.
    """
    pictures = {COLOR: seen.color}
    if depth:
        pictures[DEPTH] = depth_picture(seen, near, far)
    return pictures


@torch.no_grad()
def orbit_pictures(
    draw: Callable[[torch.Tensor, torch.Tensor], Pictures],
    poses: torch.Tensor,
    size: int,
    focal: float,
) -> Iterator[Pictures]:
    """Pictures from poses; memory beside a picture is bounded.

    Args:
        draw: pictures along rays, from origins and directions ``(1, N, 3)`` to ``(1, N, 3)``.
        poses: ``(T, 4, 4)``, camera-to-world, on the device of ``draw``.
        size: height and width, in pixels.
        focal: focal length, in pixels.

    Yields:
        Of each pose pictures ``(size, size, 3)``.
    """
    for pose in poses.split(1):
        origins, directions = (rays.flatten(1, 2) for rays in camera_rays(pose, size, size, focal))
        parts = [
            draw(*rays)
            for rays in zip(origins.split(MAX_RAYS, 1), directions.split(MAX_RAYS, 1), strict=True)
        ]
        yield {
            kind: torch.cat([part[kind] for part in parts], 1).view(size, size, 3)
            for kind in parts[0]
        }


def write_orbits(
    orbits: Iterable[Orbit],
    views: int,
    out: Path,
    file_format: FileFormat,
    fps: float,
    on_view: Callable[[], None] = lambda: None,
) -> None:
    """Frames and an animation of each orbit, and one sheet with some views of all.

    Args:
        orbits: drawn one after the other.
        views: of each.
        out: the folder.
        file_format: gif or mp4 beside the frames; png for the frames alone.
        fps: frames a second.
        on_view: called after each view.
    """
    shown = np.linspace(0, views, min(_SHEET_VIEWS, views), endpoint=False).astype(int)
    rows: list[list[np.ndarray]] = []
    titles: list[str] = []
    for each in orbits:
        made: dict[str, list[np.ndarray]] = {}
        for pictures in each.frames:
            for kind, picture in pictures.items():
                made.setdefault(kind, []).append(to_frames(picture[None])[0])
            on_view()
        for kind, frames in made.items():
            _write(np.stack(frames), out / f"{each.name}{kind}", file_format, fps)
        seen = made[COLOR]
        small = min(len(seen[0]), _SHEET_SIZE)
        row = [*each.known, *(seen[view] for view in shown)]
        rows.append([_fitted(picture, small) for picture in row])
        if each.known:
            titles.append(f"{each.name}: {len(each.known)} known, then the orbit")
    flat = np.stack([picture for row in rows for picture in row])
    page = sheet(rows, titles) if titles else contact_sheet(flat, len(shown))
    save_png(page, out / SHEET_NAME)


def _write(frames: np.ndarray, path: Path, file_format: FileFormat, fps: float) -> None:
    save_frames(frames, path)
    if file_format == "gif":
        save_gif(frames, path.with_name(f"{path.name}.gif"), fps)
    elif file_format == "mp4":
        save_mp4(frames, path.with_name(f"{path.name}.mp4"), fps)


def _fitted(picture: np.ndarray, size: int) -> np.ndarray:
    """A picture resized to a square; white is added where it is none."""
    image = Image.fromarray(picture)
    return np.asarray(ImageOps.pad(image, (size, size), color=(255, 255, 255)))
