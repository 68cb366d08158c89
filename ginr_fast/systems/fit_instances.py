"""Test-time optimisation of images, clips, views and fields: what each system's steps see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.decoders.squared_error import KeptFeatures, decoding_errors
from ginr_fast.systems.audio_inr import AudioIpc
from ginr_fast.systems.fitted import Fitted
from ginr_fast.systems.fitting import FittingOptions, OnStep, fit
from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.systems.light_fields import LightField
from ginr_fast.systems.mnif import Mnif
from ginr_fast.systems.samples import PointSamples, RaySamples, Samples, instance_errors
from ginr_fast.systems.view_synthesis import ViewInr

RAYS = 1024
"""Rays a step on views, as published."""
# What fits support views too closely shows other views worse; that of weights is the published one.
VIEW_RATES = {"tokens": 3e-3, "weights": 1e-4, "decoder": 1e-4}
_STREAM = 6  # keeps these draws apart from those of training


def fit_images(
    model: ImageInr,
    images: Tensor,
    options: FittingOptions | None = None,
    on_step: OnStep | None = None,
) -> Fitted:
    """Encode images and fit what represents them to their pixels.

    Args:
        model: of images; it is left as it is.
        images: ``(B, channels, image_size, image_size)``, values in [0, 1].
        options: how; 100 steps on the tokens by default.
        on_step: see :data:`ginr_fast.systems.fitting.OnStep`.

    Returns:
        The fitted images.

    Raises:
        TypeError, ValueError: images that are not as they should be, more points than pixels, or a
            target that the model does not have.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.systems.fit_instances import fit_images
        >>> from ginr_fast.systems.fitting import FittingOptions
        >>> from ginr_fast.systems.la_ginr import LaGinr, LaGinrConfig
        >>> model = LaGinr(LaGinrConfig(image_size=16, patch_size=4, encoder_dim=32,
        ...     encoder_depth=1, encoder_heads=2, encoder_head_dim=16, encoder_mlp_dim=64,
        ...     latents=8, token_dim=16, hidden_dim=32, feature_dim=32, bandwidths=(16.0, 4.0)))
        >>> fitted = fit_images(model, torch.rand(2, 3, 16, 16), FittingOptions(steps=3))
        >>> fitted.images(ginr_fast.grid(16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """
    options = options or FittingOptions()
    tokens = _encoded(model, images)
    where = grid(*images.shape[2:], device=images.device)
    draw = point_draw(where, images.permute(0, 2, 3, 1), options)
    # All pixels in each step, and a decoder that stays as it is.
    same = options.target == "tokens" and options.points in (None, where.numel)
    kept = KeptFeatures() if same else None
    return fit(model, tokens, draw, options, on_step, errors=partial(_image_errors, kept=kept))


def fit_clips(
    model: AudioIpc,
    waves: Tensor,
    options: FittingOptions | None = None,
    on_step: OnStep | None = None,
) -> Fitted:
    """Encode clips of audio and fit what represents them to their samples.

    Args:
        model: of audio; it is left as it is.
        waves: ``(B, length)``, values in [-1, 1].
        options: how; 100 steps on the tokens by default.
        on_step: see :data:`ginr_fast.systems.fitting.OnStep`.

    Returns:
        The fitted clips.

    Raises:
        TypeError, ValueError: clips that are not as they should be, or more points than samples.
    """
    options = options or FittingOptions()
    tokens = _encoded(model, waves)
    draw = point_draw(grid(waves.shape[1], device=waves.device), waves[..., None], options)
    return fit(model, tokens, draw, options, on_step)


def fit_views(
    model: ViewInr,
    images: Tensor,
    origins: Tensor,
    directions: Tensor,
    options: FittingOptions | None = None,
    on_step: OnStep | None = None,
) -> Fitted:
    """Encode scenes and fit what represents them to the rays of their support views.

    As TransINR does (arXiv:2208.02801, section 4.2): random rays of all support views in each step,
    samples along them where they are in evaluation.

    Args:
        model: of views; it is left as it is.
        images: support views, ``(B, V, 3, image_size, image_size)``, values in [0, 1].
        origins: ``(B, V, image_size, image_size, 3)``, of the rays of their pixels.
        directions: the same shape.
        options: how; 100 steps of 1,024 rays on the tokens by default.
        on_step: see :data:`ginr_fast.systems.fitting.OnStep`.

    Returns:
        The fitted scenes.

    Raises:
        TypeError, ValueError: views that are not as they should be, more points than rays, or a
            target that the model does not have.
    """
    options = options or FittingOptions()
    rate = options.learning_rate or VIEW_RATES[options.target]
    options = replace(options, learning_rate=rate)
    with torch.no_grad():
        tokens = model.encode(images, origins, directions)
    colors = images.movedim(2, -1).flatten(1, 3)
    rays = origins.flatten(1, 3), directions.flatten(1, 3), colors
    draw = ray_draw(*rays, options, RAYS)
    return fit(model, tokens, draw, options, on_step, errors=_ray_errors)


def fit_fields(
    model: Mnif,
    latents: Tensor,
    samples: Samples | Callable[[int], Samples],
    options: FittingOptions | None = None,
    on_step: OnStep | None = None,
) -> Fitted:
    """Go on from an mNIF's latents: fit them, their mixed weights, or bases of each instance's own.

    Args:
        model: the mNIF; it is left as it is.
        latents: ``(B, context_dim)``, where the steps start.
        samples: what the instances are known by, of which ``options.points`` are seen a step; or
            what gives it for each step.
        options: how; the targets are called tokens (latents), weights and decoder (bases).
        on_step: see :data:`ginr_fast.systems.fitting.OnStep`.

    Returns:
        The fitted instances.
    """
    options = options or FittingOptions()
    if isinstance(samples, PointSamples):
        draw: Callable[[int], Samples] = point_draw(*samples, options)
    elif isinstance(samples, RaySamples):
        rays = [part.flatten(1, -2) for part in samples]
        draw = ray_draw(rays[0], rays[1], rays[2], options, RAYS)
    else:
        draw = samples
    return fit(model, latents, draw, options, on_step, decoder=("bases",))


def point_draw(
    coords: Tensor | CoordinateGrid, values: Tensor, options: FittingOptions
) -> Callable[[int], PointSamples]:
    """The points of each step: all that are known, or ``options.points`` of them.

    Args:
        coords: a grid, ``(N, d)`` shared by the instances, or ``(B, N, d)``.
        values: at these points, ``(B, ..., C)``.
        options: how many, and the seed; the same places in the same step, whatever the batch.

    Raises:
        ValueError: more points than there are.
    """
    flat = values.flatten(1, -2)
    if options.points in (None, flat.shape[1]):
        return lambda step: PointSamples(coords, values)
    points = coords.tensor().flatten(0, -2) if isinstance(coords, CoordinateGrid) else coords
    choose = _chooser(flat.shape[1], options, flat.shape[1], values.device)

    def draw(step: int) -> PointSamples:
        chosen = choose(step)
        return PointSamples(points[..., chosen, :], flat[:, chosen])

    return draw


def ray_draw(
    origins: Tensor, directions: Tensor, colors: Tensor, options: FittingOptions, default: int
) -> Callable[[int], RaySamples]:
    """The rays of each step, drawn without repetition from all that scenes are known by.

    Args:
        origins: ``(B, N, 3)``.
        directions: ``(B, N, 3)``.
        colors: ``(B, N, 3)``, in [0, 1].
        options: how many, and the seed; the same places in the same step, whatever the batch.
        default: how many if ``options.points`` is None; never more than there are.

    Raises:
        ValueError: more rays than there are.
    """
    choose = _chooser(origins.shape[1], options, default, origins.device)

    def draw(step: int) -> RaySamples:
        chosen = choose(step)
        return RaySamples(origins[:, chosen], directions[:, chosen], colors[:, chosen])

    return draw


def _chooser(
    total: int, options: FittingOptions, default: int, device: torch.device
) -> Callable[[int], Tensor]:
    """Different ones of ``total`` places for each step, a pure function of seed and step."""
    count = options.points or min(default, total)
    if count > total:
        raise ValueError(f"points: expected at most the {total} that there are, got {count}")

    def choose(step: int) -> Tensor:
        rng = np.random.default_rng((options.seed, step, _STREAM, total))
        chosen = rng.choice(total, count, replace=False, shuffle=False)
        return torch.from_numpy(chosen).to(device)

    return choose


def _image_errors(
    model: Any, instances: Tensor, samples: Samples, kept: KeptFeatures | None
) -> Tensor:
    if type(model).decode is not ImageInr.decode:
        return instance_errors(model, instances, samples)
    assert isinstance(samples, PointSamples)
    # Mid-grey is what ImageInr.decode adds.
    return decoding_errors(model.decoder, samples.coords, instances, samples.values - 0.5, kept)


def _ray_errors(model: ViewInr, instances: Tensor, samples: Samples) -> Tensor:
    assert isinstance(samples, RaySamples)
    origins, directions, colors = samples
    if isinstance(model, LightField):
        # Mid-grey is what LightField.color adds.
        coords = model.coords(origins, directions)
        return decoding_errors(model.decoder, coords, instances, colors - 0.5)
    found = model.color(origins, directions, instances)
    return (found - colors).square().flatten(1).mean(1)


@torch.no_grad()
def _encoded(model: ImageInr | AudioIpc, data: Tensor) -> Tensor:
    return model.encode(data)
