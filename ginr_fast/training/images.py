"""Pictures of reconstructions, as PNG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

_GAP = 4
_SHOWN = 8


def shown(count: int) -> list[int]:
    """A few of ``count`` instances, evenly spread, for a picture."""
    return [int(index) for index in np.linspace(0, count - 1, min(_SHOWN, count))]


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """``(C, H, W)`` in [0, 1] to ``(H, W, C)`` uint8, rounded, on the host."""
    scaled = (image.detach().float().clamp(0, 1) * 255).round()
    return scaled.to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def enlarged(pixels: np.ndarray, height: int, width: int, smooth: bool = False) -> np.ndarray:
    """Resize ``(H, W, 3)`` uint8 by repeating pixels, or by bicubic interpolation."""
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))


def sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] = ()) -> Image.Image:
    """Pictures in rows on white, each row with an optional title above it.

    Args:
        rows: ``(H, W, 3)`` uint8 pictures; sizes may differ.
        titles: one a row, or none.

    Raises:
        ValueError: no picture, or a number of titles that is not the number of rows.
    """
    if not rows or not all(rows):
        raise ValueError("rows: expected at least one picture in each row")
    if titles and len(titles) != len(rows):
        raise ValueError(f"titles: expected {len(rows)}, got {len(titles)}")
    bar = 16 if titles else 0
    heights = [max(picture.shape[0] for picture in row) + bar for row in rows]
    width = max(sum(picture.shape[1] + _GAP for picture in row) for row in rows) + _GAP
    canvas = Image.new("RGB", (width, sum(heights) + _GAP * (len(rows) + 1)), "white")
    draw = ImageDraw.Draw(canvas)
    top = _GAP
    for index, (row, height) in enumerate(zip(rows, heights, strict=True)):
        if titles:
            draw.text((_GAP, top), titles[index], fill="black")
        left = _GAP
        for picture in row:
            canvas.paste(Image.fromarray(picture), (left, top + bar))
            left += picture.shape[1] + _GAP
        top += height + _GAP
    return canvas


def comparison(
    images: Sequence[torch.Tensor], titles: Sequence[str], smallest: int = 96
) -> Image.Image:
    """Batches of images one below the other.

    Args:
        images: ``(N, 3, H, W)`` in [0, 1] each.
        titles: one a batch.
        smallest: images below this many pixels are shown at this size, pixels repeated.
    """
    rows = []
    for batch in images:
        side = max(batch.shape[-1], smallest)
        rows.append([enlarged(to_pixels(image), side, side) for image in batch])
    return sheet(rows, titles)
