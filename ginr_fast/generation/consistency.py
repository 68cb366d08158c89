"""Consistency training and sampling: functions of tensors and of any network.

The forward process adds noise, x_t = x + t·z with z ~ N(0, I), and a consistency function gives the
clean x from any x_t,

    f(x_t, t) = c_skip(t)·x_t + c_out(t)·F(x_t, t),

with f(x, 0) = x by construction. It is trained so that two points of one trajectory, x_t and x_r
with the same z and 0 ≤ r < t, give the same: the network at t follows a teacher at r, whose output
at r = 0 is x itself (Song et al., Consistency Models, arXiv:2303.01469; the continuous schedule of
t and r is that of Geng et al., Consistency Models Made Easy, arXiv:2406.14548, "ECT" here). INRCT
adds a reconstruction loss, which teaches F itself the clean signal where there is hardly any noise,
a diffusion loss, and a first stage of reconstruction alone.

Nothing here knows images or modules: levels are ``(B,)`` and everything else ``(B, ...)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch

_LEVEL_STREAM = 11
_SMOOTH = 1e-4  # a distance of 0 keeps a gradient; far below what 8 bits resolve


@dataclass(frozen=True)
class ConsistencySchedule:
    """Noise levels: which are trained, which step follows which, and how f is scaled at each.

    The defaults are those of INRCT, Appendix B.1. What it leaves open is as in ECT: a stage of
    25,000 steps at a batch of 128, and 0.821 as the second level of two-step sampling.

    Args:
        sigma_data: standard deviation of the data; √½ for values in [-1, 1].
        t_min: levels below it count as it, so that logarithms and weights stay finite.
        t_max: T, the level that generation starts from.
        mean: P_mean of ln t in training.
        std: P_std of ln t.
        q: a stage divides the distance from r to t by this.
        k: r is nearer to 0 where t is small: n(t) = 1 + k·sigmoid(−b·t).
        b: how soon that fades.
        doubling: d, steps of a stage.
        reconstruction_below: t_ε1, levels below which the network itself shall give the signal.
        diffusion_below: t_ε2, levels below which the target is the signal, too.
        middle: the last level of sampling in two or more steps.

    Raises:
        ValueError: a value out of range, by name.
    """

    sigma_data: float = 0.5**0.5
    t_min: float = 0.003
    t_max: float = 80.0
    mean: float = -1.1
    std: float = 2.0
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    doubling: int = 25_000
    reconstruction_below: float = 0.007
    diffusion_below: float = 0.0865
    middle: float = 0.821

    def __post_init__(self) -> None:
        positive = ("sigma_data", "t_min", "std", "reconstruction_below", "diffusion_below")
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected above 0, got {getattr(self, name)}")
        if not math.isfinite(self.mean):
            raise ValueError(f"mean: expected a finite number, got {self.mean}")
        if not self.t_min < self.t_max < math.inf:
            raise ValueError(f"t_max: expected above t_min = {self.t_min}, got {self.t_max}")
        if not self.t_min <= self.middle < self.t_max:
            raise ValueError(
                f"middle: expected a level from {self.t_min} to below {self.t_max}, "
                f"got {self.middle}"
            )
        if not 1 < self.q < math.inf:
            raise ValueError(f"q: expected above 1, got {self.q}")
        for name in ("k", "b"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not isinstance(self.doubling, int) or self.doubling < 1:
            raise ValueError(f"doubling: expected a positive integer, got {self.doubling!r}")

    def c_skip(self, t: torch.Tensor) -> torch.Tensor:
        """σ² / (t² + σ²): how much of x_t is in f."""
        return self.sigma_data**2 / (t**2 + self.sigma_data**2)

    def c_out(self, t: torch.Tensor) -> torch.Tensor:
        """t·σ / √(t² + σ²): how much of the network's output is in f."""
        return t * self.sigma_data / (t**2 + self.sigma_data**2).sqrt()

    def c_in(self, t: torch.Tensor) -> torch.Tensor:
        """1 / √(t² + σ²): gives x_t unit variance before the network, as EDM and ECT do."""
        return (t**2 + self.sigma_data**2).rsqrt()

    def draw(self, seed: int, step: int, slots: Sequence[int], below: bool = False) -> torch.Tensor:
        """Levels of a training step: ln t ~ N(mean, std²), clamped to [t_min, t_max].

        Args:
            seed: of the run.
            step: from 0.
            slots: places in the batch; a slot has the same level whatever else is asked for, so
                that any number of processes share one batch.
            below: draw uniformly below ``reconstruction_below`` instead, for the first stage.

        Returns:
            ``(len(slots),)`` float32, on the CPU.
        """
        levels = np.empty(len(slots), np.float32)
        for row, slot in enumerate(slots):
            rng = np.random.default_rng((seed, step, slot, _LEVEL_STREAM))
            if below:
                levels[row] = rng.random() * self.reconstruction_below
            else:
                level = math.exp(self.mean + self.std * rng.standard_normal())
                levels[row] = min(max(level, self.t_min), self.t_max)
        return torch.from_numpy(levels)

    def earlier(self, t: torch.Tensor, step: int) -> torch.Tensor:
        """r of each t: r/t = max(0, 1 − n(t) / q^⌊step/d⌋), n(t) = 1 + k·sigmoid(−b·t).

        At first r = 0 everywhere, which is training a denoiser; every stage halves what is left
        between r and t (for q = 2).

        Args:
            t: levels, ``(B,)``.
            step: from 0, counted from where consistency training begins.
        """
        nearness = 1 + self.k * torch.sigmoid(-self.b * t)
        return t * (1 - nearness * float(self.q) ** -(step // self.doubling)).clamp(min=0)

    def levels(self, steps: int) -> tuple[float, ...]:
        """The levels that sampling in ``steps`` steps evaluates the network at.

        T for one step; T, …, ``middle`` in a geometric row for more.

        Raises:
            ValueError: no step.
        """
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps!r}")
        ratio = (self.middle / self.t_max) ** (1 / max(1, steps - 1))
        return tuple(self.t_max * ratio**index for index in range(steps))


def per_instance(level: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A value an instance, ``(B,)``, shaped to multiply ``like``, ``(B, ...)``, in its dtype."""
    return level.to(like).reshape(-1, *[1] * (like.ndim - 1))


def consistency_function(
    schedule: ConsistencySchedule, noisy: torch.Tensor, t: torch.Tensor, output: torch.Tensor
) -> torch.Tensor:
    """f(x_t, t) = c_skip(t)·x_t + c_out(t)·F.

    Args:
        schedule: of the levels.
        noisy: x_t, ``(B, ...)``.
        t: levels, ``(B,)``.
        output: F, what the network gave, ``(B, ...)``.

    Returns:
        The clean estimate, ``(B, ...)``.
    """
    skip, out = schedule.c_skip(t), schedule.c_out(t)
    return per_instance(skip, noisy) * noisy + per_instance(out, output) * output


@dataclass(frozen=True)
class Objective:
    """What training minimises: ω(t)·(λ₁·L_gene + λ₂·L_recon + λ₃·L_diff), INRCT Equation 17.

    A weight of 0 switches its loss off (INRCT, Table 5).

    Args:
        generation: λ₁, of d(f(x_t, t), teacher's f(x_r, r)).
        reconstruction: λ₂, of d(signal of the network at t, x) where t < t_ε1.
        diffusion: λ₃, of d(f(x_t, t), x) where t < t_ε2.
        distance: d over the values of an instance: l2, the root of their mean square (the L2 norm
            of INRCT and ECT, whatever the number of values), or squared, their mean square.
        weighting: p of ω(t) = c_out(t)^−p. INRCT names no ω; ECT's 1/t² + 1/σ² is p = 2; 0 leaves
            every level as it is.

    Raises:
        ValueError: a value out of range, or all weights 0, by name.
    """

    generation: float = 1.0
    reconstruction: float = 1.0
    diffusion: float = 1.0
    distance: Literal["l2", "squared"] = "l2"
    weighting: float = 0.0

    def __post_init__(self) -> None:
        for name in ("generation", "reconstruction", "diffusion", "weighting"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not self.generation + self.reconstruction + self.diffusion > 0:
            raise ValueError("generation, reconstruction, diffusion: expected one above 0")
        if self.distance not in ("l2", "squared"):
            raise ValueError(f"distance: expected 'l2' or 'squared', got {self.distance!r}")

    @property
    def reconstructs_only(self) -> bool:
        """Whether nothing but the reconstruction loss is on."""
        return self.generation == 0 and self.diffusion == 0

    def reconstruction_alone(self) -> Objective:
        """The same with λ = (0, 1, 0), for the first stage of training."""
        return replace(self, generation=0.0, reconstruction=1.0, diffusion=0.0)

    def each(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """d of each instance, ``(B,)`` float32.

        Args:
            values: ``(B, ...)``.
            targets: the same shape.
        """
        squared = (values.float() - targets.float()).square().flatten(1).mean(1)
        if self.distance == "squared":
            return squared
        return (squared + _SMOOTH**2).sqrt() - _SMOOTH

    def weight(self, schedule: ConsistencySchedule, t: torch.Tensor) -> torch.Tensor:
        """ω of levels ``(B,)``."""
        return schedule.c_out(t.clamp(min=schedule.t_min)) ** -self.weighting


class Losses(NamedTuple):
    """Means over a batch, weighted by ω and not by λ.

    Args:
        total: with all weights; what is minimised.
        generation: L_gene.
        reconstruction: L_recon.
        diffusion: L_diff.
    """

    total: torch.Tensor
    generation: torch.Tensor
    reconstruction: torch.Tensor
    diffusion: torch.Tensor


def losses(
    objective: Objective,
    schedule: ConsistencySchedule,
    t: torch.Tensor,
    denoised: torch.Tensor,
    followed: torch.Tensor,
    signal: torch.Tensor,
    clean: torch.Tensor,
) -> Losses:
    """The three losses of INRCT and their sum (Equations 13, 15 to 17).

    Each is a mean over the whole batch: instances whose level is not below t_ε1 or t_ε2 count as 0.

    Args:
        objective: how they are measured and weighed.
        schedule: of the levels.
        t: levels, ``(B,)``.
        denoised: f(x_t, t), ``(B, ...)``.
        followed: the teacher's f(x_r, r), without gradient; x where r = 0.
        signal: what the network's representation shows by itself, for the reconstruction loss.
        clean: x.
    """
    weight = objective.weight(schedule, t)
    none = denoised.new_zeros((), dtype=torch.float32)

    def mean(on: float, values: torch.Tensor, targets: torch.Tensor, below: float) -> torch.Tensor:
        if on == 0:
            return none
        each = objective.each(values, targets) * weight
        return torch.where(t < below, each, 0.0).mean()

    generation = mean(objective.generation, denoised, followed, math.inf)
    reconstruction = mean(objective.reconstruction, signal, clean, schedule.reconstruction_below)
    diffusion = mean(objective.diffusion, denoised, clean, schedule.diffusion_below)
    total = (
        objective.generation * generation
        + objective.reconstruction * reconstruction
        + objective.diffusion * diffusion
    )
    return Losses(total, generation, reconstruction, diffusion)


def sample(
    predict: Callable[[torch.Tensor, float], torch.Tensor],
    noise: Callable[[int], torch.Tensor],
    levels: Sequence[float],
) -> torch.Tensor:
    """Clean samples from noise in one or more steps.

    x̂ = f(t₀·z₀, t₀), then x̂ ← f(x̂ + t_k·z_k, t_k) for every further level, as ECT has it. (Song et
    al. add √(t_k² − t_min²)·z_k instead: at 0.821 the two differ by a few millionths.)

    Args:
        predict: f, called with ``(B, ...)`` and a level.
        noise: z_k of step k, ``(B, ...)``.
        levels: of :meth:`ConsistencySchedule.levels`, falling.

    Returns:
        ``(B, ...)``.

    Raises:
        ValueError: no level, or levels that do not fall to above 0.
    """
    if not levels:
        raise ValueError("levels: expected at least one, got none")
    if any(not later < level for level, later in zip(levels, (*levels[1:], 0.0), strict=True)):
        raise ValueError(f"levels: expected to fall and stay above 0, got {tuple(levels)}")
    clean = predict(levels[0] * noise(0), levels[0])
    for index, level in enumerate(levels[1:], 1):
        clean = predict(clean + level * noise(index), level)
    return clean
