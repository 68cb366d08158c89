"""``ginr-fast compare``: three decoders under one budget."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ginr_fast.cli import main
from ginr_fast.commands.compare import entries
from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.training.comparison import Entry, compare
from ginr_fast.training.recipes import InrctRecipe, recipe


def parameters_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.named_parameters()}


def test_all_have_the_same_encoder_tokens_and_budget() -> None:
    models: list[ImageInr] = []
    recipes = []
    for entry in entries(100, 3, "32-true"):
        torch.manual_seed(0)
        models.append(entry.recipe.build())
        recipes.append({k: v for k, v in vars(entry.recipe).items() if k != "model"})
    assert recipes[0] == recipes[1] == recipes[2]
    assert recipes[0]["steps"] == 100 and recipes[0]["seed"] == 3
    first = models[0]
    images = torch.rand(2, 3, 32, 32)
    for model in models[1:]:
        assert parameters_of(model.tokenizer) == parameters_of(first.tokenizer)
        assert parameters_of(model.encoder) == parameters_of(first.encoder)
        assert model.encode(images).shape == first.encode(images).shape


def test_the_command_trains_prints_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "--steps", "2", "--precision", "32-true", "--out", str(tmp_path)]
    arguments += ["--no-progress", "--no-tensorboard"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("training") == 3
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["LA-GINR", "IPC", "TransINR"]
    assert all(0 < float(row["psnr"]) < 30 for row in rows)
    for name in ("psnr.png", "reconstructions.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100
    assert main(arguments) == 0  # nothing is trained again
    assert capsys.readouterr().out.count("trained before") == 3


def test_generative_models_are_scored_by_as_many_samples(tmp_path: Path) -> None:
    first = recipe("inrct-tiny")
    assert isinstance(first, InrctRecipe)
    first = replace(first, steps=1)
    fewer = replace(first, samples=first.samples // 2)
    with pytest.raises(ValueError, match="expected one budget, but a and b differ: samples"):
        compare([Entry("a", first), Entry("b", fewer)], out=tmp_path)


def test_bad_steps_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--steps", "0"]) == 2
    assert "steps: expected a positive integer, got 0" in capsys.readouterr().err
