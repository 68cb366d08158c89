"""``ginr-fast make-data``: data sets made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ginr_fast.commands import common
from ginr_fast.data.cars import CarsConfig, make_cars
from ginr_fast.data.icon_files import make_icons
from ginr_fast.data.icons import IconsConfig
from ginr_fast.data.shapes import ShapesConfig, make_shapes
from ginr_fast.data.tones import AudioConfig, make_audio
from ginr_fast.progress import progress_bar

KINDS = {
    "cars": "ray-traced cars with poses, in the format of SRN Cars or of LearnIt-ShapeNet",
    "shapes": "voxel shapes and points near their surfaces, in IM-Net's format",
    "audio": "clips of vowels, plucked strings, glides and noise, as WAV files",
    "icons": "pictures of coloured shapes in five classes, in CIFAR-10's format",
}


@dataclass(frozen=True)
class CarsArguments:
    """Ray-trace parametric cars from known poses, in the format of SRN Cars or of LearnIt-ShapeNet.

    SRN's format has three splits: cars_train, cars_train_novel (the same cars from other places)
    and cars_test (other cars). LearnIt's has train, val and test (other cars each); the frames of
    its training objects are the views to train on, then those from other places. The same command
    again finishes what was interrupted.

    Args:
        out: the folder of the data set.
        cars: what is made.
    """

    out: Path
    cars: Annotated[CarsConfig, arg(name="")] = field(default_factory=CarsConfig)


@dataclass(frozen=True)
class ShapesArguments:
    """Make voxel shapes (tables, chairs, stools, shelves, lamps), in IM-Net's HDF5 format.

    Args:
        out: the file.
        shapes: what is made.
    """

    out: Path
    shapes: Annotated[ShapesConfig, arg(name="")] = field(default_factory=ShapesConfig)


@dataclass(frozen=True)
class AudioArguments:
    """Make short clips of vowels, plucked strings, glides and noise, as WAV files.

    Args:
        out: the folder of the data set, with a folder for training and one for testing.
        audio: what is made.
    """

    out: Path
    audio: Annotated[AudioConfig, arg(name="")] = field(default_factory=AudioConfig)


@dataclass(frozen=True)
class IconsArguments:
    """Draw pictures of a coloured shape on a shaded ground, in five classes, as CIFAR-10 has them.

    Args:
        out: the folder of the data set.
        icons: what is drawn.
    """

    out: Path
    icons: Annotated[IconsConfig, arg(name="")] = field(default_factory=IconsConfig)


def usage() -> str:
    """The kinds of data."""
    width = max(map(len, KINDS))
    lines = [f"  {name:<{width}}  {about}" for name, about in KINDS.items()]
    return "\n".join(
        [
            "usage: ginr-fast make-data KIND --out PATH [options]",
            "",
            "kinds:",
            *lines,
            "",
            "ginr-fast make-data KIND --help lists the options.",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage())
        return
    if not arguments or arguments[0] not in KINDS:
        got = f", got {arguments[0]!r}" if arguments else ""
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}{got}")
    name, *rest = arguments
    if name == "cars":
        cars = common.parse(CarsArguments, rest, "make-data cars")
        with progress_bar("views") as progress:
            made = make_cars(cars.out, cars.cars, progress)
        print(
            f"{made}: {cars.cars.scenes} cars to train on, {cars.cars.test_scenes} to test with, "
            f"{cars.cars.size}x{cars.cars.size} pixels"
        )
    elif name == "shapes":
        shapes = common.parse(ShapesArguments, rest, "make-data shapes")
        with progress_bar("shapes") as progress:
            made = make_shapes(shapes.out, shapes.shapes, progress)
        print(
            f"{made}: {shapes.shapes.shapes} shapes of {shapes.shapes.resolution}^3 voxels, "
            f"{shapes.shapes.points} points each"
        )
    elif name == "icons":
        icons = common.parse(IconsArguments, rest, "make-data icons")
        made = make_icons(icons.out, icons.icons)
        print(f"{made}: {icons.icons.train} icons to train on, {icons.icons.held_out} to test with")
    else:
        audio = common.parse(AudioArguments, rest, "make-data audio")
        with progress_bar("clips") as progress:
            made = make_audio(audio.out, audio.audio, progress)
        print(
            f"{made}: {audio.audio.clips} clips to train on, {audio.audio.test_clips} to test "
            f"with, {audio.audio.seconds:g} s at {audio.audio.rate} Hz"
        )
