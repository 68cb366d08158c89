"""INRCT of radiance fields: one view to 3D, noise to scenes, and how both are trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_training import QUIET, Stopped, same, stop_at, weights_of

from ginr_fast import cli
from ginr_fast.data import CarsConfig, make_cars
from ginr_fast.generation.consistency import ConsistencySchedule, Objective
from ginr_fast.generation.sampling import Between, SamplingOptions, noise
from ginr_fast.rays import orbit_poses
from ginr_fast.systems.fitting import FittingOptions
from ginr_fast.systems.inrct_scenes import EarlierViews, InrctScenes, InrctScenesConfig
from ginr_fast.training.checkpoints import load_checkpoint, load_saved
from ginr_fast.training.generative import load_generative
from ginr_fast.training.loop import train
from ginr_fast.training.recipes import InrctScenesRecipe, as_plain, from_plain, recipe
from ginr_fast.training.tasks import (
    DataOptions,
    EvaluationOptions,
    open_data,
    restored,
    task_for,
)
from ginr_fast.training.tasks.inrct_scenes import InrctScenesTask

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 12
MODEL = InrctScenesConfig(
    image_size=SIZE,
    patch_size=4,
    encoder_dim=32,
    encoder_depth=1,
    decoder_depth=1,
    encoder_heads=2,
    encoder_head_dim=16,
    encoder_mlp_dim=48,
    hidden_dim=16,
    hidden_layers=1,
    frequencies=3,
    bandwidth=4.0,
    samples=8,
    groups=4,
    # r > 0 at all levels from the fourth step of the second stage on.
    schedule=ConsistencySchedule(doubling=1),
)
RECIPE = InrctScenesRecipe(
    model=MODEL,
    rays=24,
    scored_views=6,
    steps=6,
    reconstruction_steps=2,
    batch_size=4,
    learning_rate=3e-3,
)
FOCAL = MODEL.focal * SIZE


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> DataOptions:
    """Made cars, once for this file."""
    config = CarsConfig(4, views=5, test_scenes=2, test_views=4, size=SIZE, supersample=1)
    return DataOptions(data=make_cars(tmp_path_factory.mktemp("data") / "cars", config))


@pytest.fixture
def model() -> InrctScenes:
    """As at the start of training, but for what starts at zero: levels matter then."""
    torch.manual_seed(0)
    found = InrctScenes(MODEL)
    for block in found.hyper_network.encoder:
        torch.nn.init.normal_(block.modulation.weight, std=0.2)
    return found


def task_of(chosen: InrctScenesRecipe, scenes: DataOptions) -> InrctScenesTask:
    torch.manual_seed(chosen.seed)
    task = task_for(chosen, open_data(chosen, scenes))
    assert isinstance(task, InrctScenesTask)
    task.build()
    task.place(torch.device("cpu"))
    return task


# The model


def test_one_view_to_3d_without_its_pose(model: InrctScenes) -> None:
    images = torch.rand(2, 1, 3, SIZE, SIZE)
    rays = torch.randn(2, 1, SIZE, SIZE, 3)
    tokens = model.encode(images)
    assert torch.equal(model.encode(images, rays, rays), tokens)
    assert tokens.shape == (2, model.decoder.tokens, 32)
    assert torch.equal(tokens, model.hyper(images[:, 0] * 2 - 1, torch.zeros(2)))
    assert not torch.allclose(model.encode(images.flip(-1)), tokens)
    views = model.render_view(tokens, orbit_poses(3, 1.3), 7, 9, focal=9.0)
    assert views.shape == (2, 3, 3, 7, 9)
    with pytest.raises(ValueError, match="images: expected shape"):
        model.encode(images.expand(-1, 2, -1, -1, -1))
    with pytest.raises(TypeError, match="images: expected floating point"):
        model.encode((images * 255).byte())


def test_samples_do_not_depend_on_the_batch(model: InrctScenes) -> None:
    for steps in (1, 2):
        options = SamplingOptions(steps=steps, seed=3)
        together = model.draw([0, 1, 5], options)
        torch.testing.assert_close(model.draw([5], options), together[2:], rtol=1e-4, atol=1e-5)
        assert model.evaluations(options) == steps
    assert not torch.allclose(model.draw([5]), together[2:], atol=1e-3)
    first = 80 * noise((3, SIZE, SIZE), [5], 0, 0)
    torch.testing.assert_close(model.draw([5]), model.hyper(first, torch.tensor([80.0])))
    for steps in (1, 2):  # none is drawn in several steps, too
        none = model.draw([], SamplingOptions(steps=steps))
        assert none.shape == (0, model.decoder.tokens, 32)
    for name in ("label", "guidance"):
        with pytest.raises(ValueError, match=f"{name}: this model has no classes"):
            model.draw([0], SamplingOptions(**{name: 2}))


def test_places_between_samples_lead_from_one_to_the_other(model: InrctScenes) -> None:
    options = SamplingOptions(steps=2, seed=3)
    corners = (0, 1, 5, 2)
    ends = [Between(corners, down, across) for down in (0.0, 1.0) for across in (0.0, 1.0)]
    alone = model.draw(corners, options)
    torch.testing.assert_close(model.draw(ends, options), alone, rtol=1e-4, atol=1e-5)
    # Where the nearest corner becomes another one, nothing jumps.
    near = model.draw([Between(corners, 0.4999, 0.0), Between(corners, 0.5001, 0.0)], options)
    assert (near[0] - near[1]).norm() < 1e-2 * (alone[0] - alone[2]).norm()


def test_training_outputs_are_those_of_the_formula(model: InrctScenes) -> None:
    """f = c_skip·q_t + (1 − c_skip)·T_q(M), of the twin at t and of the model itself at r."""
    model.begin_training()
    with torch.no_grad():
        for parameter in model.twin().parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    t, r = torch.tensor([0.004, 0.7, 60.0]), torch.tensor([0.3, 40.0])
    noisy, values = torch.randn(3, 3, SIZE, SIZE), torch.randn(3, 10, 3)
    origins = torch.tensor([1.3, 0.0, 0.0]).expand(3, 10, 3)
    directions = torch.randn(3, 10, 3) * 0.2 - torch.tensor([1.0, 0.0, 0.0])
    earlier = EarlierViews(noisy[1:] / 2, r, origins[1:], directions[1:], values[1:] / 3)
    found = model(noisy, t, origins, directions, values, earlier)
    assert found.followed is not None and not found.followed.requires_grad

    def expected(shown: InrctScenes, noisy: Any, level: Any, rays: Any, values: Any) -> Any:
        skip = 0.5 / (level.double() ** 2 + 0.5)
        scale = (level.double() ** 2 + 0.5) ** -0.5
        data = shown.patch_tokenizer(noisy * scale.float()[:, None, None, None])
        tokens = shown.hyper_network(data, level)
        signal = shown.color(*rays, tokens).double() * 2 - 1
        return signal, skip[:, None, None] * values + (1 - skip[:, None, None]) * signal

    signal, denoised = expected(model.twin(), noisy, t, (origins, directions), values)
    torch.testing.assert_close(found.signal.double(), signal, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.denoised.double(), denoised, rtol=1e-5, atol=1e-5)
    followed = expected(model, noisy[1:] / 2, r, (origins[1:], directions[1:]), values[1:] / 3)[1]
    torch.testing.assert_close(found.followed.double(), followed, rtol=1e-5, atol=1e-5)
    assert model(noisy, t, origins, directions, values).followed is None
    torch.testing.assert_close(found.denoised[0], values[0], atol=1e-3, rtol=0)


# Recipes


def test_the_recipe_has_the_published_values() -> None:
    chosen = recipe("inrct-cars")
    assert isinstance(chosen, InrctScenesRecipe)
    assert (chosen.epochs, chosen.reconstruction_epochs) == (6000, 1000)
    assert (chosen.batch_size, chosen.learning_rate) == (128, 1e-4)
    sizes = chosen.model
    assert (sizes.image_size, sizes.patch_size, sizes.hidden_dim) == (128, 8, 256)
    assert sizes.spec.layers == 6 and (sizes.near, sizes.far) == (0.8, 1.8)
    hyper = sizes.hyper
    assert (hyper.dim, hyper.mlp_dim, hyper.encoder_depth, hyper.decoder_depth) == (768, 3072, 8, 6)
    assert (chosen.support, chosen.queries) == (1, 1)
    plain = json.loads(json.dumps(as_plain(chosen)))
    assert from_plain(InrctScenesRecipe, plain) == chosen
    for name in ("support", "queries"):
        with pytest.raises(ValueError, match=f"{name}: INRCT takes one view, got 2"):
            replace(chosen, **{name: 2})
    with pytest.raises(ValueError, match="focal: expected above 0"):
        replace(MODEL, focal=0.0)


# Training


def test_batches_are_functions_of_seed_step_and_slots(scenes: DataOptions) -> None:
    task = task_of(RECIPE, scenes)
    whole, again = (list(task.batches(2, 4, range(4), 0, False)) for _ in range(2))
    part = list(task.batches(2, 4, range(2, 4), 0, False))
    for left, right, share in zip(whole, again, part, strict=True):
        for one, other, some in zip(left, right, share, strict=True):
            assert torch.equal(one, other) and torch.equal(one[2:], some)
    assert not torch.equal(whole[0].support_noise, whole[1].support_noise)
    assert not torch.equal(whole[0].support_noise[0], whole[0].support_noise[1])


@pytest.mark.parametrize("step", [0, 2, 3, 5])
def test_the_loss_is_that_of_the_paper(step: int, scenes: DataOptions) -> None:
    """Instance by instance, in the first stage, where r = 0 everywhere, somewhere and nowhere."""
    task = task_of(replace(RECIPE, objective=Objective(2.0, 3.0, 5.0, "squared")), scenes)
    model, schedule = task.model, MODEL.schedule
    with torch.no_grad():
        for parameter in model.twin().parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    batch, slots = task.noisy_batch(step, range(4)), range(4)
    outputs = []

    def forward(*given: Any) -> Any:
        outputs.append(given)
        return model(*given)

    found = task.loss(forward, batch, step, slots).total
    t = schedule.draw(0, step, slots, below=step < 2)
    r = schedule.earlier(t, step - 2) if step >= 2 else 0 * t
    assert ((r > 0).any(), (r > 0).all()) == (step > 2, step == 5)
    seed, total = outputs[0][6], 0.0
    for i in range(4):
        row = slice(i, i + 1)
        colors = batch.colors[row] * 2 - 1
        # The jitter of the whole batch: rendered together, then one picked.
        noisy = batch.support * 2 - 1 + t[:, None, None, None] * batch.support_noise
        tokens = model.twin().hyper(noisy, t)
        signal = model.twin().color(batch.origins, batch.directions, tokens, seed)[row] * 2 - 1
        skip = 0.5 / (t[i].double() ** 2 + 0.5)
        at_t = colors + t[i] * batch.color_noise[row]
        denoised = skip * at_t + (1 - skip) * signal
        followed = colors.double()
        if r[i] > 0:
            noisy = batch.support * 2 - 1 + r[:, None, None, None] * batch.support_noise
            shown = model.color(batch.origins, batch.directions, model.hyper(noisy, r), seed)[row]
            skip = 0.5 / (r[i].double() ** 2 + 0.5)
            at_r = colors + r[i] * batch.color_noise[row]
            followed = skip * at_r + (1 - skip) * (shown * 2 - 1)
        generation = (denoised - followed).square().mean()
        reconstruction = (signal - colors).square().mean() * (t[i] < 0.007)
        diffusion = (denoised - colors).square().mean() * (t[i] < 0.0865)
        if step < 2:
            total = total + reconstruction / 4
        else:
            total = total + (2 * generation + 3 * reconstruction + 5 * diffusion) / 4
    torch.testing.assert_close(found.double(), torch.as_tensor(total).double(), rtol=1e-4, atol=0)
    found.backward()
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("online."))
    assert all(p.grad is not None for p in model.twin().decoder.parameters())


def test_a_resumed_run_ends_with_the_same_weights(scenes: DataOptions, tmp_path: Path) -> None:
    data, whole, parts = open_data(RECIPE, scenes), tmp_path / "whole", tmp_path / "parts"
    finished = train(RECIPE, data, whole, QUIET)
    assert finished.scores.psnr > 0
    assert Image.open(whole / "images" / "step-000000003.png").width > 2 * SIZE
    with pytest.raises(Stopped):
        train(RECIPE, data, parts, QUIET, stop_at(5))
    again = train(RECIPE, data, parts, QUIET)
    assert same(weights_of(whole), weights_of(parts))
    # Exported is the average alone; a checkpoint has its twin, too.
    exported, twin = weights_of(whole), load_checkpoint(whole / "checkpoints/step-000000006.pt")
    assert set(exported) == set(InrctScenes(MODEL).state_dict())
    assert not torch.equal(
        twin.model["online.hyper_network.tokens"], exported["hyper_network.tokens"]
    )
    options = EvaluationOptions(picture=tmp_path / "picture.png", tto=2)
    tables = []
    for path in (whole, whole / "checkpoints" / "step-000000006.pt"):
        tables.append(restored(load_saved(path), scenes, torch.device("cpu")).table(options))
        found = load_generative(path).model
        torch.testing.assert_close(found.draw([2]), again.model.draw([2]))
    assert tables[0] == tables[1] and len(tables[0].rows) == 2
    assert (tmp_path / "picture.png").is_file()


def test_the_average_is_a_copy_in_the_first_stage(scenes: DataOptions) -> None:
    task = task_of(RECIPE, scenes)
    optimizer = task.optimizer(task.parameter_groups())
    assert isinstance(optimizer, torch.optim.RAdam)
    for step in range(3):
        task.loss(task.model, task.noisy_batch(step, range(4)), step, range(4)).total.backward()
        optimizer.step()
        task.after_step(step)
        twin = task.model.twin().hyper_network.tokens
        assert torch.equal(task.model.hyper_network.tokens, twin) == (step < 2)


def test_training_learns_scenes(scenes: DataOptions, tmp_path: Path) -> None:
    errors: list[float] = []
    schedule = ConsistencySchedule(doubling=1000, reconstruction_below=0.05)
    chosen = replace(
        RECIPE,
        model=replace(MODEL, schedule=schedule),
        steps=120,
        reconstruction_steps=60,
        learning_rate=1e-2,
        gradient_clip=1.0,
    )
    quiet = replace(QUIET, checkpoint_every=1000, evaluate_every=1000)
    data = open_data(chosen, scenes)
    found = train(chosen, data, tmp_path, quiet, lambda step, loss: errors.append(loss.item()))
    assert sum(errors[50:60]) < 0.75 * sum(errors[:10])
    assert found.scores.psnr > found.scores.values()["baseline_psnr"] + 0.5


def test_orbits_from_the_command_line(
    scenes: DataOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_data(RECIPE, scenes)
    train(replace(RECIPE, steps=1), data, tmp_path / "run", QUIET)
    shown = ["--instances", "1", "--views", "2", "--size", "9", "--data", str(scenes.data)]
    out = tmp_path / "out"
    command = ["render", str(tmp_path / "run"), *shown, "--out", str(out)]
    assert cli.main([*command, "--format", "png"]) == 0
    assert "held-out scenes 1" in capsys.readouterr().out
    assert Image.open(out / "views.png").height > 9
    assert cli.main([*command, "--support-views", "2"]) == 2
    assert "images: expected shape" in capsys.readouterr().err


def test_test_time_optimisation_starts_from_one_view(model: InrctScenes) -> None:
    from ginr_fast.systems.fit_instances import fit_views

    images, rays = torch.rand(1, 1, 3, SIZE, SIZE), torch.randn(1, 1, SIZE, SIZE, 3)
    fitted = fit_views(model, images, rays, rays, FittingOptions(steps=1, points=5))
    assert fitted.instances.shape == model.encode(images).shape
