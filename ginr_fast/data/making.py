"""Made data: its settings lie beside it, and data of other settings is never mixed in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ginr_fast.files import locked, replace_text


def differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs between two settings, in words; empty if nothing does."""
    names = [*wanted, *(name for name in made if name not in wanted)]
    return "; ".join(
        f"{name} is {made.get(name)!r}, asked for {wanted.get(name)!r}"
        for name in names
        if made.get(name) != wanted.get(name)
    )


def check_settings(folder: Path, name: str, kind: str, settings: Mapping[str, Any]) -> None:
    """Claim a folder for data of these settings, or find that it is of these already.

    Args:
        folder: made if need be.
        name: of the file in it that holds the settings.
        kind: what is made, for messages.
        settings: plain values.

    Raises:
        ValueError: the folder holds something else, or data of other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: {folder} is no folder")
    path = folder / name
    wanted = {"kind": kind, **settings}
    with locked(folder / ".lock"):
        if path.is_file():
            try:
                made = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                made = None
            if not isinstance(made, dict):
                raise ValueError(f"out: {path} does not hold settings; name another folder")
            different = differences(made, wanted)
            if different:
                raise ValueError(
                    f"out: {folder} holds {kind} made otherwise ({different}); name another folder"
                )
            return
        if any(entry.name != ".lock" for entry in folder.iterdir()):
            raise ValueError(f"out: {folder} is not empty and holds no {name}; name another folder")
        replace_text(path, json.dumps(wanted, indent=2) + "\n")
