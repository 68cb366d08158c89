"""Files of published code bases, read without running code in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# IPC's code leaves its whole configuration in the state of its optimiser, as objects of its own.
_CONFIGURATION = re.compile(
    r"(omegaconf|models|utils|typing)\..+|collections\.defaultdict"
    r"|builtins\.(dict|list|tuple|str|int|float|bool)"
)
_PICKLE = b"\x80"  # how one begins, alone or in what torch.save wrote before it wrote archives


def content_of(path: Path) -> dict[str, Any]:
    """What a file holds by name.

    Args:
        path: what ``torch.save`` wrote, or ``.safetensors``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or it holds more than tensors and plain values, or no mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} does not exist")
    try:
        content = _safetensors(path) if path.suffix == ".safetensors" else _saved(path)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: holds more than tensors, and code in it would run if it were read; in the "
            "code that wrote it: torch.save(model.state_dict(), path)"
        ) from None
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: truncated or corrupt ({reason})") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a state dict, got {type(content).__name__}")
    return {name: value for name, value in content.items() if isinstance(name, str)}


def _safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _saved(path: Path) -> Any:
    inert: list[Any] = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        inert = _inert_classes(path)
    else:
        with path.open("rb") as file:
            if file.read(1) != _PICKLE:
                raise ValueError("neither an archive nor a pickle")
    with torch.serialization.safe_globals(inert):
        return torch.load(path, map_location="cpu", weights_only=True)


class _Inert:
    """What is read in the place of an object that is of no use here: it takes all and does
    nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __class_getitem__(cls, _: object) -> type[_Inert]:
        return cls


def _inert_classes(path: Path) -> list[Any]:
    """Classes that pass for those of a configuration in a file, by their modules and names."""
    named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    parts = [name.rpartition(".") for name in named if _CONFIGURATION.fullmatch(name)]
    return [type(own, (_Inert,), {"__module__": module}) for module, _, own in parts]
