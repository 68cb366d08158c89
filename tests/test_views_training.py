"""Few-shot view synthesis: recipes, data, training, resuming, evaluation, commands."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_training import QUIET, Stopped, same, stop_at, weights_of

from ginr_fast import cli
from ginr_fast.data import BrokenSceneError, CarsConfig, make_cars
from ginr_fast.systems.light_fields import IpcLightFieldConfig, LaGinrLightFieldConfig
from ginr_fast.systems.radiance_views import IpcViewsConfig, TransInrViewsConfig
from ginr_fast.training.checkpoints import load_saved
from ginr_fast.training.loop import train
from ginr_fast.training.metrics import psnr_each
from ginr_fast.training.recipes import (
    VIEWS_RECIPES,
    IpcLightFieldRecipe,
    IpcViewsRecipe,
    LaGinrLightFieldRecipe,
    TransInrViewsRecipe,
    ViewsRecipe,
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
from ginr_fast.training.tasks.views import ViewsTask

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")

ENCODER: dict[str, Any] = {
    "image_size": 12,
    "patch_size": 4,
    "encoder_dim": 32,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "encoder_head_dim": 16,
    "encoder_mlp_dim": 48,
}
RADIANCE: dict[str, Any] = {
    **ENCODER,
    "hidden_dim": 16,
    "hidden_layers": 1,
    "frequencies": 3,
    "bandwidth": 4.0,
    "samples": 8,
}
TRAINING: dict[str, Any] = {
    "data_format": "srn",
    "training_views": None,
    "support": 2,
    "queries": 2,
    "rays": 24,
    "scored_views": 6,
    "made_scenes": 4,
    "made_views": 6,
    "made_held_out": 2,
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 3e-3,
}
RECIPES: dict[str, ViewsRecipe] = {
    "trans-inr": TransInrViewsRecipe(
        model=TransInrViewsConfig(
            **RADIANCE, groups=4, camera_distance=1.3, near=0.8, far=1.8, view_dim=8
        ),
        **TRAINING,
    ),
    "ipc": IpcViewsRecipe(
        model=IpcViewsConfig(**RADIANCE, latents=8),
        **{**TRAINING, "data_format": "learnit", "any_support": True},
    ),
    "la-ginr light field": LaGinrLightFieldRecipe(
        model=LaGinrLightFieldConfig(
            **ENCODER, latents=8, token_dim=24, hidden_dim=24, feature_dim=36, camera_distance=1.3
        ),
        **TRAINING,
    ),
    "ipc light field": IpcLightFieldRecipe(
        model=IpcLightFieldConfig(
            **ENCODER, hidden_dim=24, hidden_layers=1, frequencies=3, latents=8, camera_distance=1.3
        ),
        **TRAINING,
    ),
}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A folder of scenes in SRN's format, to break."""
    config = CarsConfig(3, views=4, test_scenes=1, test_views=3, size=12, supersample=1)
    return make_cars(tmp_path / "cars", config)


def task_of(chosen: ViewsRecipe, options: DataOptions | None = None) -> ViewsTask:
    """A task with its model, untrained."""
    torch.manual_seed(chosen.seed)
    task = task_for(chosen, open_data(chosen, options))
    assert isinstance(task, ViewsTask)
    task.build()
    task.place(torch.device("cpu"))
    return task


# Recipes


def test_recipes_have_the_published_values() -> None:
    episodes = {"cars": 2, "chairs": 1, "lamps": 3}
    epochs = {
        "trans-inr-nerf": (1000, 1000, 1000),
        "ipc-nerf": (1000, 1000, 400),
        "la-ginr-lightfield": (1000, 1000, 500),
        "ipc-lightfield": (1000, 1000, 500),
    }
    for system, passes in epochs.items():
        for category, count in zip(episodes, passes, strict=True):
            chosen = recipe(f"{system}-{category}")
            assert isinstance(chosen, ViewsRecipe)
            assert (chosen.category, chosen.data_format) == (category, "learnit")
            assert chosen.epochs == count and chosen.episodes_per_scene == episodes[category]
            assert (chosen.batch_size, chosen.learning_rate) == (32, 1e-4)
            assert chosen.betas == (0.9, 0.999) and chosen.training_views == 25
            assert (chosen.support, chosen.queries, chosen.rays) == (1, 1, 128)
            assert chosen.foreground_balanced_epochs == 1 and not chosen.any_support
            assert chosen.schedule == ("step" if system == "trans-inr-nerf" else "constant")
            assert chosen.model == type(chosen.model)()


@pytest.mark.parametrize("name", VIEWS_RECIPES)
def test_recipes_survive_being_written(name: str) -> None:
    chosen = recipe(name)
    plain = json.loads(json.dumps(as_plain(chosen)))
    assert from_plain(SYSTEMS[chosen.system][0], plain) == chosen


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data_format": "nerf"}, "data_format: expected 'learnit' or 'srn', got 'nerf'"),
        ({"support": 0}, "support: expected a positive integer"),
        ({"training_views": 0}, "training_views: expected a positive integer"),
        ({"made_scenes": -1}, "made_scenes: expected at least 0"),
        ({"foreground_balanced_epochs": -1}, "foreground_balanced_epochs: expected at least 0"),
        ({"training_views": 3}, "support, queries: expected together at most the 3 training_views"),
        ({"rays": 289}, "rays: expected at most the 288 pixels of the query views, got 289"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_recipes_name_bad_values(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        replace(RECIPES["trans-inr"], **changes)


# Data


@pytest.mark.parametrize("name", RECIPES)
def test_batches_are_functions_of_seed_step_and_slots(name: str) -> None:
    task = task_of(RECIPES[name])
    batches = [list(task.batches(2, 4, range(4), 0, False)) for _ in range(2)]
    half = list(task.batches(2, 4, range(2, 4), 0, False))
    for first, again, part in zip(*batches, half, strict=True):
        for left, right, share in zip(first, again, part, strict=True):
            assert torch.equal(left, right) and torch.equal(left[2:], share)
        assert first.support_images.shape[2:] == (3, 12, 12)
        assert first.colors.shape == first.origins.shape == first.directions.shape == (4, 24, 3)
    assert not torch.equal(batches[0][0].colors, batches[0][1].colors)


def test_the_number_of_support_views_is_drawn_where_asked() -> None:
    fixed = replace(RECIPES["ipc"], support=3, any_support=False)
    for chosen, expected in ((fixed, {3}), (replace(fixed, any_support=True), {1, 2, 3})):
        task = task_of(chosen)
        counts = [task.batch(step, range(2)).support_images.shape[1] for step in range(20)]
        assert set(counts) == expected
        assert counts == [task.batch(s, range(2, 4)).support_images.shape[1] for s in range(20)]


def test_first_epochs_see_more_of_the_foreground() -> None:
    def share(task: ViewsTask, steps: range) -> float:
        colors = torch.cat([task.batch(step, range(4)).colors for step in steps])
        return float((colors < 1).any(-1).float().mean())

    task = task_of(replace(RECIPES["trans-inr"], foreground_balanced_epochs=5, batch_size=4))
    assert task.steps_per_epoch() == 1
    balanced, even = share(task, range(5)), share(task, range(5, 10))
    assert balanced > 0.5 and balanced > even + 0.1
    twice = task_of(replace(RECIPES["trans-inr"], episodes_per_scene=2))
    assert twice.steps_per_epoch() == 2


def test_scenes_are_needed() -> None:
    for data_format in ("srn", "learnit"):
        chosen = replace(RECIPES["ipc"], made_scenes=0, data_format=data_format)
        with pytest.raises(ValueError, match=f"data: this recipe .*{data_format}; .*--data"):
            open_data(chosen)


def test_broken_folders_are_named(tmp_path: Path, scenes: Path) -> None:
    srn, learnit = RECIPES["trans-inr"], replace(RECIPES["ipc"], category="lamps")
    for chosen in (srn, learnit):
        with pytest.raises(FileNotFoundError, match="data: .*nothing is no folder"):
            open_data(chosen, DataOptions(data=tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds neither train nor NAME_train"):
        open_data(srn, DataOptions(data=tmp_path / "empty"))
    with pytest.raises(BrokenSceneError, match="lamps_splits.json: missing"):
        open_data(learnit, DataOptions(data=tmp_path / "empty"))
    shutil.rmtree(scenes / "cars_train" / "car-000001" / "pose")
    with pytest.raises(BrokenSceneError, match="car-000001/pose: missing"):
        open_data(srn, DataOptions(data=scenes))


def test_wrong_poses_are_named_when_they_are_met(scenes: Path) -> None:
    path = scenes / "cars_train" / "car-000001" / "pose" / "000002.txt"
    path.write_text(" ".join(["2 0 0 0  0 1 0 0  0 0 1 0  0 0 0 1"]))
    task = task_of(RECIPES["trans-inr"], DataOptions(data=scenes))
    with pytest.raises(BrokenSceneError, match="car-000001/pose/000002.txt: expected a rotation"):
        task.batch(0, range(4))


def test_too_few_views_are_named(scenes: Path) -> None:
    options = DataOptions(data=scenes)
    task = task_of(replace(RECIPES["trans-inr"], support=3), options)
    with pytest.raises(ValueError, match=r"scene car-00000\d has 4 views, 3 \+ 2 were asked for"):
        task.batch(0, range(4))
    with pytest.raises(ValueError, match="less than the 3 views that scene car-000000 has, got 3"):
        task.evaluate(0, 1)
    enough = task_of(RECIPES["trans-inr"], options)
    with pytest.raises(ValueError, match="less than the 3 views that scene car-000000 has, got 4"):
        enough.table(EvaluationOptions(support_views=4))


def squashed(scene: Path, width: int) -> None:
    """Make the views of a scene as wide as that."""
    for path in (scene / "rgb").glob("*.png"):
        Image.open(path).resize((width, 12)).save(path)
    lines = (scene / "intrinsics.txt").read_text().splitlines()
    (scene / "intrinsics.txt").write_text("\n".join([*lines[:-1], f"12 {width}"]) + "\n")


def test_views_of_other_sizes_are_named(scenes: Path) -> None:
    chosen, options = RECIPES["la-ginr light field"], DataOptions(data=scenes)
    squashed(scenes / "cars_test" / "car-000000", 15)
    task = task_of(chosen, options)
    with pytest.raises(ValueError, match="to 12x12 pixels, got 12x15 in scene car-000000"):
        task.evaluate(0, 1)
    squashed(scenes / "cars_train" / "car-000002", 15)
    with pytest.raises(ValueError, match="one size, got 12x1. pixels in car.* and 12x1. pixels in"):
        task.batch(0, range(4))
    for index in range(2):
        squashed(scenes / "cars_train" / f"car-00000{index}", 15)
    with pytest.raises(ValueError, match=r"to 12x12 pixels, got 12x15 in scene car-00000\d"):
        task_of(chosen, options).batch(0, range(4))


def test_views_are_resized_to_what_the_model_encodes(scenes: Path) -> None:
    chosen = RECIPES["la-ginr light field"]
    larger = replace(chosen, model=replace(chosen.model, image_size=16))
    task = task_of(larger, DataOptions(data=scenes))
    assert task.batch(0, range(4)).support_images.shape == (4, 2, 3, 16, 16)
    with pytest.raises(ValueError, match="patch_size: expected a divisor of image_size 14, got 4"):
        task_of(replace(chosen, model=replace(chosen.model, image_size=14)))


# Training


@pytest.mark.parametrize("name", RECIPES)
def test_training_reduces_the_loss(name: str, tmp_path: Path) -> None:
    losses: list[float] = []
    options = replace(QUIET, checkpoint_every=1000, evaluate_every=1000)
    chosen = replace(RECIPES[name], steps=80, learning_rate=5e-3, gradient_clip=1.0)
    result = train(
        chosen,
        open_data(chosen),
        tmp_path,
        options,
        lambda step, loss: losses.append(loss.item()),
    )
    assert sum(losses[-20:]) / 20 < 0.6 * sum(losses[:5]) / 5
    assert math.isfinite(result.scores.psnr)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_run_ends_with_the_same_weights(
    name: str, precision: Any, tmp_path: Path
) -> None:
    chosen = replace(RECIPES[name], precision=precision)
    data, whole, parts = open_data(chosen), tmp_path / "whole", tmp_path / "parts"
    finished = train(chosen, data, whole, QUIET)
    with pytest.raises(Stopped):
        train(chosen, data, parts, QUIET, stop_at(5))
    torch.rand(3)  # whatever happened to the global generator in between
    seen: list[int] = []
    train(chosen, data, parts, QUIET, lambda step, loss: seen.append(step))
    assert seen == [5, 6]
    assert same(weights_of(parts), weights_of(whole))
    # What was exported is the model that was scored.
    task = restored(load_saved(whole), DataOptions(), torch.device("cpu"))
    assert same(dict(task.model.state_dict()), dict(finished.model.state_dict()))
    if precision == "32-true":
        assert task.scores(task.evaluate(0, 1)).psnr == pytest.approx(finished.scores.psnr)
    assert sorted(path.name for path in (whole / "images").iterdir()) == [
        "step-000000003.png",
        "step-000000006.png",
    ]


def test_processes_share_the_evaluation() -> None:
    task = task_of(RECIPES["trans-inr"])
    parts = [task.evaluate(rank, 2) for rank in range(2)]
    assert torch.allclose(parts[0] + parts[1], task.evaluate(0, 1), equal_nan=True)
    assert task.scores(parts[0] + parts[1]).count == 6


def test_tables_have_a_row_for_every_number_of_support_views(tmp_path: Path) -> None:
    task = task_of(RECIPES["la-ginr light field"])
    picture = tmp_path / "views.png"
    one = task.table(EvaluationOptions())
    table = task.table(EvaluationOptions(support_views=3, picture=picture))
    assert table.columns[:3] == ("what", "count", "PSNR (dB)") and "SSIM" in table.columns
    assert [row[0] for row in one.rows] == ["other views of held-out scenes, from 2"]
    assert one.rows[0][1] == str(2 * (24 - 2))  # all other views of both scenes
    assert [row[0][-1] for row in table.rows] == ["1", "2", "3"]
    assert {row[1] for row in table.rows} == {str(2 * (24 - 3))}
    assert len({row[-1] for row in table.rows}) == 1  # the same views, the same mean image
    # The numbers are those of the colours of each view's rays.
    psnr, mean = [], []
    for index in range(2):
        known, scene = task.known(index, 3), task.held_out.scene(index)
        tokens = task.model.encode(*(part[None, :1] for part in known[1:4]))
        for view in known.targets:
            truth = scene.images[view].permute(2, 0, 1).float() / 255
            seen = task.model.render_view(
                tokens, scene.poses[view], 12, 12, scene.focal, center=scene.center
            )
            psnr.append(psnr_each(seen, truth[None]))
            mean.append(psnr_each(task.mean_image[None], truth[None]))
    assert table.rows[0][2] == f"{torch.cat(psnr).mean():.2f}"
    assert table.rows[0][-1] == f"{torch.cat(mean).mean():.2f}"
    with Image.open(picture) as image:
        assert image.size == (4 + 2 * 100, 4 + 5 * (96 + 16 + 4))  # 3 known, 1 asked, 1 rendered
    with pytest.raises(ValueError, match="support_views: expected a positive integer, got 0"):
        EvaluationOptions(support_views=0)


def test_commands(tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    train(RECIPES["ipc light field"], open_data(RECIPES["ipc light field"]), out, QUIET)
    command = ["eval", str(out), "--support-views", "2", "--instances", "1"]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "from 1" in shown and "from 2" in shown and "made cars" in shown
    assert cli.main([*command, "--data", str(scenes / "nothing")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert cli.main(["train", "trans-inr-nerf-cars", "--out", str(tmp_path / "other")]) == 2
    assert "in the format learnit; name their folder with --data" in capsys.readouterr().err
