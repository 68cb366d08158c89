"""A client that views a shape: its surface as a mesh, which the browser draws."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import viser

from ginr_fast.viewer.cameras import orbit_position
from ginr_fast.viewer.session import Session
from ginr_fast.viewer.subjects import ShapeSubject
from ginr_fast.viewer.worker import Worker

AZIMUTH, ELEVATION, DISTANCE = 35.0, 20.0, 5.5
_VOXELS = (32, 96)  # while something changes, and at rest
_UPRIGHT = (0.5**0.5, 0.5**0.5, 0.0, 0.0)  # from +y to the world's +z
_COLOR = (158, 184, 217)


class ShapeSession(Session):
    """Views a shape; see :class:`Session` for the arguments."""

    subject: ShapeSubject

    def __init__(self, client: viser.ClientHandle, subject: ShapeSubject, worker: Worker) -> None:
        super().__init__(client, subject, worker, None)
        self.refresh()

    def steps(self) -> Iterator[object]:
        weights = yield from self.found(self.panel.choice)
        for voxels in _VOXELS:
            start = time.perf_counter()
            mesh = self.subject.mesh(weights, voxels)
            seconds = time.perf_counter() - start
            scene: Any = self.client.scene
            if mesh is None:
                scene.remove_by_name("/shape")
            else:
                scene.add_mesh_simple(
                    "/shape", mesh.vertices, mesh.faces, color=_COLOR, wxyz=_UPRIGHT
                )
            faces = "no surface" if mesh is None else f"{len(mesh.faces)} faces"
            if voxels == _VOXELS[0]:
                rate = self.clock.tick(time.perf_counter(), seconds)
                self.panel.moving.value = f"{rate:.1f} fps, {voxels} voxels"
            self.panel.still.value = f"{voxels} voxels, {faces}"
            yield None

    def reset(self) -> None:
        self.look(orbit_position(DISTANCE, AZIMUTH, ELEVATION), (0.0, 0.0, 0.0))

    def save(self) -> None:
        camera = self.client.camera
        height, width = camera.image_height, camera.image_width
        pixels = self.client.get_render(height, width, transport_format="png", timeout=30.0)
        self.send(pixels[..., :3])
