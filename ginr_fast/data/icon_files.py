"""Icons in CIFAR's format: images with classes to learn from, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ginr_fast.data.cifar import PYTHON_10, SIZE, BrokenCifarError, cifar, write_cifar
from ginr_fast.data.icons import IconsConfig, icons
from ginr_fast.data.images import StoredImage
from ginr_fast.data.making import check_settings
from ginr_fast.files import locked

SETTINGS = "icons.json"
_VERSION = 1


def make_icons(out: Path | str, config: IconsConfig | None = None) -> Path:
    """Draw icons (:mod:`ginr_fast.data.icons`) into files as CIFAR-10's Python version has them.

    Args:
        out: the folder of the data set; gets a folder ``cifar-10-batches-py``.
        config: what is drawn; ``train`` is a multiple of 5, the number of files.

    Returns:
        ``out``, for :func:`ginr_fast.data.cifar.cifar`.

    Raises:
        ValueError: a number that five files cannot share; or the folder holds something else, or
            icons of other settings.

    Example:
        >>> import tempfile
        >>> from ginr_fast.data.cifar import cifar
        >>> from ginr_fast.data.icon_files import make_icons
        >>> from ginr_fast.data.icons import IconsConfig
        >>> folder = tempfile.TemporaryDirectory()
        >>> found = cifar(make_icons(folder.name, IconsConfig(train=10, held_out=2)))
        >>> len(found.train), found.classes[1], found.train[1].pixels.shape
        (10, 'ring', (32, 32, 3))
    """
    out, config = Path(out), config or IconsConfig()
    if config.train % len(PYTHON_10.train):
        raise ValueError(
            f"train: expected a multiple of {len(PYTHON_10.train)}, the number of files, "
            f"got {config.train}"
        )
    check_settings(out, SETTINGS, "icons", {"version": _VERSION, **asdict(config)})
    with locked(out / ".lock"):
        folder = out / PYTHON_10.folder
        if not _is_whole(out):
            drawn = icons(config, SIZE)
            write_cifar(folder, _arrays(drawn.train), _arrays(drawn.held_out), drawn.classes)
    return out


def _is_whole(out: Path) -> bool:
    try:
        cifar(out)
    except BrokenCifarError:
        return False
    return True


def _arrays(images: Sequence[Path | StoredImage]) -> tuple[np.ndarray, np.ndarray]:
    stored = [image for image in images if isinstance(image, StoredImage)]
    labels = np.array([image.label for image in stored], np.int64)
    return np.stack([image.pixels for image in stored]), labels
