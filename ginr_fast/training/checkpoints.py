"""Checkpoints that are never half written, and say so when they are damaged.

A checkpoint is one file ``step-<steps done>.pt`` written beside its final name, flushed to disk
and renamed: at any moment the folder holds whole checkpoints only. It holds the model, the
optimiser, the number of steps done, the recipe and the data's fingerprint. Random states need no
place in it: training seeds every generator from (seed, step), see :mod:`ginr_fast.training.loop`.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ginr_fast.data.views import ViewConfig
from ginr_fast.systems.la_ginr import LaGinr, LaGinrConfig
from ginr_fast.training.recipes import as_plain, differences

_FORMAT = "ginr-fast checkpoint 1"
_SYSTEM = "la-ginr"
_KEPT = 2
WEIGHTS_NAME = "model.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that is damaged, of another kind, or of another run."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run after ``step`` steps.

    Args:
        step: steps done.
        recipe: the recipe as plain values.
        data: the fingerprint of the training and held-out images.
        model: ``state_dict`` of the model.
        optimizer: ``state_dict`` of the optimiser.
    """

    step: int
    recipe: dict[str, Any]
    data: str
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]

    def check_same_run(self, path: Path, recipe: Mapping[str, Any], data: str) -> None:
        """Refuse to go on with another recipe or other images.

        Raises:
            CheckpointError: names the checkpoint and what differs.
        """
        changed = differences(self.recipe, recipe)
        if changed:
            raise CheckpointError(
                f"{path}: was trained with another recipe ({'; '.join(changed)}); "
                f"name another folder to start anew"
            )
        if self.data != data:
            raise CheckpointError(
                f"{path}: was trained on other images; name another folder to start anew"
            )


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in ``path``'s place for good.

    Whoever reads ``path`` meanwhile, or after a crash, finds the old content or the new one.
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


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies in ``folder``."""
    return folder / f"step-{step:09d}.pt"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a checkpoint and remove all but it and the one before; returns its path."""
    path = checkpoint_path(folder, checkpoint.step)
    content = {"format": _FORMAT, "system": _SYSTEM, **vars(checkpoint)}
    replace_atomically(path, lambda temporary: torch.save(content, temporary))
    for old in checkpoints_in(folder)[:-_KEPT]:
        old.unlink(missing_ok=True)
    for abandoned in folder.glob(".step-*.partial"):  # of a run that was killed while writing
        abandoned.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; no code in it is ever run.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: truncated, corrupt, or no checkpoint of this library; the message names
            the file, and the checkpoint before it if there is one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: truncated or corrupt checkpoint ({reason}){_previous(path)}"
        ) from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: no checkpoint of this version of ginr_fast")
    if content.pop("system") != _SYSTEM:
        raise CheckpointError(f"{path}: a checkpoint of another system than {_SYSTEM}")
    content.pop("format")
    return Checkpoint(**content)


def _previous(path: Path) -> str:
    others = [other for other in checkpoints_in(path.parent) if other.name < path.name]
    if not others:
        return ""
    return f"; the one before it is {others[-1]}: delete the damaged file to go on from there"


def export_weights(model: LaGinr, path: Path, views: ViewConfig | None = None) -> None:
    """Write a model's weights and sizes as safetensors, atomically.

    Args:
        model: the model.
        path: the file.
        views: what it was trained on, for :func:`load_run`.
    """
    from safetensors.torch import save_file

    metadata = {
        "system": _SYSTEM,
        "config": json.dumps(as_plain(model.config)),
        "views": json.dumps(as_plain(views or ViewConfig())),
    }
    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    replace_atomically(path, lambda temporary: save_file(weights, temporary, metadata))


def load_model(path: Path | str) -> LaGinr:
    """A trained model, in evaluation mode, on the CPU.

    Args:
        path: a ``.safetensors`` export, a ``.pt`` checkpoint, or the folder of a training run.

    Raises:
        FileNotFoundError: nothing there.
        CheckpointError: damaged, or of another system.
    """
    return load_run(path)[0]


def load_run(path: Path | str) -> tuple[LaGinr, ViewConfig]:
    """A trained model as :func:`load_model` gives it, and the views it was trained on."""
    path = _weights_in(Path(path))
    if path.suffix == ".pt":
        checkpoint = load_checkpoint(path)
        sizes, views = checkpoint.recipe["model"], checkpoint.recipe["views"]
        weights = checkpoint.model
    else:
        sizes, views, weights = _read_export(path)
    try:
        model = LaGinr(LaGinrConfig(**{name: _tupled(value) for name, value in sizes.items()}))
        model.load_state_dict(weights)
        return model.eval(), ViewConfig(**views)
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not fit this version of the model: {reason}") from None


def _weights_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    found = checkpoints_in(path / "checkpoints") or checkpoints_in(path)
    if not found:
        raise FileNotFoundError(f"checkpoint: {path} holds neither {WEIGHTS_NAME} nor checkpoints")
    return found[-1]


def _read_export(
    path: Path,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} does not exist")
    try:
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            weights = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated or corrupt weights ({error})") from None
    if metadata.get("system") != _SYSTEM:
        raise CheckpointError(f"{path}: holds no {_SYSTEM} exported by ginr_fast")
    return json.loads(metadata["config"]), json.loads(metadata["views"]), weights


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
