"""A client that views an image: drag to move, turn the wheel to zoom, click for tokens."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import viser

from ginr_fast.viewer.attention import Looked, looked_at
from ginr_fast.viewer.cameras import Vector
from ginr_fast.viewer.progress import Pace, fitted
from ginr_fast.viewer.session import Clicked, PictureSession
from ginr_fast.viewer.subjects import ImageSubject
from ginr_fast.viewer.windows import (
    NEAREST,
    UNIT,
    Window,
    camera_of,
    distance_of,
    whole_image,
    window_of,
)
from ginr_fast.viewer.worker import Worker

_PLANE = 50 * UNIT
_FARTHEST = 8.0  # times the distance at which all of the image is seen
_SHARED_ROWS = 96
_MARK = np.array([255, 255, 255], np.uint8)


class ImageSession(PictureSession[Window]):
    """Views an image; see :class:`PictureSession` for the arguments."""

    subject: ImageSubject[Any]

    def __init__(
        self,
        client: viser.ClientHandle,
        subject: ImageSubject[Any],
        worker: Worker,
        pace: Pace,
        finest: int,
    ) -> None:
        self._held: tuple[float, float] | None = None
        super().__init__(client, subject, worker, pace, finest)
        with self.panel.view_folder:
            hint = "1x: the height of the image fills the window"
            self._zoom: Any = client.gui.add_text("Zoom", "", disabled=True, hint=hint, order=-2)
            self._enlarged: Any = client.gui.add_text(
                "Enlarged",
                "",
                disabled=True,
                hint="How many pixels of the window a pixel of training covers along an axis",
                visible=subject.size is not None,
                order=-1,
            )
        if subject.attention is not None:
            self.watch_clicks("Click a point of the image to see which tokens it looks at.")
        farthest = _FARTHEST * distance_of(whole_image(self.aspect), client.camera.fov)
        client.camera.max_orbit_distance = farthest
        client.camera.min_orbit_distance = NEAREST
        self._catch_drags()
        self.reset()
        self.start()

    def _catch_drags(self) -> None:
        """A plane that nobody sees takes the pointer, whose drags would turn the camera."""
        corners = [(x, 0.0, z) for x in (-_PLANE, _PLANE) for z in (-_PLANE, _PLANE)]
        plane = self.client.scene.add_mesh_simple(
            "/image",
            np.array(corners),
            np.array([(0, 1, 2), (2, 1, 3)]),
            opacity=0.0,
            side="double",
        )

        @plane.on_drag("left")
        async def _(event: viser.SceneNodeDragEvent[Any]) -> None:
            # Asynchronous, so that one event comes after the other.
            window = self.view()
            if event.phase == "start" or self._held is None:
                x, _, z = event.start_position
                self._held = -z / UNIT, x / UNIT
            self._show(window.holding(self._held, event.end_screen_pos))
            if event.phase == "end":
                self._held = None

    def view(self) -> Window:
        camera = self.client.camera
        return window_of(_vector(camera.position), _vector(camera.look_at), camera.fov, self.aspect)

    def reset(self) -> None:
        self._show(whole_image(self.aspect))

    def _show(self, window: Window) -> None:
        self.look(*camera_of(window, self.client.camera.fov))
        self.refresh()

    def draw(self, state: Any, view: Window, height: int, width: int, rows: slice) -> torch.Tensor:
        return self.subject.draw(state, view, height, width, rows)

    def decoded(self, view: Window, height: int, width: int, rows: slice) -> int:
        return self.subject.decoded(view, height, width, rows)

    def marked(self, pixels: np.ndarray, view: Window) -> np.ndarray:
        self._say_zoom(view)
        if self.clicked is None:
            return pixels
        row, column = self.clicked.coords
        height, width = pixels.shape[:2]
        across, down = view.place(row, column)
        return ringed(pixels, down * height, across * width, max(2.0, height / 60))

    def _say_zoom(self, view: Window) -> None:
        self._zoom.value = f"{view.zoom:.3g}x"
        if self.subject.size is not None:
            pixels = self.client.camera.image_height * view.zoom / self.subject.size
            self._enlarged.value = f"{pixels:.3g}x"

    def point(self, view: Window, place: tuple[float, float]) -> Clicked | None:
        row, column = view.at(place)
        if max(abs(row), abs(column)) > 1:
            return None
        return Clicked(f"Row {row:+.3f}, column {column:+.3f}", (row, column))

    def attention(self, state: Any, view: Window, clicked: Clicked) -> tuple[Looked, torch.Tensor]:
        device, attention = self.subject.device, self.subject.attention
        assert attention is not None
        height, width = fitted(_SHARED_ROWS, round(_SHARED_ROWS * self.aspect), _SHARED_ROWS)
        points = view.coords(height, width, slice(0, height), device).tensor()
        point = torch.tensor([clicked.coords], device=device)
        looked, shared = looked_at(attention, state, points, point)
        shared[(points.abs() > 1).any(-1)] = 0
        return looked, shared


def ringed(pixels: np.ndarray, row: float, column: float, radius: float) -> np.ndarray:
    """A picture with a ring, white in black.

    Args:
        pixels: ``(H, W, 3)``, uint8; stays as it is.
        row: of its middle, in pixels.
        column: likewise.
        radius: in pixels.
    """
    height, width = pixels.shape[:2]
    down, across = np.ogrid[:height, :width]
    away = np.hypot(down + 0.5 - row, across + 0.5 - column)
    shown = pixels.copy()
    shown[np.abs(away - radius) <= 1 + radius / 5] = 0
    shown[np.abs(away - radius) <= 0.5 + radius / 12] = _MARK
    return shown


def _vector(array: Any) -> Vector:
    return cast(Vector, tuple(float(number) for number in array))
