"""Drawing instances from a model: what every generative model here can be asked.

Sample i of a seed is the same whatever else is drawn with it: its noise comes from a generator of
its own, seeded by (seed, i, stream). What a network then makes of it is the same up to the rounding
of matrix products, whose order of summation may depend on the size of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class SamplingOptions:
    """How instances are drawn.

    Args:
        steps: evaluations of the network a sample; the model's own number if None.
        guidance: scale of classifier-free guidance, 1 for none; the model's own if None.
        label: the class to draw from; without one, classes in turn where a model has classes.
        seed: of the noise.

    Raises:
        TypeError, ValueError: a value of the wrong kind or out of range, by name.
    """

    steps: int | None = None
    guidance: float | None = None
    label: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("label", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name != "seed":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance: expected at least 0, got {self.guidance}")

    def check_no_classes(self) -> None:
        """For models without classes: refuse a label, and guidance other than none.

        Raises:
            ValueError: by name.
        """
        for name, value in (("label", self.label), ("guidance", self.guidance)):
            if value is not None and not (name == "guidance" and value == 1):
                raise ValueError(f"{name}: this model has no classes, got {value}")


class Generative(Protocol):
    """A model that instances can be drawn from."""

    def draw(self, indices: Sequence[int], options: SamplingOptions | None = None) -> torch.Tensor:
        """What represents the samples with these numbers: latents, tokens or packed weights.

        Args:
            indices: the numbers of the samples, B of them.
            options: how they are drawn.

        Returns:
            ``(B, ...)``, on the model's device, for its decoder.

        Raises:
            ValueError: steps, a label or guidance that the model does not have, by name.
        """
        ...

    def evaluations(self, options: SamplingOptions | None = None) -> int:
        """Evaluations of the network that one sample of :meth:`draw` takes (NFE).

        Guidance counts both of its evaluations; decoding is no evaluation.

        Args:
            options: how samples are drawn.

        Raises:
            ValueError: as :meth:`draw`.
        """
        ...


class Between(int):
    """A place between four samples, instead of a sample's number: its noise is between theirs.

    Noises are interpolated on the sphere, ``sin((1 − s)ω)/sin ω · a + sin(sω)/sin ω · b`` with ω
    the angle between a and b, first down both sides and then across: normal noise in many
    dimensions has nearly one length, which linear interpolation would shorten (Shoemake 1985;
    White, arXiv:1609.04468). As a number, of which a model may tell a sample's class, it is the
    nearest corner's.

    Args:
        corners: numbers of samples: upper left, upper right, lower left, lower right.
        down: 0 at the upper ones, 1 at the lower ones.
        across: 0 at the left ones, 1 at the right ones.

    Raises:
        ValueError: another number of corners, or a share outside [0, 1].

    Example:
        >>> from ginr_fast.generation.sampling import Between, noise
        >>> corner = noise((8,), [3], seed=0)
        >>> bool((noise((8,), [Between((3, 4, 5, 6), 0.0, 0.0)], seed=0) == corner).all())
        True
    """

    corners: tuple[int, ...]
    down: float
    across: float

    def __new__(cls, corners: Sequence[int], down: float, across: float) -> Between:
        if len(corners) != 4:
            raise ValueError(f"corners: expected four, got {len(corners)}")
        if not (0 <= down <= 1 and 0 <= across <= 1):
            raise ValueError(f"down, across: expected from 0 to 1, got {down} and {across}")
        place = super().__new__(cls, corners[2 * (down >= 0.5) + (across >= 0.5)])
        place.corners, place.down, place.across = tuple(corners), down, across
        return place

    def blended(self, corners: Sequence[np.ndarray]) -> np.ndarray:
        """What lies here between four noises of one shape."""
        left = _spherical(corners[0], corners[2], self.down)
        right = _spherical(corners[1], corners[3], self.down)
        return _spherical(left, right, self.across)


def _spherical(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    lengths = np.linalg.norm(start) * np.linalg.norm(end)
    angle = math.acos(np.clip(np.vdot(start, end) / lengths, -1, 1)) if lengths else 0.0
    if math.sin(angle) < 1e-4:  # nearly parallel: the limit of the formula
        return (1 - share) * start + share * end
    first, last = (math.sin(part * angle) / math.sin(angle) for part in (1 - share, share))
    return np.asarray(first * start + last * end)


def noise(
    shape: Sequence[int],
    indices: Sequence[int],
    seed: int,
    stream: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Standard normal noise of numbered samples.

    Args:
        shape: of one sample's.
        indices: the numbers of the samples, B of them, none negative; or places between samples,
            see :class:`Between`.
        seed: of all samples.
        stream: tells independent draws for the same samples apart, such as those of several steps.
        device: where the result shall be; it is drawn on the CPU and the same everywhere.

    Returns:
        ``(B, *shape)``, float32.
    """

    def of(index: int) -> np.ndarray:
        if isinstance(index, Between):
            return index.blended([of(corner) for corner in index.corners])
        generator = np.random.default_rng((seed, index, stream))
        return generator.standard_normal(shape, np.float32)

    rows = np.empty((len(indices), *shape), np.float32)
    for row, index in enumerate(indices):
        rows[row] = of(index)
    return torch.from_numpy(rows).to(device)
