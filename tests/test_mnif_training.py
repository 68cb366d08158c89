"""mNIF's recipes and tasks: data, training, resuming, evaluation, commands."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_training import MNIF, MNIF_MODEL, QUIET, Stopped, same, stop_at, weights_of

from ginr_fast import cli
from ginr_fast.data import photos
from ginr_fast.systems.mnif import MNIF_SIZES
from ginr_fast.systems.mnif_adaptation import AutoDecoder, Cavia, CaviaConfig
from ginr_fast.training.checkpoints import CheckpointError, load_model, load_saved
from ginr_fast.training.loop import train
from ginr_fast.training.metrics import FieldSum
from ginr_fast.training.recipes import (
    MNIF_RECIPES,
    AutoDecodingConfig,
    MnifRecipe,
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
from ginr_fast.training.tasks.mnif import MnifTask

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")

ADAPTATIONS = ("cavia", "auto-decoding")


def task_of(chosen: MnifRecipe) -> MnifTask:
    """A task with its model, untrained."""
    torch.manual_seed(chosen.seed)
    task = task_for(chosen, open_data(chosen))
    assert isinstance(task, MnifTask)
    task.build()
    task.place(torch.device("cpu"))
    return task


# Recipes


def test_recipes_have_the_published_values() -> None:
    for name in ("s", "l"):
        images, voxels = recipe(f"mnif-images-celeba-{name}"), recipe(f"mnif-voxels-{name}")
        assert isinstance(images, MnifRecipe) and isinstance(voxels, MnifRecipe)
        assert (images.epochs, voxels.epochs) == (800, 400)
        for chosen, size in ((images, f"images-{name}"), (voxels, f"voxels-{name}")):
            assert chosen.model == MNIF_SIZES[size] and chosen.adaptation == "cavia"
            assert (chosen.learning_rate, chosen.batch_size) == (1e-4, 32)
            assert chosen.cavia.inner_steps == 3 and chosen.cavia.second_order
            # 1.0 on the mean over a batch of 32, as published.
            assert chosen.cavia.inner_learning_rate * chosen.batch_size == 1.0
            assert chosen.schedule == "cosine"
    cars = recipe("mnif-scenes-cars")
    assert (cars.model, cars.adaptation) == (MNIF_SIZES["scenes-s"], "auto-decoding")
    assert (cars.epochs, cars.batch_size, cars.views, cars.rays) == (2000, 8, 32, 512)
    assert (cars.model.near, cars.model.far, cars.model.samples) == (0.8, 1.8, 32)


@pytest.mark.parametrize("name", MNIF_RECIPES)
def test_recipes_survive_being_written(name: str) -> None:
    chosen = recipe(name)
    plain = json.loads(json.dumps(as_plain(chosen)))
    assert from_plain(SYSTEMS[chosen.system][0], plain) == chosen


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("images", {"adaptation": "maml"}, "adaptation: expected 'cavia'"),
        ("images", {"latent_std": -1.0}, "latent_std"),
        ("images", {"output_learning_rate": 0.0}, "output_learning_rate"),
        ("images", {"precision": "bf16-mixed"}, "precision: the phases"),
        ("images", {"model": MNIF_SIZES["voxels-s"]}, "model.modality: expected 'image'"),
        ("images", {"coordinates": 257}, "coordinates: expected at most the 256 pixels"),
        ("images", {"image_size": 0}, "image_size"),
        ("voxels", {"points": 0}, "points"),
        ("voxels", {"made_shapes": -1}, "made_shapes"),
        ("scenes", {"rays": 0}, "rays"),
        ("scenes", {"batch_size": 0}, "batch_size"),
    ],
)
def test_recipes_name_bad_values(name: str, changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        replace(MNIF[name], **changes)


def test_auto_decoding_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="weight_decay: expected at least 0"):
        AutoDecodingConfig(weight_decay=-1.0)
    with pytest.raises(ValueError, match="fit_steps"):
        AutoDecodingConfig(fit_steps=0)
    with pytest.raises(ValueError, match="fit_learning_rate"):
        AutoDecodingConfig(fit_learning_rate=0.0)


# Tasks


@pytest.mark.parametrize("name", MNIF)
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_batches_are_functions_of_seed_step_and_slots(name: str, adaptation: str) -> None:
    task = task_of(replace(MNIF[name], adaptation=adaptation))
    batches = [list(task.batches(2, 4, range(4), 0, False)) for _ in range(2)]
    half = list(task.batches(2, 4, range(2, 4), 0, False))
    for first, again, part in zip(*batches, half, strict=True):
        for left, right, share in zip(first.data, again.data, part.data, strict=True):
            assert torch.equal(left, right) and torch.equal(left[2:], share)
        assert torch.equal(first.indices[2:], part.indices)
    assert not torch.equal(batches[0][0].data[-1], batches[0][1].data[-1])
    assert torch.equal(task.initial(3, range(2, 4)), task.initial(3, range(4))[2:])


@pytest.mark.parametrize("name", MNIF)
def test_values_have_the_range_of_their_modality(name: str) -> None:
    task = task_of(MNIF[name])
    (batch,) = task.batches(0, 1, range(4), 0, False)
    *_, target = task.samples(batch.data, 0)
    low, high = target.min().item(), target.max().item()
    if name == "scenes":
        assert task.value_range == 1.0 and 0 <= low < 0.7 and high == 1.0
    else:
        assert task.value_range == 2.0 and -1 <= low < 0 < high <= 1
    if name == "voxels":
        assert set(target.unique().tolist()) == {-1.0, 1.0}


def test_auto_decoding_learns_every_instance_in_an_epoch() -> None:
    settings = AutoDecodingConfig(learning_rate=3.0)
    chosen = replace(MNIF["images"], auto_decoding=settings, output_learning_rate=2.0)
    task = task_of(replace(chosen, adaptation="auto-decoding", batch_size=5))
    assert task.instances == 10 and task.steps_per_epoch() == 2
    seen = torch.cat([batch.indices for batch in task.batches(0, 2, range(5), 0, False)])
    assert sorted(seen.tolist()) == list(range(10))
    groups = task.parameter_groups()
    assert isinstance(task.model, AutoDecoder)
    assert [group.get("lr_scale") for group in groups] == [None, 2.0, 3.0]
    assert groups[1]["params"][0] is task.mnif.bases[-2]
    assert groups[2]["params"][0] is task.model.latents.weight
    assert sum(len(group["params"]) for group in groups) == len(list(task.model.parameters()))


# Training


@pytest.mark.parametrize("name", MNIF)
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_training_reduces_the_loss(name: str, adaptation: str, tmp_path: Path) -> None:
    steps = 60 if name == "images" else 200
    settings = AutoDecodingConfig(learning_rate=3.0, fit_steps=20)
    chosen = replace(
        MNIF[name],
        adaptation=adaptation,
        auto_decoding=settings,
        steps=steps,
        learning_rate=3e-3,
        cavia=CaviaConfig(inner_learning_rate=0.1, inner_steps=2),
    )
    options = replace(QUIET, checkpoint_every=1000, evaluate_every=1000)
    losses: list[float] = []
    result = train(
        chosen, open_data(chosen), tmp_path, options, lambda step, loss: losses.append(loss.item())
    )
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert isinstance(result.model, Cavia if adaptation == "cavia" else AutoDecoder)
    assert math.isfinite(result.scores.psnr) and result.scores.psnr > 5
    assert Image.open(tmp_path / "images" / f"step-{steps:09d}.png").size[0] > 90


@pytest.mark.parametrize("name", MNIF)
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_a_resumed_run_ends_with_the_same_weights(
    name: str, adaptation: str, tmp_path: Path
) -> None:
    chosen = replace(MNIF[name], adaptation=adaptation)
    data, whole, parts = open_data(chosen), tmp_path / "whole", tmp_path / "parts"
    train(chosen, data, whole, QUIET)
    with pytest.raises(Stopped):
        train(chosen, data, parts, QUIET, stop_at(5))
    torch.rand(3)  # whatever happened to the global generator in between
    seen: list[int] = []
    train(chosen, data, parts, QUIET, lambda step, loss: seen.append(step))
    assert seen == [5, 6]
    assert same(weights_of(parts), weights_of(whole))


def test_another_system_or_adaptation_is_refused(tmp_path: Path) -> None:
    chosen = MNIF["images"]
    train(chosen, photos(), tmp_path, QUIET)
    with pytest.raises(CheckpointError, match="adaptation: cavia against auto-decoding"):
        train(replace(chosen, adaptation="auto-decoding"), photos(), tmp_path, QUIET)
    voxels = MNIF["voxels"]
    with pytest.raises(CheckpointError, match="is of mnif-images, not mnif-voxels"):
        train(voxels, open_data(voxels), tmp_path, QUIET)
    with pytest.raises(CheckpointError, match="holds mnif-images; expected one of la-ginr"):
        load_model(tmp_path)


# Evaluation


@pytest.mark.parametrize("name", MNIF)
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_a_restored_model_scores_as_it_did(name: str, adaptation: str, tmp_path: Path) -> None:
    settings = AutoDecodingConfig(fit_steps=10)
    chosen = replace(MNIF[name], adaptation=adaptation, auto_decoding=settings)
    result = train(chosen, open_data(chosen), tmp_path, QUIET)
    for path in (tmp_path, tmp_path / "checkpoints"):
        task = restored(load_saved(path), DataOptions(), torch.device("cpu"))
        assert isinstance(task, MnifTask) and task.recipe == chosen
        assert not task.model.training
        assert task.scores(task.evaluate(0, 1)).values() == result.scores.values()
    halves = task.evaluate(0, 2) + task.evaluate(1, 2)
    assert task.scores(halves).psnr == pytest.approx(result.scores.psnr, abs=1e-3)
    picture = tmp_path / "held-out.png"
    table = task.table(EvaluationOptions(batch_size=2, instances=2, fit_views=4, picture=picture))
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert len(table.rows) == (1 if adaptation == "cavia" and name != "scenes" else 2)
    assert "held-out" in table.rows[-1][0]
    assert Image.open(picture).size[1] > 2 * 90


def test_the_baseline_is_the_mean_of_the_training_data() -> None:
    images = task_of(MNIF["images"])
    views = torch.stack([images.fixed[index] for index in range(10)]).float() / 255
    assert torch.allclose(images.mean_image, views.mean(0), atol=1e-6)
    voxels = task_of(MNIF["voxels"])
    grids = voxels.train_shapes.voxels(torch.arange(6)).float().mean(0)
    assert torch.allclose(voxels.mean_shape, grids)
    corner = torch.tensor([[[-1.0, -1.0, -1.0], [0.999, 0.999, 0.999]]])
    found = voxels._mean_at(corner)[0, :, 0]
    assert found.tolist() == [grids[0, 0, 0], grids[-1, -1, -1]]
    scenes = task_of(MNIF["scenes"])
    every = torch.cat([scenes.train_scenes.scene(index).images for index in range(4)])
    expected = every.float().mean(0).permute(2, 0, 1) / 255
    assert torch.allclose(scenes.mean_image, expected, atol=1e-6)


def test_field_scores() -> None:
    targets = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    values = (targets - 0.1).abs()
    values[1, 0] = 0.4  # one point on the wrong side
    total = FieldSum()
    total.update(values[:1], targets[:1], torch.full((1, 4), 0.5), "points")
    total.update(values[1:], targets[1:], torch.full((1, 4), 0.5), "points")
    scores = total.scores("shapes")
    assert scores.count == 2 and math.isnan(scores.ssim)
    assert scores.mse == pytest.approx((0.01 + (0.36 + 0.03) / 4) / 2)
    assert scores.psnr == pytest.approx((20 - 10 * math.log10((0.36 + 0.03) / 4)) / 2)
    assert scores.baseline_psnr == pytest.approx(-10 * math.log10(0.25))
    assert (scores.accuracy, scores.iou) == (pytest.approx(7 / 8), pytest.approx(3 / 4))
    assert "accuracy 0.8750, IoU 0.7500" in scores.summary() and "SSIM" not in scores.summary()
    assert scores.values().keys() == {"psnr", "mse", "baseline_psnr", "accuracy", "iou"}
    with pytest.raises(ValueError, match="shapes: expected at least one"):
        FieldSum().scores("shapes")


# Data a user brings


def test_missing_data_is_asked_for(tmp_path: Path) -> None:
    for name, words in (
        ("mnif-images-celeba-s", "folder of images; name it with --data"),
        ("mnif-voxels-s", "IM-Net's HDF5 files; name their folder with --data"),
        ("mnif-scenes-cars", "SRN's format; name their folder with --data"),
    ):
        with pytest.raises(ValueError, match=words):
            open_data(recipe(name))
    with pytest.raises(ValueError, match="one HDF5 file with train in its name .* got 0"):
        open_data(MNIF["voxels"], DataOptions(tmp_path))
    with pytest.raises(FileNotFoundError, match="is no folder"):
        open_data(MNIF["voxels"], DataOptions(tmp_path / "absent"))


def test_named_data_is_used(tmp_path: Path) -> None:
    made = {name: open_data(MNIF[name]) for name in ("voxels", "scenes")}
    shapes = tmp_path / "shapes"
    shapes.mkdir()
    for split, points in zip(("train", "test"), made["voxels"], strict=True):
        (shapes / f"all_vox256_img_{split}.hdf5").write_bytes(points.path.read_bytes())
    named = open_data(replace(MNIF["voxels"], made_shapes=0), DataOptions(shapes))
    assert named.train.fingerprint() == made["voxels"].train.fingerprint()
    scenes = made["scenes"].train.folder.parent
    named = open_data(replace(MNIF["scenes"], made_scenes=0), DataOptions(scenes))
    assert named.train.names == made["scenes"].train.names and named.novel is not None
    with pytest.raises(ValueError, match="points: expected at most 512"):
        task_for(replace(MNIF["voxels"], points=513), made["voxels"])


# Commands


@pytest.mark.parametrize("name", ["mnif-images-tiny", "mnif-voxels-tiny", "mnif-scenes-tiny"])
def test_commands_explain_the_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in ("--adaptation", "--cavia.inner-steps", "--model.mixtures", "--model.latent-dim"):
        assert option in text
    assert "--cavia.second-order" in text and "--model.coefficients" in text


def test_train_then_eval(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    model = "--model.hidden-layers 1 --model.hidden-dim 16 --model.mixtures 6 --model.latent-dim 8"
    options = (
        f"{model} --model.coefficients shared --model.samples 8 --image-size 12 --made-scenes 4 "
        "--made-views 6 --made-held-out 2 --novel-views 6 --views 4 --rays 16 --steps 3 "
        "--auto-decoding.fit-steps 3 --batch-size 4 --accelerator cpu --no-progress "
        "--no-tensorboard"
    )
    command = ["train", "mnif-scenes-tiny", "--out", run, *options.split()]
    assert cli.main(command) == 0
    trained = re.search(
        r"novel views of training scenes: PSNR ([\d.]+) dB.*mean in training: ([\d.]+) dB",
        capsys.readouterr().out,
    )
    assert trained
    assert cli.main(command) == 0  # nothing is left to do
    assert trained[0] in capsys.readouterr().out
    picture = tmp_path / "sheet.png"
    assert cli.main(["eval", run, "--instances", "2", "--picture", str(picture)]) == 0
    table = capsys.readouterr().out
    assert "made cars" in table and "held-out" in table and picture.is_file()
    assert cli.main(["eval", run, "--instances", "1", "--fit-views", "24"]) == 2
    assert "fit_views: expected less than the 24 views" in capsys.readouterr().err


def test_unknown_fields_of_an_export_are_named(tmp_path: Path) -> None:
    assert MNIF_MODEL.coefficients == "latent"
    train(MNIF["images"], photos(), tmp_path, QUIET)
    saved = load_saved(tmp_path)
    strange = replace(saved, recipe={**saved.recipe, "colour": "red"})
    with pytest.raises(CheckpointError, match="does not fit this version.*no colour"):
        restored(strange, DataOptions(), torch.device("cpu"))
    with pytest.raises(CheckpointError, match="expected one of la-ginr, .* got other"):
        restored(replace(saved, system="other"), DataOptions(), torch.device("cpu"))
    wider = {**saved.recipe, "model": {**saved.recipe["model"], "mixtures": 7}}
    with pytest.raises(CheckpointError, match="does not fit this version"):
        restored(replace(saved, recipe=wider), DataOptions(), torch.device("cpu"))


# Several processes

SCRIPT = """
import sys, torch
from dataclasses import replace
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from small_training import MNIF, QUIET
from ginr_fast.training.loop import train
from ginr_fast.training.tasks import open_data
for adaptation in ("cavia", "auto-decoding"):
    chosen = replace(MNIF["voxels"], adaptation=adaptation)
    train(chosen, open_data(chosen), Path({out!r}) / adaptation, QUIET)
"""


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    script, two = tmp_path / "script.py", tmp_path / "two"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(two)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(script)], check=True, env=environment, capture_output=True)
    for adaptation in ADAPTATIONS:
        chosen = replace(MNIF["voxels"], adaptation=adaptation)
        train(chosen, open_data(chosen), tmp_path / adaptation, QUIET)
        one, other = weights_of(tmp_path / adaptation), weights_of(two / adaptation)
        assert one.keys() == other.keys()
        for name in one:
            assert (one[name] - other[name]).norm() <= 2e-3 * one[name].norm() + 1e-4, name
