"""``ginr-fast interpolate CHECKPOINT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ginr_fast.analysis.instances import FitOptions, run_folder
from ginr_fast.analysis.pictures import CameraOptions
from ginr_fast.commands import common
from ginr_fast.generation.sampling import SamplingOptions
from ginr_fast.options import refuse_set
from ginr_fast.training.tasks.base import DataOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

_AT_ONCE = 16


@dataclass(frozen=True)
class InterpolateArguments:
    """Draw what lies between four instances of an mNIF, or between four samples, as one PNG.

    The corners, in green, are the instances themselves. Between them latents are interpolated
    (bilinear), with --generated those of a latent diffusion's samples; of INRCT's samples it is the
    noise that they are generated from, on the sphere, and every picture is generated anew.

    Args:
        checkpoint: the folder of a run of an mNIF, or with --generated of a generative model; a .pt
            checkpoint, or exported .safetensors.
        generated: between samples instead of instances of the data.
        corners: numbers of the instances or samples: upper left, upper right, lower left, lower
            right.
        steps: pictures along each side, corners included.
        size: height and width of each, in pixels.
        out: the PNG; interpolation.png in the run's folder if not given, with --generated
            interpolation-generated.png.
        sampling: (--generated) how samples are drawn.
        fit: (instances of an mNIF) where latents come from.
        camera: where scenes and shapes are seen from.
        source: (instances of an mNIF) the data that held-out instances are of.
    """

    checkpoint: Positional[Path]
    generated: bool = False
    corners: tuple[int, int, int, int] = (0, 1, 2, 3)
    steps: int = 8
    size: int = 96
    out: Path | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    fit: Annotated[FitOptions, arg(name="")] = field(default_factory=FitOptions)
    camera: Annotated[CameraOptions, arg(name="")] = field(default_factory=CameraOptions)
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        if self.steps < 2 or self.size < 1:
            raise ValueError(
                f"steps, size: expected at least 2 and 1, got {self.steps} and {self.size}"
            )
        unused = (self.fit, self.source) if self.generated else (self.sampling,)
        instead = "of instances, without" if self.generated else "of samples, with"
        for options in unused:
            refuse_set(options, f"only {instead} --generated")


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(InterpolateArguments, arguments, "interpolate")
    from ginr_fast.analysis.decoded import pictures_of
    from ginr_fast.analysis.pictures import framed_sheet
    from ginr_fast.pictures import save_png

    find = between_samples if given.generated else between_instances
    model, latents, what = find(given)
    pictures = list(pictures_of(model, latents, given.size, given.camera))
    last = given.steps**2 - 1
    corners = {0, given.steps - 1, last - given.steps + 1, last}
    name = "interpolation-generated.png" if given.generated else "interpolation.png"
    out = given.out or run_folder(given.checkpoint) / name
    save_png(framed_sheet(pictures, given.steps, corners), out)
    numbers = ", ".join(map(str, given.corners))
    print(f"between {what} {numbers}, {given.steps}x{given.steps}: {out}")


def between_instances(given: InterpolateArguments) -> tuple[nn.Module, torch.Tensor, str]:
    """An mNIF, the latents of all pictures row by row, and what the corners are, in words."""
    from ginr_fast.analysis.instances import load_instances
    from ginr_fast.analysis.pictures import bilinear

    device = common.best_device()
    found = load_instances(given.checkpoint, given.corners, given.fit, given.source, device)
    return found.model, bilinear(found.latents, given.steps).flatten(0, 1), found.what


def between_samples(given: InterpolateArguments) -> tuple[nn.Module, torch.Tensor, str]:
    """The same of samples."""
    import torch

    from ginr_fast.analysis.pictures import bilinear
    from ginr_fast.analysis.samples import draw_in_batches
    from ginr_fast.generation.sampling import Between
    from ginr_fast.systems.latent_diffusion import LatentDiffusion
    from ginr_fast.training.generative import load_generative

    if min(given.corners) < 0:
        raise ValueError(f"corners: expected numbers of samples, from 0, got {given.corners}")
    model = load_generative(given.checkpoint, common.best_device()).model
    if isinstance(model, LatentDiffusion):
        with torch.no_grad():
            corners = model.draw(given.corners, given.sampling)
        flat = bilinear(corners.flatten(1), given.steps).flatten(0, 1)
        return model, flat.unflatten(1, corners.shape[1:]), "samples"
    along = [step / (given.steps - 1) for step in range(given.steps)]
    places = [Between(given.corners, down, across) for down in along for across in along]
    drawn = draw_in_batches(model, places, given.sampling, _AT_ONCE)
    return model, torch.cat([batch.latents for batch in drawn]), "samples"
