"""Samples of shapes judged by points on their surfaces: Chamfer distances, coverage and MMD."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from ginr_fast.generation.distances import check_finite
from ginr_fast.meshes import Mesh
from ginr_fast.ops.checks import check_tensor

POINTS = 2048
"""Points of a shape's surface, as in the published evaluations."""

_PAIRS = 1 << 24  # distances between points held at once


def surface_points(mesh: Mesh, count: int = POINTS, seed: int = 0) -> torch.Tensor:
    """Points evenly spread at random over a mesh.

    Args:
        mesh: of some area.
        count: how many.
        seed: of the choice.

    Returns:
        ``(count, 3)``, float32.

    Raises:
        ValueError: a count that is not positive, or a mesh without area.
    """
    if count < 1:
        raise ValueError(f"count: expected a positive integer, got {count}")
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    sides = corners[:, 1:] - corners[:, :1]
    areas = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    if not areas.sum() > 0:
        raise ValueError(f"mesh: expected some area, got {len(mesh.faces)} faces without any")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(areas), count, p=areas / areas.sum())
    along = rng.random((count, 2, 1))
    # The far half of the parallelogram is folded back onto the triangle.
    along = np.where(along.sum(1, keepdims=True) > 1, 1 - along, along)
    points = corners[chosen, 0] + (along * sides[chosen]).sum(1)
    return torch.from_numpy(points.astype(np.float32))


class Coverage(NamedTuple):
    """How a set of samples covers a set of reference instances (Achlioptas et al., 2018).

    Args:
        coverage: fraction of references that are the nearest one of some sample.
        mmd: minimum matching distance: of each reference to its nearest sample, averaged.
    """

    coverage: float
    mmd: float


def coverage_and_mmd(distances: torch.Tensor) -> Coverage:
    """Coverage and minimum matching distance.

    Args:
        distances: ``(samples, references)``, such as :func:`chamfer` gives.

    Raises:
        ValueError: another shape, none, or distances that are not finite.

    Example:
        >>> import torch
        >>> from ginr_fast.generation.point_clouds import coverage_and_mmd
        >>> coverage_and_mmd(torch.tensor([[0.0, 4.0], [1.0, 2.0]]))
        Coverage(coverage=0.5, mmd=1.0)
    """
    check_tensor("distances", distances, ("samples", "references"))
    if not distances.numel():
        raise ValueError(f"distances: expected some, got shape {tuple(distances.shape)}")
    matched = check_finite("distances", distances).argmin(dim=1).unique()
    closest = distances.amin(dim=0).double().mean()
    return Coverage(len(matched) / distances.shape[1], float(closest))


def chamfer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Chamfer distances of every point cloud of one set to every one of another.

    The mean over x in a of the squared distance to the nearest y in b, and the other way round,
    added: the convention of Achlioptas et al. (2018), in squared units of length. On the CPU by
    trees, twenty times faster than all pairs of points; on a GPU by all pairs, in blocks.

    Args:
        a: ``(A, N, 3)``.
        b: ``(B, M, 3)``.

    Returns:
        ``(A, B)``, float32.

    Raises:
        ValueError: another shape, or clouds without points.

    Example:
        >>> import torch
        >>> from ginr_fast.generation.point_clouds import chamfer
        >>> chamfer(torch.zeros(1, 5, 3), torch.ones(2, 4, 3)).tolist()
        [[6.0, 6.0]]
    """
    check_tensor("a", a, ("A", "N", 3))
    check_tensor("b", b, ("B", "M", 3), device=a.device)
    if not a.shape[1] or not b.shape[1]:
        raise ValueError(f"a, b: expected points, got {a.shape[1]} and {b.shape[1]} a cloud")
    return _by_trees(a, b) if a.device.type == "cpu" else _by_pairs(a, b)


def _by_trees(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    from scipy.spatial import cKDTree

    clouds = [[cloud.double().numpy() for cloud in side] for side in (a, b)]
    trees = [[cKDTree(cloud) for cloud in side] for side in clouds]

    def row(index: int) -> torch.Tensor:
        cloud, tree = clouds[0][index], trees[0][index]
        found = []
        for other, others in zip(clouds[1], trees[1], strict=True):
            there, back = others.query(cloud)[0], tree.query(other)[0]
            found.append(float(np.square(there).mean() + np.square(back).mean()))
        return torch.tensor(found)

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # queries hold no lock
        rows = list(threads.map(row, range(len(a))))
    return torch.stack(rows) if rows else torch.empty(0, len(b))


def _by_pairs(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    found = a.new_empty(len(a), len(b), dtype=torch.float32)
    at_once = max(1, _PAIRS // (a.shape[1] * b.shape[1]))
    for row, cloud in enumerate(a.float()):
        for first in range(0, len(b), at_once):
            part = b[first : first + at_once].float()
            # By differences: what cancels in products would drown small distances.
            squared = torch.cdist(cloud, part, compute_mode="donot_use_mm_for_euclid_dist").square()
            there, back = squared.amin(dim=2).mean(1), squared.amin(dim=1).mean(1)
            found[row, first : first + at_once] = there + back
    return found
