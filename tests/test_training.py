"""Recipes, losses, metrics, pictures and the training loop."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import MODEL, QUIET, RECIPE, Stopped, same, stop_at, weights_of

import ginr_fast
from ginr_fast.data import HeldOutViews, photos
from ginr_fast.systems.la_ginr import LaGinr, LaGinrConfig
from ginr_fast.training import checkpoints
from ginr_fast.training.checkpoints import CheckpointError, load_model, load_run
from ginr_fast.training.images import sheet, to_pixels
from ginr_fast.training.loop import RunOptions, train
from ginr_fast.training.losses import psnr_of, reconstruction_loss
from ginr_fast.training.metrics import ScoreSum, score_views
from ginr_fast.training.recipes import RECIPES, as_plain, differences, recipe
from ginr_fast.training.tasks.images import choose_coordinates, choose_offsets, interpolated

pytestmark = pytest.mark.usefixtures("one_thread")


# Recipes


def test_recipes_have_the_published_values() -> None:
    for name in ("la-ginr-celeba", "la-ginr-ffhq", "la-ginr-imagenette"):
        chosen = recipe(name)
        assert chosen.model == LaGinrConfig()
        assert (chosen.learning_rate, chosen.betas, chosen.batch_size) == (1e-4, (0.9, 0.999), 16)
        assert chosen.coordinates is None and chosen.schedule == "constant"
    assert [recipe(f"la-ginr-{name}").epochs for name in ("celeba", "ffhq", "imagenette")] == [
        300,
        1000,
        4000,
    ]
    assert recipe("la-ginr-imagenet-256").model.heads == 8
    large = recipe("la-ginr-ffhq-1024")
    assert (large.model.patch_size, large.model.bandwidths) == (48, (256.0, 64.0))
    assert (large.model.query_bandwidth, large.epochs) == (32.0, 400)
    assert large.coordinates == 104857
    assert [recipe(f"la-ginr-ffhq-{size}").model.heads for size in (256, 512)] == [2, 4]


def test_unknown_recipes_are_named() -> None:
    with pytest.raises(ValueError, match="recipe: expected one of la-ginr-tiny, .*got 'x'"):
        recipe("x")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_being_written(name: str) -> None:
    plain = as_plain(recipe(name))
    assert json.loads(json.dumps(plain)) == plain
    assert not differences(plain, as_plain(recipe(name)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": None}, "steps, epochs"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"coordinates": 257}, "coordinates: expected at most the 256 pixels"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"schedule": "linear"}, "schedule"),
        ({"precision": "16"}, "precision"),
        ({"seed": -1}, "warmup_steps, seed"),
    ],
)
def test_recipes_name_bad_values(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        replace(RECIPE, **changes)


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [RECIPE.learning_rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.5e-3) and max(rates) == rates[1]
    assert rates[50] == pytest.approx(0.5e-3) and 0 < rates[99] < 1e-6
    constant = replace(RECIPE, schedule="constant", warmup_steps=0)
    assert {constant.learning_rate_at(step, 100) for step in range(100)} == {1e-3}
    assert replace(RECIPE, steps=None, epochs=3).total_steps(7) == 21


# Losses, metrics, pictures


def test_loss_and_psnr() -> None:
    values = torch.full((2, 5, 3), 0.5, dtype=torch.bfloat16)
    loss = reconstruction_loss(values, torch.full((2, 5, 3), 0.6))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(0.01)
    assert psnr_of(0.01) == pytest.approx(20) and psnr_of(0.0) == math.inf
    assert math.isnan(psnr_of(math.nan))


def test_psnr_is_averaged_over_images_whatever_the_batches() -> None:
    targets = torch.rand(5, 3, 16, 16)
    images = targets + torch.tensor([0.1, 0.01, 0.2, 0.05, 0.1])[:, None, None, None]
    expected = (-20 * torch.log10(torch.tensor([0.1, 0.01, 0.2, 0.05, 0.1]))).mean()
    for sizes in ([5], [2, 3], [1, 1, 1, 1, 1]):
        total = ScoreSum()
        for left, right in zip(images.split(sizes), targets.split(sizes), strict=True):
            total.update(left, right)
        scores = total.scores()
        assert scores.images == 5
        assert scores.psnr == pytest.approx(expected.item(), abs=1e-3)
        assert 0.5 < scores.ssim < 1
    perfect = ScoreSum()
    perfect.update(targets, targets)
    assert perfect.scores().ssim == pytest.approx(1) and perfect.scores().psnr == math.inf


def test_metrics_are_computed_in_float32_under_autocast() -> None:
    targets = torch.rand(3, 3, 16, 16)
    images = targets + 0.05 * torch.randn_like(targets)
    plain, mixed = ScoreSum(), ScoreSum()
    plain.update(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        mixed.update(images, targets)
    assert torch.equal(plain.sums, mixed.sums)


def test_scores_of_small_images_and_of_none() -> None:
    total = ScoreSum()
    total.update(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
    assert math.isnan(total.scores().ssim) and total.scores().psnr > 0
    with pytest.raises(ValueError, match="at least one to evaluate with"):
        ScoreSum().scores()


def test_views_are_scored_in_any_batches() -> None:
    class Darker:
        def reconstruct(self, images: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return images - 0.1

    views = [torch.full((3, 16, 16), value, dtype=torch.uint8) for value in (40, 120, 255)]
    for batch_size in (1, 2, 8):
        scores = score_views(Darker(), views, range(3), batch_size).scores()
        assert scores.images == 3 and scores.psnr == pytest.approx(20, abs=1e-3)


def test_pictures() -> None:
    pixels = to_pixels(torch.tensor([[[0.0, 0.5, 2.0]]] * 3))
    assert pixels.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
    picture = sheet([[pixels, pixels], [pixels]], ["a", "b"])
    assert picture.size == (4 + 2 * (3 + 4), 4 + 2 * (1 + 16 + 4))
    with pytest.raises(ValueError, match="rows"):
        sheet([[]])
    with pytest.raises(ValueError, match="titles: expected 1, got 2"):
        sheet([[pixels]], ["a", "b"])


# The loop


def test_coordinates_are_different_pixels_chosen_by_seed_and_step() -> None:
    chosen = choose_coordinates(0, 5, 100, 30)
    assert torch.equal(chosen, choose_coordinates(0, 5, 100, 30))
    assert not torch.equal(chosen, choose_coordinates(0, 6, 100, 30))
    assert not torch.equal(chosen, choose_coordinates(1, 5, 100, 30))
    assert len(chosen.unique()) == 30 and chosen.min() >= 0 and chosen.max() < 100
    counts = torch.zeros(100)
    for step in range(300):
        counts[choose_coordinates(0, step, 100, 30)] += 1
    assert counts.min() > 50  # 90 expected


def test_offsets_stay_within_a_pixel() -> None:
    offsets = choose_offsets(0, 5, 1000)
    assert offsets.shape == (1000, 2) and offsets.dtype == torch.float32
    assert offsets.min() >= -0.5 and offsets.max() < 0.5 and offsets.mean().abs() < 0.05
    assert torch.equal(offsets, choose_offsets(0, 5, 1000))
    assert not torch.equal(offsets, choose_offsets(0, 6, 1000))


def test_interpolation_meets_the_pixels_and_is_smooth_between() -> None:
    images = torch.rand(2, 3, 8, 8)
    found = interpolated(images, ginr_fast.grid(8, 8).tensor().reshape(-1, 2))
    assert torch.allclose(found, images.flatten(2).transpose(1, 2), atol=1e-5)
    rows, columns = (torch.arange(8.0) / 8 for _ in range(2))
    ramp = torch.stack([rows[:, None].expand(8, 8), columns.expand(8, 8)])[None]
    coords = torch.rand(50, 2) - 0.5  # inside, where no border is held
    expected = (coords + 1) / 2 - 1 / 16
    # PyTorch's cubic (a = -0.75) is exact at the pixels and close to a line between them.
    assert (interpolated(ramp, coords)[0] - expected).abs().max() < 0.1 / 8


def test_a_run_writes_what_it_promises(tmp_path: Path) -> None:
    losses: list[float] = []
    options = replace(QUIET, tensorboard=True, progress=True, log_every=1)
    result = train(
        RECIPE, photos(), tmp_path, options, lambda step, loss: losses.append(loss.item())
    )
    assert len(losses) == 6
    kept = [path.name for path in checkpoints.checkpoints_in(tmp_path / "checkpoints")]
    assert kept == ["step-000000004.pt", "step-000000006.pt"]
    assert [path.name for path in sorted((tmp_path / "images").iterdir())] == [
        "step-000000003.png",
        "step-000000006.png",
    ]
    (log,) = (tmp_path / "tensorboard").iterdir()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log))
    events.Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx(losses)
    assert [event.step for event in events.Scalars("held_out/psnr")] == [3]
    # The model returned, the export and the last checkpoint are the same.
    assert result.weights == tmp_path / "model.safetensors"
    assert same(weights_of(tmp_path), dict(result.model.state_dict()))
    model, views = load_run(tmp_path)
    assert views == RECIPE.views and not model.training
    assert same(dict(model.state_dict()), dict(load_model(tmp_path / "checkpoints").state_dict()))
    assert result.scores.images == 6 and result.scores.psnr > 5


def test_training_learns(tmp_path: Path) -> None:
    losses: list[float] = []
    views = replace(RECIPE.views, shuffle_channels=False)
    longer = replace(RECIPE, views=views, steps=300, batch_size=16, learning_rate=4e-3)
    result = train(longer, photos(), tmp_path, QUIET, lambda step, loss: losses.append(loss.item()))
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    # Better than the best constant image of each view could ever be on average.
    held_out = HeldOutViews(photos(), views, 16)
    flat = [
        view.float().div(255).var((1, 2), unbiased=False).mean()
        for view in map(held_out.__getitem__, range(6))
    ]
    assert result.scores.psnr > sum(psnr_of(float(value)) for value in flat) / 6


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("coordinates", [64, None])
@pytest.mark.parametrize("subpixel", [True, False])
def test_a_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, precision: str, coordinates: int | None, subpixel: bool
) -> None:
    chosen = replace(RECIPE, precision=precision, coordinates=coordinates, subpixel=subpixel)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(chosen, photos(), whole, QUIET)
    with pytest.raises(Stopped):
        train(chosen, photos(), parts, QUIET, stop_at(5))
    torch.rand(3)  # whatever happened to the global generator in between
    seen: list[int] = []
    train(chosen, photos(), parts, QUIET, lambda step, loss: seen.append(step))
    assert seen == [5, 6]
    assert same(weights_of(parts), weights_of(whole))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(RECIPE, photos(), tmp_path, QUIET)
    again = train(RECIPE, photos(), tmp_path, QUIET, lambda step, loss: pytest.fail("trained"))
    assert again.scores == first.scores


def test_a_run_from_before_an_option_was_there_goes_on(tmp_path: Path) -> None:
    first = train(RECIPE, photos(), tmp_path, QUIET)
    newest = checkpoints.checkpoints_in(tmp_path / "checkpoints")[-1]
    saved = checkpoints.load_checkpoint(newest)
    del saved.recipe["model"]["encoder_qkv_bias"]
    checkpoints.save_checkpoint(saved, newest.parent)
    again = train(RECIPE, photos(), tmp_path, QUIET, lambda step, loss: pytest.fail("trained"))
    assert again.scores == first.scores


def test_what_a_model_draws_at_random_is_the_same_after_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(self: LaGinr, images: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
        return self.decode(coords, self.encode(images + 0.1 * torch.randn_like(images)))

    monkeypatch.setattr(LaGinr, "forward", noisy)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(RECIPE, photos(), whole, QUIET)
    with pytest.raises(Stopped):
        train(RECIPE, photos(), parts, QUIET, stop_at(3))
    train(RECIPE, photos(), parts, QUIET)
    assert same(weights_of(parts), weights_of(whole))


def test_another_recipe_or_other_images_are_refused(tmp_path: Path) -> None:
    train(RECIPE, photos(), tmp_path, QUIET)
    other = replace(RECIPE, learning_rate=2e-3, model=replace(MODEL, latents=4))
    with pytest.raises(CheckpointError, match="learning_rate: 0.001 against 0.002; model.latents"):
        train(other, photos(), tmp_path, QUIET)
    fewer = dataclasses.replace(photos(), train=photos().train[1:])
    with pytest.raises(CheckpointError, match="was trained on other data"):
        train(RECIPE, fewer, tmp_path, QUIET)


def test_a_run_that_diverges_ends_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    train(replace(RECIPE, steps=4), photos(), tmp_path, QUIET)
    before = checkpoints.checkpoints_in(tmp_path / "checkpoints")
    for path in before:  # the same run, going on at a rate that nothing survives
        state = checkpoints.load_checkpoint(path)
        state.recipe.update(learning_rate=1e30, steps=9)
        checkpoints.save_checkpoint(state, tmp_path / "checkpoints")
    content = [path.read_bytes() for path in before]
    with pytest.raises(ValueError, match=r"loss: nan after step 6; the run diverged"):
        train(replace(RECIPE, learning_rate=1e30, steps=9), photos(), tmp_path, QUIET)
    assert checkpoints.checkpoints_in(tmp_path / "checkpoints") == before
    assert [path.read_bytes() for path in before] == content


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_every: expected a positive integer, got 0"):
        RunOptions(checkpoint_every=0)
    with pytest.raises(ValueError, match="workers"):
        RunOptions(workers=-1)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"devices: expected at most the 0 GPU\(s\)"):
            train(RECIPE, photos(), tmp_path, replace(QUIET, accelerator="cuda"))


def test_blocked_and_reference_backends_train_alike(tmp_path: Path) -> None:
    """The convergence test: 50 steps from one seed, loss curves equal within 1e-3."""
    chosen = replace(RECIPE, steps=50, batch_size=8, learning_rate=1e-3, coordinates=100)
    options = replace(QUIET, checkpoint_every=50, evaluate_every=50)
    curves = {}
    for backend in ("blocked", "reference"):
        losses: list[float] = []
        with ginr_fast.backend(backend):
            train(
                chosen,
                photos(),
                tmp_path / backend,
                options,
                lambda step, loss, kept=losses: kept.append(loss.item()),
            )
        curves[backend] = torch.tensor(losses)
    assert len(curves["blocked"]) == 50
    assert curves["blocked"][-10:].mean() < 0.8 * curves["blocked"][:10].mean()
    relative = (curves["blocked"] - curves["reference"]).abs() / curves["reference"]
    assert relative.max() <= 1e-3
