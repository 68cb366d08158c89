"""Files that are never half written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in ``path``'s place for good.

    Whoever reads ``path`` meanwhile, or after a crash, finds the old content or the new one.

    Args:
        path: the file; its folder is made if need be.
        write: is given the name of the file beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def replace_text(path: Path, text: str) -> None:
    """Put a text, as UTF-8, in the place of a file by :func:`replace_atomically`.

    Args:
        path: the file; its folder is made if need be.
        text: what it shall hold.
    """
    content = text.encode()
    replace_atomically(path, lambda temporary: temporary.write_bytes(content))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file that is made for it; other processes that want it wait.

    The lock of a process that is killed is free again.

    Args:
        path: the file; its folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
