"""What can be viewed: images, scenes and shapes, whatever system they are of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ginr_fast.coords import CoordinateGrid
from ginr_fast.decoders.field import MAX_RAYS
from ginr_fast.fields import FieldSpec
from ginr_fast.meshes import EmptySurfaceError, Mesh, extract_mesh
from ginr_fast.viewer.cameras import Camera, Rays
from ginr_fast.viewer.windows import Window

_KEPT = 16
_POINTS = 1 << 18
_AROUND = 0.88  # the grey around an image
State = TypeVar("State")
Attention = Callable[[Tensor, Any], Tensor]
"""Of coordinates ``(N, d)`` and an instance's state the attention ``(heads, N, R)``."""


class Choice(NamedTuple):
    """An instance, or what lies between two.

    Args:
        first: its number.
        second: number of the other one.
        share: of the way from the first to the second, 0 to 1.
    """

    first: int
    second: int = 0
    share: float = 0.0

    @property
    def plain(self) -> Choice:
        """The same, an instance itself always in the same way."""
        if 0 < self.share < 1 and self.first != self.second:
            return self
        number = self.second if self.share == 1 else self.first
        return Choice(number, number)

    @property
    def name(self) -> str:
        """For the names of files."""
        if self.plain.first == self.plain.second:
            return f"{self.plain.first:05d}"
        return f"{self.first:05d}-{self.second:05d}-{round(100 * self.share):03d}"


@dataclass(frozen=True)
class Instances:
    """The instances of a model.

    Args:
        what: they are, in words.
        count: how many.
        find: an instance's latent, tokens or packed weights, ``(1, ...)``, by its number.
        between: the same of what lies between two; a straight line between theirs if None.
    """

    what: str
    count: int
    find: Callable[[int], Tensor]
    between: Callable[[int, int, float], Tensor] | None = None


class Subject(Generic[State]):
    """Instances that can be shown.

    Args:
        title: the system, for the reader.
        instances: that it shows.
        prepare: what is decoded again and again, from what :class:`Instances` gives.
        device: where it is decoded.
    """

    def __init__(
        self,
        title: str,
        instances: Instances,
        prepare: Callable[[Tensor], State],
        device: torch.device,
    ) -> None:
        self.title, self.instances, self.device = title, instances, device
        self._prepare = prepare
        self._found: OrderedDict[int, Tensor] = OrderedDict()
        self._states: OrderedDict[Choice, State] = OrderedDict()

    def ready(self, choice: Choice) -> bool:
        """Whether :meth:`state` need not look for an instance first."""
        first, second, _ = choice = choice.plain
        if choice in self._states:
            return True
        if first != second and self.instances.between is not None:
            return False
        return {first, second} <= set(self._found)

    def state(self, choice: Choice) -> State:
        """What an instance is decoded from; some are kept.

        Raises:
            ValueError: a number that no instance has.
        """
        choice = choice.plain
        return _kept(self._states, choice, lambda: self._prepare(self._latent(choice)))

    def _latent(self, choice: Choice) -> Tensor:
        first, second, share = choice
        if first == second:
            return self._instance(first)
        if self.instances.between is not None:
            return self.instances.between(first, second, share)
        return torch.lerp(self._instance(first), self._instance(second), share)

    def _instance(self, number: int) -> Tensor:
        if not 0 <= number < self.instances.count:
            raise ValueError(
                f"instance: expected 0 to {self.instances.count - 1}, the numbers of "
                f"{self.instances.what}, got {number}"
            )

        def find() -> Tensor:
            with torch.enable_grad():  # some are found by gradient steps
                return self.instances.find(number).detach()

        return _kept(self._found, number, find)


class ImageSubject(Subject[State]):
    """Images.

    Args:
        title: see :class:`Subject`, as the others.
        instances: see there.
        prepare: see there.
        device: see there.
        decode: of a grid and a state the values ``(1, H, W, channels)``, about [0, 1].
        size: height and width in training, in pixels; None if unknown.
        attention: of coordinates (row, column) over tokens; None where there is none.
    """

    def __init__(
        self,
        title: str,
        instances: Instances,
        prepare: Callable[[Tensor], State],
        device: torch.device,
        decode: Callable[[CoordinateGrid, State], Tensor],
        size: int | None,
        attention: Attention | None = None,
    ) -> None:
        super().__init__(title, instances, prepare, device)
        self.size, self.attention = size, attention
        self._decode = decode

    @torch.no_grad()
    def draw(self, state: State, window: Window, height: int, width: int, rows: slice) -> Tensor:
        """Some rows of a picture of a window, ``(rows, width, 3)``; grey where no image is.

        Args:
            state: of the instance.
            window: what is shown.
            height: of the whole picture, in pixels.
            width: of it.
            rows: which of them.
        """
        where = window.coords(height, width, rows, self.device)
        picture = torch.full((*where.shape, 3), _AROUND, device=self.device)
        inside = _inside(where)
        axes = tuple(axis[span] for axis, span in zip(where.axes, inside, strict=True))
        down, across = (len(axis) for axis in axes)
        if down and across:
            block = max(1, _POINTS // across)
            parts = [
                self._decode(CoordinateGrid((part, axes[1])), state)[0].float()
                for part in axes[0].split(block)
            ]
            picture[inside[0], inside[1]] = torch.cat(parts)  # grey becomes three channels
        return picture

    def decoded(self, window: Window, height: int, width: int, rows: slice) -> int:
        """How many pixels of what :meth:`draw` gives are of the image."""
        down, across = _inside(window.coords(height, width, rows))
        return (down.stop - down.start) * (across.stop - across.start)


class March(NamedTuple):
    """How rays are marched in training.

    Args:
        near: depth before the camera where they start.
        samples: field evaluations along one.
    """

    near: float
    samples: int


class SceneSubject(Subject[State]):
    """Radiance fields and light fields, the world's up being +z.

    Args:
        title: see :class:`Subject`, as the others.
        instances: see there.
        prepare: see there.
        device: see there.
        color: of origins and directions ``(1, N, 3)``, a state and the number of samples along a
            ray the colours ``(1, N, 3)``.
        distance: of training cameras from the middle of a scene.
        focal: their focal length, in heights of the picture.
        march: depth before such a camera where rays start, and samples along a ray in training;
            None where one evaluation is enough for a ray.
        coords: of rays what attention is of; None where there is none.
        attention: of such coordinates over tokens; likewise.
    """

    def __init__(
        self,
        title: str,
        instances: Instances,
        prepare: Callable[[Tensor], State],
        device: torch.device,
        color: Callable[[Tensor, Tensor, State, int], Tensor],
        distance: float,
        focal: float,
        march: March | None,
        coords: Callable[[Tensor, Tensor], Tensor] | None = None,
        attention: Attention | None = None,
    ) -> None:
        super().__init__(title, instances, prepare, device)
        self.distance, self.focal, self.march = distance, focal, march
        self.coords, self.attention = coords, attention
        self._color = color

    @property
    def closest(self) -> float:
        """How close a camera may come to the middle of a scene."""
        return 0.05 * self.distance if self.march is None else self.distance - self.march.near

    @torch.no_grad()
    def draw(
        self,
        state: State,
        camera: Camera,
        height: int,
        width: int,
        rows: slice,
        samples: int | None = None,
    ) -> Tensor:
        """Some rows of a view, ``(rows, width, 3)``.

        Args:
            state: of the instance.
            camera: where from.
            height: of the whole picture, in pixels.
            width: of it.
            rows: which of them.
            samples: along a ray; as many as in training if None.
        """
        count = samples or (1 if self.march is None else self.march.samples)
        origins, directions = self.started(camera, camera.rays(height, width, rows, self.device))
        parts = zip(origins.split(MAX_RAYS), directions.split(MAX_RAYS), strict=True)
        colors = [self._color(o[None], d[None], state, count)[0].float() for o, d in parts]
        return torch.cat(colors).view(rows.stop - rows.start, width, 3)

    def started(self, camera: Camera, rays: Rays) -> Rays:
        """Rays whose samples lie about the middle of the scene, wherever the camera is.

        Samples reach from near to far before the camera, which fits a camera at the distance of
        those in training. Along the same rays they are moved with the camera's distance, but never
        behind it.

        Args:
            camera: that they are of.
            rays: of it, on any device.
        """
        if self.march is None:
            return rays
        ahead = max(camera.depth - self.distance, -self.march.near)
        return Rays(rays.origins + ahead * rays.directions, rays.directions)


class ShapeSubject(Subject[Tensor]):
    """Shapes whose surface is where a field is 0, the world's up being +y.

    Args:
        title: see :class:`Subject`, as the others.
        instances: see there.
        prepare: packed weights ``(1, P)`` of what :class:`Instances` gives.
        device: see there.
        spec: of the fields.
    """

    def __init__(
        self,
        title: str,
        instances: Instances,
        prepare: Callable[[Tensor], Tensor],
        device: torch.device,
        spec: FieldSpec,
    ) -> None:
        super().__init__(title, instances, prepare, device)
        self.spec = spec

    @torch.no_grad()
    def mesh(self, weights: Tensor, voxels: int) -> Mesh | None:
        """The surface, searched among ``voxels`` along an axis; None if there is none."""
        try:
            return extract_mesh(weights, self.spec, voxels)
        except EmptySurfaceError:
            return None


Key = TypeVar("Key")
Value = TypeVar("Value")


def _kept(cache: OrderedDict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
    if key not in cache:
        cache[key] = make()
        while len(cache) > _KEPT:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


def _inside(where: CoordinateGrid) -> list[slice]:
    """Which rows and columns of a grid lie in the image."""
    return [_span(axis) for axis in where.axes]


def _span(axis: Tensor) -> slice:
    """Where a rising axis lies in [-1, 1]."""
    first = int((axis < -1).sum())
    return slice(first, first + int((axis.abs() <= 1).sum()))
