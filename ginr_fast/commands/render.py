"""``ginr-fast render CHECKPOINT``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ginr_fast.analysis.instances import FitOptions, run_folder
from ginr_fast.analysis.orbits import FileFormat
from ginr_fast.analysis.pictures import CameraOptions
from ginr_fast.analysis.view_pictures import SCENE_SYSTEMS, SupportOptions
from ginr_fast.commands import common
from ginr_fast.ops.checks import check_count
from ginr_fast.pictures import check_fps
from ginr_fast.training.tasks.base import DataOptions

if TYPE_CHECKING:
    import torch

    from ginr_fast.analysis.orbits import Orbit
    from ginr_fast.systems.mnif import Mnif
    from ginr_fast.training.checkpoints import Saved

_MESH_TURNS = (35.0, 125.0, 215.0, 305.0)
_SIZES = {"image": 256, "scene": 256}
MESH_VOXELS = 128
MeshFormat = Literal["ply", "obj", "stl"]


@dataclass(frozen=True)
class RenderArguments:
    """Draw instances of a trained model at any resolution.

    Scenes of an mNIF, of view synthesis or of Learned Init: an orbit of each as PNG frames and a
    GIF or MP4. Images of an mNIF: a PNG of each. Its voxels: a mesh of each, and a picture of it.

    Args:
        checkpoint: the folder of a run, a .pt checkpoint, or exported .safetensors.
        instances: their numbers, from 0. Those of view synthesis and Learned Init are held-out
            scenes.
        size: (scenes, images) height and width, in pixels; 256 if not given. (voxels) voxels along
            an axis in which the surface is searched; 128 if not given.
        out: the folder to write to; renders in the run's folder if not given.
        views: (scenes) of an orbit.
        format: (scenes) gif or mp4 beside the frames; png for the frames alone.
        fps: (scenes) frames a second.
        occupancy: (scenes of an mNIF) find out first where a scene is empty, and skip that.
        depth: (radiance fields) depth, too: nearer is brighter.
        mesh: (voxels) the kind of file.
        camera: where scenes and shapes are seen from.
        fit: (mNIF, Learned Init) what instances are fitted to.
        support: (view synthesis) what scenes are known by.
        source: the data that held-out instances are of.
    """

    checkpoint: Positional[Path]
    instances: tuple[int, ...] = (0, 1, 2)
    size: int | None = None
    out: Path | None = None
    views: int = 60
    format: FileFormat = "gif"
    fps: float = 20.0
    occupancy: bool = True
    depth: bool = False
    mesh: MeshFormat = "ply"
    camera: Annotated[CameraOptions, arg(name="")] = field(default_factory=CameraOptions)
    fit: Annotated[FitOptions, arg(name="")] = field(default_factory=FitOptions)
    support: Annotated[SupportOptions, arg(name="")] = field(default_factory=SupportOptions)
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        for name in ("size", "views"):
            check_count(name, getattr(self, name), optional=True)
        check_fps(self.fps)


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(RenderArguments, arguments, "render")
    from ginr_fast.training.checkpoints import load_saved

    saved, out = load_saved(given.checkpoint), given.out or run_folder(given.checkpoint) / "renders"
    draw = draw_known_scenes if saved.system in SCENE_SYSTEMS else draw_instances
    what = draw(saved, out, given)
    print(f"{what} {', '.join(map(str, given.instances))}: {out}")


def draw_known_scenes(saved: Saved, out: Path, given: RenderArguments) -> str:
    """Orbits of held-out scenes, known by a few views; returns what they are, in words."""
    from ginr_fast.analysis.view_pictures import open_scenes, orbits

    task = open_scenes(saved, given.source, common.best_device())
    size = given.size or _SIZES["scene"]
    found = orbits(
        task,
        given.instances,
        given.views,
        size,
        given.camera,
        given.fit,
        given.support,
        given.depth,
    )
    write(found, out, given)
    return "held-out scenes"


def draw_instances(saved: Saved, out: Path, given: RenderArguments) -> str:
    """Instances of an mNIF; returns what they are, in words."""
    from ginr_fast.analysis.instances import load_instances
    from ginr_fast.analysis.orbits import mnif_orbits
    from ginr_fast.training.checkpoints import CheckpointError
    from ginr_fast.training.recipes import MnifRecipe
    from ginr_fast.training.tasks import SYSTEMS

    if saved.system not in SYSTEMS or not issubclass(SYSTEMS[saved.system][0], MnifRecipe):
        raise CheckpointError(
            f"{saved.path}: expected a trained mNIF, got {saved.system}; "
            f"scenes are drawn of {', '.join(SCENE_SYSTEMS)}, too"
        )
    given.support.refuse(saved.system, "set fit_views and fit_steps")
    device = common.best_device()
    found = load_instances(given.checkpoint, given.instances, given.fit, given.source, device)
    model, latents = found.model, found.latents
    kind = found.what.split()[0]
    names = [f"{kind}-{number:05d}" for number in given.instances]
    if model.config.modality == "image":
        draw_images(model, latents, names, out, given)
    elif model.config.modality == "voxels":
        size = given.size or MESH_VOXELS
        draw_meshes(model, latents, names, out, size, given.mesh, given.camera)
    else:
        size = given.size or _SIZES["scene"]
        options = given.camera, given.occupancy, given.depth
        write(mnif_orbits(model, latents, names, given.views, size, *options), out, given)
    return found.what


def write(orbits: Iterable[Orbit], out: Path, given: RenderArguments) -> None:
    """Files of orbits."""
    from itertools import count

    from ginr_fast.analysis.orbits import write_orbits
    from ginr_fast.progress import progress_bar

    with progress_bar("drawing views") as progress:
        drawn, total = count(1), len(given.instances) * given.views
        write_orbits(
            orbits, given.views, out, given.format, given.fps, lambda: progress(next(drawn), total)
        )


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
    model: Mnif,
    latents: torch.Tensor,
    names: Sequence[str],
    out: Path,
    voxels: int,
    kind: MeshFormat,
    camera: CameraOptions,
) -> None:
    """A mesh of each, found among so many voxels along an axis, and its picture from four sides."""
    import warnings

    import numpy as np
    import torch

    from ginr_fast.meshes import EmptySurfaceError, extract_mesh, save_mesh, shaded
    from ginr_fast.pictures import contact_sheet, save_png

    for name, latent in zip(names, latents.split(1), strict=True):
        with torch.no_grad():
            weights = model.weights(latent)
        try:
            mesh = extract_mesh(weights, model.config.spec, voxels)
        except EmptySurfaceError as error:
            warnings.warn(f"{name} has no surface ({error})", stacklevel=1)
            continue
        path = save_mesh(mesh, out / f"{name}.{kind}")
        turns = [camera.azimuth - _MESH_TURNS[0] + turn for turn in _MESH_TURNS]
        sides = [shaded(mesh, azimuth=turn, elevation=camera.elevation) for turn in turns]
        save_png(contact_sheet(np.stack(sides), len(sides)), out / f"{name}.png")
        print(f"{path}: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces")
