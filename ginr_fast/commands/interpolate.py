"""``ginr-fast interpolate CHECKPOINT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ginr_fast.analysis.instances import FitOptions, run_folder
from ginr_fast.analysis.pictures import CameraOptions
from ginr_fast.commands import common
from ginr_fast.training.tasks.base import DataOptions


@dataclass(frozen=True)
class InterpolateArguments:
    """Draw what lies between four instances: bilinear interpolation of their latents, as one PNG.

    The corners, in green, are the instances themselves.

    Args:
        checkpoint: the folder of a run of an mNIF, a .pt checkpoint, or exported .safetensors.
        corners: numbers of the instances: upper left, upper right, lower left, lower right.
        steps: pictures along each side, corners included.
        size: height and width of each, in pixels.
        out: the PNG; interpolation.png in the run's folder if not given.
        fit: where latents come from.
        camera: where scenes and shapes are seen from.
        source: the data that held-out instances are of.
    """

    checkpoint: Positional[Path]
    corners: tuple[int, int, int, int] = (0, 1, 2, 3)
    steps: int = 8
    size: int = 96
    out: Path | None = None
    fit: Annotated[FitOptions, arg(name="")] = field(default_factory=FitOptions)
    camera: Annotated[CameraOptions, arg(name="")] = field(default_factory=CameraOptions)
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        if self.steps < 2 or self.size < 1:
            raise ValueError(
                f"steps, size: expected at least 2 and 1, got {self.steps} and {self.size}"
            )


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(InterpolateArguments, arguments, "interpolate")
    from ginr_fast.analysis.instances import load_instances
    from ginr_fast.analysis.pictures import bilinear, framed_sheet, pictures_of
    from ginr_fast.pictures import save_png

    device = common.best_device()
    found = load_instances(given.checkpoint, given.corners, given.fit, given.source, device)
    latents = bilinear(found.latents, given.steps).flatten(0, 1)
    pictures = list(pictures_of(found.model, latents, given.size, given.camera))
    last = given.steps**2 - 1
    corners = {0, given.steps - 1, last - given.steps + 1, last}
    out = given.out or run_folder(given.checkpoint) / "interpolation.png"
    save_png(framed_sheet(pictures, given.steps, corners), out)
    numbers = ", ".join(map(str, given.corners))
    print(f"between {found.what} {numbers}, {given.steps}x{given.steps}: {out}")
