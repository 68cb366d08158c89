"""The part of an image that a browser shows, and the flat world whose camera chooses it.

An image covers ``[-1, 1]²``, coordinates (row, column). In the browser it hangs in the plane y = 0,
columns along +x and rows along −z, and the camera looks at it along +y: moving the camera moves the
window, its distance is the zoom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.viewer.cameras import Vector

UNIT = 1000.0
"""Of the flat world, in one unit of the image's coordinates."""

NEAREST = 2.0
"""The least distance of the camera."""

CLIP = 1.5
"""The far end of what the browser draws: before the plane, which is for the pointer only."""

_MARGIN = 1.05


@dataclass(frozen=True)
class Window:
    """A rectangle of an image.

    Args:
        row: of its middle, in coordinates.
        column: likewise.
        height: its extent along rows; 2 is the whole image's.
        width: its extent along columns.
    """

    row: float
    column: float
    height: float
    width: float

    @property
    def zoom(self) -> float:
        """How many times larger the image is shown than where its height just fits."""
        return 2 / self.height

    def coords(
        self, height: int, width: int, rows: slice, device: torch.device | None = None
    ) -> CoordinateGrid:
        """The pixel centres of some rows of a picture of the window.

        Args:
            height: of the whole picture, in pixels.
            width: of it.
            rows: which of them.
            device: where the grid shall be.
        """
        top, left = self.row - self.height / 2, self.column - self.width / 2
        bounds = [(top, top + self.height), (left, left + self.width)]
        # In float64 until only what differs between neighbours is left to round.
        whole = grid(height, width, bounds=bounds, dtype=torch.float64)
        part = CoordinateGrid((whole.axes[0][rows], whole.axes[1]))
        return part.to(device, torch.float32)

    def at(self, place: tuple[float, float]) -> tuple[float, float]:
        """Row and column of a place of the picture, (0, 0) its upper left corner, (1, 1) the lower
        right one; a place is given as (across, down)."""
        return (
            self.row + (place[1] - 0.5) * self.height,
            self.column + (place[0] - 0.5) * self.width,
        )

    def place(self, row: float, column: float) -> tuple[float, float]:
        """The inverse of :meth:`at`."""
        return (
            (column - self.column) / self.width + 0.5,
            (row - self.row) / self.height + 0.5,
        )

    def holding(self, point: tuple[float, float], place: tuple[float, float]) -> Window:
        """The window moved so that a point of the image is at a place of the picture."""
        row, column = self.at(place)
        return replace(self, row=self.row + point[0] - row, column=self.column + point[1] - column)


def whole_image(aspect: float) -> Window:
    """The window that just shows all of an image.

    Args:
        aspect: width over height of what it is shown in.
    """
    height = 2 * _MARGIN / min(1.0, aspect)
    return Window(0.0, 0.0, height, height * aspect)


def window_of(position: Vector, target: Vector, fov: float, aspect: float) -> Window:
    """What a camera of the flat world shows, were it to look straight at the image.

    Args:
        position: of the camera.
        target: what it looks at.
        fov: vertical field of view, radians.
        aspect: width over height.
    """
    height = 2 * math.dist(position, target) * math.tan(fov / 2) / UNIT
    return Window(-target[2] / UNIT, target[0] / UNIT, height, height * aspect)


def camera_of(window: Window, fov: float) -> tuple[Vector, Vector]:
    """Where the camera of a window is, and what it looks at."""
    x, z = window.column * UNIT, -window.row * UNIT
    return (x, -distance_of(window, fov), z), (x, 0.0, z)


def distance_of(window: Window, fov: float) -> float:
    """How far the camera of a window is from the image."""
    return window.height * UNIT / (2 * math.tan(fov / 2))
