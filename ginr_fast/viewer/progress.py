"""How much is drawn at a time: a quick coarse picture first, finer ones while nothing moves."""

from __future__ import annotations

import math
from collections import deque

_STEP_SECONDS = 0.05
_MEMORY = 0.5
_START = 40_000.0  # points a second, until something has been measured
_COARSEST = 32
_RUN_SECONDS = 0.5
_FRAMES = 16


class Pace:
    """How many points are decoded in a second, as measured lately.

    Args:
        seconds: what one step of drawing may take.
    """

    def __init__(self, seconds: float = _STEP_SECONDS) -> None:
        self.seconds, self._rate = seconds, _START

    @property
    def points(self) -> int:
        """As many as fit into one step."""
        return max(1, round(self._rate * self.seconds))

    def measured(self, points: int, seconds: float) -> None:
        """Learn from a step; the last ones count most."""
        rate = points / max(seconds, 1e-6)
        self._rate = _MEMORY * self._rate + (1 - _MEMORY) * rate


def fitted(height: int, width: int, finest: int) -> tuple[int, int]:
    """Height and width of the finest picture for a canvas: its own, or ``finest`` rows."""
    height, width = max(1, height), max(1, width)
    if height <= finest:
        return height, width
    return finest, max(1, round(width * finest / height))


def ladder(height: int, width: int, points: int) -> list[tuple[int, int]]:
    """Sizes of the pictures drawn one after the other, each with twice the rows of the one before.

    Args:
        height: of the finest, in pixels.
        width: of the finest.
        points: that the coarsest may have; it has 32 rows at least, or the finest's.

    Returns:
        Height and width of each, the finest last.
    """
    sizes = [(height, width)]
    halvings = math.ceil(math.log2(max(1.0, height * width / max(1, points))) / 2)
    for halving in range(1, halvings + 1):
        rows = height >> halving
        if rows < min(_COARSEST, height):
            break
        sizes.insert(0, (rows, max(1, round(width * rows / height))))
    return sizes


class FrameClock:
    """Frames a second while frames follow one another; a pause starts a new count."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_FRAMES)

    def tick(self, now: float, seconds: float) -> float:
        """Count a frame.

        Args:
            now: when it was done, in seconds of any clock.
            seconds: that it took.

        Returns:
            The rate: of the frames since the last pause, or after one what the frame alone allows.
        """
        if self._times and now - self._times[-1] > _RUN_SECONDS:
            self._times.clear()
        self._times.append(now)
        span = self._times[-1] - self._times[0]
        if span > 0:
            return (len(self._times) - 1) / span
        return 1 / max(seconds, 1e-6)
