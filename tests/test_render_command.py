"""ginr-fast render, interpolate and analyse: what they write, and how they take mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from command_line import failed, run
from PIL import Image
from small_training import MNIF, MODEL

from ginr_fast import cli
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.systems.mnif import Mnif
from ginr_fast.systems.mnif_adaptation import AutoDecoder, Cavia
from ginr_fast.training.checkpoints import WEIGHTS_NAME, export_weights, write_export
from ginr_fast.training.recipes import as_plain

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")

INSTANCES = 5


def export(kind: str, folder: Path, adaptation: str) -> Path:
    """A run's folder with the weights of an untrained small model."""
    torch.manual_seed(1)
    recipe = MNIF[kind]
    recipe = replace(
        recipe,
        adaptation=adaptation,
        model=replace(recipe.model, initial_gain=2.0, w0=3.0),
        auto_decoding=replace(recipe.auto_decoding, fit_steps=2),
    )
    model = Mnif(recipe.model)
    trained = (
        Cavia(model, recipe.cavia)
        if adaptation == "cavia"
        else AutoDecoder(model, INSTANCES if kind != "scenes" else recipe.made_scenes, 1.0)
    )
    metadata = {"recipe": as_plain(recipe)}
    write_export(folder / WEIGHTS_NAME, recipe.system, metadata, trained.state_dict())
    return folder


def sizes_of(paths: list[Path]) -> set[tuple[int, int]]:
    return {Image.open(path).size for path in paths}


@pytest.mark.parametrize("command", ["render", "interpolate", "analyse"])
def test_commands_explain_themselves(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert "--out" in capsys.readouterr().out


# Scenes


@pytest.mark.parametrize("kind", ["gif", "mp4", "png"])
def test_orbits_of_scenes(kind: str, tmp_path: Path) -> None:
    folder = export("scenes", tmp_path / "run", "auto-decoding")
    options = ["--instances", 0, 2, "--views", 5, "--size", 10, "--format", kind, "--depth"]
    run("render", folder, *options)
    out = folder / "renders"
    for name in ("training-00000", "training-00002"):
        for part in ("", "-depth"):
            frames = sorted((out / f"{name}{part}").glob("*.png"))
            assert len(frames) == 5 and sizes_of(frames) == {(10, 10)}
            assert (out / f"{name}{part}.{kind}").is_file() == (kind != "png")
    assert not (out / "training-00001").exists()
    if kind == "gif":
        assert Image.open(out / "training-00000.gif").n_frames == 5
    assert Image.open(out / "views.png").size == (5 * 10 + 4 * 2, 2 * 10 + 2)


def test_training_scenes_need_no_data_and_held_out_ones_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export("scenes", tmp_path / "run", "auto-decoding")
    command = ["render", folder, "--views", 1, "--size", 8, "--data", tmp_path / "nowhere"]
    run(*command)
    assert "nowhere" in failed(capsys, *command, "--unseen")
    made = ["--instances", 0, 1, "--views", 1, "--size", 8, "--unseen", "--fit-views", 2]
    run("render", folder, *made)
    assert (folder / "renders" / "held-out-00001" / "000000.png").is_file()


# Images and voxels


def test_images_at_any_size(tmp_path: Path) -> None:
    kept = export("images", tmp_path / "kept", "auto-decoding")
    run("render", kept, "--size", 40)
    assert sizes_of(sorted((kept / "renders").iterdir())) == {(40, 40)}
    fitted = export("images", tmp_path / "fitted", "cavia")
    run("render", fitted, "--instances", 1, "--out", tmp_path / "out")
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "held-out-00001.png" and Image.open(path).size == (256, 256)
    assert np.asarray(Image.open(path)).std() > 1


def test_held_out_latents_are_those_of_eval(tmp_path: Path) -> None:
    from ginr_fast.analysis.instances import FitOptions, load_instances
    from ginr_fast.training.checkpoints import load_saved
    from ginr_fast.training.tasks import restored
    from ginr_fast.training.tasks.base import DataOptions

    folder, device = export("images", tmp_path, "cavia"), torch.device("cpu")
    found = load_instances(folder, [3, 0], FitOptions(), DataOptions(), device)
    task = restored(load_saved(folder), DataOptions(), device)
    images = torch.stack([task.held_out[3], task.held_out[0]])
    values = found.model.decode(task.grid, found.latents).detach()
    expected = task.reconstruct(images)
    torch.testing.assert_close((0.5 * values + 0.5).clamp(0, 1).permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("kind", ["ply", "obj", "stl"])
def test_meshes_of_shapes(kind: str, tmp_path: Path) -> None:
    folder = export("voxels", tmp_path / "run", "cavia")
    run("render", folder, "--instances", 0, 1, "--size", 24, "--mesh", kind)
    for name in ("held-out-00000", "held-out-00001"):
        assert len(trimesh.load_mesh(folder / "renders" / f"{name}.{kind}").faces) > 100
        assert Image.open(folder / "renders" / f"{name}.png").size == (4 * 256 + 6, 256)


# Interpolation


@pytest.mark.parametrize("kind", ["scenes", "images", "voxels"])
def test_interpolation(kind: str, tmp_path: Path) -> None:
    folder = export(kind, tmp_path / "run", "auto-decoding")
    run("interpolate", folder, "--corners", 3, 0, 1, 2, "--steps", 3, "--size", 16)
    picture = np.asarray(Image.open(folder / "interpolation.png"))
    assert picture.shape == (3 * 20 + 4, 3 * 20 + 4, 3)
    green = (picture == (0, 160, 60)).all(-1)
    assert green[0, 0] and green[0, -1] and green[-1, 0] and green[-1, -1]
    assert not green[22:42].any()
    if kind == "images":  # the upper left corner is instance 3 itself
        run("render", folder, "--instances", 3, "--size", 16)
        alone = np.asarray(Image.open(folder / "renders" / "training-00003.png")).astype(int)
        assert np.abs(picture[2:18, 2:18] - alone).max() <= 1


# Analyses


def test_analysis_of_bases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export("scenes", tmp_path / "run", "auto-decoding")
    run("analyse", folder, "bases")
    assert "highest" in capsys.readouterr().out
    content = json.loads((folder / "analysis" / "bases.json").read_text())
    assert content["trained"] and len(content["layers"]) == 3
    assert all(0 < layer["mean"] <= layer["highest"] <= 1 for layer in content["layers"])
    assert Image.open(folder / "analysis" / "bases.png").width > 300


@pytest.mark.parametrize("kind", ["scenes", "images", "voxels"])
def test_analysis_of_a_run_s_inference(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adaptation = "cavia" if kind == "images" else "auto-decoding"
    folder = export(kind, tmp_path / "run", adaptation)
    run("analyse", folder, "inference", "--size", 12, "--rounds", 1)
    assert "second" in capsys.readouterr().out
    content = json.loads((folder / "analysis" / "inference.json").read_text())
    model = Mnif(MNIF[kind].model)
    assert content["learnable"] == sum(value.numel() for value in model.parameters())
    assert content["inference"] == model.config.spec.parameter_count
    assert content["seconds"] > 0 and content["size"] == 12
    assert ("occupancy_seconds" in content) == (kind == "scenes")


def test_analysis_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("analyse", "mnif-images-celeba-s", "inference", "--rounds", 1, "--out", tmp_path)
    printed = capsys.readouterr().out
    assert "17.2 K" in printed and "0.069 G" in printed and "2958.6" in printed
    content = json.loads((tmp_path / "inference.json").read_text())
    assert content["inference"] == 17027 and not content["trained"]


# Mistakes


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export("scenes", tmp_path / "run", "auto-decoding")
    assert "instances: expected 0 to 3" in failed(capsys, "render", folder, "--instances", 4)
    assert "instances" in failed(capsys, "interpolate", folder, "--corners", 0, 1, 2, -1)
    assert "fit_views" in failed(capsys, "render", folder, "--fit-views", 0)
    assert "does not exist" in failed(capsys, "render", tmp_path / "nothing")
    assert "model" in failed(capsys, "analyse", "mnif-nothing", "bases")
    assert "model" in failed(capsys, "analyse", "la-ginr-tiny", "inference")
    torch.manual_seed(0)
    other = tmp_path / "other.safetensors"
    export_weights(LaGinr(MODEL), other)
    for command in (["render", other], ["interpolate", other], ["analyse", other, "bases"]):
        assert "expected a trained mNIF, got la-ginr" in failed(capsys, *command)


@pytest.mark.parametrize(
    "arguments",
    [
        "render RUN --views 0",
        "render RUN --size 0",
        "render RUN --fps 0",
        "interpolate RUN --steps 1",
        "interpolate RUN --corners 0 1 2",
        "analyse RUN bases --rounds 0",
        "analyse RUN colours",
    ],
)
def test_options_out_of_range(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments.split())
    assert stopped.value.code == 2
    options = [word.removeprefix("--") for word in arguments.split() if word.startswith("--")]
    shown = capsys.readouterr().err.replace("_", "-")
    assert all(option in shown for option in options or ["colours"])


def test_a_shape_without_surface_is_left_out(tmp_path: Path) -> None:
    folder = export("voxels", tmp_path / "run", "auto-decoding")
    recipe = MNIF["voxels"]
    model = AutoDecoder(Mnif(recipe.model), INSTANCES, 1.0)
    with torch.no_grad():
        for base in model.model.bases:
            base.zero_()
    plain = {"recipe": as_plain(replace(recipe, adaptation="auto-decoding"))}
    write_export(folder / WEIGHTS_NAME, recipe.system, plain, model.state_dict())
    with pytest.warns(UserWarning, match="training-00000 has no surface"):
        run("render", folder, "--instances", 0, "--size", 8)
    assert not list((folder / "renders").glob("*.ply"))
