"""``ginr-fast render CHECKPOINT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ginr_fast.analysis.instances import FitOptions, run_folder
from ginr_fast.analysis.pictures import CameraOptions
from ginr_fast.commands import common
from ginr_fast.training.tasks.base import DataOptions

if TYPE_CHECKING:
    import torch

    from ginr_fast.systems.mnif import Mnif

_SHEET_VIEWS = 8
_SHEET_SIZE = 128
_MESH_TURNS = (35.0, 125.0, 215.0, 305.0)
_SIZES = {"image": 256, "scene": 256, "voxels": 128}


@dataclass(frozen=True)
class RenderArguments:
    """Draw instances of a trained mNIF at any resolution.

    Scenes: an orbit of each as PNG frames and a GIF or MP4. Images: a PNG of each. Voxels: a mesh
    of each, and a picture of it.

    Args:
        checkpoint: the folder of a run of an mNIF, a .pt checkpoint, or exported .safetensors.
        instances: their numbers, from 0.
        size: (scenes, images) height and width, in pixels; 256 if not given. (voxels) voxels along
            an axis in which the surface is searched; 128 if not given.
        out: the folder to write to; renders in the run's folder if not given.
        views: (scenes) of an orbit.
        format: (scenes) gif or mp4 beside the frames; png for the frames alone.
        fps: (scenes) frames a second.
        occupancy: (scenes) find out first where a scene is empty, and skip that.
        depth: (scenes) depth, too: nearer is brighter.
        mesh: (voxels) the kind of file.
        camera: where scenes and shapes are seen from.
        fit: where latents come from.
        source: the data that held-out instances are of.
    """

    checkpoint: Positional[Path]
    instances: tuple[int, ...] = (0, 1, 2)
    size: int | None = None
    out: Path | None = None
    views: int = 60
    format: Literal["gif", "mp4", "png"] = "gif"
    fps: float = 20.0
    occupancy: bool = True
    depth: bool = False
    mesh: Literal["ply", "obj", "stl"] = "ply"
    camera: Annotated[CameraOptions, arg(name="")] = field(default_factory=CameraOptions)
    fit: Annotated[FitOptions, arg(name="")] = field(default_factory=FitOptions)
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        for name in ("size", "views"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value}")
        if not self.fps > 0:
            raise ValueError(f"fps: expected above 0, got {self.fps}")


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(RenderArguments, arguments, "render")
    from ginr_fast.analysis.instances import load_instances

    device = common.best_device()
    found = load_instances(given.checkpoint, given.instances, given.fit, given.source, device)
    out = given.out or run_folder(given.checkpoint) / "renders"
    modality = found.model.config.modality
    draw = {"image": draw_images, "voxels": draw_meshes, "scene": draw_orbits}[modality]
    kind = found.what.split()[0]
    names = [f"{kind}-{number:05d}" for number in given.instances]
    draw(found.model, found.latents, names, out, given)
    print(f"{found.what} {', '.join(map(str, given.instances))}: {out}")


def draw_images(
    model: Mnif, latents: torch.Tensor, names: Sequence[str], out: Path, given: RenderArguments
) -> None:
    """A PNG of each, written in row blocks: memory does not grow with its size."""
    import torch

    from ginr_fast.analysis.pictures import image_decoder
    from ginr_fast.coords import grid
    from ginr_fast.decoders.streaming import decode_to_file

    size = given.size or _SIZES["image"]
    out.mkdir(parents=True, exist_ok=True)
    where = grid(size, size, device=latents.device)
    for name, latent in zip(names, latents.split(1), strict=True):
        with torch.no_grad():
            weights = model.weights(latent)
        decode_to_file(image_decoder(model), where, weights, out / f"{name}.png")


def draw_meshes(
    model: Mnif, latents: torch.Tensor, names: Sequence[str], out: Path, given: RenderArguments
) -> None:
    """A mesh of each, and its picture from four sides."""
    import warnings

    import numpy as np
    import torch

    from ginr_fast.meshes import EmptySurfaceError, extract_mesh, save_mesh, shaded
    from ginr_fast.pictures import contact_sheet, save_png

    size = given.size or _SIZES["voxels"]
    for name, latent in zip(names, latents.split(1), strict=True):
        with torch.no_grad():
            weights = model.weights(latent)
        try:
            mesh = extract_mesh(weights, model.config.spec, size)
        except EmptySurfaceError as error:
            warnings.warn(f"{name} has no surface ({error})", stacklevel=1)
            continue
        path = save_mesh(mesh, out / f"{name}.{given.mesh}")
        turns = [given.camera.azimuth - _MESH_TURNS[0] + turn for turn in _MESH_TURNS]
        sides = [shaded(mesh, azimuth=turn, elevation=given.camera.elevation) for turn in turns]
        save_png(contact_sheet(np.stack(sides), len(sides)), out / f"{name}.png")
        print(f"{path}: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces")


def draw_orbits(
    model: Mnif, latents: torch.Tensor, names: Sequence[str], out: Path, given: RenderArguments
) -> None:
    """Frames and an animation of each, and one sheet with some views of all."""
    import numpy as np
    import torch
    from PIL import Image
    from rich.console import Console
    from rich.progress import Progress

    from ginr_fast.analysis.pictures import depth_picture, orbit
    from ginr_fast.pictures import (
        contact_sheet,
        save_frames,
        save_gif,
        save_mp4,
        save_png,
        to_frames,
    )

    size = given.size or _SIZES["scene"]
    shown = np.linspace(0, given.views, min(_SHEET_VIEWS, given.views), endpoint=False).astype(int)
    small = min(size, _SHEET_SIZE)
    rows: list[np.ndarray] = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        progress = bar.add_task("views", total=len(names) * given.views)
        for name, latent in zip(names, latents.split(1), strict=True):
            made: dict[str, list[np.ndarray]] = {}
            for seen in orbit(model, latent, given.views, size, given.camera, given.occupancy):
                pictures = {"": seen.color}
                if given.depth:
                    pictures["-depth"] = depth_picture(seen, model.config.near, model.config.far)
                for kind, picture in pictures.items():
                    made.setdefault(kind, []).append(to_frames(picture[None])[0])
                bar.advance(progress)
            for kind, frames in made.items():
                stack = np.stack(frames)
                save_frames(stack, out / f"{name}{kind}")
                if given.format == "gif":
                    save_gif(stack, out / f"{name}{kind}.gif", given.fps)
                elif given.format == "mp4":
                    save_mp4(stack, out / f"{name}{kind}.mp4", given.fps)
            rows += [
                np.asarray(Image.fromarray(made[""][view]).resize((small, small))) for view in shown
            ]
    save_png(contact_sheet(torch.from_numpy(np.stack(rows)), len(shown)), out / "views.png")
