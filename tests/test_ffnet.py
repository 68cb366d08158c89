"""FFNet: its formula, its recipe, and LA-GINR's Figure 7 drawn from a command."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_training import QUIET, RECIPE, same, weights_of

import ginr_fast
from ginr_fast import cli
from ginr_fast.analysis import fitting_curves as curves_module
from ginr_fast.analysis.fitting_curves import CurveOptions, fitting_curves
from ginr_fast.systems.ffnet import Ffnet, FfnetConfig, fit_ffnet
from ginr_fast.systems.fitting import FittingOptions
from ginr_fast.training.checkpoints import CheckpointError
from ginr_fast.training.loop import train
from ginr_fast.training.recipes import FfnetRecipe, recipe
from ginr_fast.training.tasks import DataOptions, open_data

SMALL = FfnetConfig(hidden_dim=32, layers=3, features=16, scale=3.0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def smooth(count: int, size: int = 16) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 4)
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear")


def test_values_are_those_of_the_formula() -> None:
    model = Ffnet(SMALL, images=2).double()
    coords = torch.rand(7, 2, dtype=torch.float64) * 2 - 1
    found = model.decode(coords)
    offset = 0
    shapes = [(32, 32), (32, 32), (3, 32)]
    for image in range(2):
        for point in range(7):
            unit = (coords[point] + 1) / 2
            phases = 2 * math.pi * (model.frequencies.double() @ unit)
            value, offset = torch.cat([phases.cos(), phases.sin()]), 0
            for layer, (rows, columns) in enumerate(shapes):
                row = model.weights[image]
                weight = row[offset : offset + rows * columns].view(rows, columns)
                offset += rows * columns
                value = weight @ value + row[offset : offset + rows]
                offset += rows
                value = value.relu() if layer < 2 else 1 / (1 + torch.exp(-value))
            assert torch.allclose(found[image, point], value, atol=1e-12)
    assert offset == model.weights.shape[1]


def test_published_sizes_are_the_defaults() -> None:
    spec = FfnetConfig().spec
    assert spec.layer_shapes == ((256, 512), (256, 256), (256, 256), (3, 256))
    assert abs(float(Ffnet().frequencies.std()) - 10) < 1.5
    chosen = recipe("ffnet")
    assert isinstance(chosen, FfnetRecipe) and chosen.image_size == 256 and chosen.steps == 2000


def test_images_are_fitted_apart_and_closely() -> None:
    images = smooth(2)
    seen: list[int] = []
    options = FittingOptions(150, "weights", 0.005)
    both = fit_ffnet(images, SMALL, options, lambda step, model: seen.append(step))
    assert seen == list(range(1, 151))
    assert (both.reconstruct(images) - images).square().mean() < 1e-3
    assert both.reconstruct(images, 1.5).shape == (2, 3, 24, 24)
    ended = fit_ffnet(images, SMALL, options, lambda step, model: step == 3)
    again = fit_ffnet(images, SMALL, replace(options, steps=3))
    assert torch.equal(ended.weights, again.weights)


def test_a_network_does_not_depend_on_the_others() -> None:
    # The same start for both: networks of a batch have starts of their own.
    images = smooth(2)
    models = [Ffnet(SMALL, 2), Ffnet(SMALL, 1)]
    models[1].frequencies.copy_(models[0].frequencies)
    models[1].weights.data.copy_(models[0].weights[1:])
    features = models[0].features(ginr_fast.grid(16, 16))
    wanted = images.permute(0, 2, 3, 1)
    losses = [
        (models[0](features) - wanted).square().flatten(1).mean(1).sum(),
        (models[1](features) - wanted[1:]).square().mean(),
    ]
    for loss in losses:
        loss.backward()
    first, second = (model.weights.grad for model in models)
    assert first is not None and second is not None
    assert torch.allclose(first[1:], second, atol=1e-6)


def test_points_a_step() -> None:
    images = smooth(1)
    fitted = fit_ffnet(images, SMALL, FittingOptions(150, "weights", 0.005, points=64))
    assert (fitted.reconstruct(images) - images).square().mean() < 4e-3
    with pytest.raises(ValueError, match="points: expected at most the 256"):
        fit_ffnet(images, SMALL, FittingOptions(1, points=300))


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="layers: expected an integer from 2 up, got 1"):
        FfnetConfig(layers=1)
    with pytest.raises(ValueError, match="scale: expected above 0"):
        FfnetConfig(scale=0.0)
    with pytest.raises(TypeError, match="images: expected floating point"):
        fit_ffnet(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), SMALL)
    with pytest.raises(ValueError, match="batch_size: expected 1"):
        FfnetRecipe(steps=1, batch_size=2)
    with pytest.raises(ValueError, match="coordinates: expected at most the 64 pixels"):
        FfnetRecipe(steps=1, image_size=8, coordinates=65)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = (smooth(1, 40)[0, :, :30].permute(1, 2, 0) * 255).byte().numpy()
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("coordinates", [None, 100])
def test_a_run_resumes_exactly(image: Path, tmp_path: Path, coordinates: int | None) -> None:
    chosen = FfnetRecipe(
        model=SMALL, image_size=16, steps=6, learning_rate=1e-3, coordinates=coordinates
    )
    data = open_data(chosen, DataOptions(image))
    result = train(chosen, data, tmp_path / "whole", QUIET)
    assert "image.png itself" in result.scores.summary()

    class Killed(Exception):
        pass

    def kill(step: int, loss: torch.Tensor) -> None:
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        train(chosen, data, tmp_path / "parts", QUIET, kill)
    train(chosen, data, tmp_path / "parts", QUIET)
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    other = open_data(chosen)  # the photograph that comes with scikit-image
    with pytest.raises(CheckpointError, match="other data"):
        train(chosen, other, tmp_path / "whole", QUIET)


def test_train_then_eval(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    data = ["--data", str(image)]
    options = ["--steps", "150", "--image-size", "16", "--learning-rate", "5e-3"]
    sizes = ["--model.hidden-dim", "32", "--model.features", "16", "--model.scale", "3"]
    quiet = ["--no-progress", "--no-tensorboard"]
    assert cli.main(["train", "ffnet-tiny", "--out", out, *data, *options, *sizes, *quiet]) == 0
    assert cli.main(["eval", out, *data, "--picture", str(tmp_path / "fit.png")]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "16x16" in line)
    assert float(row.split("│")[4]) > 28
    assert (tmp_path / "fit.png").is_file()
    assert cli.main(["eval", out, *data, "--tto", "5"]) == 2
    assert "ffnet has no test-time optimisation but its own fit" in capsys.readouterr().err
    assert cli.main(["eval", out, "--data", str(image.parent)]) == 2
    assert "expected one image file, got the folder" in capsys.readouterr().err


def test_seconds_do_not_count_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def score(current: Any, image: torch.Tensor) -> float:
        clock[0] += 100.0
        return float(current)

    def way(image: torch.Tensor, steps: int, look: Any) -> None:
        for step in range(1, steps):
            clock[0] += 0.5
            if look(step, step):
                return

    monkeypatch.setattr(curves_module, "_psnr", score)
    marks = np.array([1.0, 1.2, 4.0])
    points = curves_module._recorded(way, torch.zeros(1), marks)
    # The first step after each mark; 1.2 s has passed at the step that is scored for it.
    assert [tuple(point) for point in points] == [(1.0, 2.0), (1.5, 3.0), (4.0, 8.0)]


def test_curves() -> None:
    model = RECIPE.build().eval()
    images = smooth(2)
    options = CurveOptions(0.2, 4, ffnet=SMALL, rates=(0.01, 0.002), ffnet_rate=0.005)
    said: list[str] = []
    found = {curve.name: curve for curve in fitting_curves(model, images, options, said.append)}
    assert list(found) == [
        "FFNet from scratch",
        "tokens optimised",
        "decoder optimised",
        "inference",
    ]
    assert len(said) == 6
    level = found["inference"].psnr
    assert (level == level[0]).all()
    for curve in found.values():
        assert curve.seconds.shape == curve.psnr.shape == (4,)
        assert abs(curve.seconds[-1] - 0.2) < 1e-9
    assert found["decoder optimised"].psnr[-1] > level[0]
    with pytest.raises(ValueError, match="images: expected at least one"):
        fitting_curves(model, images[:0], options)
    with pytest.raises(ValueError, match="rates: expected one for each"):
        CurveOptions(rates=(1.0,))


def test_analyse_seconds(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train(replace(RECIPE, steps=1), open_data(RECIPE), run, QUIET)
    sizes = ["--ffnet.hidden-dim", "16", "--ffnet.features", "8", "--scores", "3"]
    command = ["analyse", str(run), "seconds", "--seconds", "0.05", *sizes]
    assert cli.main([*command, "--image", str(image), str(image)]) == 0
    assert "of 2 images" in capsys.readouterr().out
    with (run / "analysis" / "seconds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3 and {float(row["seconds"]) for row in rows} >= {0.05}
    assert Image.open(run / "analysis" / "seconds.png").width > 300
    assert cli.main([*command, "--count", "0"]) == 2
    assert "count: expected a positive integer" in capsys.readouterr().err
