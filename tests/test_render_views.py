"""ginr-fast render of view synthesis and Learned Init: held-out scenes, known by a few views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import failed, run
from PIL import Image
from small_training import MODEL

from ginr_fast.analysis.instances import FitOptions
from ginr_fast.analysis.orbits import COLOR, DEPTH
from ginr_fast.analysis.pictures import CameraOptions
from ginr_fast.analysis.view_pictures import SupportOptions, open_scenes, orbits
from ginr_fast.data import CarsConfig, make_cars
from ginr_fast.rays import camera_rays, orbit_poses
from ginr_fast.systems.fit_instances import fit_views
from ginr_fast.systems.fitting import FittingOptions
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.systems.learned_init import LearnedInit, LearnedInitConfig
from ginr_fast.systems.light_fields import IpcLightFieldConfig, LaGinrLightFieldConfig
from ginr_fast.systems.radiance_views import IpcViewsConfig, TransInrViewsConfig
from ginr_fast.training.checkpoints import WEIGHTS_NAME, export_weights, load_saved, write_export
from ginr_fast.training.recipes import (
    IpcLightFieldRecipe,
    IpcViewsRecipe,
    LaGinrLightFieldRecipe,
    LearnedInitScenesRecipe,
    Recipe,
    TransInrViewsRecipe,
    as_plain,
)
from ginr_fast.training.tasks import DataOptions
from ginr_fast.training.tasks.learned_init_scenes import LearnedInitScenesTask
from ginr_fast.training.tasks.views import ViewsTask

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")

SIZE, FOCAL = 12, 131.25 / 128
VIEW = 7  # height and width of what is drawn
RAYS = VIEW * VIEW
ENCODER: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": 4,
    "encoder_dim": 32,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "encoder_head_dim": 16,
    "encoder_mlp_dim": 48,
}
FIELD: dict[str, Any] = {"hidden_dim": 16, "hidden_layers": 1, "frequencies": 3, "bandwidth": 4.0}
MADE: dict[str, Any] = {"made_scenes": 2, "made_views": 6, "made_held_out": 2, "steps": 1}
VIEWS: dict[str, Any] = {**MADE, "training_views": None, "support": 2, "queries": 1, "rays": 16}
SRN: dict[str, Any] = {"camera_distance": 1.3, "near": 0.8, "far": 1.8}
RECIPES: dict[str, Recipe] = {
    "trans-inr-nerf": TransInrViewsRecipe(
        model=TransInrViewsConfig(**ENCODER, **FIELD, **SRN, samples=8, groups=4, view_dim=8),
        data_format="srn",
        **VIEWS,
    ),
    "ipc-nerf": IpcViewsRecipe(
        model=IpcViewsConfig(**ENCODER, **FIELD, samples=8, latents=8), **VIEWS
    ),
    "la-ginr-lightfield": LaGinrLightFieldRecipe(
        model=LaGinrLightFieldConfig(
            **ENCODER, latents=8, token_dim=24, hidden_dim=24, feature_dim=36
        ),
        **VIEWS,
    ),
    "ipc-lightfield": IpcLightFieldRecipe(
        model=IpcLightFieldConfig(**ENCODER, **FIELD, latents=8, camera_distance=1.3),
        data_format="srn",
        **VIEWS,
    ),
    "learned-init-scenes": LearnedInitScenesRecipe(
        model=LearnedInitConfig("scene", **FIELD, samples=8, scale=4 / 1.3),
        image_size=SIZE,
        views=4,
        rays=16,
        batch_size=2,
        **MADE,
    ),
}
VIEW_SYNTHESIS = [name for name in RECIPES if name != "learned-init-scenes"]
RADIANCE = ["trans-inr-nerf", "ipc-nerf", "learned-init-scenes"]


def export(name: str, folder: Path) -> Path:
    """A run's folder with random weights, whose fields are not empty."""
    torch.manual_seed(1)
    recipe = RECIPES[name]
    scenes = isinstance(recipe, LearnedInitScenesRecipe)
    model = LearnedInit(recipe.model) if scenes else recipe.build()  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in (model.field if scenes else model.decoder).parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    metadata = {"recipe": as_plain(recipe)}
    write_export(folder / WEIGHTS_NAME, recipe.system, metadata, model.state_dict())
    return folder


def opened(folder: Path, data: Path | None = None) -> ViewsTask | LearnedInitScenesTask:
    return open_scenes(load_saved(folder), DataOptions(data), torch.device("cpu"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def rays_of(radius: float, focal: float, views: int, **start: float) -> list[torch.Tensor]:
    """Origins and directions ``(1, views, VIEW, VIEW, 3)`` of an orbit."""
    poses = orbit_poses(views, radius, start.get("elevation", 20.0), start=start.get("azimuth", 35))
    return [part[None] for part in camera_rays(poses, VIEW, VIEW, focal * VIEW)]


def shown(
    task: ViewsTask | LearnedInitScenesTask, index: int, known: int, rays: list[torch.Tensor]
) -> torch.Tensor:
    """What a scene's model shows along rays, from as many of its views as evaluation takes."""
    with torch.no_grad():
        if isinstance(task, ViewsTask):
            tokens = task.tokens(task.known(index, known), known)
            return task.model.color(*rays, tokens)[0]
        scene = task.held_out.scene(index)
        count = len(scene.images)
        views = [(2 * place + 1) * count // (2 * known) for place in range(known)]
        return task.model.render(*rays, task.fit(scene, views)).color[0]


# What is drawn


@pytest.mark.parametrize("name", RECIPES)
def test_frames_are_what_the_model_shows_from_the_orbit(name: str, tmp_path: Path) -> None:
    folder = export(name, tmp_path / "run")
    known = ["--support-views" if name in VIEW_SYNTHESIS else "--fit-views", 3]
    options = ["--instances", 1, "--views", 3, "--size", VIEW, "--format", "png"]
    run("render", folder, *options, *known)
    frames = folder / "renders" / "held-out-00001"
    found = np.stack([pixels(path) for path in sorted(frames.iterdir())])
    # Cameras of the data: 4 from the middle in LearnIt's format, 1.3 in SRN's.
    recipe = RECIPES[name]
    radius = 4.0 if getattr(recipe, "data_format", "srn") == "learnit" else 1.3
    expected = shown(opened(folder), 1, 3, rays_of(radius, FOCAL, 3))
    expected = (expected.clamp(0, 1) * 255).numpy()
    assert found.shape == expected.shape == (3, VIEW, VIEW, 3)
    assert np.abs(found - expected).max() <= 0.51
    assert expected.std() > 0.5  # something is seen


@pytest.mark.parametrize("name", ["ipc-nerf", "learned-init-scenes"])
def test_cameras_are_those_asked_for(name: str, tmp_path: Path) -> None:
    task = opened(export(name, tmp_path))
    camera = CameraOptions(elevation=-10, azimuth=80, radius=2.0, focal=0.7)
    fit, support = FitOptions(fit_views=2), SupportOptions()
    (orbit,) = orbits(task, [0], 2, VIEW, camera, fit, support)
    found = torch.stack([pictures[COLOR] for pictures in orbit.frames])
    rays = rays_of(2.0, 0.7, 2, elevation=-10, azimuth=80)
    torch.testing.assert_close(found, shown(task, 0, 2, rays))


def test_the_camera_is_that_of_a_named_folder(tmp_path: Path) -> None:
    config = CarsConfig(1, views=3, test_scenes=1, test_views=4, size=SIZE, supersample=1)
    data = make_cars(tmp_path / "cars", config)
    for path in data.rglob("intrinsics.txt"):  # twice as long a lens
        lines = path.read_text().splitlines()
        first = lines[0].split()
        lines[0] = " ".join([str(2 * float(first[0])), *first[1:]])
        path.write_text("\n".join(lines) + "\n")
    folder = export("ipc-lightfield", tmp_path / "run")
    options = ["--instances", 0, "--views", 1, "--size", VIEW, "--format", "png"]
    run("render", folder, *options, "--data", data)
    found = pixels(folder / "renders" / "held-out-00000" / "000000.png")
    expected = shown(opened(folder, data), 0, 2, rays_of(1.3, 2 * FOCAL, 1))[0]
    assert np.abs(found - (expected.clamp(0, 1) * 255).numpy()).max() <= 0.51


@pytest.mark.parametrize("name", RADIANCE)
def test_depth_and_samples_of_radiance_fields(name: str, tmp_path: Path) -> None:
    task = opened(export(name, tmp_path))
    fit = FitOptions(fit_views=2)
    (orbit,) = orbits(task, [0], 1, VIEW, CameraOptions(samples=5), fit, depth=True)
    (pictures,) = orbit.frames
    radius = 4.0 if name == "ipc-nerf" else 1.3
    origins, directions = (part.flatten(1, 3) for part in rays_of(radius, FOCAL, 1))
    config = task.model.config
    if isinstance(task, ViewsTask):
        weights = task.model.decoder.weights(task.tokens(task.known(0, 2), 2))
        field, scale = task.model.decoder.field, 4.0 / config.camera_distance
        near, far = config.near * scale, config.far * scale
    else:
        scene = task.held_out.scene(0)
        weights = task.fit(scene, [len(scene.images) // 4, 3 * len(scene.images) // 4])
        field, scale, near, far = task.model.decoder, config.scale, config.near, config.far
    # Alpha compositing by the definition: sigmoid colours, ReLU densities, the last interval 1e-3.
    t = torch.linspace(near, far, 5)
    points = (origins * scale)[:, :, None] + t[:, None] * directions[:, :, None]
    ways = directions[:, :, None].expand_as(points) if field.spec.view_dim else None
    with torch.no_grad():
        values = field(points, weights, ways)[0].double()
    steps = torch.cat([t.diff(), torch.tensor([1e-3])]).double()
    opaque = 1 - torch.exp(-values[..., 3].relu() * steps)
    passes = torch.cat([torch.ones(RAYS, 1), (1 - opaque)[:, :-1]], 1).cumprod(1)
    light = opaque * passes
    color = (light[..., None] * values[..., :3].sigmoid()).sum(1) + 1 - light.sum(1)[:, None]
    nearness = (light * (far - t)).sum(1) / (far - near)
    torch.testing.assert_close(pictures[COLOR].view(RAYS, 3).double(), color, rtol=1e-4, atol=1e-4)
    depth = pictures[DEPTH].view(RAYS, 3).double()
    torch.testing.assert_close(depth, nearness[:, None].expand(-1, 3), rtol=1e-4, atol=1e-4)
    assert nearness.max() > 0.02 and config.samples == 8


@pytest.mark.parametrize("target", ["tokens", "weights", "decoder"])
def test_test_time_optimisation(target: Any, tmp_path: Path) -> None:
    task = opened(export("trans-inr-nerf", tmp_path))
    assert isinstance(task, ViewsTask)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    support = SupportOptions(support_views=2, tto=3, tto_target=target)
    plain, fitted = (
        torch.stack([seen[COLOR] for seen in next(found).frames])
        for found in (
            orbits(task, [1], 2, VIEW, CameraOptions(), support=replace(support, tto=None)),
            orbits(task, [1], 2, VIEW, CameraOptions(), support=support),
        )
    )
    views = task.known(1, 2)
    expected = fit_views(
        task.model,
        views.support_images[None],
        views.support_origins[None],
        views.support_directions[None],
        FittingOptions(3, target),
    ).color(*rays_of(1.3, FOCAL, 2))[0]
    torch.testing.assert_close(fitted, expected)
    assert not torch.equal(plain, fitted)
    assert all(torch.equal(before[key], value) for key, value in task.model.state_dict().items())


def test_fit_steps_of_learned_init(tmp_path: Path) -> None:
    task = opened(export("learned-init-scenes", tmp_path))
    assert isinstance(task, LearnedInitScenesTask)
    found = [
        next(orbits(task, [0], 1, VIEW, CameraOptions(), FitOptions(fit_steps=steps, fit_views=2)))
        for steps in (1, 9)
    ]
    scene = task.held_out.scene(0)
    count = len(scene.images)
    views = [count // 4, 3 * count // 4]
    for orbit, steps in zip(found, (1, 9), strict=True):
        (pictures,) = orbit.frames
        weights = task.fit(scene, views, steps)
        seen = task.model.render(*rays_of(1.3, FOCAL, 1), weights).color[0, 0]
        torch.testing.assert_close(pictures[COLOR], seen)
        assert np.array_equal(np.stack(orbit.known), scene.images[views].numpy())


# Files


@pytest.mark.parametrize("kind", ["gif", "mp4", "png"])
def test_files(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export("trans-inr-nerf", tmp_path / "run")
    out = tmp_path / "out"
    options = ["--views", 5, "--size", VIEW, "--format", kind, "--depth", "--out", out]
    run("render", folder, "--instances", 1, 0, *options)
    printed = "".join(capsys.readouterr().out.split())
    assert printed == f"held-outscenes1,0:{out}"
    expected = {"views.png"}
    for name in ("held-out-00000", "held-out-00001"):
        for part in (name, f"{name}-depth"):
            frames = sorted((out / part).glob("*.png"))
            assert len(frames) == 5 and {Image.open(path).size for path in frames} == {(VIEW, VIEW)}
            expected |= {part} | ({f"{part}.{kind}"} if kind != "png" else set())
    assert {path.name for path in out.iterdir()} == expected
    if kind == "gif":
        assert Image.open(out / "held-out-00000.gif").n_frames == 5


@pytest.mark.parametrize("name", ["la-ginr-lightfield", "learned-init-scenes"])
def test_the_sheet_has_known_views_beside_the_orbit(name: str, tmp_path: Path) -> None:
    folder = export(name, tmp_path / "run")
    options = ["--instances", 1, 0, "--views", 4, "--size", SIZE, "--format", "png"]
    run("render", folder, *options, "--fit-views", 2)
    page = pixels(folder / "renders" / "views.png")
    gap, bar = 4, 16
    assert page.shape == (2 * (bar + SIZE) + 3 * gap, 6 * (SIZE + gap) + gap, 3)
    task = opened(folder)
    for row, index in enumerate((1, 0)):
        if isinstance(task, ViewsTask):
            known = task.known(index, 2).support_images.permute(0, 2, 3, 1) * 255
        else:
            scene = task.held_out.scene(index)
            known = scene.images[[len(scene.images) // 4, 3 * len(scene.images) // 4]].float()
        orbit = sorted((folder / "renders" / f"held-out-{index:05d}").iterdir())
        expected = [*known.numpy(), *(pixels(path) for path in orbit)]
        top = gap + row * (bar + SIZE + gap) + bar
        for column, picture in enumerate(expected):
            left = gap + column * (SIZE + gap)
            found = page[top : top + SIZE, left : left + SIZE]
            assert np.abs(found - picture).max() <= 0.5


# Mistakes


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {name: export(name, tmp_path / name) for name in RECIPES}
    nerf, light = folders["ipc-nerf"], folders["la-ginr-lightfield"]
    learned = folders["learned-init-scenes"]
    cases: list[tuple[list[object], str]] = [
        ([nerf], "instances: expected 0 to 1, the numbers of held-out scenes, got 2"),
        ([learned, "--instances", -1], "instances: expected 0 to 1"),
        ([nerf, "--instances"], "instances: expected at least one"),
        (
            [nerf, "--instances", 0, "--support-views", 24],
            "support_views: expected less than the 24 views that scene test-000000 has, got 24",
        ),
        (
            [learned, "--instances", 0, "--fit-views", 25],
            "fit_views: expected at most the 24 views that scene car-000000 has, got 25",
        ),
        ([light, "--instances", 0, "--depth"], "depth: is for radiance fields"),
        ([light, "--instances", 0, "--samples", 4], "samples: is for radiance fields"),
        ([learned, "--instances", 0, "--tto", 4], "tto: is for view synthesis, not for learned"),
        (
            [learned, "--instances", 0, "--support-views", 4],
            "support_views: is for view synthesis, not for learned-init-scenes; set fit_views",
        ),
        (
            [light, "--instances", 0, "--tto", 1, "--tto-target", "weights"],
            "target: expected 'tokens' or 'decoder'",
        ),
        ([nerf, "--data", tmp_path / "nowhere"], "nowhere"),
        ([tmp_path / "nothing"], "does not exist"),
    ]
    for arguments, expected in cases:
        error = failed(capsys, "render", *arguments, "--views", 1, "--size", 4)
        assert expected in error, error
    assert not any((folder / "renders").exists() for folder in folders.values())
    torch.manual_seed(0)
    other = tmp_path / "other.safetensors"
    export_weights(LaGinr(MODEL), other)
    error = failed(capsys, "render", other)
    assert "got la-ginr" in error and all(name in error for name in RECIPES)


@pytest.mark.parametrize("option", ["--support-views", "--tto", "--samples"])
def test_options_out_of_range(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    named = option.removeprefix("--").replace("-", "_")
    error = failed(capsys, "render", "RUN", option, 0)
    assert f"{named}: expected a positive integer, got 0" in error


def test_other_systems_have_no_scenes_to_open(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "other.safetensors"
    export_weights(LaGinr(MODEL), path)
    with pytest.raises(ValueError, match="expected one of .*ipc-nerf.*, got la-ginr"):
        open_scenes(load_saved(path), DataOptions(), torch.device("cpu"))
