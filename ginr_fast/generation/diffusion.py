"""Denoising diffusion of latents (DDPM, arXiv:2006.11239): noise to train with, and samplers.

A clean latent x₀, standardised, becomes x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε with ε ~ N(0, I) and
ᾱ_t = ∏_{s ≤ t} (1 − β_s), where β rises linearly. A denoiser predicts x₀ from x_t and t. The steps
back are those of diffusers' schedulers, given nothing but that prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from ginr_fast.generation.sampling import noise
from ginr_fast.ops.checks import check_tensor

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Noisy latents ``(B, ...)`` and timesteps ``(B,)`` to clean latents."""

Sampler = Literal["ddpm", "ddim"]
_TRAINING_STREAM = 6
_STEP_STREAM = 10  # of a sample's noise, and the streams after it; its start is stream 0
_STEPS_AT_ONCE, _VALUES_AT_ONCE = 50, 1 << 16  # of the noise of a sample's steps


@dataclass(frozen=True)
class DiffusionConfig:
    """A schedule of noise, and how samples are drawn under it.

    Args:
        timesteps: T, of the schedule.
        beta_start: β of the first.
        beta_end: β of the last.
        sampler: ddpm draws new noise every step; ddim follows a deterministic path.
        steps: of the sampler, unless others are asked for.
        guidance: scale of classifier-free guidance, unless another is asked for; 1 for none.

    Raises:
        ValueError: a value out of range, by name.
    """

    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    sampler: Sampler = "ddpm"
    steps: int = 1000
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.timesteps, int) or self.timesteps < 1:
            raise ValueError(f"timesteps: expected a positive integer, got {self.timesteps!r}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start, beta_end: expected 0 < beta_start <= beta_end < 1, "
                f"got {self.beta_start}, {self.beta_end}"
            )
        if self.sampler not in get_args(Sampler):
            raise ValueError(f"sampler: expected ddpm or ddim, got {self.sampler!r}")
        self.check_steps(self.steps)
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance: expected at least 0, got {self.guidance}")

    def check_steps(self, steps: int) -> int:
        """``steps``, unless the schedule has not as many.

        Raises:
            ValueError: zero steps, or more than there are timesteps.
        """
        if not isinstance(steps, int) or not 1 <= steps <= self.timesteps:
            raise ValueError(f"steps: expected 1 to {self.timesteps}, got {steps!r}")
        return steps

    def alphas(self) -> torch.Tensor:
        """ᾱ_t for t = 0 … T − 1, ``(T,)`` float64, falling from almost 1 to almost 0."""
        betas = torch.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=torch.float64)
        return torch.cumprod(1 - betas, 0)

    def corrupt(
        self, clean: torch.Tensor, times: torch.Tensor, epsilon: torch.Tensor
    ) -> torch.Tensor:
        """x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε.

        Args:
            clean: x₀, ``(B, ...)``.
            times: t, ``(B,)``, int64.
            epsilon: standard normal, shaped like ``clean``.

        Raises:
            TypeError, ValueError: another dtype or shape.
        """
        check_tensor("times", times, clean.shape[:1], dtypes=[torch.int64])
        check_tensor("epsilon", epsilon, clean.shape)
        alphas = self.alphas().to(times.device)[times].view(-1, *[1] * (clean.ndim - 1))
        return alphas.sqrt().to(clean) * clean + (1 - alphas).sqrt().to(clean) * epsilon

    def visited(self, steps: int) -> list[int]:
        """The timesteps that a sampler of ``steps`` steps visits, falling from T − 1.

        It begins where training has almost pure noise ("trailing", arXiv:2305.08891). Its steps are
        even if their number divides T, else nearly so.
        """
        steps = self.check_steps(steps)
        return [round(self.timesteps * left / steps) - 1 for left in range(steps, 0, -1)]

    def scheduler(self, steps: int) -> Any:
        """diffusers' scheduler, set to the timesteps of :meth:`visited`.

        DDIM is the first-order DPM-Solver++ (arXiv:2211.01095, section 4), and DDPM with the
        variance β̃_t that with noise. (diffusers' ``DDIMScheduler`` steps by T // steps whatever the
        distance to the next timestep is, which is wrong unless the steps divide T.)
        """
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        found = DPMSolverMultistepScheduler(
            num_train_timesteps=self.timesteps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule="linear",
            prediction_type="sample",
            algorithm_type="sde-dpmsolver++" if self.sampler == "ddpm" else "dpmsolver++",
            solver_order=1,
            final_sigmas_type="zero",
        )
        found.set_timesteps(timesteps=self.visited(steps))
        return found


class TrainingNoise(NamedTuple):
    """What corrupts the latents of one training step.

    Args:
        times: t, ``(B,)``, int64, uniform.
        epsilon: ``(B, ...)``, float32, standard normal.
        dropped: ``(B,)``, bool: whose class is hidden from the network.
    """

    times: torch.Tensor
    epsilon: torch.Tensor
    dropped: torch.Tensor


def training_noise(
    seed: int,
    step: int,
    slots: range,
    shape: Sequence[int],
    timesteps: int,
    dropout: float = 0.0,
) -> TrainingNoise:
    """The noise of some slots of a step: each a pure function of (seed, step, slot).

    Args:
        seed: of the run.
        step: from 0.
        slots: of the batch.
        shape: of one latent.
        timesteps: T.
        dropout: the share of classes that are hidden.
    """
    times = torch.empty(len(slots), dtype=torch.int64)
    dropped = torch.empty(len(slots), dtype=torch.bool)
    epsilon = np.empty((len(slots), *shape), np.float32)
    for row, slot in enumerate(slots):
        generator = np.random.default_rng((seed, step, slot, _TRAINING_STREAM))
        times[row] = int(generator.integers(timesteps))
        dropped[row] = bool(generator.random() < dropout)
        epsilon[row] = generator.standard_normal(shape, np.float32)
    return TrainingNoise(times, torch.from_numpy(epsilon), dropped)


def guided(
    denoiser: Callable[..., torch.Tensor],
    labels: torch.Tensor | None,
    guidance: float,
    null: int,
) -> Denoise:
    """Classifier-free guidance: x̂₀ = x̂₀(∅) + g (x̂₀(c) − x̂₀(∅)), arXiv:2207.12598.

    Of predictions of x₀ that is the same as of predictions of the noise: at a given x_t the one is
    an affine function of the other.

    Args:
        denoiser: called with noisy latents, timesteps and labels.
        labels: c, ``(B,)`` int64; None for a model without classes.
        guidance: g; 1 evaluates the network once, with the classes alone.
        null: the label ∅: one more than the last class.

    Raises:
        ValueError: a label out of range.
    """
    # Once here, not in every step of a sampler.
    if labels is not None and not ((labels >= 0) & (labels <= null)).all():
        raise ValueError(
            f"labels: expected 0 to {null}, got {int(labels.min())} to {int(labels.max())}"
        )
    if labels is None or guidance == 1:
        return lambda noisy, times: denoiser(noisy, times, labels)

    def both(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        every = torch.cat([labels, torch.full_like(labels, null)])
        found = denoiser(torch.cat([noisy, noisy]), torch.cat([times, times]), every)
        conditional, unconditional = found.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return both


@torch.no_grad()
def sample(
    denoise: Denoise,
    shape: Sequence[int],
    indices: Sequence[int],
    config: DiffusionConfig,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Standardised latents from noise.

    All noise of a sample, at its start and of every step, is its own: the sample is the same
    whatever else is drawn with it.

    Args:
        denoise: predicts clean latents.
        shape: of one latent.
        indices: the numbers of the samples, B of them.
        config: schedule and sampler.
        steps: the config's if None.
        seed: of all noise.
        device: where to work.

    Returns:
        ``(B, *shape)``, float32.

    Raises:
        ValueError: zero steps, or more than there are timesteps.
    """
    steps = config.steps if steps is None else steps
    scheduler = config.scheduler(steps)
    x = noise(shape, indices, seed, device=device)
    fresh = _step_noise(shape, indices, seed, device) if config.sampler == "ddpm" else repeat(None)
    for time, epsilon in zip(config.visited(steps), fresh, strict=False):
        times = torch.full((len(indices),), time, dtype=torch.int64, device=device)
        clean = denoise(x, times).float()  # the scheduler would go on in the network's precision
        x = scheduler.step(clean, time, x, variance_noise=epsilon).prev_sample
    return x  # the last step adds no noise: it is what was predicted


def _step_noise(
    shape: Sequence[int], indices: Sequence[int], seed: int, device: torch.device | str
) -> Iterator[torch.Tensor]:
    """New noise for each step, drawn for several at once: seeding takes longer than drawing."""
    at_once = max(1, min(_STEPS_AT_ONCE, _VALUES_AT_ONCE // max(1, math.prod(shape))))
    for block in count(_STEP_STREAM):
        yield from noise((at_once, *shape), indices, seed, block, device).unbind(1)


def gaussian_factor(latents: torch.Tensor) -> torch.Tensor:
    """L of the covariance LLᵀ of latents, to sample them as one Gaussian.

    Args:
        latents: ``(N, H)``.

    Returns:
        ``(H, H)``, float64; H by eigenvalues, so that fewer latents than dimensions serve too.
    """
    centred = latents.double() - latents.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(latents))
    return vectors * values.clamp(min=0).sqrt()
