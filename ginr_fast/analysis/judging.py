"""Samples of a generative model beside real instances: what ``ginr-fast judge`` tabulates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ginr_fast.analysis.samples import draw_in_batches, timed
from ginr_fast.generation.distances import Nearest
from ginr_fast.generation.latents import Latents
from ginr_fast.generation.sampling import Generative, SamplingOptions
from ginr_fast.training.images import enlarged, sheet, to_pixels

_BAR = 14
_SHOWN_PIXELS = 96


@dataclass(frozen=True)
class Judged:
    """One column of the table.

    Args:
        what: is judged, in words.
        count: of instances.
        scores: by name, in the order of the lines; NaN where one has no meaning.
        evaluations: of the network a sample; None of what is no sample.
        seconds: a sample, drawing and decoding, the first batch aside; None of what is no sample.
        decoding: the part of these seconds that decoding takes.
    """

    what: str
    count: int
    scores: Mapping[str, float] = field(default_factory=dict)
    evaluations: int | None = None
    seconds: float | None = None
    decoding: float | None = None

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON: what has no meaning is null there."""
        found = asdict(self)
        found["scores"] = {
            name: value if math.isfinite(value) else None for name, value in self.scores.items()
        }
        return found


class Drawing:
    """Samples drawn and decoded batch by batch, and the time it takes.

    Args:
        model: what they are drawn from.
        options: how.
        decode: latents and the numbers of their samples to what is judged.
        batch: samples at a time.
    """

    def __init__(
        self,
        model: Generative,
        options: SamplingOptions,
        decode: Callable[[torch.Tensor, Sequence[int]], torch.Tensor],
        batch: int,
    ) -> None:
        self.model, self.options, self.decode, self.batch = model, options, decode, batch
        self._times: list[tuple[int, float, float]] = []

    def __call__(self, count: int) -> Iterator[torch.Tensor]:
        """What samples 0 to ``count`` − 1 are decoded to, a batch at a time."""
        self._times = []
        for drawn in draw_in_batches(self.model, range(count), self.options, self.batch):
            with torch.no_grad():
                shown, seconds = timed(partial(self.decode, drawn.latents, drawn.numbers))
            self._times.append((len(drawn.numbers), drawn.seconds, seconds))
            yield shown

    @property
    def evaluations(self) -> int:
        """Of the network, a sample."""
        return self.model.evaluations(self.options)

    @property
    def seconds(self) -> float:
        """A sample, without the first batch, which warms up; with it if there is no other."""
        count, drawing, decoding = self._sums()
        return (drawing + decoding) / count

    @property
    def decoding(self) -> float:
        """The part of these seconds that decoding takes."""
        _, drawing, decoding = self._sums()
        return decoding / (drawing + decoding)

    def _sums(self) -> tuple[int, float, float]:
        counted = self._times[1:] or self._times
        count, drawing, decoding = (sum(column) for column in zip(*counted, strict=True))
        return int(count), drawing, decoding


class KnownLatents:
    """Latents that a first stage gave to instances of its data, in the place of samples.

    What they decode to is the best that a model of latents can do: judging it tells the loss of the
    first stage from that of the second.

    Args:
        latents: their file.
        device: where they shall be.
    """

    def __init__(self, latents: Latents, device: torch.device) -> None:
        self.latents, self.device = latents, device

    def draw(self, indices: Sequence[int], options: SamplingOptions | None = None) -> torch.Tensor:
        """The latents of these numbers, over again where there are fewer."""
        return self.latents.rows([index % len(self.latents) for index in indices]).to(self.device)

    def evaluations(self, options: SamplingOptions | None = None) -> int:
        """None at all."""
        return 0


def described_steps(steps: int | None) -> str:
    """What samples are called."""
    if steps is None:
        return "samples"
    return f"samples, {steps} step" + ("s" if steps > 1 else "")


def tabulated(judged: Sequence[Judged]) -> list[tuple[str, ...]]:
    """A table of what is judged side by side: a line of titles, then a line a score."""
    names = list(dict.fromkeys(name for one in judged for name in one.scores))
    lines = [("", *(one.what for one in judged))]
    lines.append(("instances", *(str(one.count) for one in judged)))
    lines.append(("NFE", *(_number(one.evaluations) for one in judged)))
    lines += [(name, *(_number(one.scores.get(name)) for one in judged)) for name in names]
    times = [None if one.seconds is None else 1e3 * one.seconds for one in judged]
    lines.append(("ms a sample", *map(_number, times)))
    parts = [None if one.decoding is None else 100 * one.decoding for one in judged]
    lines.append(("of it decoding (%)", *map(_number, parts)))
    return lines


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def neighbours_sheet(
    samples: torch.Tensor, neighbours: torch.Tensor, found: Nearest, count: int = 12
) -> Image.Image:
    """Samples above their nearest training instances, with the distances, the nearest first.

    Args:
        samples: pictures ``(S, 3, H, W)`` in [0, 1].
        neighbours: those of their nearest training instances, the same shape.
        found: distances of all S.
        count: how many are shown, at most.
    """
    order = found.distances.argsort()[:count].tolist()
    rows = [
        [_shown(samples[index]) for index in order],
        [
            _labelled(_shown(neighbours[index]), f"{float(found.distances[index]):.4f}")
            for index in order
        ],
    ]
    return sheet(rows, ["samples", "their nearest training instances, and how far they are"])


def _shown(picture: torch.Tensor) -> np.ndarray:
    side = max(picture.shape[-1], _SHOWN_PIXELS)
    return enlarged(to_pixels(picture), side, side)


def _labelled(picture: np.ndarray, text: str) -> np.ndarray:
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + _BAR), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    ImageDraw.Draw(canvas).text((2, height + 1), text, fill="black")
    return np.asarray(canvas)
