"""Images from what decodes coordinates: a grid in blocks of rows, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ginr_fast.coords import CoordinateGrid
from ginr_fast.ops.checks import check_tensor

# Values decoded in one go: bounds float memory, whatever the output's size.
_POINTS_AT_ONCE = 1 << 20


@torch.no_grad()
def render_image(
    decode: Callable[[torch.Tensor | CoordinateGrid, torch.Tensor], torch.Tensor],
    instances: torch.Tensor,
    where: CoordinateGrid,
    channels: int,
    jitter: float = 0.0,
    seed: int = 0,
) -> torch.Tensor:
    """Decode a grid into images.

    Args:
        decode: from coordinates, a grid or ``(N, 2)``, and instances to values, about [0, 1],
            channels last.
        instances: what it decodes, ``(B, ...)``.
        where: a grid of ``(H, W)`` points.
        channels: of a value.
        jitter: each point is moved at random within this part of its pixel, 0 to 1.
        seed: of these moves.

    Returns:
        ``(B, channels, H, W)``, clamped to [0, 1].

    Raises:
        ValueError: a grid of another number of axes, or a jitter outside [0, 1].
    """
    if len(where.axes) != 2:
        raise ValueError(f"where: expected a grid of (H, W) points, got {where.shape}")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter: expected from 0 to 1, got {jitter}")
    rows, columns = where.axes
    height, width, batch = rows.shape[0], columns.shape[0], instances.shape[0]
    output = instances.new_empty(batch, channels, height, width)
    block = max(1, _POINTS_AT_ONCE // max(1, batch * width))
    rng = np.random.default_rng(seed)  # one stream, however many rows a block has
    cell = rows.new_tensor([2 / max(1, height), 2 / max(1, width)])
    for first in range(0, height, block):
        part = CoordinateGrid((rows[first : first + block], columns))
        if jitter:
            moves = jitter_within(part.numel, jitter, rng).to(rows) * cell
            values = decode(part.tensor().flatten(0, 1) + moves, instances)
        else:
            values = decode(part, instances)
        images = values.reshape(batch, *part.shape, channels).permute(0, 3, 1, 2)
        output[:, :, first : first + block] = images.clamp(0, 1)
    return output


def jitter_within(
    count: int, jitter: float, seed: int | Sequence[int] | np.random.Generator
) -> torch.Tensor:
    """Moves within a pixel, in pixels.

    Args:
        count: points.
        jitter: the part of a pixel that is used, centred: moves are in ±jitter/2.
        seed: of the moves, or what they are drawn from next.

    Returns:
        ``(count, 2)`` float32, on the CPU.
    """
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.random((count, 2), np.float32) - 0.5) * np.float32(jitter))


def check_images(images: torch.Tensor, channels: int, size: int) -> None:
    """Refuse what is no batch of square images with values in [0, 1].

    Raises:
        TypeError: no floating-point tensor. ValueError: not ``(B, channels, size, size)``.
    """
    check_tensor("images", images, ("B", channels, size, size))
    if not images.is_floating_point():
        raise TypeError(f"images: expected floating point in [0, 1], got {images.dtype}")


def output_size(size: int, scale: float) -> int:
    """``round(size · scale)``, checked.

    Raises:
        ValueError: ``scale`` is no positive number, or leaves no pixel of ``size``.
    """
    if not isinstance(scale, (int, float)) or not 0 < scale < float("inf"):
        raise ValueError(f"scale: expected a positive number, got {scale!r}")
    if round(size * scale) < 1:
        raise ValueError(f"scale: {scale} leaves no pixel of {size}")
    return round(size * scale)
