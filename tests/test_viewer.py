"""What is behind ginr-fast view: cameras, windows, steps, turns, and what can be opened."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_generative import INRCT, KINDS
from small_generative import export as export_generative
from small_training import MODEL
from test_render_command import export as export_mnif
from test_render_views import RECIPES as VIEWS_RECIPES
from test_render_views import export as export_views

import ginr_fast
from ginr_fast import cli
from ginr_fast.analysis.instances import FitOptions
from ginr_fast.data import ViewConfig
from ginr_fast.generation.sampling import SamplingOptions
from ginr_fast.rays import camera_rays, look_at, orbit_poses
from ginr_fast.systems.audio_inr import AudioIpc
from ginr_fast.systems.ffnet import Ffnet, FfnetConfig
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.systems.learned_init import LearnedInit, LearnedInitConfig
from ginr_fast.training.checkpoints import WEIGHTS_NAME, export_weights, write_export
from ginr_fast.training.recipes import (
    RECIPES,
    FfnetRecipe,
    LearnedInitImagesRecipe,
    as_plain,
)
from ginr_fast.training.tasks.base import DataOptions
from ginr_fast.training.tasks.made import CACHE_VARIABLE
from ginr_fast.viewer.attention import (
    Looked,
    alike,
    attention_of,
    looked_at,
    token_map,
)
from ginr_fast.viewer.cameras import Camera, Vector, field_of_view, orbit_position
from ginr_fast.viewer.opening import Shown, open_subject
from ginr_fast.viewer.painting import paint
from ginr_fast.viewer.progress import FrameClock, Pace, fitted, ladder
from ginr_fast.viewer.subjects import (
    Choice,
    ImageSubject,
    Instances,
    March,
    SceneSubject,
    ShapeSubject,
    Subject,
)
from ginr_fast.viewer.windows import Window, camera_of, whole_image, window_of
from ginr_fast.viewer.worker import Worker

CPU = torch.device("cpu")
VIEWS = ViewConfig(kind="crops", held_out_views=4)


@pytest.fixture(autouse=True)
def _one_thread(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "viewer"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Cameras


def turned(vectors: np.ndarray, wxyz: np.ndarray) -> np.ndarray:
    """v + 2 w (u × v) + 2 u × (u × v): vectors turned by a unit quaternion."""
    cross = np.cross(wxyz[1:], vectors)
    return vectors + 2 * wxyz[0] * cross + 2 * np.cross(wxyz[1:], cross)


def test_rays_of_a_browsers_camera() -> None:
    rng = np.random.default_rng(0)
    wxyz = rng.standard_normal(4)
    wxyz /= np.linalg.norm(wxyz)
    camera = Camera((0.3, -1.0, 2.0), tuple(wxyz), 1.1)
    height, width = 5, 8
    found = camera.rays(height, width, slice(1, 4))
    # OpenCV: +x right, +y down, +z ahead; pixel centres, square pixels.
    row, column = np.mgrid[1:4, :width] + 0.5
    scale = 2 * math.tan(1.1 / 2) / height
    places = [(column - width / 2) * scale, (row - height / 2) * scale, np.ones_like(row)]
    expected = turned(np.stack(places, -1).reshape(-1, 3), wxyz)
    np.testing.assert_allclose(found.directions.numpy(), expected, atol=2e-6)
    np.testing.assert_allclose(found.origins.numpy(), [[0.3, -1.0, 2.0]] * 24, atol=1e-6)
    assert camera.depth == pytest.approx(
        -turned(np.array([[0, 0, 1.0]]), wxyz)[0] @ camera.position
    )
    one = camera.ray((2.5 / width, 3.5 / height), width / height)
    np.testing.assert_allclose(one.directions[0], expected[2 * width + 2], atol=2e-6)


def camera_at(position: Vector, fov: float) -> Camera:
    """A camera that looks at the origin, +z upwards."""
    right, up, back = look_at(torch.tensor(position, dtype=torch.float64))[:3, :3].unbind(1)
    x, y, z, w = Rotation.from_matrix(torch.stack([right, -up, -back], 1).numpy()).as_quat()
    return Camera(position, (w, x, y, z), fov)


@pytest.mark.parametrize("azimuth, elevation", [(35, 20), (200, -40), (90, 0), (-10, 89)])
def test_a_camera_in_an_orbit_sees_what_the_orbit_sees(azimuth: float, elevation: float) -> None:
    camera = camera_at(orbit_position(1.3, azimuth, elevation), field_of_view(1.025))
    pose = orbit_poses(1, 1.3, elevation, start=azimuth)[0]
    torch.testing.assert_close(camera.pose, pose, atol=1e-6, rtol=0)
    expected = camera_rays(pose, 6, 6, 1.025 * 6)
    for found, part in zip(camera.rays(6, 6, slice(0, 6)), expected, strict=True):
        torch.testing.assert_close(found, part.reshape(-1, 3), atol=2e-6, rtol=0)


# Windows


def test_windows_and_cameras_are_the_same_thing() -> None:
    window = Window(0.2, -0.7, 0.01, 0.016)
    position, target = camera_of(window, 0.8)
    found = window_of(position, target, 0.8, 1.6)
    for name in ("row", "column", "height", "width"):
        assert getattr(found, name) == pytest.approx(getattr(window, name))
    assert window.place(*window.at((0.3, 0.9))) == pytest.approx((0.3, 0.9))
    assert window.holding((0.1, 0.2), (0.25, 0.5)).at((0.25, 0.5)) == pytest.approx((0.1, 0.2))
    for aspect in (0.5, 1.0, 2.0):
        whole = whole_image(aspect)
        assert min(whole.height, whole.width) == pytest.approx(2.1)
    assert whole_image(1.0).at((0.0, 1.0)) == pytest.approx((1.05, -1.05))  # lower left


def test_pixels_of_a_window_stay_apart_far_beyond_training() -> None:
    window = Window(0.5, -0.25, 2e-3, 4e-3)
    rows, columns = window.coords(1000, 2000, slice(400, 403)).axes
    assert len(rows) == 3 and rows.dtype == torch.float32
    expected = -0.25 - 2e-3 + (np.arange(2000) + 0.5) * 2e-6
    np.testing.assert_allclose(columns.double().numpy(), expected, atol=5e-8)
    assert (columns.diff() > 0).all() and (rows.diff() > 0).all()


# Steps


def test_pictures_become_finer_and_the_first_is_quick() -> None:
    assert ladder(400, 600, 10**9) == [(400, 600)]
    sizes = ladder(400, 600, 4000)
    assert sizes == [(50, 75), (100, 150), (200, 300), (400, 600)]
    assert ladder(400, 600, 1)[0] == (50, 75)  # 32 rows at least
    assert ladder(20, 30, 1) == [(20, 30)]
    assert fitted(900, 1600, 450) == (450, 800) and fitted(300, 200, 450) == (300, 200)
    pace = Pace(0.1)
    for _ in range(20):
        pace.measured(1000, 0.01)
    assert pace.points == pytest.approx(10_000, rel=0.01)


def test_painting_covers_every_row_once() -> None:
    pattern, asked = torch.rand(64, 48, 3), []

    def draw(height: int, width: int, rows: slice) -> torch.Tensor:
        asked.append((height, width, rows))
        return pattern[:: 64 // height, :: 48 // width][rows]

    pace = Pace()
    pace.measured = lambda points, seconds: None  # type: ignore[method-assign]
    pace._rate = 10_000  # 500 points a step
    steps = list(paint(draw, 64, 48, pace))
    assert steps[0] is not None and steps[0].first and not steps[0].last
    assert steps[0].pixels.shape == (32, 24, 3)
    frames = [frame for frame in steps if frame is not None]
    assert [frame.pixels.shape[0] for frame in frames] == [32, 64]
    assert frames[-1].last and len(steps) == len(asked) == 1 + 7
    expected = (pattern * 255).round().to(torch.uint8)
    assert np.array_equal(frames[-1].pixels, expected.numpy())


class Rated(Pace):
    """A pace that is told a rate, in place of the clock's."""

    def __init__(self) -> None:
        super().__init__(0.02)
        self.asked: list[int] = []

    def measured(self, points: int, seconds: float) -> None:
        super().measured(points, points / 100_000)
        self.asked.append(points)


def test_what_is_only_filled_says_nothing_about_the_pace() -> None:
    decoded: list[int] = []

    def decode(coords: Any, state: Any) -> torch.Tensor:
        decoded.append(len(coords.axes[0]) * len(coords.axes[1]))
        return torch.zeros(1, len(coords.axes[0]), len(coords.axes[1]), 3)

    instances = Instances("images", 1, lambda number: torch.zeros(1))
    subject = ImageSubject("image", instances, lambda latent: latent, CPU, decode, 8)

    def painted(window: Window) -> list[Any]:
        return list(
            paint(
                lambda *part: subject.draw(None, window, *part),
                180,
                320,
                pace,
                lambda *part: subject.decoded(window, *part),
            )
        )

    pace = Rated()
    painted(whole_image(16 / 9))
    assert pace.asked == decoded and sum(decoded) < 180 * 320
    assert pace.points == pytest.approx(2000, rel=0.1)
    before = pace.points
    away = painted(Window(5.0, 0.0, 2.1, 2.1 * 16 / 9))
    assert pace.asked == decoded and pace.points == before
    assert away[0].pixels.shape[0] == 45 and away[-1].pixels.shape == (180, 320, 3)


def test_frames_a_second_are_of_what_moves() -> None:
    clock = FrameClock()
    assert clock.tick(10.0, 0.05) == pytest.approx(20)  # nothing but its own time is known
    for number in range(1, 5):
        rate = clock.tick(10 + number / 10, 0.05)
    assert rate == pytest.approx(10)
    assert clock.tick(20.0, 0.25) == pytest.approx(4)  # after a pause


# Turns


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(lambda key, error: failures.append((key, error)))
    failures.clear()
    yield made
    made.stop()


failures: list[tuple[Any, Exception]] = []


def test_the_latest_request_wins_and_turns_are_taken(worker: Worker) -> None:
    done, gate, begun = [], threading.Event(), threading.Event()

    def request(name: str, steps: int, hold: bool = False) -> Iterator[None]:
        for step in range(steps):
            if hold:
                begun.set()
                assert gate.wait(5)
            done.append((name, step))
            yield

    worker.submit("a", request("old", 100, hold=True))
    assert begun.wait(5)
    worker.submit("a", request("never", 1))  # nobody waits for it any more
    worker.submit("a", request("new", 3))
    worker.submit("b", request("other", 3))
    gate.set()
    assert worker.idle(5)
    assert done[0] == ("old", 0) and ("old", 1) not in done and ("never", 0) not in done
    assert [name for name, _ in done[1:]] == ["new", "other"] * 3


def test_a_failure_ends_its_request_alone(worker: Worker) -> None:
    done: list[int] = []

    def broken() -> Iterator[None]:
        raise ValueError("no such thing")
        yield

    def fine() -> Iterator[None]:
        assert not torch.is_grad_enabled()
        done.append(1)
        yield

    worker.submit("broken", broken())
    worker.submit("fine", fine())
    assert worker.idle(5) and done == [1]
    assert [(key, str(error)) for key, error in failures] == [("broken", "no such thing")]


def test_what_cannot_be_reported_ends_nothing() -> None:
    def report(key: Any, error: Exception) -> None:
        raise BrokenPipeError("nobody reads the standard error")

    def broken() -> Iterator[None]:
        raise ValueError("no such thing")
        yield

    worker, done = Worker(report), []
    worker.submit("broken", broken())
    assert worker.idle(5)
    worker.submit("fine", iter(lambda: done.append(1), None))  # one step
    assert worker.idle(5) and done == [1]
    worker.stop()


def test_stopping_waits_for_no_long_step() -> None:
    reported: list[Exception] = []
    worker = Worker(lambda key, error: reported.append(error))
    begun, end = threading.Event(), time.monotonic() + 15

    def fit() -> Iterator[None]:
        begun.set()
        while time.monotonic() < end:
            time.sleep(0.01)
        yield

    worker.submit("fit", fit())
    assert begun.wait(5)
    worker.stop()
    assert not worker._thread.is_alive() and time.monotonic() < end - 5 and not reported


def test_what_left_is_forgotten_and_the_thread_ends() -> None:
    worker, counted = Worker(lambda *_: None), []

    def endless() -> Iterator[None]:
        while True:
            counted.append(1)
            yield

    worker.submit((1, "picture"), endless())
    worker.submit((2, "picture"), endless())
    worker.forget(lambda key: True)
    assert worker.idle(5)
    worker.submit((1, "picture"), endless())
    worker.stop()
    assert not worker._thread.is_alive()
    worker.submit((1, "picture"), endless())  # too late, and no harm
    assert worker.idle(0)


# Subjects


def test_a_window_shows_what_the_whole_image_has_there() -> None:
    spec = ginr_fast.FieldSpec(coord_dim=2, out_dim=3, hidden_dim=16, hidden_layers=1)
    decoder = ginr_fast.decoders.field.FieldDecoder(spec)
    weights = torch.rand(2, spec.parameter_count) * 0.2
    instances = Instances("fields", 2, lambda number: weights[number : number + 1])
    subject = ImageSubject("fields", instances, lambda w: w, CPU, decoder, 8)
    state = subject.state(Choice(0, 1, 0.25))
    torch.testing.assert_close(state, 0.75 * weights[:1] + 0.25 * weights[1:])
    whole = subject.draw(state, Window(0.0, 0.0, 2.0, 2.0), 32, 32, slice(0, 32))
    torch.testing.assert_close(whole, decoder(ginr_fast.grid(32, 32), state)[0])
    part = subject.draw(state, Window(-0.5, 0.5, 1.0, 1.0), 16, 16, slice(4, 9))
    torch.testing.assert_close(part, whole[4:9, 16:])
    around = subject.draw(state, Window(0.0, 0.0, 4.0, 4.0), 64, 64, slice(0, 64))
    torch.testing.assert_close(around[16:48, 16:48], whole)
    around[16:48, 16:48] = 0.88
    assert (around == around[0, 0, 0]).all()
    aside = subject.draw(state, Window(5.0, 0.0, 1.0, 1.0), 4, 4, slice(0, 4))
    assert (aside == aside[0, 0, 0]).all()
    with pytest.raises(ValueError, match="instance: expected 0 to 1"):
        subject.state(Choice(2, 2))
    assert [Choice(3, 4, share).name for share in (0, 1, 0.5)] == [
        "00003",
        "00004",
        "00003-00004-050",
    ]


def test_what_must_be_looked_for_is_not_ready() -> None:
    def subject(between: Any) -> Subject[Any]:
        instances = Instances("samples", 3, lambda number: torch.zeros(1), between)
        return Subject("samples", instances, lambda latent: latent, CPU)

    for between in (None, lambda first, second, share: torch.ones(1)):
        one, half = subject(between), Choice(0, 1, 0.5)
        assert not one.ready(Choice(0))
        one.state(Choice(0))
        assert one.ready(Choice(0, 1, 0.0)) and not one.ready(half)
        one.state(Choice(1))
        assert one.ready(half) == (between is None)  # generated anew, or on a line
        one.state(half)
        assert one.ready(half)


def test_samples_follow_the_camera_but_never_lie_behind_it() -> None:
    def color(origins: Any, directions: Any, state: Any, samples: int) -> torch.Tensor:
        return origins + samples * directions

    subject = SceneSubject(
        "s", Instances("s", 1, torch.zeros), torch.zeros_like, CPU, color, 1.3, 1.0, March(0.8, 32)
    )
    assert subject.closest == pytest.approx(0.5)
    for radius, ahead in ((1.3, 0.0), (2.0, 0.7), (0.9, -0.4), (0.2, -0.8)):
        camera = camera_at(orbit_position(radius, 10, 30), 1.0)
        rays = camera.rays(4, 6, slice(1, 3))
        moved = subject.started(camera, rays)
        torch.testing.assert_close(
            moved.origins, rays.origins + ahead * rays.directions, atol=1e-5, rtol=0
        )
        drawn = subject.draw(None, camera, 4, 6, slice(1, 3), 5)
        expected = moved.origins + 5 * moved.directions
        torch.testing.assert_close(drawn, expected.view(2, 6, 3))


def test_attention_of_an_anr_and_its_pictures() -> None:
    torch.manual_seed(0)
    anr = ginr_fast.AnrDecoder(
        token_dim=12, hidden_dim=16, heads=2, head_dim=8, depth=2, max_frequency=4, threshold=0.08
    ).double()
    tokens = torch.randn(1, 10, 12, dtype=torch.float64)
    coords = torch.rand(7, 2, dtype=torch.float64) * 2 - 1
    attention = attention_of(anr)
    assert attention is not None
    found = attention(coords, tokens)
    assert found.shape == (2, 7, 10) and (found == 0).any()
    # The values that the decoder gives follow from the weights: softmax, threshold, normalise.
    values = anr.keys_and_values(tokens)[1][0]
    hidden = (found @ values).transpose(0, 1).flatten(1)
    hidden = anr.output_projection(hidden)
    for layer in anr.layers[:-1]:
        hidden = layer(hidden).relu()
    torch.testing.assert_close(anr.layers[-1](hidden), anr(coords, tokens)[0])
    looked = Looked(found[:, 3])
    shared = alike(found, looked)
    assert shared[3] == pytest.approx(1) and (shared <= 1 + 1e-9).all() and shared.min() < 1
    assert sum(value for _, value in looked.strongest) <= 1 + 1e-9
    assert token_map(looked).shape == (60, 2 * 80 + 6, 3)  # 10 tokens: 3 rows of 4
    assert attention_of(torch.nn.Linear(1, 1)) is None


# What can be opened


def write(folder: Path, recipe: Any, model: torch.nn.Module) -> Path:
    write_export(
        folder / WEIGHTS_NAME, recipe.system, {"recipe": as_plain(recipe)}, model.state_dict()
    )
    return folder


def drawn(subject: Subject[Any], choice: Choice = Choice(0, 1, 0.5)) -> torch.Tensor:  # noqa: B008
    state = subject.state(choice)
    if isinstance(subject, ImageSubject):
        return subject.draw(state, Window(0.1, 0.2, 0.5, 0.7), 6, 8, slice(0, 6))
    assert isinstance(subject, SceneSubject)
    camera = camera_at(orbit_position(subject.distance, 35, 20), field_of_view(subject.focal))
    return subject.draw(state, camera, 6, 8, slice(0, 6))


@pytest.mark.parametrize("name", sorted(VIEWS_RECIPES))
def test_scenes_of_every_system(name: str, tmp_path: Path) -> None:
    subject = open_subject(export_views(name, tmp_path), Shown(), CPU)
    assert isinstance(subject, SceneSubject) and subject.instances.what == "held-out scenes"
    picture = drawn(subject)
    assert picture.shape == (6, 8, 3) and picture.isfinite().all() and picture.std() > 0
    assert (subject.march is None) == ("lightfield" in name)
    assert (subject.attention is not None) == (name == "la-ginr-lightfield")
    if subject.attention is not None:
        assert subject.coords is not None
        camera = camera_at(orbit_position(subject.distance, 35, 20), 0.8)
        points = subject.coords(*camera.rays(4, 6, slice(0, 4))).unflatten(0, (4, 6))
        point = subject.coords(*camera.ray((2.5 / 6, 1.5 / 4), 6 / 4))
        looked, shared = looked_at(subject.attention, subject.state(Choice(0)), points, point)
        assert looked.heads.shape == (2, 8) and float(shared[1, 2]) == pytest.approx(1, abs=1e-4)
    if "learned" in name:
        with pytest.raises(ValueError, match="support_views: is for view synthesis"):
            open_subject(tmp_path, Shown(support_views=1), CPU)
        return
    with pytest.raises(ValueError, match="support_views: expected less than the [0-9]+ views"):
        open_subject(tmp_path, Shown(support_views=999), CPU)
    with pytest.raises(ValueError, match="fit_views: is of no use to"):
        open_subject(tmp_path, Shown(fit=FitOptions(fit_views=2)), CPU)


@pytest.mark.parametrize("kind", ["images", "scenes", "voxels"])
@pytest.mark.parametrize("adaptation", ["auto-decoding", "cavia"])
def test_an_mnif_of_every_kind(kind: str, adaptation: str, tmp_path: Path) -> None:
    subject = open_subject(export_mnif(kind, tmp_path, adaptation), Shown(), CPU)
    assert subject.instances.what.startswith("training" if "auto" in adaptation else "held-out")
    with pytest.raises(ValueError, match="steps: is of no use to mnif"):
        open_subject(tmp_path, Shown(sampling=SamplingOptions(steps=5)), CPU)
    if isinstance(subject, ShapeSubject):
        mesh = subject.mesh(subject.state(Choice(1, 1)), 12)
        assert mesh is None or len(mesh.faces)
    else:
        assert drawn(subject).isfinite().all()


def test_images_of_every_other_system(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_weights(LaGinr(MODEL), tmp_path / "la-ginr" / WEIGHTS_NAME, VIEWS)
    init = LearnedInitImagesRecipe(
        model=LearnedInitConfig(hidden_dim=16, hidden_layers=1, frequencies=3, bandwidth=4.0),
        image_size=12,
        views=VIEWS,
        steps=1,
        batch_size=2,
    )
    write(tmp_path / "learned-init", init, LearnedInit(init.model))
    inrct = replace(INRCT, made_images=4, made_held_out=2)
    write(tmp_path / "inrct", inrct, inrct.build())
    ffnet = FfnetRecipe(model=FfnetConfig(hidden_dim=16, features=8), image_size=12, steps=1)
    write(tmp_path / "ffnet", ffnet, Ffnet(ffnet.model))
    for name, attends in (("la-ginr", True), ("learned-init", False), ("inrct", True)):
        subject = open_subject(tmp_path / name, Shown(), CPU)
        assert isinstance(subject, ImageSubject) and drawn(subject).isfinite().all()
        assert (subject.attention is not None) == attends
        if subject.attention is not None:
            looked = subject.attention(torch.zeros(1, 2), subject.state(Choice(0)))
            torch.testing.assert_close(looked.sum(-1), torch.ones(2, 1))
    assert drawn(open_subject(tmp_path / "ffnet", Shown(), CPU), Choice(0)).isfinite().all()
    with pytest.raises(ValueError, match="la-ginr cannot generate; expected one of"):
        open_subject(tmp_path / "la-ginr", Shown(generated=True), CPU)
    data = DataOptions(data=tmp_path)
    for name, given, message in (
        ("la-ginr", Shown(support_views=2), "support_views: is of no use to la-ginr"),
        ("la-ginr", Shown(fit=FitOptions(unseen=True)), "unseen: is of no use to la-ginr"),
        ("la-ginr", Shown(sampling=SamplingOptions(steps=5)), "steps: is of no use to la-ginr"),
        ("learned-init", Shown(support_views=2), "set fit_views and fit_steps"),
        ("inrct", Shown(True, source=data), "data: is of no use to samples of inrct"),
        ("ffnet", Shown(source=data), "data: is of no use to ffnet"),
    ):
        with pytest.raises(ValueError, match=message):
            open_subject(tmp_path / name, given, CPU)
    with pytest.raises(ValueError, match="support_views: expected a positive integer, got 0"):
        Shown(support_views=0)
    few, more = (
        open_subject(tmp_path / "learned-init", Shown(fit=FitOptions(fit_steps=steps)), CPU)
        for steps in (1, 3)
    )
    assert not torch.equal(few.state(Choice(0)), more.state(Choice(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_every_generative_model(kind: str, tmp_path: Path) -> None:
    subject = open_subject(export_generative(kind, tmp_path), Shown(generated=True), CPU)
    assert subject.instances.what == "samples"
    if isinstance(subject, ShapeSubject):
        assert kind == "mnif-voxels"
        subject.mesh(subject.state(Choice(3, 4, 0.5)), 8)
        return
    ends = [drawn(subject, Choice(4, 7, share)) for share in (0.0, 0.5, 1.0)]
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[1], ends[2])
    torch.testing.assert_close(ends[2], drawn(subject, Choice(7)))


def test_what_cannot_be_seen_is_refused(tmp_path: Path) -> None:
    recipe: Any = RECIPES["ipc-audio-tiny"][1]
    write(tmp_path, recipe, AudioIpc(recipe.model))
    with pytest.raises(ValueError, match="ipc-audio has nothing to see"):
        open_subject(tmp_path, Shown(), CPU)


# The command


def test_mistakes_of_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("viser")
    export_weights(LaGinr(MODEL), tmp_path / WEIGHTS_NAME, VIEWS)

    def said(*options: object) -> str:
        assert cli.main(["view", str(tmp_path), *map(str, options)]) == 2
        return capsys.readouterr().err

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port: {port} of 127.0.0.1 is in use" in said("--port", port)
    assert "host: nowhere.invalid is no address" in said("--host", "nowhere.invalid")
    with pytest.raises(SystemExit):
        cli.main(["view", "--help"])
    text = capsys.readouterr().out
    assert "usage: ginr-fast view" in text and ":class:" not in text and "``" not in text
    with pytest.raises(SystemExit):
        cli.main(["view", str(tmp_path), "--port", "70000"])
    assert "port: expected 0 to 65535, got 70000" in capsys.readouterr().err
    assert "device: 'abacus' cannot be used here" in said("--device", "abacus", "--port", 0)
    monkeypatch.setitem(__import__("sys").modules, "viser", None)
    assert "viser is not installed; pip install 'ginr-fast[" in said()


def test_addresses_are_written_as_urls_have_them() -> None:
    pytest.importorskip("viser")
    from ginr_fast.viewer.server import Viewer, check_free

    try:
        check_free("::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    instances = Instances("images", 1, lambda number: torch.zeros(1))
    subject = ImageSubject("image", instances, lambda latent: latent, CPU, torch.zeros_like, 8)
    with Viewer(subject, "::1", 0) as viewer:
        assert viewer.url == f"http://[::1]:{viewer.port}"


def test_an_interrupt_ends_it_cleanly(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("viser")
    from ginr_fast.viewer import server

    export_weights(LaGinr(MODEL), tmp_path / WEIGHTS_NAME, VIEWS)
    made: list[server.Viewer] = []

    class Interrupted(server.Viewer):
        def __enter__(self) -> server.Viewer:
            made.append(self)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            return self

    monkeypatch.setattr(server, "Viewer", Interrupted)
    assert cli.main(["view", str(tmp_path), "--port", "0"]) == 0
    out = capsys.readouterr().out
    assert f"http://127.0.0.1:{made[0].port}" in out and "ending" in out
    assert not made[0].worker._thread.is_alive()
    with socket.socket() as free:
        free.bind(("127.0.0.1", made[0].port))
