"""What several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ginr_fast.data.folder import folder
from ginr_fast.data.images import ImageFiles
from ginr_fast.data.photos import photos
from ginr_fast.data.views import ViewConfig

Arguments = TypeVar("Arguments")


def parse(
    kind: type[Arguments], arguments: Sequence[str], command: str, **options: Any
) -> Arguments:
    """Arguments of a command, from the fields and the docstring of a dataclass."""
    import tyro

    return tyro.cli(kind, args=list(arguments), prog=f"ginr-fast {command}", **options)


def images(
    data: Path | None, views: ViewConfig, size: int, strict: bool, held_out: float
) -> ImageFiles:
    """The shipped photographs, or the images of a folder that are large enough.

    Raises:
        FileNotFoundError, ValueError: see :func:`ginr_fast.data.folder`.
    """
    if data is None:
        return photos()
    return folder(data, held_out, strict, smallest=size if views.kind == "crops" else 1)


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
