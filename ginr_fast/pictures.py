"""Frames to files: PNG, GIF, MP4 and contact sheets, each replaced atomically.

Frames are ``(T, H, W, 3)``: uint8, or floating point in [0, 1], which is clamped and rounded.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ginr_fast.files import replace_atomically

Frames = torch.Tensor | np.ndarray

_PALETTE_PIXELS = 1 << 18


def to_frames(frames: Frames) -> np.ndarray:
    """Frames as a contiguous uint8 array on the host.

    Args:
        frames: ``(T, H, W, 3)``, uint8 or floating point in [0, 1], on any device.

    Returns:
        ``(T, H, W, 3)``, uint8.

    Raises:
        TypeError: neither a tensor nor an array, or of another dtype.
        ValueError: another shape, or no frame.
    """
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.ascontiguousarray(frames))
    if not isinstance(frames, torch.Tensor):
        raise TypeError(f"frames: expected a tensor or an array, got {type(frames).__name__}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.numel():
        raise ValueError(f"frames: expected shape (T, H, W, 3), got {tuple(frames.shape)}")
    if frames.is_floating_point():
        frames = (frames.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames: expected uint8 or floating point, got {frames.dtype}")
    return np.ascontiguousarray(frames.cpu().numpy())


def save_png(image: Image.Image, path: Path | str) -> Path:
    """Write a PNG; its folder is made if need be."""
    path = Path(path)
    replace_atomically(path, lambda temporary: image.save(temporary, format="PNG"))
    return path


def save_frames(frames: Frames, folder: Path | str) -> list[Path]:
    """Write frames as ``000000.png``, ``000001.png``, …; higher numbers of before are removed.

    Args:
        frames: see :func:`to_frames`.
        folder: made if need be.

    Returns:
        The paths, in order.
    """
    folder = Path(folder)
    pixels = to_frames(frames)
    paths = [
        save_png(Image.fromarray(frame), folder / f"{index:06d}.png")
        for index, frame in enumerate(pixels)
    ]
    for path in folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9].png"):
        if int(path.stem) >= len(pixels):
            path.unlink()
    return paths


def save_gif(frames: Frames, path: Path | str, fps: float = 20.0, loop: bool = True) -> Path:
    """Write an animated GIF; all frames share one palette of 256 colours, so nothing flickers.

    Args:
        frames: see :func:`to_frames`.
        path: the file.
        fps: frames a second; a frame's time is rounded to hundredths of a second, two at least.
        loop: start again at the end.

    Returns:
        The path.

    Raises:
        ValueError: fps is below 0.01 or not finite.
    """
    check_fps(fps)
    path, pixels = Path(path), to_frames(frames)
    colors = pixels.reshape(-1, 3)
    sample = colors[:: max(1, len(colors) // _PALETTE_PIXELS)]
    palette = Image.fromarray(sample[None]).quantize(256, Image.Quantize.MEDIANCUT)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in pixels
    ]
    options: dict[str, object] = {"loop": 0} if loop else {}

    def write(temporary: Path) -> None:
        images[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=max(2, round(100 / fps)) * 10,
            **options,
        )

    replace_atomically(path, write)
    return path


def save_mp4(frames: Frames, path: Path | str, fps: float = 30.0, quality: int = 18) -> Path:
    """Write an H.264 video that every player shows (yuv420p).

    Args:
        frames: see :func:`to_frames`. An odd height or width is made even by repeating the last
            row or column, which the format asks for.
        path: the file.
        fps: frames a second.
        quality: the encoder's constant rate factor: 0 loses least, 51 most.

    Returns:
        The path.

    Raises:
        ValueError: fps is below 0.01, quality is out of range, or imageio-ffmpeg is missing.
        OSError: the encoder failed.
    """
    check_fps(fps)
    if not 0 <= quality <= 51:
        raise ValueError(f"quality: expected 0 to 51, got {quality}")
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        raise ValueError(
            "path: MP4 needs imageio-ffmpeg; install it or ginr-fast[train], or write a GIF"
        ) from None
    path, pixels = Path(path), to_frames(frames)
    height, width = pixels.shape[1:3]
    even = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")

    def write(temporary: Path) -> None:
        encoder = imageio_ffmpeg.write_frames(
            str(temporary),
            (even.shape[2], even.shape[1]),
            fps=fps,
            codec="libx264",
            quality=None,
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=["-crf", str(quality), "-f", "mp4", "-movflags", "+faststart"],
        )
        try:
            encoder.send(None)
            for frame in even:
                encoder.send(np.ascontiguousarray(frame))
        finally:
            encoder.close()

    replace_atomically(path, write)
    return path


def contact_sheet(images: Frames, columns: int | None = None, gap: int = 2) -> Image.Image:
    """Pictures of one size side by side on white, row by row.

    Args:
        images: see :func:`to_frames`.
        columns: pictures in a row; about as many as rows if None.
        gap: pixels between pictures.

    Raises:
        ValueError: columns is not positive, or gap is negative.
    """
    pixels = to_frames(images)
    count, height, width = pixels.shape[:3]
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    if columns < 1 or gap < 0:
        raise ValueError(f"columns, gap: expected at least 1 and 0, got {columns} and {gap}")
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = rows * (height + gap) - gap, columns * (width + gap) - gap
    canvas = np.full((*size, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pixels):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = picture
    return Image.fromarray(canvas)


def check_fps(fps: float) -> None:
    """Refuse frames a second that a file cannot hold.

    Args:
        fps: frames a second.

    Raises:
        ValueError: less than one frame in 100 s, or not finite.
    """
    if not 0.01 <= fps < math.inf:  # a GIF counts hundredths of a second in 16 bits
        raise ValueError(f"fps: expected at least 0.01 and finite, got {fps}")
