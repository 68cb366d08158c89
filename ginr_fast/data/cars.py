"""Ray-traced cars with poses in SRN's format: scenes to learn from, made on the spot.

Three splits: ``cars_train`` sees each car from random places on a sphere, ``cars_train_novel`` sees
the same cars from a spiral over the upper hemisphere that training never sees, ``cars_test`` sees
other cars from that spiral. Camera and distance are those of SRN Cars: radius 1.3, focal length
131.25 pixels at 128², cars within a sphere of radius ½, so that 0.8 to 1.8 holds everything.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ginr_fast.data.car_models import build_car, draw_parameters
from ginr_fast.data.making import check_settings
from ginr_fast.data.raytrace import Light, render
from ginr_fast.data.srn import write_scene
from ginr_fast.files import locked
from ginr_fast.rays import random_poses, spiral_poses

RADIUS = 1.3
NEAR, FAR = 0.8, 1.8
FOCAL = 131.25 / 128  # of the height
SETTINGS = "cars.json"
TRAIN, NOVEL, TEST = "cars_train", "cars_train_novel", "cars_test"

# Part of the settings: pictures made by another version of the renderer are other pictures.
_VERSION = 1


@dataclass(frozen=True)
class CarsConfig:
    """What is made.

    Args:
        scenes: cars to train on.
        views: random views of each.
        test_scenes: cars never trained on.
        test_views: views on the spiral, of all cars.
        size: height and width of a view, in pixels.
        seed: of cars and random views.
        supersample: this many rays squared are averaged for a pixel.
    """

    scenes: int = 64
    views: int = 50
    test_scenes: int = 8
    test_views: int = 24
    size: int = 128
    seed: int = 0
    supersample: int = 2

    def __post_init__(self) -> None:
        for name in ("scenes", "views", "test_scenes", "test_views", "size", "supersample"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive integer, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed: expected an integer of at least 0, got {self.seed}")


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
    check_settings(out, SETTINGS, "cars", {"version": _VERSION, **asdict(config)})
    with locked(out / ".lock"):
        for abandoned in out.glob("*/.*.partial"):
            shutil.rmtree(abandoned)
        jobs = _jobs(config)
        total = sum(views for _, _, _, views in jobs)
        done = 0
        for split, kind, index, views in jobs:
            folder = out / split / f"car-{index:06d}"
            if not folder.is_dir():
                _make_scene(folder, split, kind, index, views, config)
            done += views
            if progress is not None:
                progress(done, total)
    return out


def _jobs(config: CarsConfig) -> list[tuple[str, int, int, int]]:
    """Split, kind of car (0: for training, 1: for testing), index and views of every scene."""
    train, test = range(config.scenes), range(config.test_scenes)
    return [
        *((TRAIN, 0, index, config.views) for index in train),
        *((NOVEL, 0, index, config.test_views) for index in train),
        *((TEST, 1, index, config.test_views) for index in test),
    ]


def _make_scene(
    folder: Path, split: str, kind: int, index: int, views: int, config: CarsConfig
) -> None:
    car = build_car(draw_parameters(np.random.default_rng((config.seed, kind, index))))
    if split == TRAIN:
        poses = random_poses(views, RADIUS, (config.seed, kind, index, 1))
    else:
        poses = spiral_poses(views, RADIUS)
    focal = FOCAL * config.size
    images = [
        render(car.solids, car.to_metres(pose), config.size, focal, Light(), config.supersample)
        for pose in poses
    ]
    partial = folder.with_name(f".{folder.name}.partial")
    write_scene(partial, np.stack(images), poses.numpy(), focal)
    os.replace(partial, folder)
