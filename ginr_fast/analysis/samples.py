"""Samples of a generative model, drawn in batches and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from ginr_fast.generation.sampling import Generative, SamplingOptions

Result = TypeVar("Result")


class Drawn(NamedTuple):
    """A batch of samples.

    Args:
        numbers: of the samples.
        latents: what represents them, ``(B, ...)``.
        seconds: that drawing them took.
    """

    numbers: Sequence[int]
    latents: torch.Tensor
    seconds: float


def draw_in_batches(
    model: Generative, numbers: Sequence[int], options: SamplingOptions, batch: int
) -> Iterator[Drawn]:
    """Samples by their numbers, a batch at a time.

    Args:
        model: what they are drawn from.
        numbers: of the samples, or places between some.
        options: how they are drawn.
        batch: samples at a time; what a sample looks like does not depend on it.

    Raises:
        ValueError: options that the model does not have, by name.
    """
    for first in range(0, len(numbers), batch):
        part = numbers[first : first + batch]
        with torch.no_grad():
            latents, seconds = timed(partial(model.draw, part, options))
        yield Drawn(part, latents, seconds)


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """What a function returns and the seconds it takes, those of the GPU included."""
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start
