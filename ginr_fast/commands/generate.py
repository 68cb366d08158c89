"""``ginr-fast generate CHECKPOINT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ginr_fast.analysis.instances import run_folder
from ginr_fast.analysis.orbits import FileFormat
from ginr_fast.analysis.pictures import CameraOptions
from ginr_fast.commands import common
from ginr_fast.commands.render import MESH_VOXELS, MeshFormat
from ginr_fast.generation.sampling import SamplingOptions
from ginr_fast.ops.checks import check_count
from ginr_fast.pictures import check_fps
from ginr_fast.training.recipes.base import Precision

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ginr_fast.analysis.decoded import Shown
    from ginr_fast.training.generative import Generator

_SHEET = "samples.png"
_LATENTS = "latents.safetensors"
_MOST_ON_SHEET = 256
_SIZE = 128


@dataclass(frozen=True)
class GenerateArguments:
    """Draw samples from a trained generative model, at any resolution.

    Samples have numbers: number i of a seed is the same whatever else is drawn with it. All are
    shown side by side in samples.png (the first 256, if there are more).

    Args:
        checkpoint: the folder of a run, a .pt checkpoint, or exported .safetensors.
        samples: how many.
        first: number of the first.
        sampling: how they are drawn.
        size: height and width of a picture, in pixels; the images that the model was trained on
            have that of if not given, else 128.
        jitter: (INRCT of images) move every coordinate at random within its pixel, as in training.
        batch: samples drawn at a time.
        precision: 32-true, or bf16-mixed (autocast to bfloat16), faster where the
            processor multiplies it natively; samples then depend on the batch by its rounding.
        out: the folder to write to; samples in the run's folder if not given.
        columns: of samples.png; about as many as rows if not given.
        each: a PNG of each sample, too.
        latents: what represents the samples, too: latents.safetensors.
        views: (scenes) an orbit of each sample with so many views, too.
        format: (scenes) gif or mp4 beside an orbit's frames; png for the frames alone.
        fps: (scenes) frames a second.
        mesh: (voxels) a mesh of each sample, too.
        voxels: (voxels) along an axis, among which its surface is searched.
        camera: where scenes and shapes are seen from.
    """

    checkpoint: Positional[Path]
    samples: int = 64
    first: int = 0
    sampling: Annotated[SamplingOptions, arg(name="")] = field(default_factory=SamplingOptions)
    size: int | None = None
    jitter: bool = False
    batch: int = 16
    precision: Precision = "32-true"
    out: Path | None = None
    columns: int | None = None
    each: bool = False
    latents: bool = False
    views: int | None = None
    format: FileFormat = "gif"
    fps: float = 20.0
    mesh: MeshFormat | None = None
    voxels: int = MESH_VOXELS
    camera: CameraOptions = field(default_factory=CameraOptions)

    def __post_init__(self) -> None:
        for name in ("samples", "batch", "size", "columns", "views", "voxels"):
            check_count(name, getattr(self, name), optional=True)
        if self.first < 0:
            raise ValueError(f"first: expected at least 0, got {self.first}")
        check_fps(self.fps)


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(GenerateArguments, arguments, "generate")
    from ginr_fast.training.generative import load_generative

    generator = load_generative(given.checkpoint, common.best_device())
    out = given.out or run_folder(given.checkpoint) / "samples"
    print(f"{generate(generator, out, given)}: {out}")


def generate(generator: Generator, out: Path, given: GenerateArguments) -> str:
    """Draw samples and write their files; returns in words how many, and what they took."""
    from functools import partial

    import numpy as np
    import torch
    from PIL import Image

    from ginr_fast.analysis.decoded import decoder_of, orbits_of, own_size, pictures_of, shown_by
    from ginr_fast.analysis.orbits import write_orbits
    from ginr_fast.analysis.samples import draw_in_batches, timed
    from ginr_fast.commands.render import draw_meshes
    from ginr_fast.pictures import contact_sheet, save_png

    model, shown = generator.model, shown_by(generator.model)
    check_options(shown, given)
    evaluations = model.evaluations(given.sampling)
    size, camera = given.size or own_size(model) or _SIZE, given.camera
    jitter = given.sampling.seed if given.jitter else None
    device = next(model.parameters()).device
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=given.precision == "bf16-mixed")
    numbers = range(given.first, given.first + given.samples)
    keep = given.latents or given.views is not None or given.mesh is not None
    sheet: list[np.ndarray] = []
    kept: list[torch.Tensor] = []
    spent: list[tuple[int, float, float]] = []

    def pictured(latents: torch.Tensor) -> list[np.ndarray]:
        return list(pictures_of(model, latents, size, camera, jitter))

    def names(numbers: Sequence[int]) -> list[str]:
        return [f"sample-{number:05d}" for number in numbers]

    with mixed:
        for drawn in draw_in_batches(model, numbers, given.sampling, given.batch):
            pictures, seconds = timed(partial(pictured, drawn.latents))
            spent.append((len(drawn.numbers), drawn.seconds, seconds))
            sheet += pictures[: _MOST_ON_SHEET - len(sheet)]
            if keep:
                kept.append(drawn.latents.float())
            if given.each:
                for name, picture in zip(names(drawn.numbers), pictures, strict=True):
                    save_png(Image.fromarray(picture), out / f"{name}.png")
    save_png(contact_sheet(np.stack(sheet), given.columns), out / _SHEET)
    latents = torch.cat(kept) if keep else torch.empty(0)
    if given.latents:
        save_latents(latents, generator.saved.system, out / _LATENTS, given)
    if given.views is not None:
        orbits = orbits_of(model, latents, names(numbers), given.views, size, camera)
        write_orbits(orbits, given.views, out, given.format, given.fps)
    if given.mesh is not None:
        found = decoder_of(model), latents, names(numbers), out
        draw_meshes(*found, given.voxels, given.mesh, given.camera)
    return f"{given.samples} samples of {generator.saved.system}, {costs(evaluations, spent)}"


def check_options(shown: Shown, given: GenerateArguments) -> None:
    """Refuse options that what a model shows has no use for.

    Raises:
        ValueError: names the option.
    """
    for name, kind, wanted in (
        ("views", "scene", given.views is not None),
        ("mesh", "voxels", given.mesh is not None),
        ("jitter", "image", given.jitter),
    ):
        if wanted and shown != kind:
            raise ValueError(f"{name}: expected a model of {kind}, this is of {shown}")


def save_latents(latents: torch.Tensor, system: str, path: Path, given: GenerateArguments) -> None:
    """Write what represents samples, with how they were drawn, atomically."""
    from dataclasses import asdict

    from safetensors.torch import save_file

    from ginr_fast.files import replace_atomically

    notes = {"system": system, "first": str(given.first)}
    settings = asdict(given.sampling).items()
    notes |= {name: str(value) for name, value in settings if value is not None}
    tensors = {"latents": latents.cpu().contiguous()}
    replace_atomically(path, lambda temporary: save_file(tensors, temporary, notes))


def costs(evaluations: int, spent: Sequence[tuple[int, float, float]]) -> str:
    """Evaluations and seconds a sample, in words; the first batch warms up if there are others.

    Args:
        evaluations: of the network.
        spent: samples, seconds that drawing and seconds that decoding took, of each batch.
    """
    counted = spent[1:] or spent
    samples = sum(count for count, _, _ in counted)
    drawing, decoding = (sum(batch[place] for batch in counted) / samples for place in (1, 2))
    calls = "one network evaluation" if evaluations == 1 else f"{evaluations} network evaluations"
    return (
        f"{calls} and {drawing + decoding:.3g} s each "
        f"({drawing:.3g} s drawing, {decoding:.3g} s decoding)"
    )
