"""Test-time optimisation in ``ginr-fast eval``, for every system that has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import MNIF, QUIET, RECIPE

from ginr_fast import cli
from ginr_fast.systems.audio_inr import AudioIpcConfig
from ginr_fast.systems.light_fields import LaGinrLightFieldConfig
from ginr_fast.systems.radiance_views import TransInrViewsConfig
from ginr_fast.training.loop import train
from ginr_fast.training.recipes import (
    AudioIpcRecipe,
    LaGinrLightFieldRecipe,
    Recipe,
    TransInrViewsRecipe,
)
from ginr_fast.training.tasks import EvaluationOptions, Task, open_data, task_for
from ginr_fast.training.tasks.made import CACHE_VARIABLE

ENCODER: dict[str, Any] = {
    "patch_size": 4,
    "encoder_dim": 32,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "encoder_head_dim": 16,
    "encoder_mlp_dim": 48,
}
VIEWS: dict[str, Any] = {
    "data_format": "srn",
    "made_scenes": 2,
    "made_views": 5,
    "made_held_out": 1,
    "steps": 1,
    "batch_size": 1,
}
FIELD: dict[str, Any] = {"hidden_dim": 24, "hidden_layers": 1, "frequencies": 4, "bandwidth": 8.0}
RECIPES: dict[str, Recipe] = {
    "images of mnif": replace(MNIF["images"], adaptation="auto-decoding"),
    "images of mnif by cavia": MNIF["images"],
    "voxels of mnif": MNIF["voxels"],
    "scenes of mnif": MNIF["scenes"],
    "audio": AudioIpcRecipe(
        model=AudioIpcConfig(**{**ENCODER, "patch_size": 16}, **FIELD, length=128, latents=8),
        rate=4000,
        held_out_clips=3,
        made_clips=6,
        made_held_out=3,
        made_seconds=0.1,
        steps=1,
    ),
    "radiance fields": TransInrViewsRecipe(
        model=TransInrViewsConfig(
            **ENCODER,
            **FIELD,
            image_size=12,
            samples=8,
            groups=4,
            camera_distance=1.3,
            near=0.8,
            far=1.8,
        ),
        **VIEWS,
    ),
    "light fields": LaGinrLightFieldRecipe(
        model=LaGinrLightFieldConfig(
            **ENCODER,
            image_size=12,
            latents=8,
            token_dim=24,
            hidden_dim=24,
            feature_dim=36,
            camera_distance=1.3,
        ),
        **VIEWS,
    ),
}


@pytest.fixture(scope="module")
def task_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Task]:
    """Tasks with new models, on made data."""
    cache, made = str(tmp_path_factory.mktemp("cache")), {}

    def task_of(name: str) -> Task:
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(CACHE_VARIABLE, cache)
                made[name] = task_for(RECIPES[name], open_data(RECIPES[name]))
            torch.manual_seed(0)
            made[name].build().eval()
            made[name].place(torch.device("cpu"))
        return made[name]

    return task_of


def decibels(columns: tuple[str, ...], row: tuple[str, ...]) -> float:
    return float(row[next(at for at, name in enumerate(columns) if name.startswith("PSNR"))])


@pytest.mark.parametrize("name", RECIPES)
def test_every_target_is_scored_beside_what_it_starts_from(
    name: str, task_of: Callable[[str], Task], tmp_path: Path
) -> None:
    task = task_of(name)
    targets = [each for each in task.tto_targets if (name, each) != ("light fields", "weights")]
    assert len(targets) >= 2
    plain = EvaluationOptions(instances=1, fit_views=2, fit_steps=2)
    rows = task.table(plain).rows
    for target in targets:
        picture = tmp_path / f"{target}.png"
        options = replace(plain, tto=8, tto_target=target, tto_rate=0.03, picture=picture)
        columns, found = task.table(options)
        assert len(found) == len(rows) + 1 and all(len(row) == len(columns) for row in found)
        assert f"8 steps on {target}" in " ".join(found[-1])
        # What was asked for before comes first, as it was: the model has not changed.
        assert [row[: len(rows[0])] for row in found[:-1]] == rows
        assert decibels(columns, found[-1]) != decibels(columns, found[-2])
        assert picture.is_file()
    if "light" in name:
        with pytest.raises(ValueError, match="target: expected 'tokens' or 'decoder'"):
            task.table(replace(plain, tto=1, tto_target="weights"))


@pytest.mark.parametrize("name", ["images of mnif", "voxels of mnif", "audio"])
def test_what_is_known_and_scored_alike_gets_better(
    name: str, task_of: Callable[[str], Task]
) -> None:
    options = EvaluationOptions(
        instances=2, fit_steps=2, tto=30, tto_target="weights", tto_points=64
    )
    columns, found = task_of(name).table(options)
    assert decibels(columns, found[-1]) > decibels(columns, found[-2]) + 0.1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(RECIPE, open_data(RECIPE), out, QUIET)
    return out


def test_eval_prints_rows_without_and_with(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    command = ["eval", str(run), "--instances", "3", "--tto", "6", "--tto-rate", "0.03"]
    assert cli.main([*command, "--picture", str(picture)]) == 0
    text = capsys.readouterr().out
    rows = [line.split("│") for line in text.splitlines() if "16x16" in line]
    assert [row[-2].split()[0] for row in rows] == ["none", "6"]
    assert float(rows[1][4]) > float(rows[0][4])
    assert picture.is_file()


def test_eval_names_the_targets_a_system_has(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(run), "--tto", "1", "--tto-target", "weights"]) == 2
    assert "expected 'tokens' or 'decoder'" in capsys.readouterr().err
    assert cli.main(["eval", str(run), "--tto", "0"]) == 2
    assert "tto: expected a positive integer" in capsys.readouterr().err
