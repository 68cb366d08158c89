"""What a client of ginr-fast view is shown, without a browser: instances that must be looked for,
and the tokens of a point, which follow what is seen."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ginr_fast.viewer.progress import FrameClock, Pace
from ginr_fast.viewer.subjects import Choice, ImageSubject, Instances, ShapeSubject
from ginr_fast.viewer.windows import Window

pytest.importorskip("viser")

from ginr_fast.viewer.image_session import ImageSession  # noqa: E402
from ginr_fast.viewer.shape_session import ShapeSession  # noqa: E402

CPU = torch.device("cpu")
WHOLE = Window(0.0, 0.0, 2.2, 2.2)


class FakePanel:
    """What the panel shows, and what is chosen in it."""

    def __init__(self) -> None:
        self.choice, self.finest = Choice(0), 40
        self.moving, self.still = SimpleNamespace(value=""), SimpleNamespace(value="")
        self.tokens: tuple[Any, ...] | None = None

    def show_tokens(self, *shown: Any) -> None:
        self.tokens = shown

    def hide_tokens(self) -> None:
        self.tokens = None


def decode(coords: Any, state: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1, len(coords.axes[0]), len(coords.axes[1]), 3)


def attention(coords: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """One head: near to which of the tokens, which are places, a coordinate is."""
    return (-4 * torch.cdist(coords, tokens[0]) ** 2).softmax(-1)[None]


def image_session(find: Any) -> Any:
    """A session of an image, with stand-ins for its client and its panel."""
    session: Any = object.__new__(ImageSession)
    instances = Instances("images", 3, find)
    session.subject = ImageSubject("image", instances, lambda x: x, CPU, decode, 8, attention)
    session.panel, session.pace, session.clock = FakePanel(), Pace(), FrameClock()
    session.clicked = session.frame = session._told = None
    session._zoom, session._enlarged = SimpleNamespace(value=""), SimpleNamespace(value="")
    camera = SimpleNamespace(image_height=40, image_width=40)
    session.shown = []
    scene = SimpleNamespace(set_background_image=lambda *a, **k: session.shown.append(a[0]))
    session.client = SimpleNamespace(camera=camera, scene=scene, client_id=0)
    session.window = WHOLE
    session.view = lambda: session.window
    session.refresh = lambda: run(session.steps())
    return session


def run(steps: Iterator[object]) -> int:
    return len(list(steps))


def test_tokens_of_a_point_follow_instance_and_window() -> None:
    torch.manual_seed(0)
    places = torch.rand(3, 1, 5, 2) * 2 - 1
    session = image_session(lambda number: places[number])
    run(session._look((0.25, 0.5)))
    words, _, shared = session.panel.tokens
    assert words.startswith("Row +0.000, column -0.550")
    assert shared.shape == (96, 96, 3)
    ringed = session.shown[-1]
    assert ringed[:, 10].max() == 255  # the ring's white, around the point

    def seen() -> tuple[str, np.ndarray]:
        return session.panel.tokens[0], session.panel.tokens[2]

    before = seen()
    session.panel.choice = Choice(1)
    session.refresh()
    assert seen()[0] != before[0] and seen()[0].startswith("Row +0.000, column -0.550")
    at = seen()
    session.window = Window(0.3, 0.2, 1.0, 1.0)
    session.refresh()
    assert seen()[0] == at[0] and not np.array_equal(seen()[1], at[1])
    session.window, session.panel.choice = WHOLE, Choice(0)
    session.refresh()
    assert seen()[0] == before[0] and np.array_equal(seen()[1], before[1])

    told = session.panel.tokens
    session.refresh()
    assert session.panel.tokens is told  # nothing has changed
    run(session._look((0.0, 0.0)))  # beside the image
    assert session.panel.tokens is None and session.shown[-1].max() < 255


def test_an_instance_is_looked_for_in_a_step_that_can_be_dropped() -> None:
    asked: list[int] = []

    def find(number: int) -> torch.Tensor:
        asked.append(number)
        return torch.zeros(1, 5, 2)

    session = image_session(find)
    session.panel.choice = Choice(1)
    steps = session.steps()
    next(steps)
    assert session.panel.still.value == "finding the instance" and not asked
    session.panel.choice = Choice(2)  # a request of its own; this one is still of the first
    next(steps)
    assert asked == [1] and session.panel.still.value.endswith("ms")
    steps = session._look((0.5, 0.5))
    next(steps)
    assert asked == [1]


def test_a_shape_is_looked_for_in_a_step_that_can_be_dropped() -> None:
    asked: list[int] = []
    session: Any = object.__new__(ShapeSession)
    instances = Instances("shapes", 2, lambda number: asked.append(number) or torch.zeros(1, 4))
    session.subject = ShapeSubject("shape", instances, lambda x: x, CPU, None)  # type: ignore[arg-type]
    session.subject.mesh = lambda weights, voxels: None
    session.panel, session.clock = FakePanel(), FrameClock()
    session.client = SimpleNamespace(scene=SimpleNamespace(remove_by_name=lambda name: None))
    steps = session.steps()
    next(steps)
    assert session.panel.still.value == "finding the instance" and not asked
    assert run(steps) == 2 and asked == [0]
    assert run(session.steps()) == 2  # known by now
