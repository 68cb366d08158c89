"""Latent diffusion: schedules, samplers, guidance, denoisers, training, and what is kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import MNIF_MODEL, MODEL, QUIET, same, weights_of

import ginr_fast
from ginr_fast import cli
from ginr_fast.generation.denoisers import (
    ResidualMlpConfig,
    ResidualMlpDenoiser,
    TokenDenoiser,
    TokenDenoiserConfig,
    timestep_embedding,
)
from ginr_fast.generation.diffusion import (
    DiffusionConfig,
    gaussian_factor,
    guided,
    sample,
    training_noise,
)
from ginr_fast.generation.latents import About, Latents
from ginr_fast.generation.latents_writer import write_latents
from ginr_fast.generation.sampling import Between, SamplingOptions, noise
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.systems.latent_diffusion import GaussianLatents, LatentDiffusion
from ginr_fast.systems.mnif import Mnif, MnifConfig
from ginr_fast.training.checkpoints import CheckpointError, checkpoint_path, load_saved
from ginr_fast.training.loop import train
from ginr_fast.training.recipes import as_plain, from_plain, recipe
from ginr_fast.training.recipes.latent_diffusion import (
    LATENT_DIFFUSION_RECIPES,
    MnifDiffusionRecipe,
    TokenDiffusionRecipe,
)
from ginr_fast.training.tasks import SYSTEMS, DataOptions, open_data, restored, task_for
from ginr_fast.training.tasks.latent_diffusion import LatentDiffusionTask, load_latent_diffusion

DDIM = DiffusionConfig(sampler="ddim", steps=10)
VECTORS = MnifDiffusionRecipe(
    denoiser=ResidualMlpConfig(width=24, blocks=1, time_dim=8),
    stages=("mnif-images",),
    diffusion=DDIM,
    ema_decay=0.9,
    steps=6,
    batch_size=8,
    learning_rate=1e-2,
)
TOKENS = TokenDiffusionRecipe(
    denoiser=TokenDenoiserConfig(width=16, blocks=1, heads=2),
    stages=("la-ginr",),
    diffusion=replace(DDIM, guidance=2.0),
    class_dropout=0.5,
    steps=6,
    batch_size=8,
    learning_rate=1e-2,
)


def latents_file(path: Path, tokens: bool = False) -> Path:
    """Latents of an untrained stage 1, in two clusters; tokens have three classes."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    shape = (16, 24) if tokens else (8,)
    drawn = torch.randn(40, *shape, generator=rng) * 0.1
    drawn += torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0).view(-1, *[1] * len(shape))
    names = [str(number) for number in range(40)]
    if tokens:
        about = About("la-ginr", {"model": as_plain(MODEL)}, classes=("a", "b", "c"))
        labels = [number % 3 for number in range(40)]
        write_latents(path, [drawn], names, about, LaGinr(MODEL).state_dict(), labels)
    else:
        about = About("mnif-images", {"model": as_plain(MNIF_MODEL), "image_size": 16})
        write_latents(path, [drawn], names, about, Mnif(MNIF_MODEL).state_dict())
    return path


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return latents_file(tmp_path_factory.mktemp("vectors") / "latents.safetensors")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return latents_file(tmp_path_factory.mktemp("tokens") / "latents.safetensors", tokens=True)


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


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samplers_take_the_published_steps(sampler: str, steps: int) -> None:
    config = DiffusionConfig(timesteps=20, beta_start=0.01, beta_end=0.3, sampler=sampler, steps=20)  # type: ignore[arg-type]

    def denoise(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + 0.01 * times[:, None])

    found = sample(denoise, (3,), [5, 2], config, steps, seed=7)
    alphas = config.alphas().tolist()
    drawn = noise((50, 3), [5, 2], 7, stream=10).double()
    x = noise((3,), [5, 2], 7).double()
    visited = [20 * (steps - k) // steps - 1 for k in range(steps)]
    assert visited[0] == 19
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


# The system


@pytest.mark.parametrize("name", ["vectors", "tokens"])
def test_samples_are_the_same_on_any_batch_size(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    chosen = VECTORS if name == "vectors" else TOKENS
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


def test_latents_are_put_back_and_decoded(vectors: Path, tokens: Path) -> None:
    where = ginr_fast.grid(5, 6)
    for path, chosen in ((vectors, VECTORS), (tokens, TOKENS)):
        model = model_of(path, chosen)
        # A denoiser that says x̂₀ = 0 draws the mean of the latents.
        torch.nn.init.zeros_(model.denoiser.last.weight)
        torch.nn.init.zeros_(model.denoiser.last.bias)
        drawn = model.draw([0, 1])
        torch.testing.assert_close(drawn, model.mean.expand_as(drawn))
        images = model.render(drawn, where)
        assert images.shape == (2, 3, 5, 6) and images.min() >= 0 and images.max() <= 1
        values = model.decode(where, drawn).permute(0, 3, 1, 2)
        scaled = values if path == tokens else 0.5 * values + 0.5
        torch.testing.assert_close(images, scaled.clamp(0, 1))
        assert (model.modality, model.image_size) == ("image", 16)
        assert not any(weight.requires_grad for weight in model.decoder_model.parameters())


def test_labels_and_guidance(tokens: Path) -> None:
    model = model_of(tokens, TOKENS)
    options = SamplingOptions(steps=4)
    in_turn = model.draw(range(6), options)
    for label in range(3):
        of_class = model.draw(range(6), replace(options, label=label))
        torch.testing.assert_close(of_class[label::3], in_turn[label::3], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(of_class[(label + 1) % 3], in_turn[(label + 1) % 3], atol=1e-3)
    unguided = model.draw(range(6), replace(options, guidance=1.0))
    assert not torch.allclose(unguided, in_turn, atol=1e-3)
    assert model_of(tokens, replace(TOKENS, conditional=False)).classes == 0
    assert model.evaluations() == 20  # 10 steps, twice each
    assert model.evaluations(SamplingOptions(steps=7, guidance=1.0)) == 7


def test_what_cannot_be_drawn_is_named(vectors: Path, tokens: Path) -> None:
    plain, classes = model_of(vectors, VECTORS), model_of(tokens, TOKENS)
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


def test_gaussians_have_the_moments_of_latents(vectors: Path) -> None:
    model = model_of(vectors, VECTORS)
    known = Latents(vectors).rows(range(40))
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


# Training


def test_recipes_have_the_published_values() -> None:
    for name in ("mnif-celebahq-diffusion", "mnif-voxels-diffusion", "mnif-cars-diffusion"):
        chosen = recipe(name)
        assert isinstance(chosen, MnifDiffusionRecipe)
        assert chosen.denoiser == ResidualMlpConfig(width=4096, blocks=4)
        assert (chosen.learning_rate, chosen.batch_size, chosen.epochs) == (1e-4, 32, 1000)
        assert (chosen.schedule, chosen.warmup_steps) == ("cosine", 0)
        assert chosen.diffusion == DiffusionConfig(timesteps=1000, sampler="ddpm", steps=1000)
    chosen = recipe("la-ginr-imagenet-diffusion")
    assert isinstance(chosen, TokenDiffusionRecipe)
    assert chosen.denoiser == TokenDenoiserConfig(width=1024, blocks=24, heads=16)
    assert (chosen.learning_rate, chosen.batch_size, chosen.epochs) == (1e-4, 256, 400)
    assert (chosen.schedule, chosen.betas, chosen.ema_decay) == ("constant", (0.9, 0.999), 0.9999)
    assert (chosen.diffusion.sampler, chosen.diffusion.steps) == ("ddim", 250)
    assert (chosen.diffusion.guidance, chosen.class_dropout) == (2.5, 0.1)


@pytest.mark.parametrize("name", LATENT_DIFFUSION_RECIPES)
def test_recipes_survive_being_written(name: str) -> None:
    chosen = recipe(name)
    plain = json.loads(json.dumps(as_plain(chosen)))
    assert from_plain(SYSTEMS[chosen.system][0], plain) == chosen


@pytest.mark.parametrize("name", ["vectors", "tokens"])
def test_a_run_resumes_exactly_and_its_weights_draw_the_same(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = request.getfixturevalue(name)
    chosen = VECTORS if name == "vectors" else TOKENS
    data = open_data(chosen, DataOptions(path))
    result = train(chosen, data, tmp_path / "whole", QUIET)

    class Stopped(Exception):
        pass

    def stop(step: int, loss: torch.Tensor) -> None:
        if step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(chosen, data, tmp_path / "parts", QUIET, stop)
    train(chosen, data, tmp_path / "parts", QUIET)
    assert same(weights_of(tmp_path / "parts"), weights_of(tmp_path / "whole"))

    # Without any other file: the export, a checkpoint and what training ended with draw alike.
    options = SamplingOptions(steps=3)
    expected = result.model.draw([0, 5], options)
    exported = load_latent_diffusion(load_saved(tmp_path / "whole"))
    assert exported.denoiser.online is None
    assert torch.equal(exported.draw([0, 5], options), expected)
    last = checkpoint_path(tmp_path / "whole" / "checkpoints", 6)
    saved = load_saved(last)
    assert torch.equal(load_latent_diffusion(saved).draw([0, 5], options), expected)
    online = "denoiser.online.last.weight"
    assert not torch.equal(saved.weights[online], saved.weights["denoiser.last.weight"])
    # The task of it, on its data, scores as the run did.
    task = restored(load_saved(tmp_path / "whole"), DataOptions(path), torch.device("cpu"))
    assert task.scores(task.evaluate(0, 1)) == result.scores


def test_training_denoises_better_than_a_gaussian(vectors: Path, tmp_path: Path) -> None:
    sizes = ResidualMlpConfig(width=48, blocks=1, time_dim=16)
    chosen = replace(VECTORS, steps=120, batch_size=64, schedule="cosine", denoiser=sizes)
    data = open_data(chosen, DataOptions(vectors))
    quiet = replace(QUIET, checkpoint_every=120, evaluate_every=120)
    scores = train(chosen, data, tmp_path / "run", quiet).scores
    # Two clusters: the Gaussian denoiser's error is that of one wide cloud.
    assert scores.error < 0.87 * scores.gaussian
    expected = 1 - DiffusionConfig().alphas()[50::100].mean()
    assert abs(scores.gaussian - float(expected)) < 0.2
    assert scores.psnr == pytest.approx(-10 * math.log10(scores.error))


def test_the_average_follows_the_network(vectors: Path) -> None:
    task = task_for(VECTORS, open_data(VECTORS, DataOptions(vectors)))
    task.build()
    assert isinstance(task, LatentDiffusionTask)
    own, twin = task.model.denoiser.last.bias, task.model.denoiser.twin().last.bias
    torch.nn.init.ones_(twin)
    task.after_step(0)
    torch.testing.assert_close(own, torch.full_like(own, 0.9))  # 1 − (1 + 0)/(10 + 0)
    task.after_step(1000)
    torch.testing.assert_close(own, torch.full_like(own, 0.91))  # 0.9 · 0.9 + 0.1
    assert not own.requires_grad and not any("online" in name for name in task.exported())


def test_a_checkpoint_without_its_statistics_is_refused(vectors: Path, tmp_path: Path) -> None:
    chosen = replace(VECTORS, steps=1)
    train(chosen, open_data(chosen, DataOptions(vectors)), tmp_path, QUIET)
    saved = load_saved(tmp_path)
    for name in ("mean", "std"):
        without = {key: value for key, value in saved.weights.items() if key != name}
        with pytest.raises(
            CheckpointError, match=f"holds no {name}: the statistics of its latents"
        ):
            load_latent_diffusion(replace(saved, weights=without))
    with pytest.raises(CheckpointError, match="expected one of mnif-diffusion, token-diffusion"):
        load_latent_diffusion(replace(saved, system="la-ginr"))


def test_data_is_asked_for_and_checked(
    vectors: Path, tokens: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["train", "mnif-diffusion-tiny", "--out", str(tmp_path)]) == 2
    assert "ginr-fast export-latents CHECKPOINT --out" in capsys.readouterr().err
    command = ["train", "mnif-voxels-diffusion", "--out", str(tmp_path), "--data"]
    assert cli.main([*command, str(vectors)]) == 2
    assert "data: expected latents of mnif-voxels" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(ValueError, match="ema_decay: expected at least 0, below 1, got 1"):
        replace(VECTORS, ema_decay=1.0)


def test_eval_compares_with_gaussians(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = replace(VECTORS, steps=1)
    train(chosen, open_data(chosen, DataOptions(vectors)), tmp_path, QUIET)
    command = ["eval", str(tmp_path), "--data", str(vectors), "--instances", "5"]
    assert cli.main([*command, "--picture", str(tmp_path / "seen.png")]) == 0
    shown = capsys.readouterr().out
    for word in ("diffusion", "independent", "covariance", "held-out", "small-1"):
        assert word in shown
    assert (tmp_path / "seen.png").stat().st_size > 100
