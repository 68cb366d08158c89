"""The ray tracer and the cars made with it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ginr_fast.data import LearnItScenes, SrnScenes, learnit
from ginr_fast.data.car_models import KINDS, build_car, draw_parameters
from ginr_fast.data.cars import (
    FAR,
    FOCAL,
    LEARNIT_RADIUS,
    NEAR,
    RADIUS,
    CarsConfig,
    make_cars,
)
from ginr_fast.data.raytrace import Light, hull, render, render_rgba, trace
from ginr_fast.rays import camera_rays, look_at, random_poses, spiral_poses

SMALL = CarsConfig(scenes=2, views=3, test_scenes=1, test_views=2, size=12, supersample=1)
CUBE = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)


def red(hits: object) -> torch.Tensor:
    return torch.tensor([1.0, 0.0, 0.0]).expand(len(hits.points), 3)


# Rays


def test_a_hull_has_one_half_space_a_face() -> None:
    solid = hull(CUBE * 0.5, red)
    assert solid.normals.shape == (6, 3) and torch.allclose(solid.offsets, torch.tensor(0.5))
    assert sorted(solid.normals.abs().argmax(1).tolist()) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="points: "):
        hull(CUBE * [1, 1, 0], red)


def test_rays_meet_a_cube_where_they_should() -> None:
    seen = {}

    def paint(hits: object) -> torch.Tensor:
        seen["hits"] = hits
        return torch.ones(len(hits.points), 3)

    origin = torch.tensor([3.0, 0.2, -0.1])
    targets = torch.tensor([[0.5, 0.3, 0.4], [0.5, -0.45, 0.0], [0.5, 0.6, 0.0]])
    light = Light((1.0, 0.0, 0.0), ambient=0.25)
    colors = trace([hull(CUBE * 0.5, paint)], origin, targets - origin, light)
    assert torch.allclose(seen["hits"].points, targets[:2], atol=1e-5)
    assert torch.allclose(seen["hits"].normals, torch.tensor([1.0, 0, 0]).expand(2, 3))
    assert torch.allclose(seen["hits"].inset, torch.tensor([0.1, 0.05]), atol=1e-5)
    assert torch.allclose(colors, torch.tensor(1.0))  # lit face on, or the background
    away = trace([hull(CUBE * 0.5, paint)], origin, targets - origin, Light((-1.0, 0, 0), 0.25))
    assert torch.allclose(away[:2], torch.tensor(0.25)) and (away[2] == 1).all()


def test_the_nearest_of_overlapping_solids_is_seen() -> None:
    near = hull(CUBE * 0.3 + [0.5, 0, 0], red)
    origin, forward = torch.tensor([-4.0, 0, 0]), torch.tensor([[1.0, 0.0, 0.0]])
    light = Light(ambient=1.0)
    assert trace([near], origin, forward, light)[0].tolist() == [1, 0, 0]
    assert trace([near], origin, -forward, light)[0].tolist() == [1, 1, 1]  # behind the eye
    behind = hull(CUBE * 0.3 + [3.0, 0, 0], red)
    blue = hull(CUBE, lambda hits: torch.tensor([0.0, 0, 1]).expand(len(hits.points), 3))
    for solids in ([blue, behind], [behind, blue]):
        assert trace(solids, origin, forward, light)[0].tolist() == [0, 0, 1]
    assert blue.radius == pytest.approx(math.sqrt(3), rel=1e-2)


def test_a_sphere_of_many_faces_looks_like_one() -> None:
    """Tracing agrees with the sphere's formula: silhouette and shading."""
    points = random_poses(4000, 0.5, seed=0)[:, :3, 3].double().numpy()
    ball = hull(points, red, rounding=0.002)
    pose = look_at((0.0, -1.3, 0.4))
    light = Light((0.3, -1.0, 0.5), ambient=0.4)
    picture = render([ball], pose, 48, FOCAL * 48, light, supersample=1)
    origins, directions = camera_rays(pose, 48, 48, FOCAL * 48)
    unit = torch.nn.functional.normalize(directions, dim=-1)
    middle = (origins * unit).sum(-1)
    under_root = middle**2 - (origins**2).sum(-1) + 0.25
    hit = under_root > 0
    normal = (origins + (-middle - under_root.clamp(min=0).sqrt())[..., None] * unit) / 0.5
    toward = torch.nn.functional.normalize(torch.tensor(light.direction), dim=0)
    shade = 0.4 + 0.6 * (normal @ toward).clamp(min=0)
    want = torch.where(hit[..., None], torch.stack([shade, 0 * shade, 0 * shade], -1), 1.0)
    error = np.abs(picture.astype(float) - want.numpy() * 255).max(-1)
    edge = (under_root.abs() < 0.01).numpy()
    assert error[~edge].max() < 8 and edge.mean() < 0.1


def test_supersampling_averages_finer_rays() -> None:
    solid, pose = hull(CUBE * 0.3, red), look_at((1.0, 0.4, 0.7))
    fine = render([solid], pose, 16, 16.4, Light(), supersample=1)
    averaged = fine.reshape(8, 2, 8, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(render([solid], pose, 8, 8.2, Light(), supersample=2) - averaged).max() <= 1


@pytest.mark.parametrize("supersample", [1, 3])
def test_transparent_views_over_white_are_those_on_white(supersample: int) -> None:
    ball = hull(random_poses(300, 0.3, seed=0)[:, :3, 3].double().numpy(), red)
    wall = hull(CUBE * [0.2, 0.05, 0.4], lambda hits: torch.full((len(hits.points), 3), 0.8))
    pose = look_at((1.0, 0.4, 0.7))
    arguments = ([ball, wall], pose, 24, FOCAL * 24, Light(), supersample)
    rgba, on_white = render_rgba(*arguments).astype(float) / 255, render(*arguments)
    assert rgba.shape == (24, 24, 4)
    alpha = rgba[..., 3:]
    over = 255 * (rgba[..., :3] * alpha + 1 - alpha)
    assert np.abs(over - on_white).max() < 1.6
    covered = supersample**2 * alpha
    assert np.abs(covered - covered.round()).max() < 0.02 * supersample**2
    assert (alpha == 0).mean() > 0.3 and (alpha == 1).mean() > 0.1
    assert ((alpha > 0) & (alpha < 1)).any() == (supersample > 1)
    bright = rgba[alpha[..., 0] > 0][:, 0]
    assert bright.min() > 0.35  # colours are not multiplied by alpha, nor mixed with black


# Cars


@pytest.mark.parametrize("seed", range(12))
def test_cars_lie_in_their_sphere_and_on_their_wheels(seed: int) -> None:
    parameters = draw_parameters(np.random.default_rng(seed))
    car = build_car(parameters)
    assert parameters.kind in KINDS and len(car.solids) == 8
    for solid in car.solids:
        assert (solid.normals @ solid.center < solid.offsets).all()
    pose = look_at((0.0, -RADIUS, 0.0))
    origins, directions = camera_rays(pose, 64, 64, FOCAL * 64)
    picture = render(car.solids, car.to_metres(pose), 64, FOCAL * 64, Light())
    lit = torch.from_numpy((picture < 250).any(-1))
    across = torch.linalg.cross(origins, torch.nn.functional.normalize(directions, dim=-1))
    distance = across.norm(dim=-1)
    assert distance[lit].max() < 0.5 + 0.02
    assert 0.1 < lit.float().mean() < 0.5
    rows = lit.any(1).nonzero()
    assert lit[rows[-1]].sum() < lit[rows[len(rows) // 2]].sum()  # two wheels at the bottom


def test_cars_differ_and_repeat_by_seed() -> None:
    drawn = [draw_parameters(np.random.default_rng(seed)) for seed in range(40)]
    assert {parameters.kind for parameters in drawn} == set(KINDS)
    assert drawn[3] == draw_parameters(np.random.default_rng(3))
    assert any(p.stripe for p in drawn) and any(p.color != p.roof_color for p in drawn)


def test_a_stripe_and_windows_are_painted() -> None:
    plain = replace(draw_parameters(np.random.default_rng(1)), kind="saloon", stripe=None)
    plain = replace(plain, color=(0.0, 1.0, 0.0), roof_color=(0.0, 1.0, 0.0))
    above, side = look_at((0.0, 0.0, RADIUS)), look_at((0.0, -RADIUS, 0.2))

    def seen(parameters: object, pose: torch.Tensor) -> np.ndarray:
        car = build_car(parameters)
        return render(car.solids, car.to_metres(pose), 64, FOCAL * 64, Light(), 1).astype(int)

    def red_pixels(picture: np.ndarray) -> int:
        return int((picture[..., 0] > 100 + picture[..., 1]).sum())

    striped = seen(replace(plain, stripe=(1.0, 0.0, 0.0)), above)
    assert red_pixels(striped) > 50 > 20 > red_pixels(seen(plain, above))  # its tail lamps
    upper = seen(plain, side)[:32]
    dark = (upper.max(-1) < 90).sum()
    green = ((upper[..., 1] > 60 + upper[..., 0]) & (upper[..., 0] < 90)).sum()
    assert dark > 20 and green > 20


# Data sets


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cars(tmp_path_factory.mktemp("made") / "cars", SMALL)


def test_a_made_set_reads_as_srn(made: Path) -> None:
    train, novel, test = (SrnScenes(made, split) for split in ("train", "train_novel", "test"))
    assert (len(train), len(novel), len(test)) == (2, 2, 1)
    scene = train.scene(1)
    assert scene.name == "car-000001" and scene.images.shape == (3, 12, 12, 3)
    assert scene.focal == pytest.approx(131.25 * 12 / 128) and scene.center == (6.0, 6.0)
    assert torch.allclose(scene.poses[:, :3, 3].norm(dim=1), torch.tensor(1.3))
    assert torch.equal(novel.scene(0).poses, spiral_poses(2, 1.3))
    assert torch.equal(novel.scene(0).poses, test.scene(0).poses)
    for pixels in (scene.images, novel.scene(0).images, test.scene(0).images):
        assert (pixels[:, 0, 0] == 255).all() and pixels.min() < 100


def test_a_read_scene_agrees_with_the_car(made: Path) -> None:
    """Rays from the files meet the car that the pictures show."""
    scene = SrnScenes(made, "train").scene(0)
    car = build_car(draw_parameters(np.random.default_rng((0, 0, 0))))
    for pose, picture in zip(scene.poses, scene.images, strict=True):
        origins, directions = camera_rays(pose, 12, 12, scene.focal, scene.center)
        origin = origins[0, 0] / car.scale + car.center
        colors = trace(car.solids, origin, directions.reshape(-1, 3), Light()).view(12, 12, 3)
        error = (colors * 255 - picture.float()).abs().amax(-1)
        assert (error < 1).float().mean() > 0.98  # all but rays that graze an edge
        distance = float(origins[0, 0].norm())
        assert (distance - 0.5, distance + 0.5) == pytest.approx((NEAR, FAR))


def test_the_same_settings_make_the_same_files_and_other_seeds_others(
    made: Path, tmp_path: Path
) -> None:
    again = make_cars(tmp_path / "again", SMALL)
    other = make_cars(tmp_path / "other", replace(SMALL, seed=1))
    for split in ("train", "train_novel", "test"):
        one, two, three = (SrnScenes(root, split).scene(0) for root in (made, again, other))
        assert torch.equal(one.images, two.images) and torch.equal(one.poses, two.poses)
        assert not torch.equal(one.images, three.images)


def test_an_interrupted_run_is_taken_up(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_cars(tmp_path / "cars", SMALL, stop)
    assert not (tmp_path / "cars" / "cars_test").exists()
    kept = tmp_path / "cars" / "cars_train" / "car-000000" / "rgb" / "000000.png"
    before = kept.stat().st_mtime_ns
    half_written = tmp_path / "cars" / "cars_train" / ".car-000001.partial"
    half_written.mkdir()
    calls: list[tuple[int, int]] = []
    make_cars(tmp_path / "cars", SMALL, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (12, 12) and kept.stat().st_mtime_ns == before
    assert not half_written.exists()
    for split in ("train", "train_novel", "test"):
        SrnScenes(tmp_path / "cars", split).check()


def test_other_settings_and_other_folders_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"views is 3, asked for 4; seed is 0, asked for 2"):
        make_cars(made, replace(SMALL, views=4, seed=2))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"not empty and holds no cars\.json"):
        make_cars(tmp_path, SMALL)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "cars.json").write_text("{")
    with pytest.raises(ValueError, match="does not hold settings"):
        make_cars(tmp_path / "bad", SMALL)
    with pytest.raises(ValueError, match="no folder"):
        make_cars(tmp_path / "mine.txt", SMALL)
    with pytest.raises(ValueError, match="size: .*0"):
        CarsConfig(size=0)
    with pytest.raises(ValueError, match="seed: "):
        CarsConfig(seed=-1)
    with pytest.raises(ValueError, match="format: expected srn or learnit, got 'nerf'"):
        CarsConfig(format="nerf")


def test_settings_of_sets_made_before_are_the_same(made: Path) -> None:
    assert json.loads((made / "cars.json").read_text()) == {
        "kind": "cars",
        "version": 1,
        "scenes": 2,
        "views": 3,
        "test_scenes": 1,
        "test_views": 2,
        "size": 12,
        "seed": 0,
        "supersample": 1,
    }


# LearnIt's format

LEARNIT = replace(SMALL, format="learnit", supersample=2)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cars(tmp_path_factory.mktemp("objects") / "cars", LEARNIT)


def test_a_made_set_reads_as_learnit(objects: Path) -> None:
    train, val, test = (LearnItScenes(objects, "cars", name) for name in ("train", "val", "test"))
    assert train.names == ("train-000000", "train-000001")
    assert val.names == ("val-000000",) and test.names == ("test-000000",)
    scene = train.scene(1)
    assert scene.images.shape == (5, 12, 12, 3)
    assert scene.focal == pytest.approx(FOCAL * 12)
    assert torch.allclose(scene.poses[:, :3, 3].norm(dim=1), torch.tensor(LEARNIT_RADIUS))
    assert torch.equal(scene.poses[3:], test.scene(0).poses)  # the spiral
    assert torch.equal(scene.poses[3:], val.scene(0).poses)
    assert not torch.equal(val.scene(0).images, test.scene(0).images)
    reach = 0.5 * LEARNIT_RADIUS / RADIUS  # of the cars, from the origin
    assert LEARNIT_RADIUS - reach > learnit.NEAR and LEARNIT_RADIUS + reach < learnit.FAR


def test_both_formats_show_the_same_cars(objects: Path, tmp_path: Path) -> None:
    scenes = make_cars(tmp_path, replace(LEARNIT, format="srn"))
    for one, two, views in (
        (SrnScenes(scenes, "train").scene(1), LearnItScenes(objects, "car", "train").scene(1), 3),
        (SrnScenes(scenes, "test").scene(0), LearnItScenes(objects, "car", "test").scene(0), 2),
    ):
        difference = one.images.int() - two.images[:views].int()
        assert difference.abs().max() <= 2 and one.images.min() < 100
        assert torch.equal(one.poses[:, :3, :3], two.poses[:views, :3, :3])


def test_an_interrupted_learnit_set_is_taken_up(objects: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 14
        if done >= 10:
            raise KeyboardInterrupt

    out = tmp_path / "cars"
    with pytest.raises(KeyboardInterrupt):
        make_cars(out, LEARNIT, stop)
    (out / "cars" / ".val-000000.partial").mkdir()
    kept = out / "cars" / "train-000001" / "transforms.json"
    before = kept.stat().st_mtime_ns
    with pytest.raises(ValueError, match="cars_splits.json: missing"):  # until it is whole
        LearnItScenes(out, "cars", "train")
    make_cars(out, LEARNIT)
    assert kept.stat().st_mtime_ns == before
    assert not (out / "cars" / ".val-000000.partial").exists()
    for split in ("train", "val", "test"):
        one, two = (LearnItScenes(root, "cars", split) for root in (out, objects))
        assert one.fingerprint() == two.fingerprint()


def test_formats_are_not_mixed(made: Path, objects: Path) -> None:
    with pytest.raises(ValueError, match=r"kind is 'cars', asked for \"cars in LearnIt's format"):
        make_cars(made, replace(SMALL, format="learnit"))
    with pytest.raises(ValueError, match=r"kind is \"cars in LearnIt's format\", asked for 'cars'"):
        make_cars(objects, replace(LEARNIT, format="srn"))
