"""Voxel points in IM-Net's format: reading, batches, broken files, and the shapes we make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ginr_fast.data import BrokenVoxelsError, VoxelPoints
from ginr_fast.data.shapes import ShapesConfig, draw_shape, make_shapes, occupied
from ginr_fast.data.voxel_points import to_coords

h5py = pytest.importorskip("h5py")

SHAPES, POINTS = 5, 40
SMALL = ShapesConfig(shapes=4, points=300, resolution=16)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "voxels": rng.integers(0, 2, (SHAPES, 64, 64, 64, 1), dtype=np.uint8),
        "points_64": rng.integers(0, 256, (SHAPES, POINTS, 3), dtype=np.uint8),
        "values_64": rng.integers(0, 2, (SHAPES, POINTS, 1), dtype=np.uint8),
        "points_16": rng.integers(0, 256, (SHAPES, 7, 3), dtype=np.uint8),
        "values_16": rng.integers(0, 2, (SHAPES, 7, 1), dtype=np.uint8),
    }


def write(path: Path, **changed: np.ndarray | None) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in {**arrays(), **changed}.items():
            if array is not None:
                file.create_dataset(name, data=array, compression=4)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "shapes.hdf5")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("made") / "shapes.hdf5", SMALL)


def test_coordinates_are_voxel_centres() -> None:
    points = torch.tensor([[0, 127, 255]], dtype=torch.uint8)
    assert to_coords(points).tolist() == [[1 / 256 - 1, -1 / 256, 1 - 1 / 256]]
    assert to_coords(torch.tensor([[0, 1, 3]]), grid=4).tolist() == [[-0.75, -0.25, 0.75]]


def test_points_values_and_voxels_come_back(path: Path) -> None:
    data, want = VoxelPoints(path), arrays()
    assert len(data) == SHAPES and data.points_per_shape == POINTS and data.has_voxels
    some = data.shapes(torch.tensor([3, 0]))
    assert some.shapes.tolist() == [3, 0]
    assert torch.equal(some.coords, to_coords(torch.from_numpy(want["points_64"][[3, 0]])))
    assert some.occupancy.dtype == torch.float32
    assert np.array_equal(some.occupancy.numpy(), want["values_64"][[3, 0]])
    voxels = data.voxels(torch.tensor([4, 1]))
    assert voxels.dtype == torch.bool
    assert np.array_equal(voxels.numpy(), want["voxels"][[4, 1], ..., 0] == 1)
    assert data.voxels(torch.empty(0, dtype=torch.int64)).shape == (0, 64, 64, 64)
    assert VoxelPoints(path, 16).points_per_shape == 7
    assert len(VoxelPoints(path, max_shapes=2)) == 2
    shifted = VoxelPoints(path, offset=1.0).shapes(some.shapes)
    assert torch.equal(shifted.coords, torch.from_numpy(want["points_64"][[3, 0]] + 1.0) / 128 - 1)


def test_batches_are_subsets_by_seed_and_step(path: Path) -> None:
    data = VoxelPoints(path)
    batch = data.batch(0, 3, shapes_per_batch=3, points=11)
    assert batch.coords.shape == (3, 11, 3) and batch.occupancy.shape == (3, 11, 1)
    whole = data.shapes(batch.shapes)
    for slot in range(3):
        same = (batch.coords[slot][:, None] == whole.coords[slot][None]).all(-1)
        assert same.any(1).all()
        assert torch.equal(batch.occupancy[slot], whole.occupancy[slot][same.float().argmax(1)])
    assert all(map(torch.equal, batch, data.batch(0, 3, 3, 11)))
    assert not torch.equal(batch.coords, data.batch(0, 4, 3, 11).coords)
    assert not torch.equal(batch.coords, data.batch(1, 3, 3, 11).coords)
    part = data.batch(0, 3, 3, 11, slots=range(1, 3))
    assert all(torch.equal(both[1:], mine) for both, mine in zip(batch, part, strict=True))
    everything = data.batch(0, 0, 1, POINTS)
    order = np.lexsort(everything.coords[0].numpy().T)
    reference = data.shapes(everything.shapes).coords[0].numpy()
    assert np.array_equal(everything.coords[0].numpy()[order], reference[np.lexsort(reference.T)])
    seen = [int(index) for step in range(SHAPES) for index in data.batch(0, step, 1, 1).shapes]
    assert sorted(seen) == list(range(SHAPES))


def test_fingerprints_tell_data_apart(path: Path, tmp_path: Path) -> None:
    one = VoxelPoints(path).fingerprint()
    assert VoxelPoints(write(tmp_path / "moved.hdf5")).fingerprint() == one
    assert VoxelPoints(path, max_shapes=2).fingerprint() != one
    values = 1 - arrays()["values_64"]
    assert VoxelPoints(write(tmp_path / "b.hdf5", values_64=values)).fingerprint() != one


def test_a_file_without_voxels_still_has_points(tmp_path: Path) -> None:
    data = VoxelPoints(write(tmp_path / "a.hdf5", voxels=None))
    assert not data.has_voxels and len(data) == SHAPES
    with pytest.raises(BrokenVoxelsError, match=r"a\.hdf5: lacks the data set voxels"):
        data.voxels(torch.tensor([0]))


def replaced(**changed: Any) -> Callable[[Path], object]:
    return lambda path: write(path, **changed)


BROKEN = {
    "missing": (replaced(points_64=None), r"lacks the data set points_64; it holds points_16"),
    "no values": (replaced(values_64=None), "lacks the data set values_64"),
    "flat": (replaced(points_64=np.zeros((5, 40), np.uint8)), r"points_64 of shape \(any, any, 3"),
    "float": (
        replaced(points_64=np.zeros((5, 40, 3), np.float32)),
        "uint8 in points_64, got float",
    ),
    "other count": (replaced(values_64=np.zeros((4, 40, 1), np.uint8)), "values_64 has 4 shapes"),
    "fewer": (replaced(values_64=np.zeros((5, 39, 1), np.uint8)), r"got \(5, 39, 1\)"),
    "not binary": (replaced(values_64=np.full((5, 40, 1), 2, np.uint8)), "0 and 1 in values_64"),
    "empty": (replaced(points_64=np.zeros((0, 40, 3), np.uint8)), "points_64 is empty"),
    "text": (lambda path: path.write_text("no"), "no readable HDF5 file"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "no readable HDF5 file"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_named(path: Path, what: str) -> None:
    harm, words = BROKEN[what]
    harm(path)
    with pytest.raises(BrokenVoxelsError, match=rf"shapes\.hdf5: .*{words}"):
        VoxelPoints(path)


def test_damaged_bytes_are_named(path: Path) -> None:
    with h5py.File(path) as file:
        start = file["points_64"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start : start + 30] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(BrokenVoxelsError, match=r"points_64 cannot be read"):
        VoxelPoints(path)


def test_mistakes_are_named(path: Path) -> None:
    data = VoxelPoints(path)
    for error, words, call in (
        (FileNotFoundError, "absent", lambda: VoxelPoints(path.with_name("absent"))),
        (ValueError, "resolution: ", lambda: VoxelPoints(path, 0)),
        (ValueError, "offset: ", lambda: VoxelPoints(path, offset=2.0)),
        (ValueError, "max_shapes: ", lambda: VoxelPoints(path, max_shapes=0)),
        (BrokenVoxelsError, "indices below 64", lambda: VoxelPoints(path, grid=64)),
        (ValueError, "points: expected 1 to 40, got 41", lambda: data.batch(0, 0, 1, 41)),
        (ValueError, "shapes_per_batch: ", lambda: data.batch(0, 0, 0, 1)),
        (ValueError, "slots: ", lambda: data.batch(0, 0, 1, 1, range(0))),
        (IndexError, "0 to 4", lambda: data.shapes(torch.tensor([5]))),
        (IndexError, "0 to 4", lambda: data.voxels(torch.tensor([-1]))),
        (TypeError, "indices: ", lambda: data.shapes([0])),
        (TypeError, "indices: ", lambda: data.shapes(torch.tensor([0.0]))),
    ):
        with pytest.raises(error, match=words):
            call()


# Made shapes


def test_made_shapes_are_in_the_published_format(made: Path) -> None:
    with h5py.File(made) as file:
        assert {name: (data.shape, str(data.dtype)) for name, data in file.items()} == {
            "voxels": ((4, 16, 16, 16, 1), "uint8"),
            "points_16": ((4, 300, 3), "uint8"),
            "values_16": ((4, 300, 1), "uint8"),
        }
    data = VoxelPoints(made, 16)
    full = data.voxels(torch.arange(4)).flatten(1).float().mean(1)
    assert ((full > 0.003) & (full < 0.5)).all()
    mean = data.shapes(torch.arange(4)).occupancy.mean((1, 2))
    assert ((mean > 0.1) & (mean < 0.9)).all()  # near the surface: both sides of it


def test_made_points_say_what_the_shape_is_there(made: Path) -> None:
    data = VoxelPoints(made, 16)
    for index in range(4):
        parts = draw_shape(np.random.default_rng((0, index)))
        _, coords, occupancy = data.shapes(torch.tensor([index]))
        want = occupied(parts, coords[0].numpy())
        assert np.array_equal(occupancy[0, :, 0].numpy(), want)


def test_shapes_lie_within_the_cube() -> None:
    for index in range(60):
        for _, center, half in draw_shape(np.random.default_rng(index)):
            assert min(half) > 0
            assert (np.abs(center) + np.abs(half) < 0.95).all()


def test_solids_are_where_they_should_be() -> None:
    points = np.array([[0, 0, 0], [0.4, 0, 0.4], [0.4, 0.4, 0.4], [0.6, 0, 0]], dtype=np.float32)
    half = (0.5, 0.5, 0.5)
    expected = {
        "box": [True, True, True, False],
        "cylinder": [True, False, False, False],
        "ellipsoid": [True, False, False, False],
    }
    for kind, inside in expected.items():
        moved = points + np.array([0.1, -0.2, 0.3], dtype=np.float32)
        assert occupied([(kind, (0.1, -0.2, 0.3), half)], moved).tolist() == inside
    assert occupied([("cylinder", (0, 0, 0), (0.6, 0.5, 0.6))], points).tolist()[1:3] == [True] * 2


def test_making_again_changes_nothing_and_refuses_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "shapes.hdf5"
    make_shapes(path, SMALL)
    before = path.stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    make_shapes(path, SMALL, lambda done, total: calls.append((done, total)))
    assert path.stat().st_mtime_ns == before and calls == [(4, 4)]
    with pytest.raises(ValueError, match="seed is 0, asked for 1"):
        make_shapes(path, ShapesConfig(4, 300, 16, seed=1))
    write(tmp_path / "theirs.hdf5")
    with pytest.raises(ValueError, match="not made by this program"):
        make_shapes(tmp_path / "theirs.hdf5", SMALL)
    (tmp_path / "text").write_text("mine")
    with pytest.raises(ValueError, match="no readable HDF5 file"):
        make_shapes(tmp_path / "text", SMALL)
    assert (tmp_path / "text").read_text() == "mine"


def test_an_interrupted_file_does_not_appear(tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "a.hdf5", SMALL, stop)
    assert [path.name for path in tmp_path.iterdir()] == [".a.hdf5.lock"]


@pytest.mark.parametrize(
    "wrong", [{"shapes": 0}, {"points": 4097}, {"resolution": 20}, {"seed": -1}]
)
def test_settings_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ShapesConfig(**{"resolution": 16, **wrong})
