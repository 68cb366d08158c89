"""A browser's camera, and the rays through the pixels of what it sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ginr_fast.rays import orbit_poses, pixel_rays

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class Rays(NamedTuple):
    """Rays as :func:`ginr_fast.rays.camera_rays` gives them: directions have depth 1.

    Args:
        origins: ``(N, 3)``.
        directions: ``(N, 3)``.
    """

    origins: torch.Tensor
    directions: torch.Tensor


@dataclass(frozen=True)
class Camera:
    """A pinhole camera as browsers report it.

    Args:
        position: in the world, whose up is +z.
        wxyz: unit quaternion of the rotation from camera to world, with OpenCV axes: the camera
            looks along +z, +x is right and +y *down* in the picture.
        fov: vertical field of view, radians.
    """

    position: Vector
    wxyz: Quaternion
    fov: float

    @property
    def pose(self) -> torch.Tensor:
        """Camera-to-world, ``(4, 4)`` float32, with the OpenGL axes of :mod:`ginr_fast.rays`."""
        pose = torch.eye(4, dtype=torch.float64)
        # y and z point the other way there.
        pose[:3, :3] = rotation(self.wxyz) * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
        pose[:3, 3] = torch.tensor(self.position, dtype=torch.float64)
        return pose.float()

    @property
    def depth(self) -> float:
        """Depth of the world's origin before the camera."""
        forward = rotation(self.wxyz)[:, 2]
        return -float(forward @ torch.tensor(self.position, dtype=torch.float64))

    def rays(
        self, height: int, width: int, rows: slice, device: torch.device | None = None
    ) -> Rays:
        """Rays through the pixel centres of some rows of a picture.

        Args:
            height: of the whole picture, in pixels.
            width: of it; pixels are square.
            rows: which of them.
            device: where the rays shall be.
        """
        across = torch.arange(width).repeat(rows.stop - rows.start)
        down = torch.arange(rows.start, rows.stop).repeat_interleave(width)
        focal = height / (2 * math.tan(self.fov / 2))
        found = pixel_rays(self.pose, down, across, focal, (width / 2, height / 2))
        return Rays(*(part.to(device) for part in found))

    def ray(self, place: tuple[float, float], aspect: float) -> Rays:
        """The ray through a place of the picture.

        Args:
            place: column and row as parts of the picture: (0, 0) is its upper left corner.
            aspect: width over height.
        """
        focal = 1 / (2 * math.tan(self.fov / 2))
        down, across = torch.tensor([place[1] - 0.5]), torch.tensor([place[0] * aspect - 0.5])
        return Rays(*pixel_rays(self.pose, down, across, focal, (aspect / 2, 0.5)))


def rotation(wxyz: Quaternion) -> torch.Tensor:
    """The matrix of a quaternion, ``(3, 3)`` float64; its length does not matter."""
    w, x, y, z = (number / math.hypot(*wxyz) for number in wxyz)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.tensor(rows, dtype=torch.float64)


def field_of_view(focal: float) -> float:
    """The vertical field of view in radians of a focal length in heights of the picture."""
    return 2 * math.atan(0.5 / focal)


def orbit_position(radius: float, azimuth: float, elevation: float) -> Vector:
    """Where a camera is that looks at the origin, for angles in degrees as in orbits."""
    x, y, z = orbit_poses(1, radius, elevation, start=azimuth)[0, :3, 3].tolist()
    return x, y, z
