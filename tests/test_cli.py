"""The command line: what it prints, what it writes, and how it takes mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import failed
from PIL import Image
from small_training import MODEL, RECIPE

from ginr_fast import cli
from ginr_fast.commands import demo
from ginr_fast.data import photos
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.training.checkpoints import export_weights, load_run

# The size of the small model, as options of la-ginr-tiny.
SMALL = (
    "--steps 3 --batch-size 4 --coordinates 64 --views.held-out-views 6 --accelerator cpu "
    "--no-progress --no-tensorboard --model.image-size 16 --model.encoder-dim 32 "
    "--model.encoder-depth 1 --model.encoder-head-dim 16 --model.encoder-mlp-dim 48 "
    "--model.latents 16 --model.token-dim 24 --model.hidden-dim 32 --model.feature-dim 32 "
    "--model.bandwidths 8 4"
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained small model, exported."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    export_weights(LaGinr(MODEL), path, RECIPE.views)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w", text, re.M) for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0


@pytest.mark.parametrize("command", ["train la-ginr-tiny", "eval", "reconstruct", "demo", "info"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: ginr-fast {command}" in text and ":func:" not in text and "``" not in text


def test_train_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    assert "la-ginr-celeba" in capsys.readouterr().out


def test_the_command_line_starts_without_loading_the_library() -> None:
    code = (
        "import sys, ginr_fast.cli as cli; cli.main(['--help']); "
        "heavy = {'lightning', 'tyro', 'torchmetrics', 'skimage', 'PIL'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_mistakes_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: Path, image: Path
) -> None:
    assert "no command 'trian'" in failed(capsys, "trian")
    assert "recipe: expected one of la-ginr-tiny" in failed(capsys, "train")
    assert "got 'la-ginr-big'" in failed(capsys, "train", "la-ginr-big")
    assert "name it with --data" in failed(capsys, "train", "la-ginr-celeba")
    tiny = ("train", "la-ginr-tiny", "--out", tmp_path / "run")
    assert "is no folder" in failed(capsys, *tiny, "--data", tmp_path / "absent")
    assert "steps: expected a positive" in failed(capsys, *tiny, "--steps", 0)
    assert "does not exist" in failed(capsys, "eval", tmp_path / "absent.pt")
    assert "corrupt" in failed(capsys, "eval", image.rename(tmp_path / "image.pt"))
    (tmp_path / "image.pt").rename(image)
    reconstruct = ("reconstruct", "--checkpoint", weights)
    assert "absent.png" in failed(capsys, *reconstruct, tmp_path / "absent.png")
    assert "not an image" in failed(capsys, *reconstruct, weights)
    assert "scale: expected a positive number" in failed(
        capsys, *reconstruct, image, "--scale", "-1"
    )
    assert "rounds" in failed(capsys, "demo", "--rounds", 0, "--out", tmp_path)


def test_warnings_are_one_line() -> None:
    before = warnings.formatwarning
    with cli.plain_warnings():
        text = warnings.formatwarning(UserWarning("data: skipped"), UserWarning, "a.py", 1)
    assert text == "ginr-fast: warning: data: skipped\n"
    assert warnings.formatwarning is before


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", "x.pt", "--colour", "red"])
    assert stopped.value.code == 2
    assert "colour" in capsys.readouterr().err


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(arguments: list[str]) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("ginr_fast.commands.info.main", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["info"])


def test_the_debug_variable_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["eval", "absent.pt"])


def test_a_missing_package_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(arguments: list[str]) -> None:
        raise ModuleNotFoundError("No module named 'lightning'", name="lightning")

    monkeypatch.setattr("ginr_fast.commands.info.main", missing)
    assert "lightning is not installed" in failed(capsys, "info")


def test_train_then_eval_then_reconstruct(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, image: Path
) -> None:
    run = tmp_path / "run"
    train = ["train", "la-ginr-tiny", "--out", str(run), *SMALL.split()]
    assert cli.main(train) == 0
    trained = re.search(
        r"held-out PSNR: ([\d.]+) dB, SSIM: ([\d.]+) \(6 images\)", capsys.readouterr().out
    )
    assert trained
    model, views = load_run(run)
    assert model.config.latents == 16 and views.held_out_views == 6 and views.flip
    assert cli.main(["eval", str(run)]) == 0
    table = capsys.readouterr().out
    assert trained[1] in table and trained[2] in table and "16x16" in table
    # Another recipe in the same folder is a mistake, the same one resumes.
    assert "batch_size: 4 against 8" in failed(capsys, *train, "--batch-size", 8)
    assert cli.main(train) == 0
    assert trained[0] in capsys.readouterr().out
    out = tmp_path / "out.png"
    assert cli.main(["reconstruct", str(image), "--checkpoint", str(run), "--out", str(out)]) == 0
    assert Image.open(out).size == (33, 20)


def test_train_and_eval_on_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for index, path in enumerate(photos().train[:4]):
        Image.open(path).resize((60, 40)).convert("RGB").save(data / f"{index}.jpg")
    (data / "broken.jpg").write_bytes((data / "0.jpg").read_bytes()[:300])
    run = ["--data", str(data), "--held-out", "0.25"]
    out = str(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"^data: 1 file\(s\) skipped: \S+broken\.jpg"):
        assert cli.main(["train", "la-ginr-tiny", "--out", out, *SMALL.split(), *run]) == 0
    assert "(6 images)" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="skipped"):
        assert cli.main(["eval", out, *run, "--all-images"]) == 0
    assert "6" in capsys.readouterr().out
    assert "1 file(s) refused" in failed(capsys, "eval", out, *run, "--strict")


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--scale", "4"], (132, 80)),
        (["--scale", "1.5"], (50, 30)),
        (["--scale", "2", "--fit", "whole"], (66, 40)),
    ],
)
def test_reconstruct_any_size(
    weights: Path, image: Path, tmp_path: Path, options: list[str], size: tuple[int, int]
) -> None:
    command = ["reconstruct", str(image), "--checkpoint", str(weights)]
    assert cli.main([*command, *options]) == 0
    assert Image.open(image.with_name("image-reconstructed.png")).size == size


def test_info_names_versions_devices_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for part in (
        f"torch {torch.__version__}",
        "CPU: ",
        "compiled extension:",
        "locality_decode on cpu",
    ):
        assert part in text


def test_demo_ends_with_the_two_figures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "decoder_seconds", lambda rounds: (0.5, 1.75))
    assert cli.main(["demo", "--steps", "2", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r"held-out PSNR: \d+\.\d\d dB", lines[-2])
    assert lines[-1] == "speed-up over the reference decoder: 3.50x"
    width, height = Image.open(tmp_path / "before-after.png").size
    assert width > 2 * 128 + 2 * 512 and height > 3 * 512


def test_decoders_are_timed_in_turns() -> None:
    fast, reference = demo.decoder_seconds(rounds=1, size=16, batch=1)
    assert 0 < fast < 60 and 0 < reference < 60


def test_the_demo_trains_the_tiny_recipe() -> None:
    chosen = demo.demo_recipe()
    assert chosen.model.image_size == 32 and chosen.views.held_out_views == 192
    assert demo.demo_recipe(7).steps == 7
