"""Files of latents: what is written is read back, and what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_training import MNIF, RECIPE

from ginr_fast import cli
from ginr_fast.data import ViewConfig
from ginr_fast.data.icon_files import make_icons
from ginr_fast.data.icons import IconsConfig
from ginr_fast.generation.latents import FORMAT, About, Latents, LatentsError
from ginr_fast.generation.latents_writer import write_latents
from ginr_fast.systems.mnif_adaptation import AutoDecoder
from ginr_fast.training.checkpoints import load_saved, write_export
from ginr_fast.training.latent_export import instances_of
from ginr_fast.training.recipes import Recipe
from ginr_fast.training.stage_one import build_stage
from ginr_fast.training.tasks import DataOptions, Task, open_data, restored, task_for

NAMES = [f"instance {number}" for number in range(23)]
STAGE = {"bases.0": torch.arange(6.0).view(2, 3), "count": torch.tensor(7)}


def some(seed: int = 0, shape: tuple[int, ...] = (4, 6)) -> torch.Tensor:
    """Latents with means and deviations of their own."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.rand(shape, generator=rng) + 0.1
    return torch.randn(len(NAMES), *shape, generator=rng) * scale + scale


def written(path: Path, latents: torch.Tensor, **options: object) -> About:
    """A file of them, written in uneven batches."""
    about = options.pop("about", About("la-ginr", {"steps": 3}, classes=("cat", "dog", "owl")))
    labels = options.pop("labels", [number % 3 for number in range(len(NAMES))])
    return write_latents(path, latents.split(5), NAMES, about, STAGE, labels, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("storage", "error"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 8e-3)]
)
def test_what_is_written_is_read_back(storage: str, error: float, tmp_path: Path) -> None:
    latents, path = some(), tmp_path / "latents.safetensors"
    written(path, latents, storage=storage)
    found = Latents(path)
    assert len(found) == len(NAMES) and found.shape == (4, 6) and found.names == NAMES
    assert found.latents.dtype == getattr(torch, storage)
    chosen = [3, 0, 22]
    torch.testing.assert_close(found.rows(chosen), latents[chosen], rtol=error, atol=error)
    # Statistics are of what the file holds, in float64.
    held = found.rows(range(len(NAMES))).double()
    torch.testing.assert_close(found.mean.double(), held.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.std.double(), held.std(0, correction=0), rtol=1e-6, atol=1e-6)
    every = found.standardised(range(len(NAMES)))
    torch.testing.assert_close(every.mean(0), torch.zeros(4, 6), rtol=0, atol=1e-5)
    torch.testing.assert_close(every.std(0, correction=0), torch.ones(4, 6), rtol=1e-5, atol=0)
    assert found.classes == 3 and found.labels is not None
    assert found.labels.tolist() == [number % 3 for number in range(len(NAMES))]
    assert found.stage.keys() == STAGE.keys()
    assert all(torch.equal(found.stage[name], STAGE[name]) for name in STAGE)
    assert load_file(path)["latents"].shape == (len(NAMES), 4, 6)  # plain safetensors


def test_batches_do_not_change_the_statistics(tmp_path: Path) -> None:
    latents = some(shape=(8,)) + 1000  # far from 0, where sums of squares lose their digits
    prints = []
    for size in (1, 7, 23):
        path = tmp_path / f"{size}.safetensors"
        batches = [part for each in latents.split(size) for part in (each[:0], each)]
        write_latents(path, batches, NAMES, About("mnif-images"), {})
        found = Latents(path)
        expected = latents.double().std(0, correction=0)
        torch.testing.assert_close(found.std.double(), expected, rtol=1e-5, atol=0)
        assert found.labels is None and found.classes == 0
        prints.append(found.rows(range(23)))
    assert all(torch.equal(prints[0], other) for other in prints)


def test_constant_elements_are_counted_and_can_be_standardised(tmp_path: Path) -> None:
    latents, path = some(), tmp_path / "latents.safetensors"
    latents[:, 1, 2] = 5.0
    assert written(path, latents).constant == 1
    found = Latents(path)
    assert found.about.constant == 1 and (found.std > 0).all()
    every = found.standardised(range(len(NAMES)))
    assert every.isfinite().all() and every[:, 1, 2].abs().max() < 1e-3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda x: x.index_fill(0, torch.tensor(9), float("nan")), "instance 9 has others"),
        (lambda x: x * 1e6, "values that torch.float16 holds, instance 0"),
        (lambda x: x[:20], "latents: expected 23, one a name, got 20"),
        (lambda x: x[:1].expand(23, -1, -1), "expected some that differ"),
        (lambda x: x[..., None], r"expected \(B, H\) or \(B, R, D\)"),
        (lambda x: x[..., :0], r"expected \(B, H\) or \(B, R, D\)"),
    ],
)
def test_latents_that_cannot_be_written_are_named(
    change: Callable[[torch.Tensor], torch.Tensor], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "latents.safetensors"
    path.write_text("before")
    with pytest.raises(ValueError, match=named):
        written(path, change(some()), storage="float16")
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_arguments_of_writing_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="storage: expected float32"):
        written(tmp_path / "a", some(), storage="int8")
    with pytest.raises(ValueError, match="labels: expected 23, one a name, got 2"):
        written(tmp_path / "a", some(), labels=[0, 1])
    with pytest.raises(ValueError, match="names: expected one an instance, number 1 is empty"):
        write_latents(tmp_path / "a", [torch.eye(2)], ["a", ""], About("la-ginr"), {})
    with pytest.raises(ValueError, match="latents: expected 2, one a name, got 0"):
        write_latents(tmp_path / "a", [torch.eye(2)[:0]], ["a", "b"], About("la-ginr"), {})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mean": None}, "without its statistics: holds no mean"),
        ({"std": None}, "without its statistics: holds no std"),
        ({"latents": None}, "holds no latents"),
        ({"mean": torch.zeros(4, 5)}, r"mean: expected shape \(4, 6\), got \(4, 5\)"),
        ({"std": torch.zeros(4, 6)}, "std: expected values above 0"),
        ({"mean": torch.full((4, 6), float("inf"))}, "mean: expected finite values"),
        ({"labels": torch.full((23,), 3)}, "labels: expected 0 to 2, got 3 to 3"),
        ({"labels": torch.zeros(22, dtype=torch.int64)}, r"labels: expected \(23,\) int64"),
        ({"latents": some().index_fill(0, torch.tensor(4), float("nan"))}, "number 4"),
        ({"latents": torch.zeros(23)}, r"latents: expected \(N, H\)"),
        ({"latents": torch.zeros(23, 0)}, r"latents: expected \(N, H\) .* not empty"),
        ({"names": torch.zeros(3, dtype=torch.uint8)}, "names: expected 23, got 1"),
        ({"names": torch.full((3,), 255, dtype=torch.uint8)}, "names: expected UTF-8"),
    ],
)
def test_what_a_file_lacks_is_named(
    change: dict[str, torch.Tensor | None], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "latents.safetensors"
    about = written(path, some())
    held = {**load_file(path), **change}
    tensors = {name: value for name, value in held.items() if value is not None}
    save_file(tensors, path, {"format": FORMAT, "about": json.dumps(vars(about))})
    with pytest.raises(LatentsError, match=named):
        Latents(path)


def test_what_is_no_file_of_latents_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latents.safetensors"
    with pytest.raises(FileNotFoundError, match="latents: .* does not exist"):
        Latents(path)
    written(path, some())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LatentsError, match="truncated or corrupt"):
        Latents(path)
    save_file({"latents": some()}, path)
    with pytest.raises(LatentsError, match="holds no latents exported"):
        Latents(path)


@pytest.mark.parametrize(
    "notes",
    [
        {},
        {"about": "{"},
        {"about": "[]"},
        {"about": '{"system": "la-ginr"}'},
        {"about": '{"system": "la-ginr", "classes": [], "colour": 3}'},
    ],
)
def test_notes_that_cannot_be_read_are_named(notes: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "latents.safetensors"
    written(path, some())
    save_file(load_file(path), path, {"format": FORMAT, **notes})
    with pytest.raises(LatentsError, match="latents.safetensors: notes that cannot be read"):
        Latents(path)


# Exporting


def untrained(chosen: Recipe, run: Path, source: DataOptions | None = None) -> Task:
    """The exported weights of a model as it starts."""
    torch.manual_seed(0)
    task = task_for(chosen, open_data(chosen, source))
    task.build()
    write_export(run / "model.safetensors", chosen.system, task.metadata(), task.exported())
    return task


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small pictures, each in the folder of its class."""
    root = tmp_path_factory.mktemp("icons")
    rng = np.random.default_rng(0)
    for number in range(24):
        split, kind = ("val" if number % 6 == 5 else "train"), ("moon", "star")[number % 2]
        path = root / split / kind / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((4, 4, 1)))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


WHOLE = ViewConfig(kind="whole", held_out_views=3)


@pytest.mark.parametrize("system", ["la-ginr", "cavia", "auto-decoding"])
def test_images_are_exported_with_labels(system: str, icons: Path, tmp_path: Path) -> None:
    if system == "la-ginr":
        chosen = replace(RECIPE, views=WHOLE)
    else:
        chosen = replace(MNIF["images"], views=WHOLE, adaptation=system)
    run, out = tmp_path / "run", tmp_path / "latents.safetensors"
    source = DataOptions(icons)
    untrained(chosen, run, source)
    options = ["--out", str(out), "--data", str(icons), "--no-progress", "--batch-size", "7"]
    assert cli.main(["export-latents", str(run), *options]) == 0
    found = Latents(out)
    assert len(found) == 20 and found.names[0].startswith("train/")
    assert found.about.classes == ("moon", "star") and found.labels is not None
    assert [name.split("/")[1] for name in found.names] == [
        found.about.classes[label] for label in found.labels
    ]
    # The file alone decodes its latents as the run does.
    task = restored(load_saved(run), source, torch.device("cpu"))
    (instances,) = instances_of(task, "train")
    torch.testing.assert_close(found.rows([2, 11]), instances.latents([2, 11]))
    stage = build_stage(found.about.system, found.about.recipe, found.stage)
    latents = found.rows([4])
    mine = task.model if system == "la-ginr" else task.model.model  # type: ignore[union-attr]
    where = torch.rand(9, 2)
    assert torch.equal(stage.decode(where, latents), mine.decode(where, latents))  # type: ignore[operator,union-attr]
    # The other split, and both.
    assert cli.main(["export-latents", str(run), *options, "--split", "all"]) == 0
    every = Latents(out)
    assert len(every) == 24 and sum(name.startswith("val/") for name in every.names) == 4
    torch.testing.assert_close(every.rows(range(20)), found.rows(range(20)))


def test_classes_of_cifar_are_labels(tmp_path: Path) -> None:
    data, run, out = (tmp_path / name for name in ("data", "run", "latents.safetensors"))
    make_icons(data, IconsConfig(train=10, held_out=4))
    untrained(replace(RECIPE, views=WHOLE), run, DataOptions(data))
    options = ["--out", str(out), "--data", str(data), "--no-progress", "--storage", "float16"]
    assert cli.main(["export-latents", str(run), *options]) == 0
    found = Latents(out)
    assert found.latents.dtype == torch.float16 and found.classes == 5
    assert found.about.classes[1] == "ring" and found.labels is not None
    assert found.labels.tolist() == [number % 5 for number in range(10)]


@pytest.mark.parametrize("name", ["voxels", "scenes"])
def test_shapes_and_scenes_are_exported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GINR_FAST_CACHE", str(tmp_path / "cache"))
    chosen = MNIF[name]
    run, out = tmp_path / "run", tmp_path / "latents.safetensors"
    task = untrained(chosen, run)
    assert cli.main(["export-latents", str(run), "--out", str(out), "--no-progress"]) == 0
    found = Latents(out)
    assert found.shape == (8,) and found.labels is None and found.about.system == chosen.system
    if name == "scenes":  # auto-decoding has them already
        assert isinstance(task.model, AutoDecoder)
        assert torch.equal(found.rows(range(4)), task.model.latents.weight)
        assert len(found) == 4
    else:
        assert len(found) == 6


def test_crops_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "latents.safetensors"
    untrained(RECIPE, run)
    capsys.readouterr()
    options = ["--out", str(out), "--instances", "9"]
    assert cli.main(["export-latents", str(run), *options]) == 0
    assert capsys.readouterr().out == f"9 latents: {out}\n"  # progress is none of the results
    found = Latents(out)
    assert len(found) == 9 == len(set(found.names)) and found.shape == (16, 24)


def test_what_cannot_be_exported_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export-latents", str(tmp_path), "--out", str(tmp_path / "a")]) == 2
    assert "holds neither model.safetensors nor checkpoints" in capsys.readouterr().err
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "below" / "a"):
        with pytest.raises(SystemExit):  # before any work
            cli.main(["export-latents", str(tmp_path), "--out", str(out)])
        assert "out: " in capsys.readouterr().err
    task = untrained(MNIF["images"], tmp_path)
    with pytest.raises(ValueError, match="split: expected train, held-out, all, got 'test'"):
        instances_of(task, "test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="instances: expected a positive integer, got 0"):
        instances_of(task, "train", 0)
    with pytest.raises(ValueError, match="stage 1: expected one of mnif-images, .*'ffnet'"):
        build_stage("ffnet", {}, None)
    with pytest.raises(ValueError, match="stage 1: mnif-images does not fit"):
        build_stage("mnif-images", {}, {"bases.0": torch.zeros(1)})
