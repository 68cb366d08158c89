"""CIFAR as it is distributed, and what may not be in its files."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ginr_fast import cli
from ginr_fast.data import (
    BrokenCifarError,
    HeldOutViews,
    TrainingViews,
    ViewConfig,
    cifar,
    is_cifar,
    load_image,
    write_cifar,
)
from ginr_fast.data.cifar import BINARY_10, BINARY_100, PYTHON_10, PYTHON_100, CifarFormat
from ginr_fast.data.folder import held_out_split
from ginr_fast.data.icons import IconsConfig, icons
from ginr_fast.training.recipes import recipe as recipe_named
from ginr_fast.training.tasks import DataOptions, open_data

WHOLE = ViewConfig(kind="whole")
NAMES = ["cat", "ship", "frog"]


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, len(NAMES), count)


def rows(images: np.ndarray) -> np.ndarray:
    """As CIFAR has them: all of red, then green, then blue, each row by row."""
    return np.stack([np.concatenate([image[..., c].ravel() for c in range(3)]) for image in images])


def write_python(folder: Path, form: CifarFormat, dump: Callable[[Any], bytes]) -> None:
    folder.mkdir()
    for number, name in enumerate(form.images):
        images, labels = pictures(4, number)
        content = {
            b"data": rows(images),
            form.labels.encode(): labels.tolist(),
            b"coarse_labels": [0] * 4,
            b"filenames": [b"a.png"] * 4,
        }
        (folder / name).write_bytes(dump(content))
    names = {form.label_names.encode(): [name.encode() for name in NAMES]}
    (folder / form.names).write_bytes(dump(names))


def write_binary(folder: Path, form: CifarFormat) -> None:
    folder.mkdir()
    for number, name in enumerate(form.images):
        images, labels = pictures(4, number)
        columns = [np.full((4, form.label_bytes - 1), 77, np.uint8), labels[:, None], rows(images)]
        (folder / name).write_bytes(np.concatenate(columns, 1).astype(np.uint8).tobytes())
    (folder / form.names).write_text("\n".join(NAMES) + "\n\n")


def old(content: Any) -> bytes:
    """As NumPy 1 named what it needs, which is what the distributed files hold."""
    return pickle.dumps(content, protocol=2).replace(b"numpy._core", b"numpy.core")


@pytest.fixture(params=["py", "py-5", "py-100", "bin", "bin-100"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    form = {"py-100": PYTHON_100, "bin": BINARY_10, "bin-100": BINARY_100}.get(
        request.param, PYTHON_10
    )
    out = tmp_path / form.folder
    if form.binary:
        write_binary(out, form)
    else:
        dump = (lambda c: pickle.dumps(c, protocol=5)) if request.param == "py-5" else old
        write_python(out, form, dump)
    return out


def test_every_form_gives_images_and_labels(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    found = [cifar(place) for place in (folder, folder.parent, archive)]
    files = 1 if "100" in folder.name else 5
    for images in found:
        assert images.classes == tuple(NAMES)
        assert (len(images.train), len(images.held_out)) == (4 * files, 4)
        wanted = [pictures(4, number) for number in range(files + 1)]
        for number, (pixels, labels) in enumerate(wanted):
            part = (*images.train, *images.held_out)[4 * number : 4 * number + 4]
            assert np.array_equal(np.stack([load_image(image) for image in part]), pixels)
            assert [image.label for image in part] == labels.tolist()
    assert len({images.fingerprint() for images in found}) == 1
    assert is_cifar(folder) and is_cifar(tmp_path) and is_cifar(archive)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    train, test = pictures(20, 0), pictures(3, 1)
    found = cifar(write_cifar(tmp_path / "made", train, test, NAMES))
    assert np.array_equal(np.stack([image.pixels for image in found.train]), train[0])
    assert [image.label for image in found.held_out] == test[1].tolist()
    os.link(tmp_path / "made" / "test_batch", tmp_path / "before")
    other = cifar(write_cifar(tmp_path / "made", train, pictures(3, 2), NAMES))
    assert other.fingerprint() != found.fingerprint()
    content = pickle.loads((tmp_path / "before").read_bytes())  # replaced, not written over
    assert np.array_equal(content["data"], rows(test[0]))
    for name, arguments in (
        ("train: expected a multiple of 5", (pictures(4, 0), test, NAMES)),
        ("train: expected classes 0 to 1", (train, test, NAMES[:2])),
        ("test: expected .N, 32", (train, (test[0].astype(float), test[1]), NAMES)),
        ("train: expected classes as integers", ((train[0], train[1] / 1), test, NAMES)),
        ("train: expected one class", ((train[0], train[1][:3]), test, NAMES)),
    ):
        with pytest.raises(ValueError, match=name):
            write_cifar(tmp_path / "made", *arguments)


# What may not be in the files


class Calls:
    """What unpickling would run."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("content", "asks"),
    [
        (Calls(os.mkdir, "made-by-a-pickle"), "posix.mkdir"),
        (Calls(eval, "1"), r"builtin\S*eval"),
        (Calls(np.load, "x.npy"), r"numpy\S*load"),
    ],
    ids=["mkdir", "eval", "load"],
)
def test_pickles_run_nothing(
    content: Any, asks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = write_cifar(tmp_path / "made", pictures(5, 0), pictures(1, 1), NAMES)
    for where in ({"data": content}, content):
        (made / "data_batch_2").write_bytes(pickle.dumps(where, protocol=2))
        with pytest.raises(BrokenCifarError, match=asks) as error:
            cifar(made)
        assert "data_batch_2" in str(error.value)
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_damage_is_named(tmp_path: Path) -> None:
    made = write_cifar(tmp_path / "good", pictures(20, 0), pictures(4, 1), NAMES)
    test, meta = (made / "test_batch").read_bytes(), (made / "batches.meta").read_bytes()
    shorter = {"data": rows(pictures(2, 0)[0]), "labels": [0, 1]}

    def pickled(**changes: Any) -> bytes:
        return pickle.dumps({**shorter, **changes})

    for name, content, message in (
        ("data_batch_3", None, "lacks data_batch_3"),
        ("batches.meta", None, "lacks batches.meta"),
        ("batches.meta", pickle.dumps({}), "names of the classes"),
        ("data_batch_3", pickled(), "data_batch_3: expected 4 images as in data_batch_1, got 2"),
        (
            "test_batch",
            test[: len(test) // 2],
            "test_batch: no file of CIFAR|test_batch: truncated",
        ),
        ("test_batch", b"", "test_batch: (truncated|no file)"),
        ("test_batch", b"\x89PNG" + test, "test_batch"),
        ("test_batch", pickled(labels=[0]), "test_batch: expected a label for each of 2"),
        ("test_batch", pickled(labels=[0, 3]), "test_batch: expected classes 0 to 2, got 3"),
        ("test_batch", pickled(labels="ab"), "test_batch: expected labels, a list"),
        ("test_batch", pickled(data=np.zeros((2, 9), np.uint8)), r"got \(2, 9\) uint8"),
        ("test_batch", pickle.dumps([1]), "test_batch: expected a dictionary, got list"),
        ("test_batch", meta, "test_batch: expected data"),
    ):
        folder = tmp_path / "broken"
        shutil.copytree(made, folder)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(BrokenCifarError, match=message):
            cifar(folder)
        shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        cifar(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrokenCifarError, match="empty holds none of cifar-10-batches-py"):
        cifar(tmp_path / "empty")
    assert not is_cifar(tmp_path / "empty") and not is_cifar(tmp_path / "absent")


def test_truncated_binaries_and_damaged_archives_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_binary(tmp_path / BINARY_10.folder, BINARY_10)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        file.add(tmp_path / BINARY_10.folder, BINARY_10.folder)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(packed.getvalue()[:-2000])
    with pytest.raises(BrokenCifarError, match="cifar-10-binary.tar.gz: truncated"):
        cifar(archive)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as file:
        file.add(tmp_path / BINARY_10.folder, BINARY_10.folder)
    stored = bytearray(gzip.compress(plain.getvalue(), 0))
    archive.write_bytes(stored)
    pixel = stored.find(cifar(archive).train[7].pixels.transpose(2, 0, 1).tobytes()[:64])
    stored[pixel] ^= 1
    archive.write_bytes(stored)
    with pytest.raises(BrokenCifarError, match=r"cifar-10-binary.tar.gz: .*damaged.*CRC"):
        cifar(archive)
    archive.write_bytes(packed.getvalue()[:3000] + bytes(500) + packed.getvalue()[3500:])
    with pytest.raises(BrokenCifarError, match=r"cifar-10-binary.tar.gz: .*damaged"):
        cifar(archive)
    monkeypatch.setattr(tarfile.TarFile, "extractfile", None)
    assert is_cifar(archive)  # which reads no file in it
    batch = tmp_path / BINARY_10.folder / "data_batch_4.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(BrokenCifarError, match=r"data_batch_4.bin: expected rows of 3073 bytes"):
        cifar(tmp_path)


# What tasks make of them


def test_views_of_cifar(tmp_path: Path) -> None:
    train, test = pictures(10, 0), pictures(2, 1)
    files = cifar(write_cifar(tmp_path, train, test, NAMES))
    held_out = HeldOutViews(files, WHOLE, 32)
    assert len(held_out) == 2
    assert np.array_equal(held_out[1].permute(1, 2, 0).numpy(), test[0][1])
    views = TrainingViews(files, WHOLE, 32, 5, seed=0)
    assert views.steps_per_epoch() == 2
    epoch = torch.stack([views[step, slot] for step in range(2) for slot in range(5)])
    found = {view.numpy().tobytes() for view in epoch.permute(0, 2, 3, 1)}
    assert found == {image.tobytes() for image in train[0]}


def test_image_tasks_take_cifar(tmp_path: Path) -> None:
    write_cifar(tmp_path / "made", pictures(10, 0), pictures(2, 1), NAMES)
    recipe = recipe_named("la-ginr-tiny")  # crops of 32x32 pixels
    found = open_data(recipe, DataOptions(data=tmp_path / "made"))
    assert len(found.train) == 10 and found.classes == tuple(NAMES)
    large = recipe_named("la-ginr-celeba")
    assert len(open_data(large, DataOptions(data=tmp_path / "made")).held_out) == 2
    from dataclasses import replace

    crops = replace(large, views=replace(large.views, kind="crops"))
    with pytest.raises(ValueError, match="32x32 pixels an image, too few for crops of 178x178"):
        open_data(crops, DataOptions(data=tmp_path / "made"))


def test_icons_are_made_in_this_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["make-data", "icons", "--out", str(tmp_path / "icons"), "--held-out", "7"]
    names = tmp_path / "icons" / "cifar-10-batches-py" / "batches.meta"
    written = []
    for again in range(3):  # the second time there is nothing to do
        if again == 2:
            names.write_bytes(b"")
        assert cli.main([*command, "--train", "10"]) == 0
        written.append(names.stat().st_mtime_ns)
        assert capsys.readouterr().out.endswith("10 icons to train on, 7 to test with\n")
    assert written[0] == written[1] < written[2]
    found = cifar(tmp_path / "icons")
    drawn = icons(IconsConfig(train=10, held_out=7), 32)
    assert [image.label for image in found.train] == [image.label for image in drawn.train]
    assert np.array_equal(load_image(found.train[3]), load_image(drawn.train[3]))
    assert len(found.held_out) == 7 and found.classes == drawn.classes
    assert IconsConfig().train % len(PYTHON_10.train) == 0  # the defaults can be written
    assert cli.main([*command, "--train", "15"]) == 2
    assert "train is 10, asked for 15" in capsys.readouterr().err
    assert cli.main([*command, "--train", "12"]) == 2
    assert "train: expected a multiple of 5" in capsys.readouterr().err


def test_celeba_hq_is_split_as_published(tmp_path: Path) -> None:
    """30,000 files without a split of their own: 27,000 and 3,000, the same ones everywhere."""
    paths = [tmp_path / f"{number}.jpg" for number in range(30000)]
    train, test = held_out_split(tmp_path, paths, DataOptions().held_out)
    assert (len(train), len(test)) == (27000, 3000)
    assert not set(train) & set(test)
    moved = [Path("/elsewhere") / path.name for path in paths]
    again = held_out_split(Path("/elsewhere"), moved, 0.1)[1]
    assert [path.name for path in again] == [path.name for path in test]
