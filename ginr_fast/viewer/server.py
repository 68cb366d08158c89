"""The viewer's server: clients come and go, one worker draws for all of them."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import socket
import sys
import threading
from collections.abc import Hashable
from typing import Any

import viser

from ginr_fast.viewer.cameras import field_of_view, orbit_position
from ginr_fast.viewer.image_session import ImageSession
from ginr_fast.viewer.progress import Pace
from ginr_fast.viewer.scene_session import AZIMUTH, ELEVATION, SceneSession
from ginr_fast.viewer.session import Session
from ginr_fast.viewer.shape_session import DISTANCE, ShapeSession
from ginr_fast.viewer.subjects import ImageSubject, SceneSubject, ShapeSubject, Subject
from ginr_fast.viewer.windows import CLIP, camera_of, whole_image
from ginr_fast.viewer.worker import Worker

_FLAT_FOV = math.radians(45)
_SHAPE_FOV = math.radians(40)


class Viewer:
    """Serves a subject to browsers until :meth:`stop`; also a context manager.

    Every client has a camera, an instance and a panel of its own.

    Args:
        subject: what is viewed.
        host: the address to listen at.
        port: 0 for any that is free.
        finest: rows of a picture at rest, at first.

    Attributes:
        port: that it listens at.
        url: to open in a browser.

    Raises:
        OSError: no such address, or the port is in use.
    """

    def __init__(
        self, subject: Subject[Any], host: str = "127.0.0.1", port: int = 8080, finest: int = 720
    ) -> None:
        check_free(host, port)
        self.subject, self.finest = subject, finest
        self.sessions: dict[int, Session] = {}
        self._lock = threading.Lock()
        self._pace = Pace()
        self._stopped = False
        with contextlib.redirect_stdout(io.StringIO()):  # it prints addresses of its own
            self.server = viser.ViserServer(host, port, label="ginr_fast", verbose=False)
        self.port = self.server.get_port()
        self.url = f"http://{_written(host)}:{self.port}"
        self.worker = Worker(self._failed)
        self._set_stage()
        self.server.on_client_connect(self._joined)
        self.server.on_client_disconnect(self._left)
        if port not in (0, self.port):  # somebody was quicker
            self.stop()
            raise _in_use(host, port)

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close all connections and end all threads; more than once does no harm."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
        self.worker.stop()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def _set_stage(self) -> None:
        """Where cameras are when clients come."""
        server, camera = self.server, self.server.initial_camera
        server.gui.configure_theme(show_logo=False, show_share_button=False)
        server.gui.main_panel.dock_right()
        server.scene.world_axes.visible = False
        camera.up = (0.0, 0.0, 1.0)
        if isinstance(self.subject, ImageSubject):
            camera.fov = _FLAT_FOV
            camera.position, camera.look_at = camera_of(whole_image(1.0), _FLAT_FOV)
            camera.far = CLIP
        elif isinstance(self.subject, SceneSubject):
            camera.fov = field_of_view(self.subject.focal)
            camera.position = orbit_position(self.subject.distance, AZIMUTH, ELEVATION)
            camera.look_at = (0.0, 0.0, 0.0)
        else:
            camera.fov = _SHAPE_FOV
            camera.position = orbit_position(DISTANCE, AZIMUTH, ELEVATION)
            camera.look_at = (0.0, 0.0, 0.0)

    def _joined(self, client: viser.ClientHandle) -> None:
        session = self._session(client)
        with self._lock:
            self.sessions[client.client_id] = session
        if client.client_id not in self.server.get_clients():
            self._left(client)  # before all of this was done

    def _session(self, client: viser.ClientHandle) -> Session:
        subject, worker = self.subject, self.worker
        if isinstance(subject, ImageSubject):
            return ImageSession(client, subject, worker, self._pace, self.finest)
        if isinstance(subject, SceneSubject):
            return SceneSession(client, subject, worker, self._pace, self.finest)
        assert isinstance(subject, ShapeSubject)
        return ShapeSession(client, subject, worker)

    def _left(self, client: viser.ClientHandle) -> None:
        with self._lock:
            session = self.sessions.pop(client.client_id, None)
        if session is not None:
            session.close()

    def _failed(self, key: Hashable, error: Exception) -> None:
        with self._lock:
            session = self.sessions.get(key[0])  # type: ignore[index]  # see session.PICTURE
        if session is not None:
            session.failed(error)
        print(f"ginr-fast: {type(error).__name__}: {error}", file=sys.stderr)


def _written(host: str) -> str:
    """An address as URLs have it."""
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def check_free(host: str, port: int) -> None:
    """Refuse an address that nobody can listen at.

    Args:
        host: a name or an address.
        port: 0 for any.

    Raises:
        OSError: no such address, or the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise OSError(f"host: {host} is no address of this machine ({error})") from None
    with socket.socket(family, kind, protocol) as probe:
        if sys.platform != "win32":  # as servers do: not kept from a port just left
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _in_use(host, port) from None
            raise OSError(f"host, port: cannot listen at {host}:{port} ({error})") from None


def _in_use(host: str, port: int) -> OSError:
    return OSError(f"port: {port} of {host} is in use; name another with --port, or 0 for any")
