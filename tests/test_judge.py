"""ginr-fast judge: what it says of small models, and the scores behind it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import failed, run
from PIL import Image
from small_generative import build, export
from small_training import MNIF

from ginr_fast.analysis import judged_images
from ginr_fast.analysis.judging import Drawing, Judged, tabulated
from ginr_fast.coords import grid
from ginr_fast.data.icons import SHAPES, draw_icon
from ginr_fast.data.views import HeldOutViews
from ginr_fast.generation.distances import frechet_distance, nearest, precision_recall
from ginr_fast.generation.evaluation import describe, evaluate_samples, memorisation
from ginr_fast.generation.features import FeatureNetwork, Features, SmallFeatures, small_features
from ginr_fast.generation.latents import About
from ginr_fast.generation.latents_writer import write_latents
from ginr_fast.generation.sampling import SamplingOptions
from ginr_fast.training.recipes import as_plain

SMALL = ("--samples", 8, "--batch", 4, "--neighbours", 5, "--references", 20)


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 pictures to learn from, and 8 more."""
    folder = tmp_path_factory.mktemp("icons")
    for split, count in (("train", 24), ("val", 8)):
        (folder / split).mkdir()
        for index in range(count):
            rng = np.random.default_rng((count, index))
            picture = Image.fromarray(draw_icon(rng, 8, SHAPES[index % len(SHAPES)]))
            picture.save(folder / split / f"{index:02d}.png")
    return folder


def scores(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return found


# The command


def test_images(
    tmp_path: Path,
    icons: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = export("inrct", tmp_path / "run")
    reads, get = Counter[int](), HeldOutViews.__getitem__

    def counted(self: HeldOutViews, index: int) -> torch.Tensor:
        reads[len(self)] += 1
        return get(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(HeldOutViews, "__getitem__", counted)
        run("judge", folder, *SMALL, "--data", icons, "--steps", 1, 2)
    # Of 20 training images: their features, one pass for both columns, and the nearest five.
    assert reads[20] == 20 + 20 + 5
    printed = capsys.readouterr().out
    assert "Frechet (small-1)" in printed and "reconstruction PSNR" in printed
    found = scores(folder / "judged")
    assert found["features"] == "small-1"
    one, two, held_out = found["judged"]
    assert (one["what"], two["what"]) == ("samples, 1 step", "samples, 2 steps")
    assert (one["evaluations"], two["evaluations"], held_out["evaluations"]) == (1, 3, None)
    assert (one["count"], held_out["count"]) == (8, 8)
    assert one["seconds"] > 0 and 0 < one["decoding"] < 1
    assert Image.open(folder / "judged" / "neighbours.png").size[0] == 5 * (96 + 4) + 4

    # The scores are those of what the model draws, beside training images as it sees them.
    model = build("inrct")[1].eval()
    drawn = model.render(model.draw(range(8)), grid(8, 8))

    def read(paths: list[Path]) -> torch.Tensor:
        pixels = np.stack([np.array(Image.open(path)) for path in paths])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255

    # At most 20 of 24, evenly.
    every = sorted((icons / "train").iterdir())
    files = [every[(2 * index + 1) * 24 // 40] for index in range(20)]
    real, unseen = read(files), read(sorted((icons / "val").iterdir()))
    expected = frechet_distance(small_features(drawn), small_features(real))
    assert one["scores"]["Frechet (small-1)"] == pytest.approx(expected, rel=1e-4)
    pixels, known = (
        (side[:5, None] - real).square().mean((2, 3, 4)).sqrt().amin(1) for side in (drawn, unseen)
    )
    ratio = float(pixels.median() / known.median())
    assert one["scores"]["nearest (pixels)"] == pytest.approx(ratio, rel=1e-4)


def test_latents_of_images_and_their_gaussian(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export("mnif-images", tmp_path / "run")
    stage = build("mnif-images")[1].decoder_model
    latents = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    about = About(MNIF["images"].system, as_plain(MNIF["images"]))
    path = tmp_path / "latents.safetensors"
    names = [f"{index}" for index in range(30)]
    write_latents(path, latents.split(8), names, about, stage.state_dict())
    run("judge", folder, *SMALL, "--latents", path, "--out", tmp_path / "out")
    samples, gaussian, known, held_out = scores(tmp_path / "out")["judged"]
    assert (samples["what"], samples["evaluations"]) == ("samples", 4)
    assert (gaussian["what"], gaussian["evaluations"]) == ("one Gaussian of latents", 0)
    assert (known["what"], known["evaluations"]) == ("latents, decoded", 0)
    assert held_out["what"] == "held-out images"
    name = "Frechet (small-1)"
    assert len({one["scores"][name] for one in (samples, gaussian, known)}) == 3
    write_latents(path, latents[:, :5].split(8), names, about, stage.state_dict())
    error = failed(capsys, "judge", folder, *SMALL, "--latents", path)
    assert "latents: expected shape (8,)" in error


def test_shapes_and_scenes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GINR_FAST_CACHE", str(tmp_path / "cache"))
    few = ("--samples", 4, "--batch", 2, "--references", 3)
    folder = export("mnif-voxels", tmp_path / "voxels")
    run("judge", folder, *few)
    samples, training = scores(folder / "judged")["judged"]
    assert training["what"] == "training shapes" and training["count"] == 4
    assert 0 < samples["scores"]["coverage"] <= 1
    # Untrained shapes are far from tables and chairs, training shapes near.
    assert samples["scores"]["MMD (1e-3)"] > 3 * training["scores"]["MMD (1e-3)"]
    assert (folder / "judged" / "neighbours.png").is_file()

    folder = export("mnif-scenes", tmp_path / "scenes")
    run("judge", folder, *few, "--views", 3)
    samples, training = scores(folder / "judged")["judged"]
    name = "Frechet (small-1)"
    assert samples["scores"][name] > 3 * training["scores"][name]
    assert samples["evaluations"] == 4
    monkeypatch.setattr(judged_images, "Drawing", None)
    error = failed(capsys, "judge", folder, *few, "--views", 1)
    assert "views: expected at least 4 views of held-out scenes" in error


def test_mistakes_are_named(
    tmp_path: Path,
    icons: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judged_images, "Drawing", None)  # before anything is drawn
    inrct = export("inrct", tmp_path / "run")
    base = ("judge", inrct, *SMALL, "--data", icons)
    assert "label" in failed(capsys, *base, "--label", 1)
    assert "steps: expected at least 1, got 0" in failed(capsys, *base, "--steps", 0)
    assert "features: no file" in failed(capsys, *base, "--features", tmp_path / "none.pt")
    assert "latents: inrct has no latents" in failed(capsys, *base, "--latents", tmp_path / "l")
    assert "data: this recipe trains on a folder" in failed(capsys, "judge", inrct, *SMALL)
    error = failed(capsys, *base, "--references", 3)
    assert "references: expected at least 4 training images to compare with, got 3" in error
    with pytest.raises(SystemExit):
        run(*base, "--samples", 3)
    few = shutil.copytree(icons, tmp_path / "few")
    for surplus in sorted((few / "val").iterdir())[3:]:
        surplus.unlink()
    error = failed(capsys, "judge", inrct, *SMALL, "--data", few)
    assert "data: expected at least 4 held-out images to compare with, got 3" in error


def test_what_scenes_and_shapes_cannot_be_asked_is_named_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GINR_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delattr(Drawing, "__call__")
    scenes = export("mnif-scenes", tmp_path / "scenes")
    error = failed(capsys, "judge", scenes, "--references", 1, "--views", 3)
    assert "views: expected at least 4 views of held-out scenes to compare with, got 3" in error
    assert "neighbours: are looked for" in failed(capsys, "judge", scenes, "--neighbours", 9)
    voxels = export("mnif-voxels", tmp_path / "voxels")
    assert "features: shapes are" in failed(capsys, "judge", voxels, "--features", "network.pt")


# What is behind it


class _Known(FeatureNetwork):
    """Means of colours as features, and logits of them."""

    def __init__(self) -> None:
        super().__init__("known", 3, 3)

    def describe(self, images: torch.Tensor, classes: bool = True) -> Features:
        found = images.float().mean((2, 3))
        return Features(found, 5 * found)


def _images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_scores_of_batches_are_those_of_all() -> None:
    real, samples = _images(40, 0), 0.9 * _images(30, 1)
    found = evaluate_samples(samples.split(7), iter(real.split(11)), _Known(), neighbours=2)
    means = real.mean((2, 3)), samples.mean((2, 3))
    assert (found.network, found.samples, found.references) == ("known", 30, 40)
    assert found.frechet == pytest.approx(frechet_distance(means[1], means[0]), rel=1e-5)
    assert found.covered == precision_recall(*means, k=2)
    assert found.inception is not None and found.inception[0] > 1
    described = describe([real], _Known())
    again = evaluate_samples(samples.split(30), described, _Known(), neighbours=2)
    assert again.frechet == pytest.approx(found.frechet, rel=1e-6)
    with pytest.raises(ValueError, match="images: expected at least one"):
        describe([], SmallFeatures())


def test_copies_show() -> None:
    training, held_out, fresh = _images(50, 0), _images(20, 1), _images(20, 2)
    sets = [training[10:20] + 1e-3, fresh]
    copies, new = memorisation(sets, held_out, iter(training.split(16)))
    assert copies.samples.indices.tolist() == list(range(10, 20))
    assert copies.ratio < 0.02
    assert new.ratio == pytest.approx(1, abs=0.1)
    assert torch.equal(new.samples.distances, nearest(fresh, training).distances)
    assert torch.equal(new.held_out.distances, nearest(held_out, training).distances)


def test_the_first_batch_warms_up() -> None:
    model = build("inrct")[1].eval()
    drawing = Drawing(model, SamplingOptions(), lambda latents, numbers: latents, batch=2)
    assert sum(len(part) for part in drawing(6)) == 6
    drawing._times = [(2, 100.0, 50.0), (2, 3.0, 1.0), (2, 5.0, 1.0)]
    assert drawing.seconds == pytest.approx(10 / 4)
    assert drawing.decoding == pytest.approx(0.2)
    drawing._times = drawing._times[:1]
    assert drawing.seconds == 75


def test_tables() -> None:
    first = Judged("samples", 8, {"FID": 1234.5, "IS": float("nan")}, 2, 0.0125, 0.5)
    lines = tabulated([first, Judged("held-out images", 5, {"FID": 0.01234})])
    assert lines[0] == ("", "samples", "held-out images")
    assert ("NFE", "2", "") in lines
    assert ("FID", "1234", "0.01234") in lines
    assert ("IS", "", "") in lines
    assert ("ms a sample", "12.5", "") in lines
    assert ("of it decoding (%)", "50", "") in lines
    assert first.plain()["scores"]["IS"] is None
