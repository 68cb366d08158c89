"""What instances are known by, points or rays, and how far a model's fields are from it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from ginr_fast.coords import CoordinateGrid
from ginr_fast.ops.checks import check_tensor
from ginr_fast.ops.volume_render.convention import RenderedRays
from ginr_fast.ops.volume_render.random import Seed


class PointSamples(NamedTuple):
    """Values of B instances at points: pixels or voxels.

    Args:
        coords: ``(B, ..., d)``, ``(..., d)`` shared, or a grid.
        values: ``(B, ..., out)``, in the range of the model's values.
    """

    coords: torch.Tensor | CoordinateGrid
    values: torch.Tensor


class RaySamples(NamedTuple):
    """Colours along rays through B scenes.

    Args:
        origins: ``(B, ..., 3)``.
        directions: ``(B, ..., 3)``.
        colors: ``(B, ..., 3)``, in [0, 1].
    """

    origins: torch.Tensor
    directions: torch.Tensor
    colors: torch.Tensor


Samples = PointSamples | RaySamples


class DecodesInstances(Protocol):
    """What :func:`predict` needs of a model; an instance is a row of its third argument."""

    def decode(
        self, coords: torch.Tensor | CoordinateGrid, instances: torch.Tensor, /
    ) -> torch.Tensor: ...

    def render(
        self,
        origins: torch.Tensor,
        directions: torch.Tensor,
        instances: torch.Tensor,
        /,
        *,
        seed: Seed | None = None,
    ) -> RenderedRays: ...


def targets(samples: Samples) -> torch.Tensor:
    """What a model should give for samples, ``(B, ..., out)``."""
    return samples.colors if isinstance(samples, RaySamples) else samples.values


def predict(
    model: DecodesInstances, instances: torch.Tensor, samples: Samples, seed: Seed | None = None
) -> torch.Tensor:
    """What the model makes of the places of ``samples``.

    Args:
        model: the model.
        instances: ``(B, ...)``, what represents them: latents, or packed weights.
        samples: points or rays; what they hold as targets is not looked at.
        seed: of the jitter along rays; None for none.

    Returns:
        Values or colours, in the shape of the targets.
    """
    if isinstance(samples, RaySamples):
        return model.render(samples.origins, samples.directions, instances, seed=seed).color
    return model.decode(samples.coords, instances)


def instance_errors(
    model: DecodesInstances, instances: torch.Tensor, samples: Samples, seed: Seed | None = None
) -> torch.Tensor:
    """The mean squared error of each instance, over its samples and channels.

    Args:
        model: the model.
        instances: ``(B, ...)``, what represents them: latents, or packed weights.
        samples: points or rays with their targets.
        seed: of the jitter along rays; None for none.

    Returns:
        ``(B,)``, differentiable.

    Raises:
        TypeError, ValueError: targets of another shape than the places give.
    """
    found, wanted = predict(model, instances, samples, seed), targets(samples)
    name = "colors" if isinstance(samples, RaySamples) else "values"
    check_tensor(name, wanted, tuple(found.shape))
    return (found - wanted).square().flatten(1).mean(1)
