"""Diffusion: schedules, samplers, guidance, and the networks that denoise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ginr_fast.generation.denoisers import (
    ResidualMlpConfig,
    ResidualMlpDenoiser,
    TokenDenoiser,
    TokenDenoiserConfig,
    timestep_embedding,
)
from ginr_fast.generation.diffusion import DiffusionConfig, guided, sample, training_noise
from ginr_fast.generation.sampling import noise

# Schedule and samplers


def test_the_schedule_is_that_of_ddpm() -> None:
    alpha, expected = 1.0, []
    for step in range(1000):
        alpha *= 1 - (1e-4 + step / 999 * (0.02 - 1e-4))
        expected.append(alpha)
    found = DiffusionConfig().alphas()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    clean, epsilon = torch.randn(3, 4, 5).double(), torch.randn(3, 4, 5).double()
    times = torch.tensor([0, 500, 999])
    noisy = DiffusionConfig().corrupt(clean, times, epsilon)
    for row, time in enumerate(times.tolist()):
        alpha = expected[time]
        mixed = math.sqrt(alpha) * clean[row] + math.sqrt(1 - alpha) * epsilon[row]
        torch.testing.assert_close(noisy[row], mixed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 7, 13, 20])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samplers_take_the_published_steps(sampler: str, steps: int) -> None:
    config = DiffusionConfig(timesteps=20, beta_start=0.01, beta_end=0.3, sampler=sampler, steps=20)  # type: ignore[arg-type]

    def denoise(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + 0.01 * times[:, None])

    found = sample(denoise, (3,), [5, 2], config, steps, seed=7)
    alphas = config.alphas().tolist()
    drawn = noise((50, 3), [5, 2], 7, stream=10).double()
    x = noise((3,), [5, 2], 7).double()
    visited = [round(20 * (steps - k) / steps) - 1 for k in range(steps)]
    assert visited[0] == 19 and len(set(visited)) == steps
    for place, time in enumerate(visited):
        clean = denoise(x, torch.full((2,), time))
        here = alphas[time]
        there = alphas[visited[place + 1]] if place + 1 < steps else 1.0
        if sampler == "ddim":  # arXiv:2010.02502, eq. 12 with σ = 0
            epsilon = (x - math.sqrt(here) * clean) / math.sqrt(1 - here)
            x = math.sqrt(there) * clean + math.sqrt(1 - there) * epsilon
            continue
        beta = 1 - here / there  # arXiv:2006.11239, eq. 7
        mean = math.sqrt(there) * beta / (1 - here) * clean
        mean += math.sqrt(here / there) * (1 - there) / (1 - here) * x
        x = mean + math.sqrt(beta * (1 - there) / (1 - here)) * drawn[:, place]
    torch.testing.assert_close(found.double(), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 250), ("ddim", 600), ("ddpm", 300)])
def test_any_number_of_steps_draws_the_distribution(sampler: str, steps: int) -> None:
    config = DiffusionConfig(sampler=sampler)  # type: ignore[arg-type]
    alphas, mean, std = config.alphas(), 2.0, 0.5

    def denoise(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """E[x₀ | x_t] of N(mean, std²), exactly, in the precision of a network under autocast."""
        assert x.dtype == torch.float32
        alpha = alphas[times][:, None]
        gain = alpha.sqrt() * std**2 / (alpha * std**2 + 1 - alpha)
        return (mean + gain * (x - alpha.sqrt() * mean)).half()

    drawn = sample(denoise, (16,), range(300), config, steps)  # even if they do not divide T
    assert drawn.dtype == torch.float32
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.025)
    assert float(drawn.std()) == pytest.approx(std, rel=0.05)


def test_guidance_is_that_of_noise_predictions() -> None:
    torch.manual_seed(0)
    config, scale = DiffusionConfig(), 2.5
    denoiser = TokenDenoiser(3, 4, TokenDenoiserConfig(16, 1, 2), classes=5).double()
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    noisy, times = torch.randn(2, 3, 4).double(), torch.tensor([600, 600])
    labels, null = torch.tensor([0, 3]), torch.tensor([5, 5])
    found = guided(denoiser, labels, scale, null=5)(noisy, times)
    alpha = float(config.alphas()[600])

    def epsilon(clean: torch.Tensor) -> torch.Tensor:
        return (noisy - math.sqrt(alpha) * clean) / math.sqrt(1 - alpha)

    told, untold = denoiser(noisy, times, labels), denoiser(noisy, times, null)
    assert (told - untold).abs().max() > 1e-3
    torch.testing.assert_close(denoiser(noisy, times), untold)
    both = (1 + (scale - 1)) * epsilon(told) - (scale - 1) * epsilon(untold)
    torch.testing.assert_close(epsilon(found), both, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(guided(denoiser, labels, 1.0, 5)(noisy, times), told)


def test_training_noise_is_a_function_of_seed_step_and_slot() -> None:
    whole = training_noise(3, 8, range(512), (5,), 1000, 0.1)
    for first, last in ((0, 100), (100, 512)):
        part = training_noise(3, 8, range(first, last), (5,), 1000, 0.1)
        assert all(torch.equal(a, b[first:last]) for a, b in zip(part, whole, strict=True))
    assert not torch.equal(whole.epsilon, training_noise(3, 9, range(512), (5,), 1000).epsilon)
    assert 450 < float(whole.times.double().mean()) < 550 and int(whole.times.min()) >= 0
    assert int(whole.times.max()) <= 999 and 0.05 < float(whole.dropped.double().mean()) < 0.16
    assert abs(float(whole.epsilon.std()) - 1) < 0.05


def test_two_modes_are_recovered() -> None:
    """A mixture of two Gaussians about ±(2, −1), three quarters of it in one; standardised."""
    torch.manual_seed(0)
    config = DiffusionConfig(sampler="ddim", steps=25)
    centre, spread = torch.tensor([2.0, -1.0]), 0.2
    mean, std = centre / 2, (0.75 * centre.square() + spread**2).sqrt()
    denoiser = ResidualMlpDenoiser(2, width=48, blocks=2, time_dim=32)
    optimizer = torch.optim.Adam(denoiser.parameters(), fused=True)

    for step in range(300):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 300)
        times, epsilon, _ = training_noise(0, step, range(160), (2,), 1000)
        side = torch.where(torch.rand(160, 1) < 0.75, 1.0, -1.0)
        clean = (side * centre + spread * torch.randn(160, 2) - mean) / std
        found = denoiser(config.corrupt(clean, times, epsilon), times)
        optimizer.zero_grad()
        (found - clean).square().mean().backward()
        optimizer.step()
    for drawn in (
        sample(denoiser, (2,), range(500), config),
        sample(denoiser, (2,), range(300), replace(config, sampler="ddpm"), steps=100),
    ):
        drawn = drawn * std + mean
        first = (drawn @ centre) > 0
        assert 0.65 < float(first.double().mean()) < 0.85
        # Of a Gaussian with this mean and covariance more than half lies beyond 1 of both modes.
        away = drawn - torch.where(first[:, None], centre, -centre)
        assert float((away.norm(dim=1) < 1).double().mean()) > 0.95
        assert 0.01 < float(away.std()) < 0.4


# Denoisers


def test_denoisers_have_the_published_sizes() -> None:
    with torch.device("meta"):
        tokens = TokenDenoiserConfig().build((256, 256), 1000)
        mlp = ResidualMlpConfig().build((512,))
    assert 457e6 < sum(weight.numel() for weight in tokens.parameters()) < 460e6
    assert len(mlp.blocks) == 4 and mlp.last.in_features == 4096


def test_denoisers_start_at_the_mean_and_know_the_time() -> None:
    torch.manual_seed(0)
    for denoiser, shape in (
        (ResidualMlpConfig(16, 1, 8).build((6,)), (6,)),
        (TokenDenoiserConfig(16, 2, 2).build((5, 6), 3), (5, 6)),
    ):
        noisy, times = torch.randn(4, *shape), torch.tensor([0, 10, 500, 999])
        assert not denoiser(noisy, times).any()
        torch.nn.init.normal_(denoiser.last.weight)
        with torch.no_grad():
            for weight in denoiser.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        found = denoiser(noisy[:1].expand_as(noisy), times)
        assert (found[1:] - found[:1]).flatten(1).norm(dim=1).min() > 1e-3
        with pytest.raises(ValueError, match="noisy: expected shape"):
            denoiser(torch.randn(4, 7), times)
    angles = timestep_embedding(torch.tensor([0.0, 37.0]), 6).double()
    expected = [37 / 10000 ** (k / 3) for k in range(3)]
    torch.testing.assert_close(
        angles[1, :3], torch.tensor(expected).double().cos(), rtol=0, atol=1e-5
    )
    assert angles[0].tolist() == [1, 1, 1, 0, 0, 0]


def test_without_positions_tokens_are_a_set() -> None:
    torch.manual_seed(0)
    for positions in (True, False):
        denoiser = TokenDenoiserConfig(16, 2, 2, positions=positions).build((5, 6))
        with torch.no_grad():
            for weight in denoiser.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        noisy, times, order = torch.randn(2, 5, 6), torch.tensor([3, 400]), torch.randperm(5)
        moved = denoiser(noisy[:, order], times)
        alike = torch.allclose(moved, denoiser(noisy, times)[:, order], atol=1e-5)
        assert alike != positions


# Mistakes


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"timesteps": 0}, "timesteps"),
        ({"beta_end": 1.5}, "beta_start, beta_end"),
        ({"sampler": "euler"}, "sampler: expected ddpm or ddim"),
        ({"steps": 0}, "steps: expected 1 to 1000, got 0"),
        ({"guidance": -1.0}, "guidance"),
    ],
)
def test_diffusion_settings_are_checked(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        DiffusionConfig(**changes)


def test_sizes_of_denoisers_are_checked() -> None:
    with pytest.raises(ValueError, match="width: expected a positive integer, got 0"):
        ResidualMlpConfig(width=0)
    with pytest.raises(ValueError, match="heads: expected a divisor of width 16, got 3"):
        TokenDenoiserConfig(width=16, heads=3)
    with pytest.raises(ValueError, match="latents: expected vectors"):
        ResidualMlpConfig().build((4, 5))
    with pytest.raises(ValueError, match="latents: expected tokens"):
        TokenDenoiserConfig().build((4,))
    with pytest.raises(ValueError, match="classes: expected a non-negative integer, got -3"):
        ResidualMlpConfig(8, 1, 4).build((4,), -3)


def test_times_and_labels_are_checked() -> None:
    for classes in (0, 3):
        times, ones = torch.tensor([1, 2]), torch.ones(2, dtype=torch.int64)
        for denoiser, shape in (
            (ResidualMlpConfig(8, 1, 4).build((6,), classes), (6,)),
            (TokenDenoiserConfig(8, 1, 2).build((5, 6), classes), (5, 6)),
        ):
            noisy = torch.randn(2, *shape)
            for wrong in (times[:1], times[:, None]):
                with pytest.raises(ValueError, match=r"^times: expected shape \(2\)"):
                    denoiser(noisy, wrong)
            if not classes:
                with pytest.raises(ValueError, match="labels: this model has no classes"):
                    denoiser(noisy, times, ones)
                continue
            with pytest.raises(ValueError, match=r"^labels: expected shape \(2\)"):
                denoiser(noisy, times, ones[:1])
            with pytest.raises(TypeError, match="labels: expected dtype int64"):
                denoiser(noisy, times, ones.float())
            for label in (-1, 4):
                with pytest.raises(ValueError, match="labels: expected 0 to 3, got"):
                    guided(denoiser, ones * label, 1.0, null=3)
    config = DiffusionConfig()
    with pytest.raises(ValueError, match="^times"):
        config.corrupt(torch.zeros(2, 3), times[:1], torch.zeros(2, 3))
    with pytest.raises(ValueError, match="^epsilon"):
        config.corrupt(torch.zeros(2, 3), times, torch.zeros(2, 1))
