"""Ray-traced cars with poses: scenes to learn from, made on the spot, in SRN's or LearnIt's format.

Some cars are for training; they are seen from random places on a sphere and from a spiral over the
upper hemisphere that training never sees. Other cars, seen from that spiral, are for testing.

SRN's format has a split for each: ``cars_train``, ``cars_train_novel`` (the same cars from the
spiral) and ``cars_test``. Camera and distance are those of SRN Cars: radius 1.3, focal length
131.25 pixels at 128², cars within a sphere of radius ½, so that 0.8 to 1.8 holds everything.

LearnIt's format has ``car_splits.json`` (train, val, test) and a folder ``cars`` of objects. Of a
training object the first frames are the random views, the others the spiral. The world is scaled
so that cameras are at radius 4 and 2 to 6 holds everything; the pictures are the same.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from ginr_fast.data import learnit, srn
from ginr_fast.data.car_models import build_car, draw_parameters
from ginr_fast.data.making import check_settings
from ginr_fast.data.raytrace import Light, render, render_rgba
from ginr_fast.files import locked
from ginr_fast.ops.checks import check_count
from ginr_fast.rays import random_poses, spiral_poses

RADIUS = 1.3
LEARNIT_RADIUS = 4.0
NEAR, FAR = srn.NEAR, srn.FAR
FOCAL = 131.25 / 128  # of the height
SETTINGS = "cars.json"
TRAIN, NOVEL, TEST = "cars_train", "cars_train_novel", "cars_test"
LEARNIT_SPLITS, LEARNIT_FOLDER = "car_splits.json", "cars"

# Part of the settings: pictures made by another version of the renderer are other pictures.
_VERSION = 1
_TRAIN_CARS, _TEST_CARS, _VAL_CARS = range(3)  # seeds of cars that have nothing in common


@dataclass(frozen=True)
class CarsConfig:
    """What is made.

    Args:
        scenes: cars to train on.
        views: random views of each.
        test_scenes: cars never trained on; LearnIt's format has as many more to validate with.
        test_views: views on the spiral, of all cars.
        size: height and width of a view, in pixels.
        seed: of cars and random views.
        supersample: this many rays squared are averaged for a pixel.
        format: of the files, srn or learnit.
    """

    scenes: int = 64
    views: int = 50
    test_scenes: int = 8
    test_views: int = 24
    size: int = 128
    seed: int = 0
    supersample: int = 2
    format: Literal["srn", "learnit"] = "srn"

    def __post_init__(self) -> None:
        for name in ("scenes", "views", "test_scenes", "test_views", "size", "supersample"):
            check_count(name, getattr(self, name))
        if self.seed < 0:
            raise ValueError(f"seed: expected an integer of at least 0, got {self.seed}")
        if self.format not in ("srn", "learnit"):
            raise ValueError(f"format: expected srn or learnit, got {self.format!r}")


class _Job(NamedTuple):
    """One folder of views: of which car, how many at random, and how many on the spiral."""

    folder: Path
    cars: int
    number: int
    random: int
    spiral: int


def make_cars(
    out: Path | str,
    config: CarsConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make the data set, or what is missing of it.

    A scene appears whole or not at all, so that an interrupted run is taken up by the next one. A
    second process that makes the same folder waits for the first.

    Args:
        out: the folder of the data set.
        config: what to make; :class:`CarsConfig`'s defaults if None.
        progress: called with the views done and the views to do, after each scene.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds something else, or cars made with other settings; the message
            names the differences.
    """
    out, config = Path(out), config or CarsConfig()
    settings = asdict(config)
    kind = "cars" if settings.pop("format") == "srn" else "cars in LearnIt's format"
    check_settings(out, SETTINGS, kind, {"version": _VERSION, **settings})
    with locked(out / ".lock"):
        for abandoned in out.glob("*/.*.partial"):
            shutil.rmtree(abandoned)
        splits = _srn_splits(config) if config.format == "srn" else _learnit_splits(config)
        jobs = [job for split in splits.values() for job in split]
        total = sum(job.random + job.spiral for job in jobs)
        done = 0
        for job in jobs:
            if not (out / job.folder).is_dir():
                _make_scene(out / job.folder, job, config)
            done += job.random + job.spiral
            if progress is not None:
                progress(done, total)
        if config.format == "learnit" and not (out / LEARNIT_SPLITS).is_file():
            objects = {split: [job.folder.name for job in jobs] for split, jobs in splits.items()}
            learnit.write_splits(out / LEARNIT_SPLITS, objects)
    return out


def _srn_splits(config: CarsConfig) -> dict[str, list[_Job]]:
    def split(name: str, cars: int, count: int, random: int, spiral: int) -> list[_Job]:
        return [
            _Job(Path(name, f"car-{index:06d}"), cars, index, random, spiral)
            for index in range(count)
        ]

    return {
        TRAIN: split(TRAIN, _TRAIN_CARS, config.scenes, config.views, 0),
        NOVEL: split(NOVEL, _TRAIN_CARS, config.scenes, 0, config.test_views),
        TEST: split(TEST, _TEST_CARS, config.test_scenes, 0, config.test_views),
    }


def _learnit_splits(config: CarsConfig) -> dict[str, list[_Job]]:
    def split(name: str, cars: int, count: int, random: int) -> list[_Job]:
        return [
            _Job(
                Path(LEARNIT_FOLDER, f"{name}-{index:06d}"), cars, index, random, config.test_views
            )
            for index in range(count)
        ]

    return {
        "train": split("train", _TRAIN_CARS, config.scenes, config.views),
        "val": split("val", _VAL_CARS, config.test_scenes, 0),
        "test": split("test", _TEST_CARS, config.test_scenes, 0),
    }


def _make_scene(folder: Path, job: _Job, config: CarsConfig) -> None:
    car = build_car(draw_parameters(np.random.default_rng((config.seed, job.cars, job.number))))
    parts = []
    if job.random:
        parts.append(random_poses(job.random, RADIUS, (config.seed, job.cars, job.number, 1)))
    if job.spiral:
        parts.append(spiral_poses(job.spiral, RADIUS))
    poses = torch.cat(parts)
    focal = FOCAL * config.size
    draw = render if config.format == "srn" else render_rgba
    images = np.stack(
        [
            draw(car.solids, car.to_metres(pose), config.size, focal, Light(), config.supersample)
            for pose in poses
        ]
    )
    partial = folder.with_name(f".{folder.name}.partial")
    if config.format == "srn":
        srn.write_scene(partial, images, poses.numpy(), focal)
    else:
        poses[:, :3, 3] *= LEARNIT_RADIUS / RADIUS
        learnit.write_object(partial, images, poses.numpy(), 2 * math.atan(0.5 / FOCAL))
    os.replace(partial, folder)
