"""What an mNIF's latents look like: images, shaded shapes, views of scenes, orbits, sheets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

import ginr_fast
from ginr_fast.coords import grid
from ginr_fast.data.cars import FOCAL
from ginr_fast.decoders.field import FieldDecoder
from ginr_fast.decoders.streaming import stream
from ginr_fast.meshes import EmptySurfaceError, extract_mesh, shaded
from ginr_fast.ops.checks import check_count
from ginr_fast.pictures import contact_sheet, to_frames
from ginr_fast.rays import orbit_poses
from ginr_fast.systems.mnif import Mnif

PREVIEW_VOXELS = 64
GREEN = (0, 160, 60)


@dataclass(frozen=True)
class CameraOptions:
    """From where scenes and shapes are seen.

    Args:
        elevation: degrees above the ground.
        azimuth: degrees around the object; of the first view of an orbit.
        radius: (scenes) distance to the origin; that of the scene's own cameras if None, for an
            mNIF the middle of where rays start and end.
        focal: (scenes) focal length in heights of the picture; that of the scene's own cameras if
            None, that of SRN Cars where there are none.
        samples: (radiance fields) field evaluations along a ray; as many as in training if None.

    Raises:
        ValueError: ``samples`` is below 1.
    """

    elevation: float = 20.0
    azimuth: float = 35.0
    radius: float | None = None
    focal: float | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        check_count("samples", self.samples, optional=True)


def image_decoder(model: Mnif) -> FieldDecoder:
    """The decoder of an mNIF of images, from packed weights to values in [0, 1]."""
    return FieldDecoder(model.config.spec, output_scale=0.5, output_bias=0.5)


@torch.no_grad()
def image_of(model: Mnif, latent: torch.Tensor, size: int) -> np.ndarray:
    """The image of one latent.

    Args:
        model: of images.
        latent: ``(1, context_dim)``.
        size: height and width, in pixels.

    Returns:
        ``(size, size, 3)``, uint8.
    """
    where = grid(size, size, device=latent.device)
    rows = stream(image_decoder(model), where, model.weights(latent))
    return to_frames(torch.cat([values for _, values in rows], dim=1))[0]


@torch.no_grad()
def orbit(
    model: Mnif,
    latent: torch.Tensor,
    views: int,
    size: int,
    camera: CameraOptions,
    occupancy: bool = False,
) -> Iterator[ginr_fast.RenderedRays]:
    """Views of one scene from a circle around it, evenly spaced.

    Args:
        model: of scenes.
        latent: ``(1, context_dim)``.
        views: how many.
        size: height and width of a view, in pixels.
        camera: where from.
        occupancy: find out first where the scene is empty, and skip that: pays over many views.

    Yields:
        Of each view color ``(size, size, 3)``, opacity and depth ``(size, size)``.
    """
    config = model.config
    weights = model.weights(latent)
    radius = (config.near + config.far) / 2 if camera.radius is None else camera.radius
    focal = FOCAL if camera.focal is None else camera.focal
    poses = orbit_poses(views, radius, camera.elevation, start=camera.azimuth)
    cells = ginr_fast.OccupancyGrid.build(weights, config.spec) if occupancy else None
    decoder = FieldDecoder(config.spec)
    for pose in poses:
        seen = decoder.render_view(
            weights,
            pose,
            size,
            size,
            focal * size,
            near=config.near,
            far=config.far,
            samples=camera.samples or config.samples,
            convention="mnif",
            occupancy=cells,
        )
        yield ginr_fast.RenderedRays(*(part[0] for part in seen))


@torch.no_grad()
def shape_of(model: Mnif, latent: torch.Tensor, size: int, camera: CameraOptions) -> np.ndarray:
    """A picture of the shape of one latent; white if it has none.

    Args:
        model: of voxels.
        latent: ``(1, context_dim)``.
        size: height and width, in pixels.
        camera: where from.

    Returns:
        ``(size, size, 3)``, uint8.
    """
    try:
        mesh = extract_mesh(model.weights(latent), model.config.spec, PREVIEW_VOXELS)
    except EmptySurfaceError:
        return np.full((size, size, 3), 255, dtype=np.uint8)
    return shaded(mesh, size, camera.azimuth, camera.elevation)


def depth_picture(seen: ginr_fast.RenderedRays, near: float, far: float) -> torch.Tensor:
    """Depth as brightness: what is nearer is brighter, emptiness is black.

    Args:
        seen: opacity and depth, ``(...)``.
        near: shown white.
        far: shown black.

    Returns:
        ``(..., 3)``, in [0, 1].
    """
    # Σ w (far − t): the mean nearness of what a ray meets, fading with its opacity. mNIF's last
    # sample, at far, is always opaque; it adds nothing here.
    nearness = (far * seen.opacity - seen.depth) / (far - near)
    return nearness.clamp(0, 1)[..., None].expand(*nearness.shape, 3)


def bilinear(corners: torch.Tensor, steps: int) -> torch.Tensor:
    """Bilinear interpolation between four latents.

    Args:
        corners: ``(4, H)``: upper left, upper right, lower left, lower right.
        steps: along each side, corners included; at least 2.

    Returns:
        ``(steps, steps, H)``, by row and column.

    Raises:
        ValueError: another number of corners, or fewer than 2 steps.
    """
    if corners.ndim != 2 or corners.shape[0] != 4:
        raise ValueError(f"corners: expected shape (4, H), got {tuple(corners.shape)}")
    if steps < 2:
        raise ValueError(f"steps: expected at least 2, got {steps}")
    along = torch.linspace(0, 1, steps, dtype=corners.dtype, device=corners.device)[:, None]
    left, right = (torch.lerp(corners[side], corners[side + 2], along) for side in (0, 1))
    return torch.lerp(left[:, None], right[:, None], along)


def framed_sheet(pictures: Sequence[np.ndarray], columns: int, framed: set[int]) -> Image.Image:
    """Pictures in rows, some in a green frame.

    Args:
        pictures: ``(size, size, 3)`` uint8, row by row.
        columns: pictures in a row.
        framed: indices of those with a frame.
    """
    width = max(2, pictures[0].shape[0] // 32)
    padded = [
        np.pad(picture, ((width,) * 2, (width,) * 2, (0, 0)), constant_values=255)
        for picture in pictures
    ]
    height, length = padded[0].shape[:2]
    for index in framed:
        image = Image.fromarray(padded[index])
        ImageDraw.Draw(image).rectangle((0, 0, length - 1, height - 1), outline=GREEN, width=width)
        padded[index] = np.asarray(image)
    return contact_sheet(np.stack(padded), columns)
