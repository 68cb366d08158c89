"""Icons: small pictures of one coloured shape on a shaded ground, drawn by a formula.

Simple enough that a generative model learns them in minutes, varied enough that no two are alike:
five shapes of any place, size and colour on grounds that change from one colour to another.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ginr_fast.data.images import ImageFiles, StoredImage
from ginr_fast.ops.checks import check_count

SHAPES = ("disc", "ring", "square", "triangle", "cross")


@dataclass(frozen=True)
class IconsConfig:
    """What is drawn.

    Args:
        train: icons to learn from.
        held_out: icons never learned from.
        seed: of all of them.
    """

    train: int = 5000
    held_out: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "held_out"):
            check_count(name, getattr(self, name))
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed: expected an integer of at least 0, got {self.seed!r}")


def icons(config: IconsConfig, size: int) -> ImageFiles:
    """Icons as images with classes: the five shapes in turn.

    Args:
        config: what is drawn.
        size: height and width, in pixels.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> from ginr_fast.data.icons import IconsConfig, icons
        >>> images = icons(IconsConfig(train=100, held_out=10), size=16)
        >>> images.train[3].pixels.shape, images.classes[images.train[3].label]
        ((16, 16, 3), 'triangle')
    """
    check_count("size", size)

    def drawn(split: str, stream: int, count: int) -> tuple[StoredImage, ...]:
        found = []
        for index in range(count):
            rng = np.random.default_rng((config.seed, index, stream))
            label = index % len(SHAPES)
            pixels = draw_icon(rng, size, SHAPES[label])
            found.append(StoredImage(f"{split}/{index:06d}", pixels, label))
        return tuple(found)

    train = drawn("train", 0, config.train)
    return ImageFiles(Path("icons"), train, drawn("held_out", 1, config.held_out), SHAPES)


def draw_icon(rng: np.random.Generator, size: int, shape: str) -> np.ndarray:
    """One icon, antialiased.

    Args:
        rng: of everything else about it.
        size: height and width, in pixels.
        shape: one of :data:`SHAPES`.

    Returns:
        ``(size, size, 3)`` uint8.
    """
    hue = rng.random()
    bright = _colour(hue, rng.uniform(0.7, 1.0), rng.uniform(0.8, 1.0))
    # A ground of another hue, darker or paler than the shape, so that every icon can be read.
    saturation, value = (0.6, 0.35) if rng.integers(2) else (0.25, 0.95)
    ends = [_colour(hue + 0.5 + rng.uniform(-0.2, 0.2), saturation, value) for _ in range(2)]
    angle = rng.uniform(0, 2 * np.pi)
    centre, radius = rng.uniform(-0.25, 0.25, 2), rng.uniform(0.4, 0.65)

    axis = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    along = (x * np.cos(angle) + y * np.sin(angle)) / 2**0.5 / 2 + 0.5
    ground = ends[0] + along[:, :, None] * (ends[1] - ends[0])
    v, u = y - centre[0], x - centre[1]
    # The shape covers a pixel as far as its border lies beyond the pixel's centre.
    cover = np.clip(0.5 - _distance(shape, u, v, radius) * size / 2, 0, 1)[:, :, None]
    return np.round((ground + cover * (bright - ground)) * 255).astype(np.uint8)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """About the signed distance to a shape's border, negative inside."""
    if shape == "disc":
        return np.hypot(u, v) - radius
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.75 * radius) - 0.25 * radius
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.8 * radius
    if shape == "triangle":
        turns = np.pi / 2 + np.arange(3) * 2 * np.pi / 3  # one side below, level
        sides = [u * np.cos(turn) + v * np.sin(turn) for turn in turns]
        return np.maximum.reduce(sides) - 0.55 * radius
    thin, long = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return np.maximum(thin - 0.3 * radius, long - radius)
