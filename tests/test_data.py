"""Images, folders, photographs and the views cut from them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ginr_fast.data import (
    BrokenImageError,
    HeldOutViews,
    ImageFiles,
    TrainingViews,
    ViewConfig,
    folder,
    load_image,
    photos,
)
from ginr_fast.data.images import FORMATS, pyramid, resize_shorter_side
from ginr_fast.data.photos import HELD_OUT, TRAIN
from ginr_fast.data.views import training_batches

CROPS = ViewConfig(kind="crops", flip=True, held_out_views=12)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, height: int = 24, width: int = 30, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(height, width, seed)).save(path)
    return path


@pytest.fixture
def many(tmp_path: Path) -> Path:
    for index in range(10):
        write(tmp_path / f"{index}.png", seed=index)
    return tmp_path


# Reading


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff", "ppm"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    assert suffix.upper() in FORMATS
    path = tmp_path / f"image.{suffix}"
    lossless = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(picture(20, 30)).save(path, **lossless)
    assert np.array_equal(load_image(path), picture(20, 30))


def test_transparency_is_shown_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[:, 0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 128, 255]


def test_grey_and_rotated_images_become_upright_rgb(tmp_path: Path) -> None:
    Image.fromarray(picture(4, 6)[:, :, 0]).save(tmp_path / "grey.png")
    grey = load_image(tmp_path / "grey.png")
    assert grey.shape == (4, 6, 3) and (grey == grey[:, :, :1]).all()
    image = Image.fromarray(picture(8, 16))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    image.save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png").shape == (16, 8, 3)


def test_a_large_jpeg_is_reduced_while_decoding_but_not_too_far(tmp_path: Path) -> None:
    Image.fromarray(picture(400, 600)).save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").shape == (400, 600, 3)
    reduced = load_image(tmp_path / "a.jpg", at_least=90)
    assert 90 <= reduced.shape[0] < 400


def test_broken_images_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.png").read_bytes()
    for name, content in {
        "truncated.png": whole[: len(whole) // 2],
        "text.png": b"not an image",
        "empty.png": b"",
        "header.png": whole[:20],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BrokenImageError, match=name):
            load_image(tmp_path / name)
    Image.fromarray(np.ones((3, 3), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(BrokenImageError, match=r"float\.tiff: .*floating point"):
        load_image(tmp_path / "float.tiff")
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "absent.png")


# Folders


def test_a_folder_is_read_recursively_and_split_the_same_every_time(many: Path) -> None:
    write(many / "deep" / "er" / "x.jpg")
    write(many / ".hidden.png")
    write(many / ".git" / "y.png")
    files = folder(many)
    assert len(files.train) + len(files.held_out) == 11
    assert len(files.held_out) == 1
    assert not set(files.train) & set(files.held_out)
    assert folder(many) == files
    assert folder(many, held_out=0.3).fingerprint() != files.fingerprint()
    assert len(folder(many, held_out=0.3).held_out) == 3


def test_the_split_does_not_depend_on_where_the_folder_is(many: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in sorted(many.glob("*.png")):
        os.link(path, moved / path.name)
    for path in many.glob("*.png"):
        path.unlink()
    files = folder(moved)
    names, fingerprint = {path.name for path in files.held_out}, files.fingerprint()
    moved.rename(tmp_path / "again")
    again = folder(tmp_path / "again")
    assert {path.name for path in again.held_out} == names
    assert again.fingerprint() == fingerprint


def test_named_splits_are_kept(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / "train" / "a" / f"{index}.png")
    write(tmp_path / "val" / "0.png")
    write(tmp_path / "extra" / "0.png")
    files = folder(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in files.held_out] == ["val/0.png"]
    assert len(files.train) == 3


def test_broken_files_are_skipped_by_name_or_refused(many: Path) -> None:
    good = folder(many)
    (many / "notes.txt").write_text("hello")
    whole = (many / "0.png").read_bytes()
    (many / "cut.png").write_bytes(whole[:-200])
    with pytest.warns(UserWarning, match="2 file") as caught:
        files = folder(many)
    message = str(caught[0].message)
    assert "cut.png" in message and "notes.txt: not an image" in message
    assert files.train + files.held_out == good.train + good.held_out
    with pytest.raises(ValueError, match=r"2 file\(s\) refused: .*cut\.png"):
        folder(many, strict=True)


def test_long_lists_of_broken_files_are_cut(many: Path) -> None:
    for index in range(15):
        (many / f"note{index}.txt").write_text("hello")
    with pytest.warns(UserWarning, match="and 5 more"):
        folder(many)


def test_small_images_are_skipped_by_name(many: Path) -> None:
    write(many / "small.png", 10, 100)
    with pytest.warns(UserWarning, match=r"small\.png: expected at least 24x24 pixels, got 100x10"):
        assert len(folder(many, smallest=24).train) == 9


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent is no folder"):
        folder(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds 0 readable image\(s\)"):
        folder(tmp_path)
    write(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"holds 1 readable image\(s\), 1 to train on and 0 to"):
        folder(tmp_path)
    with pytest.raises(ValueError, match="held_out"):
        folder(tmp_path, held_out=1.0)


def test_folders_linked_into_themselves_are_read_once(many: Path) -> None:
    (many / "loop").symlink_to(many, target_is_directory=True)
    assert len(folder(many).train) == 9


# Photographs


def test_photographs_are_whole_and_apart() -> None:
    files = photos()
    assert len(files.train) == len(TRAIN) and len(files.held_out) == len(HELD_OUT) == 3
    assert not set(TRAIN) & set(HELD_OUT)
    for path in (*files.train, *files.held_out):
        assert min(load_image(path).shape[:2]) >= 300
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert photos().fingerprint() == files.fingerprint()


# Views


def test_a_pyramid_goes_down_by_the_root_of_two() -> None:
    levels = pyramid(picture(128, 200), 32, max_scale=4)
    assert [level.shape[:2] for level in levels] == [
        (128, 200),
        (91, 141),
        (64, 100),
        (45, 71),
        (32, 50),
    ]
    assert len(pyramid(picture(40, 40), 32, max_scale=8)) == 1
    assert len(pyramid(picture(128, 200), 32, max_scale=1)) == 1


def test_reduction_does_not_alias() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    reduced = resize_shorter_side(stripes, 16)[2:-2, 2:-2].astype(float)
    assert reduced.std() < 3 and abs(reduced.mean() - 127.5) < 3


def test_training_views_are_a_pure_function_of_seed_step_and_slot() -> None:
    def views(seed: int = 0) -> TrainingViews:
        return TrainingViews(photos(), CROPS, 32, batch_size=4, seed=seed)

    first, again = views(), views()
    later = [again[5, 3], again[0, 1]]
    assert torch.equal(first[0, 1], later[1]) and torch.equal(first[5, 3], later[0])
    assert first[0, 1].shape == (3, 32, 32) and first[0, 1].dtype == torch.uint8
    assert not torch.equal(first[0, 1], first[0, 2])
    assert not torch.equal(first[0, 1], first[1, 1])
    assert not torch.equal(first[0, 1], views(seed=1)[0, 1])


def test_batches_do_not_depend_on_workers_or_on_where_they_start() -> None:
    views = TrainingViews(photos(), CROPS, 16, batch_size=4, seed=0)
    alone = list(training_batches(views, 0, 4, range(4), 0, False))
    helped = list(training_batches(views, 2, 4, range(4), 2, False))
    assert len(alone) == 4 and alone[0].shape == (4, 3, 16, 16)
    assert all(torch.equal(left, right) for left, right in zip(alone[2:], helped, strict=True))
    (half,) = training_batches(views, 3, 4, range(2, 4), 0, False)
    assert torch.equal(half, alone[3][2:])


def test_crops_come_from_every_training_photograph_and_no_other() -> None:
    views = TrainingViews(photos(), CROPS, 16, batch_size=1, seed=0)
    # Paint every photograph in a colour of its own.
    views.levels.prepare = lambda path: [  # type: ignore[method-assign]
        np.full((20, 20, 3), TRAIN.index(path.name), dtype=np.uint8)
    ]
    constants = [int(views[step, 0].unique()) for step in range(200)]
    assert set(constants) == set(range(len(TRAIN)))


def test_crops_cover_all_scales_and_both_directions(tmp_path: Path) -> None:
    rising = np.arange(128, dtype=np.uint8)[None, :, None].repeat(128, 0).repeat(3, 2)
    Image.fromarray(rising).save(tmp_path / "a.png")
    files = ImageFiles(tmp_path, (tmp_path / "a.png",), (tmp_path / "a.png",))
    views = TrainingViews(files, CROPS, 16, batch_size=1, seed=0)
    slopes = [
        round(float((view[0, 8, 12].float() - view[0, 8, 4].float()) / 8), 1)
        for view in (views[step, 0] for step in range(200))
    ]
    assert {abs(slope) for slope in slopes} >= {1.0, 2.0, 4.0}
    assert min(slopes) < -3 and max(slopes) > 3
    plain = TrainingViews(files, ViewConfig(kind="crops"), 16, batch_size=1, seed=0)
    assert all(plain[step, 0][0, 0, 0] < plain[step, 0][0, 0, 15] for step in range(50))


def test_channels_are_shuffled_in_every_order(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (10, 20, 30)).save(tmp_path / "a.png")
    files = ImageFiles(tmp_path, (tmp_path / "a.png",), (tmp_path / "a.png",))
    config = ViewConfig(kind="crops", shuffle_channels=True)
    views = TrainingViews(files, config, 16, batch_size=1, seed=0)
    orders = {tuple(views[step, 0][:, 0, 0].tolist()) for step in range(60)}
    assert len(orders) == 6
    assert HeldOutViews(files, config, 16)[0][:, 0, 0].tolist() == [10, 20, 30]


def test_whole_views_go_through_every_image_each_epoch(many: Path) -> None:
    files = folder(many, held_out=0.2)
    views = TrainingViews(files, ViewConfig(kind="whole"), 24, batch_size=4, seed=0)
    assert views.steps_per_epoch() == 2
    seen = [views[step, slot] for step in range(4) for slot in range(4)]
    epochs = [{view.numpy().tobytes() for view in part} for part in (seen[:8], seen[8:])]
    assert len(epochs[0]) == len(files.train) == 8 and epochs[0] == epochs[1]
    assert not all(torch.equal(a, b) for a, b in zip(seen[:8], seen[8:], strict=True))


def test_whole_views_are_the_centre_or_a_random_square(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", 24, 60)
    files = ImageFiles(tmp_path, (path,), (path,))
    centre = torch.from_numpy(picture(24, 60)[:, 18:42].copy()).permute(2, 0, 1)
    assert torch.equal(
        TrainingViews(files, ViewConfig(kind="whole"), 24, batch_size=1, seed=0)[3, 0], centre
    )
    random = TrainingViews(
        files, ViewConfig(kind="whole", random_crop=True), 24, batch_size=1, seed=0
    )
    places = {random[step, 0].numpy().tobytes() for step in range(30)}
    assert len(places) > 10
    assert torch.equal(HeldOutViews(files, ViewConfig(kind="whole"), 24)[0], centre)


def test_held_out_views_are_fixed_and_from_every_held_out_photograph() -> None:
    views = HeldOutViews(photos(), CROPS, 32)
    assert len(views) == 12
    views.levels.prepare = lambda path: [  # type: ignore[method-assign]
        np.full((40, 40, 3), HELD_OUT.index(path.name), dtype=np.uint8)
    ]
    assert [int(views[index].unique()) for index in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(HeldOutViews(photos(), CROPS, 32)[7], HeldOutViews(photos(), CROPS, 32)[7])
    with pytest.raises(IndexError):
        views[12]


def test_the_cache_forgets_the_image_used_longest_ago(many: Path) -> None:
    files = folder(many)
    views = TrainingViews(files, CROPS, 16, batch_size=1, seed=0)
    small = TrainingViews(files, CROPS, 16, batch_size=1, seed=0)
    small.levels.max_bytes = 3 * 24 * 30 * 3
    for step in range(30):
        assert torch.equal(small[step, 0], views[step, 0])
        assert 0 < small.levels.bytes <= small.levels.max_bytes
        assert small.levels.bytes == sum(
            level.nbytes for levels in small.levels.kept.values() for level in levels
        )
    assert len(views.levels.kept) == 9 > len(small.levels.kept)


@pytest.mark.parametrize(
    "arguments", [{"kind": "half"}, {"max_scale": 0.5}, {"shorter_side": 0}, {"held_out_views": 0}]
)
def test_view_config_names_bad_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ViewConfig(**arguments)
