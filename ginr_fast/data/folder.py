"""Any folder of images as a data set."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ginr_fast.data.images import BrokenImageError, ImageFiles, check_image

_HELD_OUT_NAMES = ("val", "valid", "validation", "test")
_NAMED_AT_MOST = 10


def folder(
    root: Path | str, held_out: float = 0.1, strict: bool = False, smallest: int = 1
) -> ImageFiles:
    """The images below a folder, checked and split into training and held-out ones.

    Every file that is not hidden is decoded once, so that a broken one shows up now and not after
    hours of training. If the folder has a subfolder ``train`` and one named ``val``, ``valid``,
    ``validation`` or ``test``, these are the split; otherwise the images whose names have the
    smallest hashes are held out, the same ones on every machine and in every run.

    Args:
        root: the folder; searched recursively.
        held_out: fraction of the images to hold out (at least one), in (0, 1).
        strict: refuse broken, too small and non-image files instead of skipping them with a
            warning.
        smallest: the least height and width of an image, in pixels.

    Returns:
        The files, each split sorted by name.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: fewer than two images, or ``strict`` and a file that cannot be used; the
            message names the files.
    """
    root = Path(root)
    check_folder(root, held_out)
    good = readable(
        files_in(root), lambda path: check_image(path, smallest), BrokenImageError, strict
    )
    train, test = held_out_split(root, good, held_out)
    if not train or not test:
        raise ValueError(
            f"data: {root} holds {len(good)} readable image(s), {len(train)} to train on and "
            f"{len(test)} to hold out; expected at least one of each"
        )
    return ImageFiles(root, tuple(train), tuple(test))


def files_in(root: Path) -> list[Path]:
    """All files below a folder but hidden ones, sorted; links are followed."""
    found: list[Path] = []
    seen: set[str] = set()  # folders linked into themselves are entered once
    for where, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real in seen:
            continue
        seen.add(real)
        found += [Path(where) / name for name in names if not name.startswith(".")]
    return sorted(found)


def check_folder(root: Path, held_out: float) -> None:
    """Refuse what is no folder, or no part of one to hold out."""
    if not root.is_dir():
        raise FileNotFoundError(f"data: {root} is no folder")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out: expected a fraction between 0 and 1, got {held_out}")


def readable(
    paths: Sequence[Path],
    read: Callable[[Path], object],
    error: type[Exception],
    strict: bool,
) -> list[Path]:
    """The files that can be read; of the others a warning tells, or with ``strict`` an error.

    Args:
        paths: the files.
        read: reads one.
        error: what it raises, beside OSError, for a file that is broken.
        strict: refuse such files.
    """

    def reason(path: Path) -> str | None:
        try:
            read(path)
        except (error, OSError) as found:
            return str(found)
        return None

    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(reason, paths))
    broken = [why for why in reasons if why is not None]
    if broken:
        named = "; ".join(broken[:_NAMED_AT_MOST])
        if len(broken) > _NAMED_AT_MOST:
            named += f"; and {len(broken) - _NAMED_AT_MOST} more"
        if strict:
            raise ValueError(f"data: {len(broken)} file(s) refused: {named}")
        warnings.warn(f"data: {len(broken)} file(s) skipped: {named}", stacklevel=3)
    return [path for path, why in zip(paths, reasons, strict=True) if why is None]


def held_out_split(root: Path, paths: list[Path], fraction: float) -> tuple[list[Path], list[Path]]:
    """Files to train on and files to hold out: by folders named so, else by a hash of the name."""
    names = {path: path.relative_to(root) for path in paths}
    tops = {name.parts[0] for name in names.values() if len(name.parts) > 1}
    test_names = [name for name in _HELD_OUT_NAMES if name in tops]
    if "train" in tops and test_names:
        train = [path for path in paths if names[path].parts[0] == "train"]
        return train, [path for path in paths if names[path].parts[0] == test_names[0]]
    if len(paths) < 2:
        return paths, []
    by_hash = sorted(
        paths, key=lambda path: hashlib.sha256(names[path].as_posix().encode()).digest()
    )
    count = min(len(paths) - 1, max(1, round(fraction * len(paths))))
    chosen = set(by_hash[:count])
    return [path for path in paths if path not in chosen], sorted(chosen)
