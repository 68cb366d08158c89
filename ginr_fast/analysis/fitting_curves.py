"""Quality against seconds: a trained model, test-time optimisation, and fitting from nothing.

LA-GINR's Figure 7 (arXiv:2310.05624, section 4.5).
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ginr_fast.coords import grid
from ginr_fast.files import replace_atomically
from ginr_fast.systems.ffnet import Ffnet, FfnetConfig, fit_ffnet
from ginr_fast.systems.fit_instances import fit_images
from ginr_fast.systems.fitted import Fitted
from ginr_fast.systems.fitting import DEFAULT_RATES, FittingOptions, FittingTarget
from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.training.metrics import psnr_each

SCRATCH = "FFNet from scratch"
INFERENCE = "inference"
_Look = Callable[[int, Any], bool]
_Way = Callable[[Tensor, int, _Look | None], None]
_UNTIL_STOPPED = 1 << 40
_FIRST_SCORE = 1 / 200  # of the time: where a curve is scored first


class Curve(NamedTuple):
    """The mean PSNR of several images, each fitted by itself, after some seconds.

    Args:
        name: what was done.
        seconds: from the start, increasing; what scoring took does not count.
        psnr: in dB, as many.
    """

    name: str
    seconds: np.ndarray
    psnr: np.ndarray


@dataclass(frozen=True)
class CurveOptions:
    """What is drawn.

    Args:
        seconds: how long each image is fitted by each way.
        scores: points of a curve, closer to one another at its beginning.
        targets: what test-time optimisation is of, one curve each.
        rates: its learning rate, one a target; the defaults of the targets if none are given.
        ffnet: the sizes of the network fitted from nothing.
        ffnet_rate: its learning rate.
        seed: of its start.

    Raises:
        ValueError: a value out of range.
    """

    seconds: float = 30.0
    scores: int = 40
    targets: tuple[FittingTarget, ...] = ("tokens", "decoder")
    rates: tuple[float, ...] = ()
    ffnet: FfnetConfig = field(default_factory=FfnetConfig)
    ffnet_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds: expected above 0, got {self.seconds}")
        if self.rates and len(self.rates) != len(self.targets):
            raise ValueError(f"rates: expected one for each of {self.targets}, got {self.rates}")
        if self.scores < 2:
            raise ValueError(f"scores: expected at least 2, got {self.scores}")


def fitting_curves(
    model: ImageInr,
    images: Tensor,
    options: CurveOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Curve]:
    """FFNet from a random start, the model's answer alone, and what it becomes by fitting.

    Times of the model begin before its encoder. Each way takes a step before the clock starts, so
    that compilers and caches are not in it.

    Args:
        model: of images, in evaluation mode.
        images: ``(N, channels, image_size, image_size)``, values in [0, 1], on its device.
        options: how long and what.
        progress: told what is done next, in words.

    Returns:
        One a way, on the same seconds, the model's answer as a level line.

    Raises:
        ValueError: no image, or a target that the model does not have.
    """
    options = options or CurveOptions()
    if not len(images):
        raise ValueError("images: expected at least one")
    marks = np.geomspace(options.seconds * _FIRST_SCORE, options.seconds, options.scores)
    ways = _ways(model, options)
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*ways, INFERENCE)}
    for number, image in enumerate(images[:, None]):
        answer = _inference(model, image)
        found[INFERENCE].append(np.full(len(marks), answer.psnr))
        for name, way in ways.items():
            if progress is not None:
                progress(f"image {number + 1} of {len(images)}: {name}")
            if number == 0:
                way(image, 1, None)
            points = _recorded(way, image, marks)
            if name != SCRATCH:  # it begins with the model's answer
                points = [answer, *(each for each in points if each.seconds > answer.seconds)]
            seconds, values = zip(*points, strict=True)
            found[name].append(np.interp(marks, seconds, values))
    return [Curve(name, marks, np.mean(each, axis=0)) for name, each in found.items()]


def _ways(model: ImageInr, options: CurveOptions) -> dict[str, _Way]:
    """What fits an image, by name."""

    def scratch(image: Tensor, steps: int, look: _Look | None) -> None:
        given = FittingOptions(steps, "weights", options.ffnet_rate, seed=options.seed)
        fit_ffnet(image, options.ffnet, given, look)

    def optimised(
        target: FittingTarget, rate: float, image: Tensor, steps: int, look: _Look | None
    ) -> None:
        fit_images(model, image, FittingOptions(steps, target, rate), look)

    rates = options.rates or tuple(DEFAULT_RATES[target] for target in options.targets)
    return {
        SCRATCH: scratch,
        **{
            f"{target} optimised": partial(optimised, target, rate)
            for target, rate in zip(options.targets, rates, strict=True)
        },
    }


def _psnr(current: Ffnet | Fitted, image: Tensor) -> float:
    height, width = image.shape[2:]
    if isinstance(current, Fitted):
        found = current.images(grid(height, width, device=image.device))
    else:
        found = current.render(height, width)
    return float(psnr_each(found, image))


class _Point(NamedTuple):
    seconds: float
    psnr: float


def _inference(model: ImageInr, image: Tensor) -> _Point:
    """How long encoding and decoding take together, and how good the result is."""
    model.reconstruct(image)
    watch = _Stopwatch(image.device)
    found = model.reconstruct(image)
    watch.pause()
    return _Point(watch.seconds, float(psnr_each(found, image)))


def _recorded(way: _Way, image: Tensor, marks: np.ndarray) -> list[_Point]:
    """The scores of one fit at the first step after each of ``marks``, in seconds; it ends there.

    Args:
        way: how.
        image: ``(1, channels, H, W)``.
        marks: increasing.
    """
    points: list[_Point] = []
    watch = _Stopwatch(image.device)

    def look(step: int, current: Any) -> bool:
        due = int(np.searchsorted(marks, points[-1].seconds if points else 0.0, "right"))
        if watch.so_far() < marks[due]:
            return False
        watch.pause()
        points.append(_Point(watch.seconds, _psnr(current, image)))
        watch.resume()
        return points[-1].seconds >= marks[-1]

    way(image, _UNTIL_STOPPED, look)
    return points


class _Stopwatch:
    """Seconds of work on a device, from its making."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0
        self.resume()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def resume(self) -> None:
        """Go on counting."""
        self._wait()
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop counting, when all work given to the device is done."""
        self._wait()
        self.seconds += time.perf_counter() - self._since

    def so_far(self) -> float:
        """About the seconds so far, without waiting for the device."""
        return self.seconds + time.perf_counter() - self._since


def write_curves(curves: Sequence[Curve], path: Path) -> None:
    """Curves as CSV: ``curve,seconds,psnr``.

    Args:
        curves: of :func:`fitting_curves`.
        path: the file; its folder is made if need be.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["curve", "seconds", "psnr"])
            for curve in curves:
                for seconds, psnr in zip(curve.seconds, curve.psnr, strict=True):
                    rows.writerow([curve.name, f"{seconds:.6g}", f"{psnr:.4f}"])

    replace_atomically(path, write)


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Curves as PNG, PSNR over seconds.

    Args:
        curves: of :func:`fitting_curves`.
        path: the file; its folder is made if need be.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for curve in curves:
        style = "--" if curve.name == INFERENCE else "-"
        axis.plot(curve.seconds, curve.psnr, style, label=curve.name)
    axis.set_xlabel("seconds")
    axis.set_ylabel("PSNR (dB)")
    axis.grid(alpha=0.3)
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
