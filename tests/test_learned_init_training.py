"""Learned Init's recipes and tasks: data, training, resuming, evaluation, commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_training import QUIET, Stopped, same, stop_at, weights_of

from ginr_fast import cli
from ginr_fast.data import ViewConfig
from ginr_fast.rays import camera_rays
from ginr_fast.systems.learned_init import LearnedInit, LearnedInitConfig
from ginr_fast.training.checkpoints import load_saved
from ginr_fast.training.loop import train
from ginr_fast.training.recipes import (
    LEARNED_INIT_RECIPES,
    LearnedInitImagesRecipe,
    LearnedInitRecipe,
    LearnedInitScenesRecipe,
    as_plain,
    from_plain,
    recipe,
)
from ginr_fast.training.tasks import (
    SYSTEMS,
    DataOptions,
    EvaluationOptions,
    open_data,
    restored,
    task_for,
)
from ginr_fast.training.tasks.learned_init import LearnedInitTask
from ginr_fast.training.tasks.learned_init_scenes import random_rays, spread

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")

SMALL: dict[str, LearnedInitRecipe] = {
    "images": LearnedInitImagesRecipe(
        model=LearnedInitConfig(
            hidden_layers=1,
            hidden_dim=32,
            frequencies=6,
            bandwidth=6.0,
            step_sizes="layer",
            inner_learning_rate=0.05,
        ),
        image_size=16,
        coordinates=100,
        views=ViewConfig(kind="crops", flip=True, held_out_views=6),
        steps=6,
        batch_size=4,
        learning_rate=3e-3,
        gradient_clip=1.0,
    ),
    "scenes": LearnedInitScenesRecipe(
        model=LearnedInitConfig(
            "scene",
            hidden_layers=1,
            hidden_dim=32,
            frequencies=4,
            bandwidth=8.0,
            order="reptile",
            inner_steps=4,
            inner_learning_rate=0.2,
            normalize_weights=False,
            samples=12,
            scale=3.0,
        ),
        image_size=12,
        made_scenes=4,
        made_views=6,
        made_held_out=2,
        known_views=4,
        scored_views=6,
        views=4,
        rays=32,
        steps=6,
        batch_size=2,
        learning_rate=3e-3,
    ),
}


def task_of(chosen: LearnedInitRecipe) -> LearnedInitTask:
    """A task with its model, untrained."""
    torch.manual_seed(chosen.seed)
    task = task_for(chosen, open_data(chosen))
    assert isinstance(task, LearnedInitTask)
    task.build()
    task.place(torch.device("cpu"))
    return task


# Recipes


def test_recipes_have_the_published_values() -> None:
    celeba, imagenette, cars = (
        recipe(f"learned-init-{name}") for name in ("celeba", "imagenette", "cars")
    )
    assert isinstance(celeba, LearnedInitImagesRecipe)
    assert (celeba.steps, celeba.batch_size, celeba.learning_rate) == (150_000, 3, 1e-5)
    assert (celeba.model.w0, celeba.model.inner_learning_rate) == (200.0, 0.01)
    assert celeba.model.spec.encoding is None and celeba.model.spec.layers == 5
    assert isinstance(imagenette, LearnedInitImagesRecipe)
    assert (imagenette.epochs, imagenette.batch_size, imagenette.learning_rate) == (800, 16, 1e-4)
    assert imagenette.model == LearnedInitConfig() and imagenette.image_size == 178
    for chosen in (celeba, imagenette):
        assert (chosen.model.order, chosen.model.inner_steps) == ("second", 2)
    assert isinstance(cars, LearnedInitScenesRecipe)
    assert (cars.model.order, cars.model.inner_steps, cars.parts) == ("reptile", 32, 32)
    assert cars.views * cars.rays == 32 * 128 and cars.learning_rate == 5e-4
    assert (cars.model.near, cars.model.far, cars.model.samples) == (2.0, 6.0, 128)
    assert (cars.model.spec.layers, cars.model.spec.input_dim) == (6, 120)


@pytest.mark.parametrize("name", LEARNED_INIT_RECIPES)
def test_recipes_survive_plain_values(name: str) -> None:
    chosen = recipe(name)
    assert from_plain(SYSTEMS[chosen.system][0], as_plain(chosen)) == chosen


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("images", {"precision": "bf16-mixed"}, "precision: gradients of gradients"),
        ("images", {"model": LearnedInitConfig("scene")}, "model.modality: expected 'image'"),
        ("images", {"coordinates": 257}, "coordinates: expected at most the 256 pixels"),
        ("images", {"image_size": 0}, "image_size"),
        ("scenes", {"model": LearnedInitConfig()}, "model.modality: expected 'scene'"),
        ("scenes", {"known_views": 0}, "known_views"),
        ("scenes", {"made_scenes": -1}, "made_scenes"),
        ("scenes", {"views": 1, "rays": 3}, "views, rays: expected at least 4"),
    ],
)
def test_recipes_name_bad_values(name: str, changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        replace(SMALL[name], **changes)


@pytest.mark.parametrize(
    ("name", "words"), [("celeba", "folder of images"), ("cars", "scenes in SRN's format")]
)
def test_missing_data_is_asked_for(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_data(recipe(f"learned-init-{name}"))


# Tasks


@pytest.mark.parametrize("name", SMALL)
def test_batches_are_functions_of_seed_step_and_slots(name: str) -> None:
    chosen = SMALL[name]
    task, slots = task_of(chosen), range(chosen.batch_size)
    batches = [list(task.batches(2, 4, slots, 0, False)) for _ in range(2)]
    half = list(task.batches(2, 4, slots[1:], 0, False))
    for first, again, part in zip(*batches, half, strict=True):
        for left, right, share in zip(first, again, part, strict=name == "scenes"):
            assert torch.equal(left, right)
            if name == "scenes":
                assert torch.equal(left[1:], share)
        if name == "images":
            assert torch.equal(first[1:], part)
    assert not torch.equal(batches[0][0][-1], batches[0][1][-1])


def test_a_step_sees_chosen_pixels_of_its_images() -> None:
    task = task_of(SMALL["images"])
    (batch,) = task.batches(0, 1, range(4), 0, False)
    (samples,) = task.samples(batch, 7)
    assert samples.values.shape == (4, 100, 3) and len(samples.coords.unique(dim=0)) == 100
    rows, columns = (((samples.coords + 1) * 16 - 1) / 2).round().long().unbind(1)
    assert torch.allclose(samples.values[2] * 255, batch[2, :, rows, columns].T.float())
    whole = task_of(replace(SMALL["images"], coordinates=None))
    (samples,) = whole.samples(batch, 7)
    assert samples.values.shape == (4, 16, 16, 3) and samples.values.max() <= 1


@pytest.mark.parametrize("order", ["reptile", "first"])
def test_inner_steps_and_the_loss_see_rays_of_their_own(order: str) -> None:
    chosen = SMALL["scenes"]
    model = replace(chosen.model, order=order, inner_steps=4 if order == "reptile" else 3)
    task = task_of(replace(chosen, model=model))
    (batch,) = task.batches(0, 1, range(2), 0, False)
    parts = task.samples(batch, 0)
    assert len(parts) == 4
    for part in parts:
        assert part.colors.shape == (2, 32, 3)
        assert len(part.origins[0].unique(dim=0)) == 4  # of all views
    together = torch.stack([part.directions for part in parts], 2).flatten(1, 2)
    assert torch.equal(together, batch.directions)
    one, again, other = (task.jitter(parts[0], step, range(2)) for step in (3, 3, 4))
    assert one.seed == again.seed != other.seed
    assert one.first_rays.tolist() == [0, 32]


def test_random_rays_are_those_of_the_camera() -> None:
    scene = task_of(SMALL["scenes"]).held_out.scene(0)
    draw = random_rays(scene, [1, 5], 40)
    origins, directions, colors = draw(3)
    assert all(torch.equal(*pair) for pair in zip(draw(3), draw(3), strict=True))
    assert not torch.equal(draw(3)[1], draw(4)[1])
    found = set()
    for view in (1, 5):
        start, along = camera_rays(scene.poses[view], 12, 12, scene.focal, scene.center)
        for origin, direction, color in zip(origins, directions, colors, strict=True):
            near = (along - direction).norm(dim=-1) + (start - origin).norm(dim=-1)
            row, column = divmod(int(near.argmin()), 12)
            if near[row, column] < 1e-5:
                found.add(view)
                assert torch.allclose(color * 255, scene.images[view, row, column].float())
    assert found == {1, 5}
    assert spread(6, 3) == [1, 3, 5] and spread(2, 5) == [0, 1]


# Training


@pytest.mark.parametrize("order", ["second", "first", "reptile"])
@pytest.mark.parametrize("name", SMALL)
def test_an_initialisation_is_learned(name: str, order: str, tmp_path: Path) -> None:
    """After training, as many steps lead much nearer to what was never seen."""
    chosen, model = SMALL[name], SMALL[name].model
    if order == "reptile":
        model = replace(model, step_sizes="fixed", normalize_weights=False, inner_learning_rate=0.2)
    steps = 80
    chosen = replace(chosen, steps=steps, model=replace(model, order=order))
    options = replace(QUIET, checkpoint_every=1000, evaluate_every=1000)
    untrained = task_of(chosen)
    before = untrained.scores(untrained.evaluate(0, 1))
    result = train(chosen, open_data(chosen), tmp_path, options)
    assert isinstance(result.model, LearnedInit)
    assert result.scores.psnr > before.psnr + 1
    assert result.scores.psnr > result.scores.values()["baseline_psnr"] + 1
    assert Image.open(tmp_path / "images" / f"step-{steps:09d}.png").size[0] > 90


@pytest.mark.parametrize("name", SMALL)
def test_a_resumed_run_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    chosen, whole, parts = SMALL[name], tmp_path / "whole", tmp_path / "parts"
    data = open_data(chosen)
    train(chosen, data, whole, QUIET)
    with pytest.raises(Stopped):
        train(chosen, data, parts, QUIET, stop_at(5))
    seen: list[int] = []
    train(chosen, data, parts, QUIET, lambda step, loss: seen.append(step))
    assert seen == [5, 6]
    assert same(weights_of(parts), weights_of(whole))
    assert "field.0.weight" in weights_of(whole)


# Evaluation


@pytest.mark.parametrize("name", SMALL)
def test_a_restored_model_scores_as_it_did(name: str, tmp_path: Path) -> None:
    chosen = SMALL[name]
    result = train(chosen, open_data(chosen), tmp_path, QUIET)
    for path in (tmp_path, tmp_path / "checkpoints"):
        task = restored(load_saved(path), DataOptions(), torch.device("cpu"))
        assert isinstance(task, LearnedInitTask) and task.recipe == chosen
        assert task.scores(task.evaluate(0, 1)).values() == result.scores.values()
    halves = task.evaluate(0, 2) + task.evaluate(1, 2)
    assert task.scores(halves).psnr == pytest.approx(result.scores.psnr, abs=1e-3)
    picture = tmp_path / "held-out.png"
    options = EvaluationOptions(batch_size=2, fit_views=4, picture=picture)
    few, many = (task.table(replace(options, fit_steps=steps)) for steps in (1, 40))
    assert all(len(row) == len(few.columns) for row in few.rows)
    assert "held-out" in few.rows[0][0]
    assert float(many.rows[0][2]) > float(few.rows[0][2]) + 0.3  # test-time optimisation
    assert Image.open(picture).size[1] > 2 * 90
    assert int(task.table(replace(options, instances=1)).rows[0][1]) < int(few.rows[0][1])


def test_all_images_are_evaluated_when_asked(tmp_path: Path) -> None:
    task = task_of(SMALL["images"])
    (row,) = task.table(EvaluationOptions(all_images=True, instances=3)).rows
    assert row[:2] == ("all images", "3")


def test_the_baseline_is_the_mean_of_the_training_data() -> None:
    scenes = task_of(SMALL["scenes"])
    every = torch.cat([scenes.train_scenes.scene(index).images for index in range(4)])
    assert torch.allclose(scenes.mean_image, every.float().mean(0).permute(2, 0, 1) / 255)
    images = task_of(SMALL["images"])
    views = [images.stream[step, slot].float() for step in range(64) for slot in range(4)]
    assert torch.allclose(images.mean_image, torch.stack(views).mean(0) / 255, atol=1e-6)


def test_bad_evaluations_are_named() -> None:
    task = task_of(SMALL["scenes"])
    with pytest.raises(ValueError, match="views: expected more than the 24 that scenes are fitted"):
        task.table(EvaluationOptions(fit_views=24))
    small = open_data(SMALL["scenes"])
    other = open_data(replace(SMALL["scenes"], image_size=16))
    mixed = task_for(SMALL["scenes"], small._replace(held_out=other.held_out))
    mixed.build()
    with pytest.raises(ValueError, match=r"data: expected views of \(12, 12\) pixels"):
        mixed.evaluate(0, 1)


# Commands


def test_train_then_eval(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    options = (
        "--model.hidden-layers 1 --model.hidden-dim 16 --image-size 16 --coordinates 64 --steps 3 "
        "--views.held-out-views 4 --batch-size 4 --accelerator cpu --no-progress --no-tensorboard"
    )
    command = ["train", "learned-init-tiny", "--out", run, *options.split()]
    assert cli.main(command) == 0
    trained = capsys.readouterr().out
    assert "held-out images: PSNR" in trained
    assert cli.main(command) == 0  # nothing is left to do
    assert capsys.readouterr().out == trained
    picture = tmp_path / "sheet.png"
    assert cli.main(["eval", run, "--fit-steps", "5", "--picture", str(picture)]) == 0
    assert "held-out" in capsys.readouterr().out and picture.is_file()
    with pytest.raises(SystemExit):
        cli.main(["train", "learned-init-cars-tiny", "--help"])
    text = capsys.readouterr().out
    for option in ("--model.order", "--model.inner-steps", "--known-views", "--learning-rate"):
        assert option in text
