"""Image files: reading one, naming what is wrong with it, reducing it without aliasing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Image.init()
# What this Pillow decodes by itself; formats that start other programs (EPS) stay out.
FORMATS = tuple(
    name
    for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
    if name in Image.OPEN
)


class BrokenImageError(ValueError):
    """A file that is no image, is truncated, or holds pixels that cannot be shown in 8 bits."""


@dataclass(frozen=True, order=True)
class StoredImage:
    """An image that is no file of its own, such as one of an archive of many.

    Args:
        name: no other of its data set has it; by it images are ordered and told apart.
        pixels: ``(H, W, 3)``, uint8.
        label: the number of its class, if it has one.
    """

    name: str
    pixels: np.ndarray = field(compare=False, repr=False)
    label: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ImageFiles:
    """The images of one data set, split.

    Args:
        root: the folder or file that holds them.
        train: images to learn from.
        held_out: images never learned from.
        classes: the names of the classes, if images have labels; none otherwise.
    """

    root: Path
    train: tuple[Path | StoredImage, ...]
    held_out: tuple[Path | StoredImage, ...]
    classes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """A digest of names, split, and sizes in bytes or stored pixels, wherever the root is."""
        digest = hashlib.sha256()
        for split, images in (("train", self.train), ("held_out", self.held_out)):
            for image in images:
                if isinstance(image, StoredImage):
                    digest.update(f"{split}\0{image.name}\0{image.label}\n".encode())
                    digest.update(image.pixels.tobytes())
                else:
                    name = image.relative_to(self.root).as_posix()
                    digest.update(f"{split}\0{name}\0{image.stat().st_size}\n".encode())
        return digest.hexdigest()


def load_image(path: Path | StoredImage, at_least: int | None = None) -> np.ndarray:
    """Read an image as 8-bit RGB, upright, transparency over white.

    Args:
        path: a file in one of :data:`FORMATS`, or an image that is in memory already.
        at_least: if the caller will reduce the shorter side to this many pixels anyway, a JPEG may
            be decoded at a fraction of its size, never below this.

    Returns:
        ``(H, W, 3)``, uint8.

    Raises:
        BrokenImageError: names the file and what is wrong with it.
        FileNotFoundError: no such file.
    """
    if isinstance(path, StoredImage):
        return path.pixels
    try:
        with Image.open(path, formats=FORMATS) as image:
            if at_least is not None:
                shorter = min(image.size)
                scale = max(1.0, shorter / max(1, at_least))
                image.draft("RGB", (int(image.width / scale), int(image.height / scale)))
            image.load()
            return np.array(_rgb(ImageOps.exif_transpose(image), path))
    except (FileNotFoundError, BrokenImageError):
        raise
    except UnidentifiedImageError:
        raise BrokenImageError(f"{path}: not an image in a format known here") from None
    except Exception as error:  # Pillow's decoders raise whatever the damaged bytes lead them to
        raise BrokenImageError(f"{path}: cannot be decoded ({error})") from None


def check_image(path: Path, smallest: int = 1) -> None:
    """Decode an image and drop it, to find out whether it can be used.

    Args:
        path: the file.
        smallest: the least height and width, in pixels.

    Raises:
        BrokenImageError: names the file and what is wrong with it.
        FileNotFoundError: no such file.
    """
    load_image(path, at_least=1)  # a JPEG decoded at its smallest scale still reads every byte
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
    if min(width, height) < smallest:
        raise BrokenImageError(
            f"{path}: expected at least {smallest}x{smallest} pixels, got {width}x{height}"
        )


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would saturate
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BrokenImageError(f"{path}: expected 8 or 16 bits a channel, got mode I")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BrokenImageError(f"{path}: expected 8 or 16 bits a channel, got floating point")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize ``(H, W, 3)`` uint8 with an anti-aliasing Lanczos filter."""
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def resize_shorter_side(image: np.ndarray, size: int) -> np.ndarray:
    """Resize so that the shorter side has ``size`` pixels, keeping the aspect."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    return resize(image, max(size, round(height * scale)), max(size, round(width * scale)))


def pyramid(image: np.ndarray, size: int, max_scale: float) -> list[np.ndarray]:
    """``image`` reduced by 1, √2, 2, … up to ``max_scale``, as long as ``size`` pixels remain.

    Args:
        image: ``(H, W, 3)``, uint8, no side below ``size``.
        size: the least height and width of a level, in pixels.
        max_scale: the strongest reduction.

    Returns:
        The levels, the largest first; at least the image itself.
    """
    height, width = image.shape[:2]
    levels = [image]
    scale = 2**0.5
    while scale <= max_scale * 1.001:
        level_height, level_width = round(height / scale), round(width / scale)
        if min(level_height, level_width) < size:
            break
        levels.append(resize(image, level_height, level_width))
        scale *= 2**0.5
    return levels
