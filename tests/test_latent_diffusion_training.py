"""Latent diffusion: recipes, training, resuming, and what is kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_latents import TOKENS, VECTORS
from small_training import QUIET, Stopped, same, stop_at, weights_of

from ginr_fast import cli
from ginr_fast.generation.denoisers import ResidualMlpConfig, TokenDenoiserConfig
from ginr_fast.generation.diffusion import DiffusionConfig
from ginr_fast.generation.sampling import SamplingOptions
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


@pytest.mark.parametrize("name", ["vector_latents", "token_latents"])
def test_a_run_resumes_exactly_and_its_weights_draw_the_same(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = request.getfixturevalue(name)
    chosen = VECTORS if name == "vector_latents" else TOKENS
    data = open_data(chosen, DataOptions(path))
    result = train(chosen, data, tmp_path / "whole", QUIET)
    with pytest.raises(Stopped):
        train(chosen, data, tmp_path / "parts", QUIET, stop_at(5))
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


def test_training_denoises_better_than_a_gaussian(vector_latents: Path, tmp_path: Path) -> None:
    sizes = ResidualMlpConfig(width=48, blocks=1, time_dim=16)
    chosen = replace(VECTORS, steps=120, batch_size=64, schedule="cosine", denoiser=sizes)
    data = open_data(chosen, DataOptions(vector_latents))
    quiet = replace(QUIET, checkpoint_every=120, evaluate_every=120)
    scores = train(chosen, data, tmp_path / "run", quiet).scores
    # Two clusters: the Gaussian denoiser's error is that of one wide cloud.
    assert scores.error < 0.87 * scores.gaussian
    expected = 1 - DiffusionConfig().alphas()[50::100].mean()
    assert abs(scores.gaussian - float(expected)) < 0.2
    assert scores.psnr == pytest.approx(-10 * math.log10(scores.error))


def test_the_average_follows_the_network(vector_latents: Path) -> None:
    task = task_for(VECTORS, open_data(VECTORS, DataOptions(vector_latents)))
    task.build()
    assert isinstance(task, LatentDiffusionTask)
    own, twin = task.model.denoiser.last.bias, task.model.denoiser.twin().last.bias
    torch.nn.init.ones_(twin)
    task.after_step(0)
    torch.testing.assert_close(own, torch.full_like(own, 0.9))  # 1 − (1 + 0)/(10 + 0)
    task.after_step(1000)
    torch.testing.assert_close(own, torch.full_like(own, 0.91))  # 0.9 · 0.9 + 0.1
    assert not own.requires_grad and not any("online" in name for name in task.exported())


def test_a_checkpoint_without_its_statistics_is_refused(
    vector_latents: Path, tmp_path: Path
) -> None:
    chosen = replace(VECTORS, steps=1)
    train(chosen, open_data(chosen, DataOptions(vector_latents)), tmp_path, QUIET)
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
    vector_latents: Path, token_latents: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["train", "mnif-diffusion-tiny", "--out", str(tmp_path)]) == 2
    assert "ginr-fast export-latents CHECKPOINT --out" in capsys.readouterr().err
    command = ["train", "mnif-voxels-diffusion", "--out", str(tmp_path), "--data"]
    assert cli.main([*command, str(vector_latents)]) == 2
    assert "data: expected latents of mnif-voxels" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(ValueError, match="ema_decay: expected at least 0, below 1, got 1"):
        replace(VECTORS, ema_decay=1.0)


def test_eval_compares_with_gaussians(
    vector_latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = replace(VECTORS, steps=1)
    train(chosen, open_data(chosen, DataOptions(vector_latents)), tmp_path, QUIET)
    command = ["eval", str(tmp_path), "--data", str(vector_latents), "--instances", "5"]
    assert cli.main([*command, "--picture", str(tmp_path / "seen.png")]) == 0
    shown = capsys.readouterr().out
    for word in ("diffusion", "independent", "covariance", "held-out", "small-1"):
        assert word in shown
    assert (tmp_path / "seen.png").stat().st_size > 100
