"""Pictures drawn in steps, coarse before fine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from ginr_fast.pictures import to_frames
from ginr_fast.viewer.progress import Pace, ladder

Draw = Callable[[int, int, slice], torch.Tensor]
"""Of a picture's height, width and some of its rows the colours ``(rows, width, 3)`` in [0, 1]."""

Decoded = Callable[[int, int, slice], int]
"""Of the same how many pixels are decoded, and not merely filled."""


class Frame(NamedTuple):
    """A whole picture.

    Args:
        pixels: ``(H, W, 3)``, uint8.
        seconds: of drawing it.
        first: whether it is the first of its request: what is seen while something moves.
        last: whether it is the finest of its request.
    """

    pixels: np.ndarray
    seconds: float
    first: bool
    last: bool


def paint(
    draw: Draw, height: int, width: int, pace: Pace, decoded: Decoded | None = None
) -> Iterator[Frame | None]:
    """Draw a picture again and again, each time finer.

    Args:
        draw: what is drawn.
        height: of the finest picture, in pixels.
        width: of it.
        pace: says how much is drawn in a step, and learns from it.
        decoded: what is decoded of it; all pixels if None. What nothing is decoded of says nothing
            about the pace.

    Yields:
        After each step a picture if it is done, else None. The first step always gives one.
    """
    sizes = ladder(height, width, pace.points)
    for number, (rows, columns) in enumerate(sizes):
        parts, row, taken = [], 0, 0.0
        while row < rows:
            # All of the first at once: what moves is drawn whole or not at all.
            block = rows if number == 0 else max(1, pace.points // columns)
            part = slice(row, min(rows, row + block))
            start = time.perf_counter()
            parts.append(to_frames(draw(rows, columns, part)[None])[0])
            seconds = time.perf_counter() - start
            every = (part.stop - part.start) * columns
            points = every if decoded is None else decoded(rows, columns, part)
            if points:
                pace.measured(points, seconds)
            row, taken = part.stop, taken + seconds
            if row < rows:
                yield None
        last = number == len(sizes) - 1
        yield Frame(np.concatenate(parts), taken, number == 0, last)
