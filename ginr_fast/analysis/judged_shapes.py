"""Shapes that a generative model draws, judged beside real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ginr_fast.analysis.decoded import decoder_of
from ginr_fast.analysis.judged_images import Budget
from ginr_fast.analysis.judging import Drawing, Judged, described_steps, neighbours_sheet
from ginr_fast.coords import grid
from ginr_fast.data.order import spread
from ginr_fast.data.voxel_points import VoxelPoints
from ginr_fast.generation.distances import Nearest
from ginr_fast.generation.evaluation import memorisation
from ginr_fast.generation.point_clouds import POINTS, chamfer, coverage_and_mmd, surface_points
from ginr_fast.generation.sampling import Generative, SamplingOptions
from ginr_fast.meshes import EmptySurfaceError, mesh_of, shaded
from ginr_fast.pictures import save_png
from ginr_fast.training.tasks.mnif import parts
from ginr_fast.training.tasks.mnif_voxels import VoxelData

_COMPARED = 32  # voxels along an axis in which nearest shapes are looked for
_AT_ONCE = 32
_SHOWN = 12
_PIXELS = 96


def judge_shapes(
    models: Sequence[tuple[str, Generative, SamplingOptions]],
    data: VoxelData,
    budget: Budget,
    picture: Path,
    references: int | None = None,
) -> list[Judged]:
    """Coverage and minimum matching distance of sampled shapes, beside held-out shapes.

    A shape is 2,048 points on the surface that marching cubes finds in its voxels, of as many
    voxels as the data have; distances are Chamfer's, in the field's coordinates, [-1, 1]. Shapes
    without a surface match nothing: coverage and distance are of the others, and their number is
    told.

    Args:
        models: what is judged: a name, what is drawn from, and how; the first decodes for all.
        data: real shapes, with their voxels.
        budget: how much is drawn.
        picture: samples of the first of these beside their nearest training shapes.
        references: held-out shapes compared with, and training shapes, at most; all if None.

    Returns:
        A column for each, and one for as many training shapes in their place.

    Raises:
        ValueError: no voxels in the files; options that a model does not have, by name; a model
            none of whose samples has a surface.
    """
    for shapes in data:
        if not shapes.has_voxels:
            raise ValueError(f"data: {shapes.path} holds no voxels to judge shapes by")
    training = spread(len(data.train), references or len(data.train))
    held_out = spread(len(data.held_out), references or len(data.held_out))
    real = torch.cat([_points(part) for part in _voxels(data.held_out, held_out)])
    side = data.train.voxels(torch.tensor([0])).shape[-1]
    few = held_out[: budget.neighbours]
    unseen = torch.cat([_coarse(part) for part in _voxels(data.held_out, few)])
    decode = _Volumes(models[0][1], side)
    drawn: list[tuple[str, Drawing, dict[str, float]]] = []
    first = []  # samples of each model
    for name, model, options in models:
        drawing = Drawing(model, options, decode, budget.batch)
        clouds: list[torch.Tensor] = []
        kept: list[torch.Tensor] = []
        for volumes in drawing(budget.samples):
            clouds.append(_points(volumes))
            if sum(map(len, kept)) < budget.neighbours:
                kept.append(volumes > 0.5)
        points = torch.cat(clouds)
        if not len(points):
            raise ValueError(f"samples: none of {budget.samples} has a surface")
        first.append(torch.cat(kept)[: budget.neighbours])
        scores = {**_scores(points, real), "with a surface": len(points) / budget.samples}
        drawn.append((name, drawing, scores))
    known = map(_coarse, _voxels(data.train, training))
    copies = memorisation([_coarse(each) for each in first], unseen, known)
    _save_neighbours(first[0], data.train, training, copies[0].samples, picture)
    judged = []
    for (name, drawing, scores), near in zip(drawn, copies, strict=True):
        scores["nearest (voxels)"] = near.ratio
        judged.append(
            Judged(
                name or described_steps(drawing.options.steps),
                budget.samples,
                scores,
                drawing.evaluations,
                drawing.seconds,
                drawing.decoding,
            )
        )
    judged.append(_of_training(data, budget.samples, real))
    return judged


class _Volumes:
    """Decodes latents to occupancies in [0, 1] on a grid, ``(B, D, D, D)``, on the CPU."""

    def __init__(self, model: Any, side: int) -> None:
        self.decoder, self.side = decoder_of(model), side

    def __call__(self, latents: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        where = grid(*[self.side] * 3, device=latents.device)
        values = [self.decoder.decode(where, latent)[0, ..., 0] for latent in latents.split(1)]
        return (0.5 * torch.stack(values).float() + 0.5).clamp(0, 1).cpu()


def _voxels(shapes: VoxelPoints, indices: Sequence[int]) -> Iterator[torch.Tensor]:
    """Voxels of shapes, ``(B, D, D, D)`` bool, in batches."""
    for part in parts(range(len(indices)), _AT_ONCE):
        yield shapes.voxels(torch.tensor([indices[place] for place in part]))


def _points(volumes: torch.Tensor) -> torch.Tensor:
    """Points on the surfaces of occupancies, ``(B, 2048, 3)``; of those that have one."""
    found = [torch.empty(0, POINTS, 3)]
    for volume in volumes.float().numpy():
        with suppress(EmptySurfaceError):
            found.append(surface_points(mesh_of(volume, 0.5))[None])
    return torch.cat(found)


def _scores(points: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    found = coverage_and_mmd(chamfer(points, real))
    return {"coverage": found.coverage, "MMD (1e-3)": 1e3 * found.mmd}


def _of_training(data: VoxelData, count: int, real: torch.Tensor) -> Judged:
    chosen = spread(len(data.train), count)
    points = torch.cat([_points(part) for part in _voxels(data.train, chosen)])
    return Judged("training shapes", len(chosen), _scores(points, real))


def _coarse(voxels: torch.Tensor) -> torch.Tensor:
    """Occupancy of coarser voxels, ``(B, d, d, d)``, d about 32."""
    side = max(1, voxels.shape[-1] // _COMPARED)
    return F.avg_pool3d(voxels.float()[:, None], side)[:, 0]


def _save_neighbours(
    samples: torch.Tensor,
    training: VoxelPoints,
    chosen: Sequence[int],
    found: Nearest,
    picture: Path,
) -> None:
    order = found.distances.argsort()[:_SHOWN]
    nearest = torch.tensor([chosen[int(index)] for index in found.indices[order]])
    pictures = [
        torch.stack([_picture(volume) for volume in side])
        for side in (samples[order], training.voxels(nearest))
    ]
    shown = Nearest(found.indices[order], found.distances[order])
    save_png(neighbours_sheet(pictures[0], pictures[1], shown), picture)


def _picture(voxels: torch.Tensor) -> torch.Tensor:
    """A shape shaded, ``(3, H, W)`` in [0, 1]; white if it has no surface."""
    try:
        pixels = shaded(mesh_of(voxels.float().numpy(), 0.5), _PIXELS)
    except EmptySurfaceError:
        pixels = np.full((_PIXELS, _PIXELS, 3), 255, dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
