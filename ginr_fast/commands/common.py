"""What several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

Arguments = TypeVar("Arguments")


def parse(
    kind: type[Arguments], arguments: Sequence[str], command: str, **options: Any
) -> Arguments:
    """Arguments of a command, from the fields and the docstring of a dataclass."""
    import tyro

    return tyro.cli(kind, args=list(arguments), prog=f"ginr-fast {command}", **options)


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
