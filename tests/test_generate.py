"""ginr-fast generate and interpolate --generated: what they draw, and how they take mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import failed, run
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_generative import KINDS, build, export
from small_training import MODEL

from ginr_fast import cli
from ginr_fast.generation.sampling import Between, noise
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.training.checkpoints import (
    WEIGHTS_NAME,
    Checkpoint,
    export_weights,
    save_checkpoint,
)
from ginr_fast.training.recipes import (
    as_plain,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def drawn(path: Path) -> torch.Tensor:
    return load_file(path / "latents.safetensors")["latents"]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_the_batch(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export(kind, tmp_path / "run")
    command = ["generate", folder, "--samples", 7, "--size", 12, "--each", "--latents"]
    for batch in (1, 7):
        run(*command, "--batch", batch, "--out", tmp_path / f"{batch}")
    run(*command, "--samples", 2, "--first", 5, "--out", tmp_path / "later")
    run(*command, "--seed", 3, "--out", tmp_path / "other")
    together, alone = drawn(tmp_path / "7"), drawn(tmp_path / "1")
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drawn(tmp_path / "later"), together[5:], rtol=1e-4, atol=1e-5)
    assert (drawn(tmp_path / "other") - together).abs().max() > 1e-3
    assert (together[0] - together[1]).abs().max() > 1e-3
    for number in range(7):
        name = f"sample-{number:05d}.png"
        one, other = (picture(tmp_path / batch / name) for batch in ("1", "7"))
        assert one.shape == (12, 12, 3) and np.abs(one - other).max() <= 1
    assert Image.open(tmp_path / "1" / "samples.png").size == (3 * 12 + 4, 3 * 12 + 4)
    calls = {"inrct": 1, "inrct-nerf": 1, "tokens": 6}.get(kind, 4)
    said = "one network evaluation" if calls == 1 else f"{calls} network evaluations"
    assert f"7 samples of {build(kind)[0].system}, {said}" in capsys.readouterr().out


def test_latents_are_what_the_model_draws(tmp_path: Path) -> None:
    folder = export("tokens", tmp_path)
    options = ["--samples", 3, "--label", 1, "--guidance", 0.5, "--steps", 2, "--seed", 4]
    run("generate", folder, *options, "--latents", "--out", tmp_path / "out")
    from ginr_fast.generation.sampling import SamplingOptions

    model = build("tokens")[1].eval()
    with torch.no_grad():
        expected = model.draw(range(3), SamplingOptions(2, 0.5, 1, 4))
    torch.testing.assert_close(drawn(tmp_path / "out"), expected, rtol=1e-4, atol=1e-5)
    with safe_open(tmp_path / "out" / "latents.safetensors", "pt") as archive:
        notes = archive.metadata()
    assert notes["system"] == "token-diffusion" and notes["label"] == "1" and notes["seed"] == "4"
    for other in (["--label", 0], ["--guidance", 3], ["--steps", 3]):
        run("generate", folder, *options, *other, "--latents", "--out", tmp_path / "other")
        assert (drawn(tmp_path / "other") - expected).abs().max() > 1e-4


def test_a_picture_of_any_size_is_of_the_same_sample(tmp_path: Path) -> None:
    folder = export("inrct", tmp_path / "run")
    for size in (8, 24):
        run("generate", folder, "--samples", 1, "--size", size, "--out", tmp_path / f"{size}")
    large, small = (picture(tmp_path / f"{size}" / "samples.png") for size in (24, 8))
    # Every third pixel's centre is that of a pixel of the small picture.
    assert np.abs(large[1::3, 1::3] - small).max() <= 1
    command = ["generate", folder, "--samples", 1, "--size", 24, "--jitter", "--out", tmp_path]
    run(*command)
    moved = picture(tmp_path / "samples.png")
    assert np.abs(moved - large).max() > 1
    run(*command)
    assert (picture(tmp_path / "samples.png") == moved).all()


def test_a_checkpoint_s_samples_are_those_of_the_average(tmp_path: Path) -> None:
    recipe, model = build("inrct")
    model.begin_training()
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.zero_()
    state = Checkpoint(1, as_plain(recipe), "", model.state_dict(), {}, recipe.system)
    save_checkpoint(state, tmp_path / "run" / "checkpoints")
    options = ["--samples", 1, "--latents", "--out"]
    run("generate", tmp_path / "run", *options, tmp_path / "checkpoint")
    run("generate", export("inrct", tmp_path / "export"), *options, tmp_path / "exported")
    assert torch.equal(drawn(tmp_path / "checkpoint"), drawn(tmp_path / "exported"))


def test_scenes_turn_and_shapes_have_meshes(tmp_path: Path) -> None:
    for kind in ("inrct-nerf", "mnif-scenes"):
        folder = export(kind, tmp_path / kind)
        run("generate", folder, "--samples", 2, "--batch", 1, "--size", 10, "--views", 3)
        out = folder / "samples"
        assert Image.open(out / "sample-00001.gif").n_frames == 3
        assert len(list((out / "sample-00000").glob("*.png"))) == 3
        assert Image.open(out / "views.png").size == (3 * 10 + 4, 2 * 10 + 2)
    folder = export("mnif-voxels", tmp_path / "voxels")
    run("generate", folder, "--samples", 1, "--size", 16, "--mesh", "ply", "--voxels", 16)
    assert (folder / "samples" / "sample-00000.ply").is_file()


def test_samples_in_bfloat16_are_nearly_the_same(tmp_path: Path) -> None:
    folder = export("tokens", tmp_path)
    for precision in ("32-true", "bf16-mixed"):
        options = ["--samples", 3, "--size", 16, "--precision", precision, "--latents"]
        run("generate", folder, *options, "--out", tmp_path / precision)
    exact, mixed = drawn(tmp_path / "32-true"), drawn(tmp_path / "bf16-mixed")
    assert 0 < (mixed - exact).norm() < 0.05 * exact.norm()
    pictures = [picture(tmp_path / name / "samples.png") for name in ("32-true", "bf16-mixed")]
    assert np.abs(pictures[0] - pictures[1]).mean() < 8


# Interpolation


@pytest.mark.parametrize("kind", ["inrct", "mnif-images", "tokens"])
def test_interpolation_starts_at_samples(kind: str, tmp_path: Path) -> None:
    folder = export(kind, tmp_path / "run")
    command = ["interpolate", folder, "--generated", "--corners", 3, 0, 1, 2, "--steps", 3]
    label = ["--label", 1] if kind == "tokens" else []
    run(*command, "--size", 16, *(["--sampling.label", 1] if label else []))
    found = picture(folder / "interpolation-generated.png")
    run("generate", folder, "--samples", 4, "--size", 16, "--each", *label)
    tiles = {}
    for number, (top, left) in {3: (2, 2), 0: (2, 46), 1: (46, 2), 2: (46, 46)}.items():
        alone = picture(folder / "samples" / f"sample-{number:05d}.png")
        tiles[number] = found[top : top + 16, left : left + 16]
        assert np.abs(tiles[number] - alone).max() <= 1, number
    middle = found[24:40, 24:40]
    assert all(np.abs(middle - tile).max() > 0 for tile in tiles.values())


def test_noise_between_samples_keeps_its_length() -> None:
    corners, shape = (5, 2, 7, 9), (3, 16, 16)
    own = noise(shape, corners, seed=1, stream=2)
    ends = [Between(corners, down, across) for down in (0.0, 1.0) for across in (0.0, 1.0)]
    assert torch.equal(noise(shape, ends, seed=1, stream=2), own)
    assert [int(end) for end in ends] == list(corners)
    (half,) = noise(shape, [Between(corners, 0.5, 0.0)], seed=1, stream=2).double()
    left, below = own[0].double(), own[2].double()
    cosine = (left * below).sum() / (left.norm() * below.norm())
    angle = torch.arccos(cosine)
    expected = (left + below) * torch.sin(angle / 2) / torch.sin(angle)
    torch.testing.assert_close(half, expected, rtol=1e-5, atol=1e-5)
    (middle,) = noise(shape, [Between(corners, 0.5, 0.5)], seed=1, stream=2)
    assert abs(middle.std() - 1) < 0.1  # that of the mean of four is 0.5
    same = noise(shape, [Between((4, 4, 4, 4), 0.3, 0.6)], seed=1)
    torch.testing.assert_close(same, noise(shape, [4], seed=1))
    for wrong in ((1, 2, 3), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match="corners" if len(wrong) == 3 else "down"):
            Between(wrong, 1.5, 0.0)


# Mistakes


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export("tokens", tmp_path / "run")
    error = failed(capsys, "generate", folder, "--label", 3)
    assert "label: expected 0 to 2, got 3" in error
    assert "steps: expected at least 1, got 0" in failed(capsys, "generate", folder, "--steps", 0)
    assert "steps" in failed(capsys, "generate", folder, "--steps", 1001)
    for option in ("--views 2", "--mesh ply", "--jitter"):
        assert option.split()[0][2:] in failed(capsys, "generate", folder, *option.split())
    inrct = export("inrct", tmp_path / "inrct")
    assert "label" in failed(capsys, "generate", inrct, "--label", 0)
    assert "guidance" in failed(capsys, "generate", inrct, "--guidance", 2)
    assert "corners" in failed(
        capsys, "interpolate", inrct, "--generated", "--corners", 0, 1, 2, -1
    )
    for command, option in (
        (("generate", inrct), ("--fps", 1e-9)),
        (("generate", inrct), ("--fps", "inf")),
        (("interpolate", inrct), ("--sampling.seed", 1)),
        (("interpolate", inrct, "--generated"), ("--fit-steps", 3)),
        (("interpolate", inrct, "--generated"), ("--data", tmp_path)),
    ):
        with pytest.raises(SystemExit):
            run(*command, *option)
        name = option[0].removeprefix("--").rpartition(".")[2].replace("-", "_")
        assert f"{name}: " in capsys.readouterr().err
    assert "does not exist" in failed(capsys, "generate", tmp_path / "nothing")
    other = tmp_path / "other.safetensors"
    export_weights(LaGinr(MODEL), other)
    error = failed(capsys, "generate", other)
    assert "la-ginr cannot generate; expected one of inrct, inrct-nerf, " in error
    assert "mnif-diffusion, token-diffusion" in error
    weights = load_file(folder / WEIGHTS_NAME)
    with safe_open(folder / WEIGHTS_NAME, "pt") as archive:
        notes = archive.metadata()
    del weights["mean"]
    save_file(weights, tmp_path / "bare.safetensors", notes)
    assert "statistics" in failed(capsys, "generate", tmp_path / "bare.safetensors")


@pytest.mark.parametrize("option", ["samples 0", "size 0", "batch 0", "first -1", "views 0"])
def test_options_out_of_range(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["generate", "RUN", *f"--{option}".split()])
    assert stopped.value.code == 2
    assert option.split()[0] in capsys.readouterr().err


# What decoding costs


def test_bench_generate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = export("inrct", tmp_path)
    run("bench", "generate", folder, "--samples", 3, "--batch", 2, "--rounds", 1)
    printed = capsys.readouterr().out
    assert "generate 3 at 8x8, NFE 1" in printed and "training step, batch 2" in printed
    assert printed.count("%") >= 4 and printed.count("x │") >= 5
    options = ["--samples", 2, "--size", 4, "--rounds", 1, "--precision", "32-true", "--steps", 2]
    run("bench", "generate", export("mnif-images", tmp_path / "mnif"), *options)
    printed = capsys.readouterr().out
    assert "generate 2 at 4x4, NFE 2" in printed and "training" not in printed
    assert "inrct-tiny" in failed(capsys, "bench", "generate", "la-ginr-tiny")


def test_the_faster_of_two_backends_is_seen() -> None:
    from ginr_fast.analysis.generation_speed import Cost, in_turns
    from ginr_fast.ops.dispatch import forced_backend

    def once() -> Cost:
        return Cost(5.0, 4.0) if forced_backend() == "reference" else Cost(2.0, 1.0)

    found = in_turns(once, 2)
    assert (found.decoder, found.whole) == (4.0, 2.5)
    assert (found.reference.share, found.ours.share) == (0.8, 0.5)
    with pytest.raises(ValueError, match="rounds"):
        in_turns(once, 0)
