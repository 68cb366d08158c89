"""Decode outputs larger than memory: row blocks, written as they come."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ginr_fast.coords import CoordinateGrid

Decoder = Callable[[CoordinateGrid, Tensor], Tensor]
MAX_POINTS = 1 << 18


def stream(
    decoder: Decoder, coords: CoordinateGrid, tokens: Tensor, max_points: int = MAX_POINTS
) -> Iterator[tuple[slice, Tensor]]:
    """Decode a grid in blocks of whole first-axis rows, without gradients.

    Args:
        decoder: ``(coords, tokens) -> values``, e.g. a :class:`~ginr_fast.LocalityAwareDecoder`.
        coords: the grid, of any size.
        tokens: ``(B, R, token_dim)``, or what else the decoder decodes: packed weights ``(B, P)``.
        max_points: coordinates of a block; a single row may exceed it.

    Yields:
        ``(rows, values)``: the slice of the first axis and ``(B, rows, ..., out_dim)``.

    Raises:
        TypeError: ``coords`` is no grid.
        ValueError: ``max_points`` below 1.

    Example:
        >>> import torch, ginr_fast
        >>> decoder = ginr_fast.LocalityAwareDecoder(token_dim=8, hidden_dim=16, feature_dim=16)
        >>> blocks = ginr_fast.stream(decoder, ginr_fast.grid(64, 64), torch.randn(1, 4, 8), 1024)
        >>> [tuple(values.shape) for _, values in blocks]
        [(1, 16, 64, 3), (1, 16, 64, 3), (1, 16, 64, 3), (1, 16, 64, 3)]
    """
    if not isinstance(coords, CoordinateGrid):
        raise TypeError(f"coords: expected a CoordinateGrid, got {type(coords).__name__}")
    if max_points < 1:
        raise ValueError(f"max_points: expected at least 1, got {max_points}")
    rows = max(1, max_points // max(1, prod(coords.shape[1:])))
    for start in range(0, coords.shape[0], rows):
        block = slice(start, min(start + rows, coords.shape[0]))
        part = CoordinateGrid((coords.axes[0][block], *coords.axes[1:]))
        with torch.no_grad():
            values = decoder(part, tokens)
        yield block, values


def decode_to_file(
    decoder: Decoder,
    coords: CoordinateGrid,
    tokens: Tensor,
    path: str | os.PathLike[str],
    max_points: int = MAX_POINTS,
) -> Path:
    """Decode one instance to disk in constant memory.

    Args:
        decoder, coords, max_points: as for :func:`stream`.
        tokens: ``(1, R, token_dim)``, or packed weights ``(1, P)``.
        path: ``.npy`` for float32 values ``(*grid, out_dim)``; ``.png`` for 8-bit pixels of a 2-D
            grid, values clamped to [0, 1], with 1 or 3 channels.

    Returns:
        The path. The file appears there only when it is complete.

    Raises:
        ValueError: more than one instance, an unknown suffix, or values that are no picture.
        ModuleNotFoundError: ``.png`` without the package pypng (``pip install ginr-fast[train]``).

    Example:
        >>> import tempfile, pathlib, torch, ginr_fast
        >>> decoder = ginr_fast.LocalityAwareDecoder(token_dim=8, hidden_dim=16, feature_dim=16)
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "values.npy"
        >>> written = ginr_fast.decode_to_file(
        ...     decoder, ginr_fast.grid(100, 80), torch.randn(1, 4, 8), target)
        >>> import numpy; numpy.load(written).shape
        (100, 80, 3)
    """
    path = Path(path)
    if tokens.ndim not in (2, 3) or tokens.shape[0] != 1:
        raise ValueError(
            f"tokens: expected shape (1, R, token_dim) or (1, P), got {tuple(tokens.shape)}"
        )
    writers = {".npy": _write_npy, ".png": _write_png}
    if path.suffix.lower() not in writers:
        raise ValueError(f"path: expected a .npy or .png file, got {path.name!r}")
    if not isinstance(coords, CoordinateGrid) or coords.numel == 0:
        raise ValueError("coords: expected a CoordinateGrid with at least one point")
    blocks = (values[0].float().cpu() for _, values in stream(decoder, coords, tokens, max_points))
    partial = path.with_name(path.name + ".part")
    try:
        writers[path.suffix.lower()](partial, coords.shape, blocks)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _write_npy(path: Path, shape: tuple[int, ...], blocks: Iterator[Tensor]) -> None:
    first = next(blocks)
    header = {"descr": "<f4", "fortran_order": False, "shape": (*shape, first.shape[-1])}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(first.numpy().astype("<f4").tobytes())
        for block in blocks:
            file.write(block.numpy().astype("<f4").tobytes())


def _write_png(path: Path, shape: tuple[int, ...], blocks: Iterator[Tensor]) -> None:
    import png

    if len(shape) != 2:
        raise ValueError(f"coords: a .png needs a 2-D grid, got {len(shape)} axes")
    first = next(blocks)
    channels = first.shape[-1]
    if channels not in (1, 3):
        raise ValueError(f"decoder: a .png needs 1 or 3 channels, got {channels}")

    def rows() -> Iterator[bytes]:
        block: Tensor | None = first
        while block is not None:
            pixels = (block.clamp(0, 1) * 255 + 0.5).to(torch.uint8).flatten(1).numpy()
            yield from (row.tobytes() for row in pixels)
            block = next(blocks, None)

    writer = png.Writer(width=shape[1], height=shape[0], greyscale=channels == 1, bitdepth=8)
    with open(path, "wb") as file:
        writer.write_packed(file, rows())
