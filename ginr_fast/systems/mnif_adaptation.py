"""How an mNIF finds the latent of an instance: meta-learning (CAVIA) or auto-decoding.

A loss of several instances is the *sum* of theirs, each a mean over its samples, so that the
gradient of one instance's latent does not depend on what else is in the batch (the published code
takes the mean over the batch, which divides the inner learning rate by the batch's size).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ginr_fast.ops.volume_render.random import Seed, later
from ginr_fast.systems.fitted import view_of
from ginr_fast.systems.mnif import Mnif
from ginr_fast.systems.samples import PointSamples, RaySamples, Samples, instance_errors, predict

__all__ = [
    "AutoDecoder",
    "Cavia",
    "CaviaConfig",
    "PointSamples",
    "RaySamples",
    "Samples",
    "fit_latents",
    "instance_errors",
    "latent_penalty",
    "predict",
]


@dataclass(frozen=True)
class CaviaConfig:
    """Meta-learning by fast context adaptation (Algorithm 1; CAVIA, arXiv:1810.03642).

    Args:
        inner_steps: gradient steps on a latent, N_inner.
        inner_learning_rate: ε of these steps, along the gradient of an instance's own error. 1/32
            is the published 1.0, which is along that of the mean over a batch of 32.
        second_order: differentiate through the inner steps' gradients; else they count as
            constants (Table 5).
        meta_sgd: learn a factor of ε for each component of a latent (arXiv:1707.09835).
        meta_sgd_initial: the factors start uniformly between these.
        meta_sgd_range: and are cut to this range where they are used.

    Raises:
        ValueError: a value out of range.
    """

    inner_steps: int = 3
    inner_learning_rate: float = 1 / 32
    second_order: bool = True
    meta_sgd: bool = True
    meta_sgd_initial: tuple[float, float] = (0.005, 0.1)
    meta_sgd_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.inner_steps, int) or self.inner_steps < 1:
            raise ValueError(f"inner_steps: expected a positive integer, got {self.inner_steps!r}")
        if not 0 < self.inner_learning_rate < math.inf:
            raise ValueError(
                f"inner_learning_rate: expected above 0, got {self.inner_learning_rate}"
            )
        for name in ("meta_sgd_initial", "meta_sgd_range"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name}: expected (low, high), got {(low, high)}")


class Cavia(nn.Module):
    """A model whose latents are found by a few gradient steps, and trained through them.

    Args:
        model: the model.
        config: how.
    """

    def __init__(self, model: Mnif, config: CaviaConfig | None = None) -> None:
        super().__init__()
        self.model = model
        self.config = config = config or CaviaConfig()
        self.step_sizes: nn.Parameter | None = None
        if config.meta_sgd:
            sizes = torch.empty(model.config.context_dim).uniform_(*config.meta_sgd_initial)
            self.step_sizes = nn.Parameter(sizes)

    def adapt(
        self,
        samples: Samples,
        latent: torch.Tensor,
        seed: Seed | None = None,
        second_order: bool = False,
    ) -> torch.Tensor:
        """Latents after the inner loop: φ ← φ − ε s ∇_φ Σ_j L_j, ``inner_steps`` times.

        Args:
            samples: what the instances are known by.
            latent: ``(B, context_dim)``, where the steps start.
            seed: of the jitter along rays; None for none.
            second_order: keep the graph of the gradients.

        Returns:
            ``(B, context_dim)``; differentiable in the step sizes, and with ``second_order`` in the
            model's parameters.
        """
        rate: torch.Tensor | float = self.config.inner_learning_rate
        if self.step_sizes is not None:
            rate = rate * self.step_sizes.clamp(*self.config.meta_sgd_range)
        with torch.enable_grad():
            latent = latent.detach().requires_grad_()
            for _ in range(self.config.inner_steps):
                total = instance_errors(self.model, latent, samples, seed).sum()
                (gradient,) = torch.autograd.grad(total, latent, create_graph=second_order)
                latent = latent - rate * gradient
        return latent

    def forward(
        self, samples: Samples, latent: torch.Tensor, seed: Seed | None = None
    ) -> torch.Tensor:
        """Each instance's error after adaptation, ``(B,)``: what training minimises.

        Args:
            samples: what the instances are known by, and are scored with.
            latent: ``(B, context_dim)``, where the inner steps start.
            seed: of the jitter along rays; None for none.
        """
        latent = self.adapt(samples, latent, seed, self.config.second_order)
        return instance_errors(self.model, latent, samples, seed)


class AutoDecoder(nn.Module):
    """A model trained together with one latent an instance (Algorithm 2).

    Args:
        model: the model.
        instances: how many.
        std: σ of the latents at the start.
    """

    def __init__(self, model: Mnif, instances: int, std: float) -> None:
        super().__init__()
        self.model = model
        noise = torch.randn(instances, model.config.context_dim)
        self.latents = nn.Embedding.from_pretrained(model.initial_latents(noise, std), freeze=False)

    def forward(
        self, samples: Samples, indices: torch.Tensor, seed: Seed | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each instance's error, and the penalty on its latent.

        Args:
            samples: of the instances.
            indices: ``(B,)``, int64, which instances.
            seed: of the jitter along rays; None for none.

        Returns:
            ``(B,)`` mean squared errors, ``(B,)`` values of :func:`latent_penalty`.
        """
        latent = self.latents(indices)
        errors = instance_errors(self.model, latent, samples, seed)
        return errors, latent_penalty(self.model, latent)


def latent_penalty(model: Mnif, latent: torch.Tensor) -> torch.Tensor:
    """½‖φ‖² of each latent, about the uniform mixture: weight decay times this joins the loss.

    Args:
        model: the model.
        latent: ``(B, context_dim)``.

    Returns:
        ``(B,)``.
    """
    return 0.5 * (latent - model.config.context_mean).square().sum(1)


def fit_latents(
    model: Mnif,
    samples: Callable[[int], Samples],
    latent: torch.Tensor,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    seed: Seed | None = None,
) -> torch.Tensor:
    """Latents of instances never trained on, by Adam with everything else frozen.

    Args:
        model: the model.
        samples: what the instances are known by, for each step.
        latent: ``(B, context_dim)``, where the steps start.
        steps: how many.
        learning_rate: of Adam at the first step; it falls along a cosine to 0.
        weight_decay: factor of :func:`latent_penalty`.
        seed: of the jitter along rays; None for none.

    Returns:
        ``(B, context_dim)``.

    Raises:
        ValueError: ``steps`` or ``learning_rate`` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps: expected a positive integer, got {steps}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate: expected above 0, got {learning_rate}")
    latent = latent.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model = view_of(model)  # gradients of its parameters would be most of the work
    with torch.enable_grad():
        for step in range(steps):
            loss = instance_errors(model, latent, samples(step), later(seed, step)).sum()
            if weight_decay:
                loss = loss + weight_decay * latent_penalty(model, latent).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return latent.detach()
