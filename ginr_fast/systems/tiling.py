"""Images of any size through a model that encodes squares of one size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ginr_fast.coords import CoordinateGrid
from ginr_fast.ops.checks import check_tensor
from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.systems.image_rendering import output_size


@dataclass(frozen=True)
class _Span:
    """One tile along one axis: where it starts in the input and in the output, the coordinates of
    its output pixels in the tile's own [-1, 1], and their share in the blend."""

    source: int
    first: int
    coords: torch.Tensor
    weights: torch.Tensor


def _spans(length: int, tile: int, overlap: int, wanted: int, scale: float) -> list[_Span]:
    """Tiles that cover ``length`` input pixels, at least ``overlap`` of them shared by neighbours,
    and the first ``wanted`` output pixels; at each the weights of the tiles over it sum to 1."""
    count = 1 + math.ceil((length - tile) / (tile - overlap))
    total = torch.zeros(wanted, dtype=torch.float64)
    spans = []
    for index in range(count):
        source = round(index * (length - tile) / max(count - 1, 1))
        first = max(0, math.ceil(source * scale - 0.5))
        last = min(wanted, math.ceil((source + tile) * scale - 0.5))
        # Output pixel o lies at (o + ½)/scale in the input.
        place = (torch.arange(first, last, dtype=torch.float64) + 0.5) / scale - source
        edge = torch.minimum(place, tile - place)
        weights = (edge / max(overlap, 1)).clamp(1e-3, 1)
        total[first:last] += weights
        spans.append(_Span(source, first, place / tile * 2 - 1, weights))
    return [
        _Span(
            span.source,
            span.first,
            span.coords.float(),
            (span.weights / total[span.first : span.first + len(span.weights)]).float(),
        )
        for span in spans
    ]


@torch.no_grad()
def reconstruct_photograph(
    model: ImageInr,
    image: torch.Tensor,
    scale: float = 1.0,
    overlap: int | None = None,
    batch_size: int = 32,
) -> torch.Tensor:
    """Encode and decode an image of any size, tile by tile.

    The image is covered with overlapping squares of the model's size. Each is encoded by itself and
    decoded at ``scale`` times its resolution; where tiles overlap they are blended linearly, so
    that no seam shows. An image smaller than a tile is continued at its border.

    Args:
        model: trained; the work is done on its device.
        image: ``(channels, H, W)``, values in [0, 1].
        scale: output pixels per input pixel, any positive number.
        overlap: least overlap of neighbouring tiles, in input pixels; an eighth of a tile if None.
        batch_size: tiles encoded, and for whole-numbered scales decoded, at a time.

    Returns:
        ``(channels, round(H·scale), round(W·scale))`` in [0, 1], float32, on the CPU.

    Raises:
        TypeError: no floating-point tensor.
        ValueError: another shape, an empty image, a bad scale or overlap.
    """
    tile, channels = model.config.image_size, model.config.channels
    check_tensor("image", image, (channels, "H", "W"))
    if not image.is_floating_point():
        raise TypeError(f"image: expected floating point in [0, 1], got {image.dtype}")
    height, width = image.shape[1:]
    if not height or not width:
        raise ValueError(f"image: expected at least one pixel, got {height}x{width}")
    if overlap is None:
        overlap = tile // 8
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap: expected 0 to {tile - 1} pixels, got {overlap}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a positive integer, got {batch_size}")

    tall, wide = output_size(height, scale), output_size(width, scale)
    output = torch.zeros(channels, tall, wide)
    missing = (0, max(0, tile - width), 0, max(0, tile - height))
    image = F.pad(image[None].float(), missing, mode="replicate")[0]
    # Sizes are whole numbers: the output is spread evenly over the image, exactly.
    rows = _spans(image.shape[1], tile, overlap, tall, tall / height)
    columns = _spans(image.shape[2], tile, overlap, wide, wide / width)
    device = next(model.parameters()).device
    places = [(row, column) for row in rows for column in columns]
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        squares = torch.stack(
            [
                image[:, row.source : row.source + tile, column.source : column.source + tile]
                for row, column in batch
            ]
        )
        tokens = model.encode(squares.to(device))
        if float(scale).is_integer():  # every tile has its output pixels at the same places
            where = CoordinateGrid((batch[0][0].coords, batch[0][1].coords)).to(device)
            decoded = list(model.render(tokens, where).cpu())
        else:
            decoded = [
                model.render(
                    tokens[index : index + 1],
                    CoordinateGrid((row.coords, column.coords)).to(device),
                )[0].cpu()
                for index, (row, column) in enumerate(batch)
            ]
        for (row, column), values in zip(batch, decoded, strict=True):
            top, left = row.first, column.first
            share = row.weights[:, None] * column.weights
            output[:, top : top + values.shape[1], left : left + values.shape[2]] += values * share
    return output.clamp(0, 1)
