"""What decoding costs where samples are generated and a generative model is trained, measured.

Everything is measured twice in turns, with the operators' reference backend (what published code
runs) and with the one chosen automatically, so that whatever else the machine does weighs on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any, NamedTuple

import torch

import ginr_fast
from ginr_fast.analysis.decoded import pictures_of
from ginr_fast.analysis.pictures import CameraOptions
from ginr_fast.analysis.samples import timed
from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.generation.consistency import Objective, losses, per_instance
from ginr_fast.generation.sampling import SamplingOptions, noise
from ginr_fast.systems.inrct import Inrct
from ginr_fast.training.recipes.base import Precision

# Late in training teacher and student differ by little, and the teacher is asked for every level.
_LATE = 8


class Cost(NamedTuple):
    """Median seconds of a whole, and of its decoding.

    Args:
        whole: of everything.
        decoding: of the decoder's part.
    """

    whole: float
    decoding: float

    @property
    def share(self) -> float:
        """The part of the time that goes into decoding."""
        return self.decoding / self.whole


class Comparison(NamedTuple):
    """The same on the reference backend and on the automatic one."""

    reference: Cost
    ours: Cost

    @property
    def decoder(self) -> float:
        """How many times as fast decoding is."""
        return self.reference.decoding / self.ours.decoding

    @property
    def whole(self) -> float:
        """How many times as fast the whole is."""
        return self.reference.whole / self.ours.whole


def compare_generation(
    model: Any,
    samples: int,
    size: int,
    options: SamplingOptions,
    precision: Precision = "32-true",
    rounds: int = 3,
) -> Comparison:
    """Draw samples and decode them into pictures.

    Args:
        model: a :class:`~ginr_fast.generation.sampling.Generative` module.
        samples: drawn and decoded at once.
        size: height and width of the pictures, in pixels.
        options: how samples are drawn.
        precision: 32-true, or bf16-mixed for both.
        rounds: how often each is timed, after once that is not.
    """
    device = next(model.parameters()).device

    def once() -> Cost:
        latents, drawing = timed(lambda: model.draw(range(samples), options))
        decode = pictures_of(model, latents, size, CameraOptions())
        _, decoding = timed(lambda: list(decode))
        return Cost(drawing + decoding, decoding)

    with torch.inference_mode(), _autocast(device, precision):
        return in_turns(once, rounds)


def compare_training_step(
    model: Inrct, batch: int, precision: Precision = "32-true", rounds: int = 3
) -> Comparison:
    """A training step of INRCT without the optimiser's: forward, teacher, losses, backward.

    Args:
        model: of images, in training or not.
        batch: instances.
        precision: 32-true, or bf16-mixed for both.
        rounds: how often each is timed, after once that is not.

    Returns:
        Decoding is measured by itself: the student's and its backward, the teacher's without.
    """
    step, decode = training_step(model, batch), decoding_step(model, batch)

    def once() -> Cost:
        return Cost(timed(step)[1], timed(decode)[1])

    with _autocast(next(model.parameters()).device, precision):
        return in_turns(once, rounds)


def training_step(model: Inrct, batch: int) -> Callable[[], None]:
    """What one training step of INRCT calls, on images of noise; gradients are left behind."""
    if model.online is None:
        model.begin_training()
    device, schedule = next(model.parameters()).device, model.config.schedule
    where = grid(model.config.image_size, model.config.image_size, device=device)
    clean, z = (_images(model, batch, stream, device) for stream in (0, 1))
    t = schedule.draw(0, 0, range(batch))
    r = schedule.earlier(t, _LATE * schedule.doubling).to(device)
    t = t.to(device)
    noisy = clean + per_instance(t, clean) * z
    before = clean + per_instance(r, clean) * z
    objective = Objective()

    def there(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).transpose(1, 2)

    def step() -> None:
        model.twin().zero_grad(set_to_none=True)
        outputs = model(noisy, t, where, there(noisy), (before, r, there(before)))
        assert outputs.followed is not None
        shown = outputs.denoised, outputs.followed, outputs.signal
        losses(objective, schedule, t, *shown, there(clean)).total.backward()

    return step


def decoding_step(model: Inrct, batch: int) -> Callable[[], None]:
    """The decoder's part of :func:`training_step`."""
    device, config = next(model.parameters()).device, model.config
    where: CoordinateGrid = grid(config.image_size, config.image_size, device=device)
    tokens = torch.randn(batch, config.tokens, config.token_dim, device=device)
    decoder = model.twin().decoder

    def step() -> None:
        decoder.zero_grad(set_to_none=True)
        own = tokens.clone().requires_grad_()
        decoder(where, own).float().square().mean().backward()
        with torch.no_grad():
            decoder(where, tokens)

    return step


def in_turns(once: Callable[[], Cost], rounds: int) -> Comparison:
    """Medians on the reference backend and on the automatic one.

    Args:
        once: runs everything once.
        rounds: how often each is timed, after once that is not.

    Raises:
        ValueError: rounds that are not positive.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected a positive integer, got {rounds}")
    reference, ours = [], []
    for _ in range(rounds + 1):
        with ginr_fast.backend("reference"):
            reference.append(once())
        ours.append(once())
    return Comparison(_medians(reference[1:]), _medians(ours[1:]))


def _medians(costs: list[Cost]) -> Cost:
    return Cost(*(median(values) for values in zip(*costs, strict=True)))


def _images(model: Inrct, batch: int, stream: int, device: torch.device) -> torch.Tensor:
    size = model.config.image_size
    shape = model.config.channels, size, size
    return noise(shape, range(batch), seed=0, stream=stream, device=device)


@contextmanager
def _autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    with ExitStack() as stack:
        if precision == "bf16-mixed":
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        yield


__all__ = [
    "Comparison",
    "Cost",
    "compare_generation",
    "compare_training_step",
    "decoding_step",
    "in_turns",
    "training_step",
]
