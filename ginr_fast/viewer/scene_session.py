"""A client that views a scene: the mouse orbits, the wheel comes closer."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import viser

from ginr_fast.viewer.attention import Looked, looked_at
from ginr_fast.viewer.cameras import Camera, field_of_view, orbit_position
from ginr_fast.viewer.progress import Pace, fitted
from ginr_fast.viewer.session import Clicked, PictureSession
from ginr_fast.viewer.subjects import SceneSubject
from ginr_fast.viewer.worker import Worker

AZIMUTH, ELEVATION = 35.0, 20.0
_FARTHEST = 4.0
_SHARED_ROWS = 64


class SceneSession(PictureSession[Camera]):
    """Views a scene; see :class:`PictureSession` for the arguments."""

    subject: SceneSubject[Any]

    def __init__(
        self,
        client: viser.ClientHandle,
        subject: SceneSubject[Any],
        worker: Worker,
        pace: Pace,
        finest: int,
    ) -> None:
        super().__init__(client, subject, worker, pace, finest)
        with self.panel.view_folder:
            self._fov: Any = client.gui.add_slider(
                "View angle (°)",
                5.0,
                120.0,
                0.5,
                self._own_fov,
                hint="The vertical field of view",
                order=-2,
            )
            own = None if subject.march is None else subject.march.samples
            self._samples: Any = client.gui.add_slider(
                "Samples",
                2,
                4 * (own or 2),
                1,
                own or 2,
                hint="Field evaluations along a ray",
                visible=own is not None,
                order=-1,
            )
        self._fov.on_update(lambda _: self._turn_lens())
        self._samples.on_update(lambda _: self.refresh())
        client.camera.max_orbit_distance = _FARTHEST * subject.distance
        client.camera.min_orbit_distance = subject.closest
        if subject.attention is not None and subject.coords is not None:
            self.watch_clicks("Click a point of the view to see which tokens its ray looks at.")
        self.start()

    @property
    def _own_fov(self) -> float:
        return round(2 * math.degrees(field_of_view(self.subject.focal))) / 2

    def _turn_lens(self) -> None:
        self.client.camera.fov = math.radians(self._fov.value)
        self.refresh()

    def view(self) -> Camera:
        camera = self.client.camera
        position, wxyz = (tuple(map(float, part)) for part in (camera.position, camera.wxyz))
        return Camera(cast(Any, position), cast(Any, wxyz), float(camera.fov))

    def reset(self) -> None:
        self.look(orbit_position(self.subject.distance, AZIMUTH, ELEVATION), (0.0, 0.0, 0.0))
        self._fov.value = self._own_fov
        self._turn_lens()

    def draw(self, state: Any, view: Camera, height: int, width: int, rows: slice) -> torch.Tensor:
        samples = int(self._samples.value)
        return self.subject.draw(state, view, height, width, rows, samples)

    def point(self, view: Camera, place: tuple[float, float]) -> Clicked:
        coords = self.subject.coords
        assert coords is not None
        words = f"A ray clicked at {100 * place[0]:.0f} % across, {100 * place[1]:.0f} % down"
        return Clicked(words, tuple(coords(*view.ray(place, self.aspect))[0].tolist()))

    def attention(self, state: Any, view: Camera, clicked: Clicked) -> tuple[Looked, torch.Tensor]:
        device, coords, attention = self.subject.device, self.subject.coords, self.subject.attention
        assert coords is not None and attention is not None
        height, width = fitted(_SHARED_ROWS, round(_SHARED_ROWS * self.aspect), _SHARED_ROWS)
        points = coords(*view.rays(height, width, slice(0, height), device))
        point = torch.tensor([clicked.coords], device=device)
        return looked_at(attention, state, points.unflatten(0, (height, width)), point)
