"""Surfaces of fields: closed, where they belong, facing outwards; files that others read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

import ginr_fast
from ginr_fast.meshes import (
    SUFFIXES,
    VISIBLE,
    EmptySurfaceError,
    Mesh,
    extract_mesh,
    save_mesh,
    shaded,
)

OCTAHEDRON = ginr_fast.FieldSpec(coord_dim=3, out_dim=1, hidden_dim=6, hidden_layers=0)
SIDES = (0.8, 0.5, 0.3)


def octahedron(level: float = 1.0) -> torch.Tensor:
    """``level − |x|/0.8 − |y|/0.5 − |z|/0.3`` as packed weights of a ReLU field."""
    first = torch.cat([torch.eye(3), -torch.eye(3)])
    last = -1 / torch.tensor([*SIDES, *SIDES])
    return torch.cat([first.flatten(), torch.zeros(6), last, torch.tensor([level])])[None]


def solid(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def test_a_known_shape() -> None:
    mesh = extract_mesh(octahedron(), OCTAHEDRON, 81)
    made = solid(mesh)
    assert made.is_watertight
    assert made.volume == pytest.approx(4 / 3 * np.prod(SIDES), rel=0.01)
    np.testing.assert_allclose(made.bounds, [[-s for s in SIDES], SIDES], atol=0.03)
    agree = (mesh.normals * made.vertex_normals).sum(1)
    assert agree.mean() > 0.95


def test_slabs_do_not_show_and_bounds_move_the_box() -> None:
    whole = extract_mesh(octahedron(), OCTAHEDRON, 24)
    slabs = extract_mesh(octahedron(), OCTAHEDRON, 24, max_points=1)
    np.testing.assert_allclose(whole.vertices, slabs.vertices, atol=1e-6)
    # An eighth of the box has an eighth of the shape, closed on the box.
    part = solid(extract_mesh(octahedron(), OCTAHEDRON, 64, bounds=(0.0, 1.0)))
    assert part.is_watertight
    np.testing.assert_allclose(part.bounds[0], 0.0, atol=1e-6)
    assert part.volume == pytest.approx(4 / 24 * np.prod(SIDES), rel=0.02)


def test_a_field_without_surface_and_bad_input() -> None:
    with pytest.raises(EmptySurfaceError, match="level"):
        extract_mesh(octahedron(-1.0), OCTAHEDRON, 8)
    with pytest.raises(ValueError, match="resolution"):
        extract_mesh(octahedron(), OCTAHEDRON, 1)
    with pytest.raises(ValueError, match="weights"):
        extract_mesh(octahedron().repeat(2, 1), OCTAHEDRON, 8)
    scene = ginr_fast.FieldSpec(coord_dim=3, out_dim=4, hidden_dim=6, hidden_layers=0)
    with pytest.raises(ValueError, match="spec"):
        extract_mesh(torch.zeros(1, scene.parameter_count), scene, 8)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_hold_the_mesh(suffix: str, tmp_path: Path) -> None:
    mesh = extract_mesh(octahedron(), OCTAHEDRON, 20)
    path = save_mesh(mesh, tmp_path / "new" / f"shape{suffix}")
    read = trimesh.load_mesh(path)
    assert len(read.faces) == len(mesh.faces)
    assert read.volume == pytest.approx(solid(mesh).volume, rel=1e-4)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected one of .ply"):
        save_mesh(extract_mesh(octahedron(), OCTAHEDRON, 8), tmp_path / "shape.glb")


def extent(picture: np.ndarray) -> tuple[int, int]:
    """Rows and columns that are not white."""
    dark = picture.min(-1) < 250
    return int(dark.any(1).sum()), int(dark.any(0).sum())


def test_pictures_show_the_right_side() -> None:
    mesh, size = extract_mesh(octahedron(), OCTAHEDRON, 65), 150
    pixel = 2 * VISIBLE / size  # of what a picture shows
    for azimuth, width in ((0.0, SIDES[0]), (90.0, SIDES[2])):
        rows, columns = extent(shaded(mesh, size, azimuth, 0.0))
        assert abs(rows - 2 * SIDES[1] / pixel) < 4 and abs(columns - 2 * width / pixel) < 4
    front = shaded(mesh, size, 0.0, 0.0).astype(float).mean(-1)
    upper, lower = front[size // 2 - 6, size // 2], front[size // 2 + 6, size // 2]
    assert upper > lower + 10  # light comes from above
    full = front[:, size // 2 - 3 : size // 2 + 3]
    inside = full[size // 2 - 15 : size // 2 + 15]
    assert inside.max() < 250  # no holes


def test_what_is_nearer_hides_what_is_behind() -> None:
    front = np.array([[-1, -1, 0.5], [1, -1, 0.5], [0, 1, 0.5]], dtype=np.float32)
    back = front * [1, 1, -1]
    normals = np.repeat([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0]], 3, axis=0)
    for order in ([front, back], [back, front]):
        which = normals if order[0] is front else normals[::-1]
        mesh = Mesh(np.concatenate(order), np.arange(6).reshape(2, 3), which)
        alone = Mesh(front, np.arange(3)[None], normals[:3])
        assert (shaded(mesh, 40, 0.0, 0.0) == shaded(alone, 40, 0.0, 0.0)).all()
