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
        indices: the numbers of the samples, B of them, none negative.
        seed: of all samples.
        stream: tells independent draws for the same samples apart, such as those of several steps.
        device: where the result shall be; it is drawn on the CPU and the same everywhere.

    Returns:
        ``(B, *shape)``, float32.
    """
    rows = np.empty((len(indices), *shape), np.float32)
    for row, index in enumerate(indices):
        generator = np.random.default_rng((seed, index, stream))
        rows[row] = generator.standard_normal(shape, np.float32)
    return torch.from_numpy(rows).to(device)
