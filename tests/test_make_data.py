"""``ginr-fast make-data``, and frames as PNG, GIF and MP4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ginr_fast import cli
from ginr_fast.data import LearnItScenes, SrnScenes, VoxelPoints
from ginr_fast.pictures import (
    contact_sheet,
    save_frames,
    save_gif,
    save_mp4,
    save_png,
    to_frames,
)

CARS = "--scenes 1 --views 2 --test-scenes 1 --test-views 1 --size 10"


def frames(count: int = 6, height: int = 9, width: int = 14) -> np.ndarray:
    """A bright square that moves over a gradient."""
    found = np.zeros((count, height, width, 3), dtype=np.uint8)
    found[..., 2] = np.linspace(40, 200, width, dtype=np.uint8)
    for index in range(count):
        found[index, 2:6, 2 * index : 2 * index + 4] = (250, 220, 30)
    return found


# The command


def test_cars_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cars"
    assert cli.main(["make-data", "cars", "--out", str(out), *CARS.split()]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}: 1 cars to train on, 1 to test with, 10x10 pixels\n"
    assert SrnScenes(out, "train").scene(0).images.shape == (2, 10, 10, 3)
    assert cli.main(["make-data", "cars", "--out", str(out), *CARS.split(), "--seed", "3"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("(seed is 0, asked for 3); name another folder")


def test_cars_in_learnit_format_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["make-data", "cars", "--out", str(tmp_path / "cars"), *CARS.split()]
    assert cli.main([*arguments, "--format", "learnit"]) == 0
    assert capsys.readouterr().out.endswith("1 cars to train on, 1 to test with, 10x10 pixels\n")
    scene = LearnItScenes(tmp_path / "cars", "cars", "train", max_views=2).scene(0)
    assert scene.images.shape == (2, 10, 10, 3)
    assert cli.main([*arguments, "--format", "srn"]) == 2
    assert "asked for 'cars'); name another folder" in capsys.readouterr().err


def test_shapes_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    out = tmp_path / "shapes.hdf5"
    options = ["--shapes", "2", "--points", "50", "--resolution", "16"]
    assert cli.main(["make-data", "shapes", "--out", str(out), *options]) == 0
    assert capsys.readouterr().out == f"{out}: 2 shapes of 16^3 voxels, 50 points each\n"
    assert len(VoxelPoints(out, 16)) == 2


def test_audio_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clips"
    options = ["--clips", "3", "--test-clips", "2", "--seconds", "0.1", "--rate", "4000"]
    assert cli.main(["make-data", "audio", "--out", str(out), *options]) == 0
    printed = f"{out}: 3 clips to train on, 2 to test with, 0.1 s at 4000 Hz\n"
    assert capsys.readouterr().out == printed
    assert [len(list((out / name).glob("*.wav"))) for name in ("train", "test")] == [3, 2]


@pytest.mark.parametrize("arguments", [[], ["boats"]])
def test_kinds_are_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["make-data", *arguments]) == 2
    assert "kind: expected one of cars, shapes, audio" in capsys.readouterr().err
    assert cli.main(["make-data", "--help"]) == 0
    assert "usage: ginr-fast make-data KIND" in capsys.readouterr().out


# Frames


def test_floats_and_tensors_become_bytes() -> None:
    values = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 0.1]).view(1, 1, 2, 3).requires_grad_()
    assert to_frames(values).flatten().tolist() == [0, 0, 128, 255, 255, 26]
    assert np.array_equal(to_frames(frames()), frames())
    backwards = torch.from_numpy(frames()).flip(2)
    assert np.array_equal(to_frames(backwards), frames()[:, :, ::-1])


def test_frames_as_png(tmp_path: Path) -> None:
    paths = save_frames(frames(4), tmp_path / "out")
    assert [path.name for path in paths] == [f"00000{index}.png" for index in range(4)]
    assert np.array_equal(np.stack([np.array(Image.open(path)) for path in paths]), frames(4))
    (tmp_path / "out" / "notes.png").write_bytes(b"")
    save_frames(frames(2), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "000000.png",
        "000001.png",
        "notes.png",
    ]


def test_a_gif_holds_every_frame(tmp_path: Path) -> None:
    path = save_gif(frames(), tmp_path / "deep" / "a.gif", fps=25)
    with Image.open(path) as image:
        assert image.n_frames == 6 and image.info["loop"] == 0 and image.info["duration"] == 40
        for index, want in enumerate(frames()):
            image.seek(index)
            assert np.abs(np.array(image.convert("RGB")).astype(int) - want).max() <= 12
    with Image.open(save_gif(frames(), tmp_path / "b.gif", fps=1000, loop=False)) as image:
        assert "loop" not in image.info and image.info["duration"] == 20


def test_a_video_holds_every_frame(tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    pictures = frames(6, 33, 48)
    path = save_mp4(pictures, tmp_path / "deep" / "a.mp4", fps=12, quality=1)
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    assert about["size"] == (48, 34) and about["fps"] == 12 and about["codec"] == "h264"
    shown = [np.frombuffer(frame, dtype=np.uint8).reshape(34, 48, 3) for frame in reader]
    assert len(shown) == 6
    error = np.abs(np.stack(shown)[:, :33].astype(int) - pictures).mean()
    assert error < 8  # half the colour resolution is the format's


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_gif(frames(), tmp_path / "a.gif")
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_gif(frames(3), path)
    with pytest.raises(OSError, match="disk full"):
        save_png(Image.new("RGB", (2, 2)), tmp_path / "b.png")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gif"]


def test_a_contact_sheet_lays_pictures_out() -> None:
    pictures = frames(5, 4, 6)
    sheet = np.array(contact_sheet(pictures, columns=3, gap=2))
    assert sheet.shape == (10, 22, 3)
    assert np.array_equal(sheet[:4, :6], pictures[0])
    assert np.array_equal(sheet[:4, 16:], pictures[2])
    assert np.array_equal(sheet[6:, 8:14], pictures[4])
    assert (sheet[4:6] == 255).all() and (sheet[6:, 16:] == 255).all()
    assert contact_sheet(pictures, gap=0).size == (18, 8)


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for error, words, call in (
        (TypeError, "frames: .*list", lambda: to_frames([1])),
        (TypeError, "frames: .*int32", lambda: to_frames(np.zeros((1, 2, 2, 3), np.int32))),
        (ValueError, r"frames: .*\(2, 2, 3\)", lambda: to_frames(np.zeros((2, 2, 3), np.uint8))),
        (ValueError, "frames: ", lambda: save_gif(np.zeros((0, 2, 2, 3), np.uint8), path)),
        (ValueError, "fps: .*0", lambda: save_gif(frames(), path, fps=0)),
        (ValueError, "fps: .*1e-09", lambda: save_gif(frames(), path, fps=1e-9)),
        (ValueError, "fps: .*nan", lambda: save_mp4(frames(), path, fps=float("nan"))),
        (ValueError, "quality: ", lambda: save_mp4(frames(), path, quality=52)),
        (ValueError, "columns", lambda: contact_sheet(frames(), columns=0)),
    ):
        with pytest.raises(error, match=words):
            call()
    assert not list(tmp_path.iterdir())
