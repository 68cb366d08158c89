"""What is one client's own: its camera, its instance, its panel and its requests."""

from __future__ import annotations

import io
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
import viser
from PIL import Image

from ginr_fast.viewer.attention import Looked, described, heat, token_map
from ginr_fast.viewer.cameras import Vector
from ginr_fast.viewer.painting import Frame, paint
from ginr_fast.viewer.panel import Panel
from ginr_fast.viewer.progress import FrameClock, Pace, fitted
from ginr_fast.viewer.subjects import Choice, Subject
from ginr_fast.viewer.worker import Worker

PICTURE, TOKENS = "picture", "tokens"
"""Kinds of requests; a key is a client's number and one of them."""

_QUALITY_MOVING, _QUALITY_STILL = 80, 95
View = TypeVar("View")


class Clicked(NamedTuple):
    """A point whose tokens are shown.

    Args:
        words: where it is.
        coords: of it, those that attention is of.
    """

    words: str
    coords: tuple[float, ...]


class Session(ABC):
    """A client that views something.

    Args:
        client: the client.
        subject: what it views.
        worker: draws it.
        finest: rows of a picture at rest, at first; None where pictures have no rows.
    """

    def __init__(
        self, client: viser.ClientHandle, subject: Subject[Any], worker: Worker, finest: int | None
    ) -> None:
        self.client, self.subject, self.worker = client, subject, worker
        self.clock = FrameClock()
        self.panel = Panel(client, subject, finest, self.refresh, self.save, self.reset)

    def refresh(self) -> None:
        """Ask for another picture."""
        self.worker.submit((self.client.client_id, PICTURE), self.steps())

    def close(self) -> None:
        """Drop what was asked for."""
        self.worker.forget(lambda key: key[0] == self.client.client_id)  # type: ignore[index]

    def failed(self, error: Exception) -> None:
        """Tell the client what went wrong."""
        text = f"{type(error).__name__}: {error}"
        self.client.add_notification("This could not be drawn", text, color="red")

    def found(self, choice: Choice) -> Generator[None, None, Any]:
        """What an instance is decoded from, after a step if it must be looked for.

        That can take long and cannot be dropped; whatever is chosen meanwhile takes its place.
        """
        if not self.subject.ready(choice):
            self.panel.still.value = "finding the instance"
            yield None
        return self.subject.state(choice)

    @property
    def file_name(self) -> str:
        """Of saved pictures, without a suffix."""
        return f"{self.subject.title}-{self.panel.choice.name}"

    @abstractmethod
    def steps(self) -> Iterator[object]:
        """Draws, on the worker's thread."""

    @abstractmethod
    def save(self) -> None:
        """Send the client its picture as a file."""

    @abstractmethod
    def reset(self) -> None:
        """Put the camera where it was at first."""

    def look(self, position: Vector, target: Vector) -> None:
        """Put the camera somewhere, +z upwards."""
        camera = self.client.camera
        with self.client.atomic():
            camera.position = position
            camera.look_at = target
            camera.up_direction = (0.0, 0.0, 1.0)

    def send(self, pixels: np.ndarray) -> None:
        """Send pixels as a PNG, which the browser saves."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        height, width = pixels.shape[:2]
        name = f"{self.file_name}-{width}x{height}.png"
        self.client.send_file_download(name, buffer.getvalue(), save_immediately=True)


class PictureSession(Session, Generic[View]):
    """A client whose pictures are decoded for its camera, coarse before fine.

    Args:
        client: see :class:`Session`, as the others.
        subject: see there.
        worker: see there.
        pace: how fast pictures of the subject are drawn.
        finest: rows of a picture at rest, at first.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        subject: Subject[Any],
        worker: Worker,
        pace: Pace,
        finest: int,
    ) -> None:
        self.pace = pace
        self.frame: Frame | None = None
        self.clicked: Clicked | None = None
        self._told: object = None  # what the tokens that are shown are of
        super().__init__(client, subject, worker, finest)

    def start(self) -> None:
        """Draw, from now on whenever the camera moves; called when all else is ready."""
        self.client.camera.on_update(lambda _: self.refresh())
        self.refresh()

    @abstractmethod
    def view(self) -> View:
        """What the camera shows."""

    @abstractmethod
    def draw(self, state: Any, view: View, height: int, width: int, rows: slice) -> torch.Tensor:
        """Some rows of a picture, ``(rows, width, 3)``."""

    def decoded(self, view: View, height: int, width: int, rows: slice) -> int:
        """How many pixels of what :meth:`draw` gives are decoded."""
        return (rows.stop - rows.start) * width

    @abstractmethod
    def point(self, view: View, place: tuple[float, float]) -> Clicked | None:
        """The point at a place of the picture; None if nothing is there.

        Args:
            view: what is seen.
            place: across and down, from (0, 0) to (1, 1).
        """

    @abstractmethod
    def attention(self, state: Any, view: View, clicked: Clicked) -> tuple[Looked, torch.Tensor]:
        """What a point looks at, and how much of it the whole picture shares, ``(H, W)``.

        Args:
            state: of the instance.
            view: what is seen; the point may lie outside.
            clicked: the point.
        """

    def marked(self, pixels: np.ndarray, view: View) -> np.ndarray:
        """A picture as it is shown."""
        return pixels

    @property
    def aspect(self) -> float:
        """Width over height of the client's canvas."""
        camera = self.client.camera
        return max(1, camera.image_width) / max(1, camera.image_height)

    def steps(self) -> Iterator[object]:
        camera, view, choice = self.client.camera, self.view(), self.panel.choice
        state = yield from self.found(choice)
        height, width = fitted(camera.image_height, camera.image_width, self.panel.finest)

        def draw(height: int, width: int, rows: slice) -> torch.Tensor:
            return self.draw(state, view, height, width, rows)

        def decoded(height: int, width: int, rows: slice) -> int:
            return self.decoded(view, height, width, rows)

        for frame in paint(draw, height, width, self.pace, decoded):
            if frame is not None:
                self._deliver(frame, view)
            yield None
        self._tell(state, view, choice)

    def _deliver(self, frame: Frame, view: View) -> None:
        self.frame = frame
        quality = _QUALITY_STILL if frame.last else _QUALITY_MOVING
        shown = self.marked(frame.pixels, view)
        self.client.scene.set_background_image(shown, "jpeg", jpeg_quality=quality)
        height, width = frame.pixels.shape[:2]
        if frame.first:
            rate = self.clock.tick(time.perf_counter(), frame.seconds)
            self.panel.moving.value = f"{rate:.1f} fps, {width} x {height} px"
        self.panel.still.value = f"{width} x {height} px, {_duration(frame.seconds)}"

    def save(self) -> None:
        if self.frame is not None:
            self.send(self.frame.pixels)

    def watch_clicks(self, text: str) -> None:
        """Show on a click what the place looks at; for decoders that attend.

        Args:
            text: what a click shows, in words.
        """
        self.panel.explain_clicks(text)

        @self.client.scene.on_click()
        def _(event: viser.SceneClickEvent) -> None:
            key = self.client.client_id, TOKENS
            self.worker.submit(key, self._look(event.screen_pos))

    def _look(self, place: tuple[float, float]) -> Iterator[object]:
        view, choice = self.view(), self.panel.choice
        state = yield from self.found(choice)
        self.clicked = self.point(view, place)
        if self.clicked is None:
            self._told = None
            self.panel.hide_tokens()
        self._tell(state, view, choice)
        self.refresh()

    def _tell(self, state: Any, view: View, choice: Choice) -> None:
        """Show the tokens of the point that was clicked, if others are shown."""
        about = self.clicked, choice.plain, view, self.aspect
        if self.clicked is None or about == self._told:
            return
        looked, shared = self.attention(state, view, self.clicked)
        words = f"{self.clicked.words}. {described(looked)}"
        picture = heat(shared.float().cpu().numpy())
        self.panel.show_tokens(words, token_map(looked), picture)
        self._told = about


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
