"""What several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:  # recipes need what comes with [train] only
    from ginr_fast.training.recipes.base import Precision

Arguments = TypeVar("Arguments")


def parse(
    kind: type[Arguments], arguments: Sequence[str], command: str, **options: Any
) -> Arguments:
    """Arguments of a command, from the fields and the docstring of a dataclass."""
    import tyro

    return tyro.cli(kind, args=list(arguments), prog=f"ginr-fast {command}", **options)


def check_out(path: Path) -> None:
    """Refuse, before the work, an ``--out`` where no file can be written.

    Raises:
        ValueError: it is a folder, or lies under a file.
    """
    if path.is_dir():
        raise ValueError(f"out: expected a file to write, {path} is a folder")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"out: {above} is no folder to write in")


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def native_precision() -> Precision:
    """bf16-mixed on GPUs and on processors that multiply bfloat16 natively, else 32-true."""
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16-mixed" if torch.cuda.is_available() or native() else "32-true"
