"""Latent diffusion: what its samples are, and what it cannot draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_latents import DDIM, TOKENS, VECTORS

import ginr_fast
from ginr_fast.generation.denoisers import ResidualMlpDenoiser
from ginr_fast.generation.diffusion import gaussian_factor, sample
from ginr_fast.generation.latents import Latents
from ginr_fast.generation.sampling import Between, SamplingOptions
from ginr_fast.systems.latent_diffusion import GaussianLatents, LatentDiffusion
from ginr_fast.systems.mnif import Mnif, MnifConfig
from ginr_fast.training.recipes.latent_diffusion import MnifDiffusionRecipe, TokenDiffusionRecipe
from ginr_fast.training.tasks import DataOptions, open_data, task_for
from ginr_fast.training.tasks.latent_diffusion import LatentDiffusionTask


def model_of(path: Path, chosen: MnifDiffusionRecipe | TokenDiffusionRecipe) -> LatentDiffusion:
    """A model as training starts with it, its weights shaken so that it denoises something."""
    torch.manual_seed(0)
    task = task_for(chosen, open_data(chosen, DataOptions(path)))
    task.build()
    assert isinstance(task, LatentDiffusionTask)
    with torch.no_grad():
        for weight in task.model.denoiser.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return task.model.eval()


@pytest.mark.parametrize("name", ["vector_latents", "token_latents"])
def test_samples_are_the_same_on_any_batch_size(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    chosen = VECTORS if name == "vector_latents" else TOKENS
    for sampler in ("ddpm", "ddim"):
        model = model_of(
            path, replace(chosen, diffusion=replace(chosen.diffusion, sampler=sampler))
        )
        options = SamplingOptions(steps=6, seed=3)
        whole = model.draw([4, 9, 2, 7, 0], options)
        parts = [model.draw(part, options) for part in ([4], [9, 2], [7, 0])]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
        assert (whole[0] - whole[1]).abs().max() > 1e-3
        other = model.draw([4], SamplingOptions(steps=6, seed=4))
        assert (other - whole[:1]).abs().max() > 1e-3
        assert model.draw([], options).shape == (0, *whole.shape[1:])
        corner = Between((4, 9, 2, 7), 0.0, 1.0)  # places between samples, for interpolation
        torch.testing.assert_close(model.draw([corner], options)[0], whole[1])


def test_latents_are_put_back_and_decoded(vector_latents: Path, token_latents: Path) -> None:
    where = ginr_fast.grid(5, 6)
    for path, chosen in ((vector_latents, VECTORS), (token_latents, TOKENS)):
        model = model_of(path, chosen)
        # A denoiser that says x̂₀ = 0 draws the mean of the latents.
        torch.nn.init.zeros_(model.denoiser.last.weight)
        torch.nn.init.zeros_(model.denoiser.last.bias)
        drawn = model.draw([0, 1])
        torch.testing.assert_close(drawn, model.mean.expand_as(drawn))
        images = model.render(drawn, where)
        assert images.shape == (2, 3, 5, 6) and images.min() >= 0 and images.max() <= 1
        values = model.decode(where, drawn).permute(0, 3, 1, 2)
        scaled = values if path == token_latents else 0.5 * values + 0.5
        torch.testing.assert_close(images, scaled.clamp(0, 1))
        assert (model.modality, model.image_size) == ("image", 16)
        assert not any(weight.requires_grad for weight in model.decoder_model.parameters())


def test_labels_and_guidance(token_latents: Path) -> None:
    model = model_of(token_latents, TOKENS)
    options = SamplingOptions(steps=4)
    in_turn = model.draw(range(6), options)
    for label in range(3):
        of_class = model.draw(range(6), replace(options, label=label))
        torch.testing.assert_close(of_class[label::3], in_turn[label::3], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(of_class[(label + 1) % 3], in_turn[(label + 1) % 3], atol=1e-3)
    unguided = model.draw(range(6), replace(options, guidance=1.0))
    assert not torch.allclose(unguided, in_turn, atol=1e-3)
    assert model_of(token_latents, replace(TOKENS, conditional=False)).classes == 0
    assert model.evaluations() == 20  # 10 steps, twice each
    assert model.evaluations(SamplingOptions(steps=7, guidance=1.0)) == 7


def test_what_cannot_be_drawn_is_named(vector_latents: Path, token_latents: Path) -> None:
    plain, classes = model_of(vector_latents, VECTORS), model_of(token_latents, TOKENS)
    for draw in (plain.draw, lambda _, options: plain.evaluations(options)):
        with pytest.raises(ValueError, match="steps: expected 1 to 1000, got 1001"):
            draw([0], SamplingOptions(steps=1001))
        with pytest.raises(ValueError, match="label: this model has no classes"):
            draw([0], SamplingOptions(label=0))
        with pytest.raises(ValueError, match="guidance: this model has no classes"):
            draw([0], SamplingOptions(guidance=2.0))
    assert plain.evaluations(SamplingOptions(guidance=1.0, steps=3)) == 3
    with pytest.raises(ValueError, match="label: expected 0 to 2, got 3"):
        classes.draw([0], SamplingOptions(label=3))
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        SamplingOptions(steps=0)
    with pytest.raises(ValueError, match="steps: expected 1 to 1000, got 0"):
        sample(lambda x, t: x, (2,), [0], DDIM, steps=0)
    scene = Mnif(MnifConfig("scene", hidden_layers=1, hidden_dim=16, mixtures=4, latent_dim=8))
    denoiser = ResidualMlpDenoiser(8, 16, 1, 8)
    with pytest.raises(ValueError, match="render: expected a model of images, this is of scene"):
        LatentDiffusion(scene, denoiser, torch.zeros(8), torch.ones(8)).render(
            torch.zeros(1, 8), ginr_fast.grid(2, 2)
        )
    with pytest.raises(ValueError, match="mean, std: expected finite"):
        LatentDiffusion(scene, denoiser, torch.zeros(8), torch.zeros(8))
    with pytest.raises(ValueError, match=r"std: expected shape \(8\)"):
        LatentDiffusion(scene, denoiser, torch.zeros(8), torch.ones(7))


def test_gaussians_have_the_moments_of_latents(
    vector_latents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(vector_latents, VECTORS)
    known = Latents(vector_latents).rows(range(40))
    factor = gaussian_factor(known)
    covariance = torch.cov(known.double().T, correction=0)
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=1e-6, atol=1e-8)
    independent = GaussianLatents(model).draw(range(4000))
    full = GaussianLatents(model, known).draw(range(4000))
    for drawn in (independent, full):
        torch.testing.assert_close(drawn.mean(0), known.mean(0), rtol=0, atol=0.1)
        torch.testing.assert_close(drawn.var(0), known.var(0), rtol=0.15, atol=0)
    torch.testing.assert_close(torch.cov(full.double().T), covariance, rtol=0.2, atol=0.05)
    assert torch.cov(independent.T).fill_diagonal_(0).abs().max() < 0.1
    assert torch.equal(GaussianLatents(model).draw([17]), independent[17:18])
    fitted = GaussianLatents.fitted(model, Latents(vector_latents), range(40)).draw([17])
    assert torch.equal(fitted, full[17:18])
    monkeypatch.setattr("ginr_fast.systems.latent_diffusion._FULL_COVARIANCE", 7)
    large = GaussianLatents.fitted(model, Latents(vector_latents))  # 8 elements: independent
    assert torch.equal(large.draw([17]), independent[17:18])
