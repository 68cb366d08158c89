"""Cameras: poses, rays through pixels, Plücker coordinates."""

from __future__ import annotations

import math

import pytest
import torch

from ginr_fast.rays import (
    camera_rays,
    look_at,
    orbit_poses,
    pixel_rays,
    plucker,
    random_poses,
    scale_focal,
    spiral_poses,
)


def rigid(poses: torch.Tensor) -> bool:
    rotation = poses[..., :3, :3]
    identity = torch.eye(3, dtype=poses.dtype).expand_as(rotation)
    last = torch.tensor([0.0, 0, 0, 1], dtype=poses.dtype).expand_as(poses[..., 3, :])
    return (
        torch.allclose(rotation.mT @ rotation, identity, atol=1e-6)
        and bool((torch.linalg.det(rotation) > 0).all())
        and torch.equal(poses[..., 3, :], last)
    )


def test_rays_of_an_unmoved_camera_go_through_pixel_centres() -> None:
    origins, directions = camera_rays(torch.eye(4), 2, 4, focal=10.0)
    assert origins.shape == directions.shape == (2, 4, 3)
    assert (origins == 0).all()
    assert torch.allclose(directions[0, 0], torch.tensor([-0.15, 0.05, -1.0]))  # upper left
    assert torch.allclose(directions[1, 3], torch.tensor([0.15, -0.05, -1.0]))  # lower right
    assert (directions[..., 2] == -1).all()


def test_points_project_back_onto_their_pixels() -> None:
    torch.manual_seed(0)
    poses = random_poses(5, 1.3, seed=1).double()
    origins, directions = camera_rays(poses, 3, 5, (7.0, 9.0), (2.2, 1.3))
    points = origins + torch.rand(5, 3, 5, 1, dtype=torch.float64) * directions
    flat = points.reshape(5, -1, 3)
    ones = torch.ones_like(flat[..., :1])
    in_camera = (torch.linalg.inv(poses) @ torch.cat([flat, ones], -1).mT).mT
    depth = -in_camera[..., 2]
    columns = 7.0 * in_camera[..., 0] / depth + 2.2
    rows = -9.0 * in_camera[..., 1] / depth + 1.3
    assert torch.allclose(columns.view(5, 3, 5), torch.arange(5).double().expand(5, 3, 5) + 0.5)
    assert torch.allclose(
        rows.view(5, 3, 5), torch.arange(3).double()[:, None].expand(5, 3, 5) + 0.5
    )


def test_chosen_pixels_are_those_of_the_whole_view() -> None:
    poses = random_poses(3, 2.0, seed=0)
    origins, directions = camera_rays(poses, 6, 8, 9.0)
    rows, columns = torch.randint(6, (3, 10)), torch.randint(8, (3, 10))
    some_origins, some_directions = pixel_rays(poses, rows, columns, 9.0, (4.0, 3.0))
    view = torch.arange(3)[:, None]
    assert torch.equal(some_directions, directions[view, rows, columns])
    assert torch.equal(some_origins, origins[view, rows, columns])
    shared, _ = pixel_rays(poses, rows[0], columns[0], 9.0, (4.0, 3.0))
    assert shared.shape == (3, 10, 3)


def test_rays_differentiate_to_the_pose() -> None:
    pose = look_at((1.0, 2.0, 0.5)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda pose: camera_rays(pose, 2, 2, 3.0), pose)


def test_a_view_of_another_resolution_sees_the_same() -> None:
    focal = scale_focal(131.25, (128, 128), (64, 64))
    assert focal == 65.625
    pose = orbit_poses(1, 1.3)
    _, fine = camera_rays(pose, 128, 128, 131.25)
    _, coarse = camera_rays(pose, 64, 64, focal)
    averaged = fine.view(1, 64, 2, 64, 2, 3).mean(dim=(2, 4))
    assert torch.allclose(averaged, coarse, atol=1e-6)
    assert scale_focal(10.0, (10, 20), (20, 20)) == (10.0, 20.0)
    assert scale_focal((10.0, 12.0), (10, 10), (5, 5)) == (5.0, 6.0)


def test_a_camera_looks_at_its_target_with_up_upwards() -> None:
    pose = look_at((3.0, -1.0, 2.0), (0.5, 0.0, 0.2))
    assert pose.dtype == torch.float32 and rigid(pose)
    forward = torch.tensor([0.5, 0.0, 0.2]) - pose[:3, 3]
    assert torch.allclose(-pose[:3, 2], forward / forward.norm(), atol=1e-6)
    assert pose[2, 1] > 0 and abs(float(pose[2, 0])) < 1e-6  # the horizon is level


@pytest.mark.parametrize("eye", [(0.0, 0.0, 2.0), (0.0, 0.0, -2.0)])
@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.0, 1.0, 0.0)])
def test_looking_straight_along_up_is_no_accident(
    eye: tuple[float, ...], up: tuple[float, ...]
) -> None:
    turned = torch.tensor(eye).roll(2) if up[1] else torch.tensor(eye)
    turned = torch.tensor([0.0, eye[2], 0.0]) if up[1] else turned
    pose = look_at(turned, up=up)
    assert torch.isfinite(pose).all() and rigid(pose)


def test_look_at_takes_batches_and_float64() -> None:
    eyes = torch.randn(2, 3, 3, dtype=torch.float64)
    poses = look_at(eyes)
    assert poses.shape == (2, 3, 4, 4) and poses.dtype == torch.float64 and rigid(poses)
    assert torch.equal(poses[..., :3, 3], eyes)


def test_an_orbit_is_even_and_closed() -> None:
    poses = orbit_poses(8, 1.5, elevation=30, start=45, target=(0.0, 0.1, 0.2))
    assert poses.shape == (8, 4, 4) and rigid(poses)
    around = poses[:, :3, 3] - torch.tensor([0.0, 0.1, 0.2])
    assert torch.allclose(around.norm(dim=1), torch.tensor(1.5))
    assert torch.allclose(around[:, 2], torch.tensor(1.5 * math.sin(math.radians(30))))
    steps = (around - around.roll(1, 0)).norm(dim=1)
    assert torch.allclose(steps, steps[0])  # the last to the first too
    assert torch.allclose(around[0, 0], around[0, 1])


def test_a_spiral_covers_the_upper_hemisphere() -> None:
    poses = spiral_poses(251, 1.3)
    places = poses[:, :3, 3] / 1.3
    assert rigid(poses) and torch.allclose(places.norm(dim=1), torch.tensor(1.0))
    assert (places[:, 2] > 0).all() and places[0, 2] < 0.01 < 0.99 < places[-1, 2]
    nearest = (torch.cdist(places, places) + 9 * torch.eye(251)).amin(1)
    assert nearest.min() > 0.5 * math.sqrt(2 * math.pi / 251)
    assert len({round(float(x), 3) for x in spiral_poses(24, 1.3)[:, 0, 3]}) > 20


def test_random_poses_cover_the_sphere_and_repeat_by_seed() -> None:
    places = random_poses(4000, 1.3, seed=(0, 3))[:, :3, 3]
    assert places.mean(0).abs().max() < 0.05
    assert torch.allclose((places**2).mean(0), torch.tensor(1.3**2 / 3), atol=0.03)
    assert torch.equal(random_poses(5, 1.0, 7), random_poses(5, 1.0, 7))
    assert not torch.equal(random_poses(5, 1.0, 7), random_poses(5, 1.0, 8))


def test_plucker_coordinates_belong_to_the_line() -> None:
    torch.manual_seed(0)
    origins, directions = torch.randn(2, 7, 3).double(), torch.randn(7, 3).double()
    lines = plucker(origins, directions)
    assert lines.shape == (2, 7, 6)
    assert torch.allclose(lines, plucker(origins + 3 * directions, 0.2 * directions))
    assert torch.allclose((lines[..., :3] * lines[..., 3:]).sum(-1), torch.zeros(()).double())
    assert torch.allclose(
        lines[..., 3:], torch.linalg.cross(origins, lines[..., :3], dim=-1), atol=1e-12
    )


def test_mistakes_are_named() -> None:
    pose = torch.eye(4)
    zeros = torch.zeros(3)
    for error, words, call in (
        (TypeError, "poses: expected a float32", lambda: camera_rays(pose.int(), 2, 2, 1.0)),
        (TypeError, "poses: .*list", lambda: camera_rays([[1.0]], 2, 2, 1.0)),
        (ValueError, r"poses: expected shape .*\(3, 4\)", lambda: camera_rays(pose[:3], 2, 2, 1.0)),
        (ValueError, "height: .*0", lambda: camera_rays(pose, 0, 2, 1.0)),
        (ValueError, "width: .*2.0", lambda: camera_rays(pose, 2, 2.0, 1.0)),
        (ValueError, "focal: .*-1", lambda: camera_rays(pose, 2, 2, -1.0)),
        (TypeError, "focal: .*None", lambda: camera_rays(pose, 2, 2, None)),
        (TypeError, "center: ", lambda: camera_rays(pose, 2, 2, 1.0, (1.0, 2.0, 3.0))),
        (TypeError, "rows: ", lambda: pixel_rays(pose, [1], zeros, 1.0, (0.0, 0.0))),
        (ValueError, "columns: ", lambda: pixel_rays(pose, zeros, zeros[:2], 1.0, (0.0, 0.0))),
        (ValueError, "rows: ", lambda: pixel_rays(pose, zeros[None], zeros, 1.0, (0.0, 0.0))),
        (ValueError, "size", lambda: scale_focal(1.0, (0, 2), (1, 1))),
        (ValueError, "eye: ", lambda: look_at((1.0, 2.0))),
        (ValueError, "count: ", lambda: orbit_poses(0, 1.0)),
        (ValueError, "radius: ", lambda: spiral_poses(3, 0.0)),
        (ValueError, "elevation: ", lambda: orbit_poses(3, 1.0, 91)),
        (ValueError, "directions: ", lambda: plucker(zeros, torch.zeros(2))),
        (TypeError, "origins: ", lambda: plucker(zeros.int(), zeros)),
        (TypeError, "directions: ", lambda: plucker(zeros, zeros.double())),
    ):
        with pytest.raises(error, match=words):
            call()
