"""Checkpoints that are never half written, and say so when they are damaged.

A checkpoint is one file ``step-<steps done>.pt`` written beside its final name, flushed to disk
and renamed: at any moment the folder holds whole checkpoints only. It holds the model, the
optimiser, the number of steps done, the recipe and the data's fingerprint. Random states need no
place in it: training seeds every generator from (seed, step), see :mod:`ginr_fast.training.loop`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ginr_fast.data.views import ViewConfig
from ginr_fast.files import replace_atomically
from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.training.recipes import (
    ImagesRecipe,
    IpcRecipe,
    LaGinrRecipe,
    TransInrRecipe,
    as_plain,
    differences,
    from_plain,
)

_FORMAT = "ginr-fast checkpoint 1"
_KEPT = 2
WEIGHTS_NAME = "model.safetensors"
_IMAGES: Mapping[str, type[ImagesRecipe]] = {
    kind.system: kind for kind in (LaGinrRecipe, TransInrRecipe, IpcRecipe)
}


class CheckpointError(ValueError):
    """A checkpoint that is damaged, of another kind, or of another run."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run after ``step`` steps.

    Args:
        step: steps done.
        recipe: the recipe as plain values.
        data: the fingerprint of the training and held-out data.
        model: ``state_dict`` of the model.
        optimizer: ``state_dict`` of the optimiser.
        system: what was trained.
    """

    step: int
    recipe: dict[str, Any]
    data: str
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    system: str = LaGinrRecipe.system

    def check_same_run(self, path: Path, system: str, recipe: Mapping[str, Any], data: str) -> None:
        """Refuse to go on with another system or recipe, or with other data.

        Raises:
            CheckpointError: names the checkpoint and what differs.
        """
        if self.system != system:
            raise CheckpointError(
                f"{path}: is of {self.system}, not {system}; name another folder to start anew"
            )
        changed = differences(self.recipe, recipe)
        if changed:
            raise CheckpointError(
                f"{path}: was trained with another recipe ({'; '.join(changed)}); "
                f"name another folder to start anew"
            )
        if self.data != data:
            raise CheckpointError(
                f"{path}: was trained on other data; name another folder to start anew"
            )


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies in ``folder``."""
    return folder / f"step-{step:09d}.pt"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a checkpoint and remove all but it and the one before; returns its path."""
    path = checkpoint_path(folder, checkpoint.step)
    content = {"format": _FORMAT, **vars(checkpoint)}
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
    content.pop("format")
    return Checkpoint(**content)


def _previous(path: Path) -> str:
    others = [other for other in checkpoints_in(path.parent) if other.name < path.name]
    if not others:
        return ""
    return f"; the one before it is {others[-1]}: delete the damaged file to go on from there"


def write_export(
    path: Path, system: str, metadata: Mapping[str, Any], state: Mapping[str, torch.Tensor]
) -> None:
    """Write weights as safetensors, with what is needed to load them again, atomically.

    Args:
        path: the file.
        system: what was trained.
        metadata: plain values by name.
        state: the weights.
    """
    from safetensors.torch import save_file

    notes = {"system": system, **{name: json.dumps(value) for name, value in metadata.items()}}
    weights = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    replace_atomically(path, lambda temporary: save_file(weights, temporary, notes))


def export_weights(model: LaGinr, path: Path, views: ViewConfig | None = None) -> None:
    """Write an LA-GINR's weights and sizes as safetensors, atomically.

    Args:
        model: the model.
        path: the file.
        views: what it was trained on, for :func:`load_run`.
    """
    recipe = {"model": as_plain(model.config), "views": as_plain(views or ViewConfig())}
    write_export(path, LaGinrRecipe.system, {"recipe": recipe}, model.state_dict())


@dataclass(frozen=True)
class Saved:
    """Trained weights as a file holds them.

    Args:
        path: the file.
        system: what was trained.
        recipe: the recipe as plain values, or as much of it as the file has.
        weights: ``state_dict`` of the model.
    """

    path: Path
    system: str
    recipe: dict[str, Any]
    weights: dict[str, torch.Tensor]

    def restore(self, module: torch.nn.Module) -> None:
        """Put the weights into a model.

        Raises:
            CheckpointError: they do not fit.
        """
        try:
            module.load_state_dict(self.weights)
        except RuntimeError as error:
            raise self.misfit(error) from None

    def misfit(self, error: Exception) -> CheckpointError:
        """What to raise where names, values or shapes are not those of this version."""
        reason = " ".join(str(error).split())
        return CheckpointError(f"{self.path}: does not fit this version of the model: {reason}")


def load_saved(path: Path | str) -> Saved:
    """What a file or a run holds, of whatever system.

    Args:
        path: a ``.safetensors`` export, a ``.pt`` checkpoint, or the folder of a training run.

    Raises:
        FileNotFoundError: nothing there.
        CheckpointError: damaged.
    """
    path = _weights_in(Path(path))
    if path.suffix == ".pt":
        checkpoint = load_checkpoint(path)
        return Saved(path, checkpoint.system, checkpoint.recipe, checkpoint.model)
    return _read_export(path)


def load_model(path: Path | str) -> ImageInr:
    """A trained LA-GINR, TransINR or IPC of images, in evaluation mode, on the CPU.

    Args:
        path: a ``.safetensors`` export, a ``.pt`` checkpoint, or the folder of a training run.

    Raises:
        FileNotFoundError: nothing there.
        CheckpointError: damaged, or of another system.
    """
    return load_run(path)[0]


def load_run(path: Path | str) -> tuple[ImageInr, ViewConfig]:
    """A trained model as :func:`load_model` gives it, and the views it was trained on."""
    saved = load_saved(path)
    if saved.system not in _IMAGES:
        names = ", ".join(_IMAGES)
        raise CheckpointError(f"{saved.path}: holds {saved.system}; expected one of {names}")
    try:
        recipe = from_plain(_IMAGES[saved.system], {"steps": 1, **saved.recipe})
    except (TypeError, ValueError) as error:
        raise saved.misfit(error) from None
    model = recipe.build()
    saved.restore(model)
    return model.eval(), recipe.views


def _weights_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    found = checkpoints_in(path / "checkpoints") or checkpoints_in(path)
    if not found:
        raise FileNotFoundError(f"checkpoint: {path} holds neither {WEIGHTS_NAME} nor checkpoints")
    return found[-1]


def _read_export(path: Path) -> Saved:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} does not exist")
    try:
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            weights = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated or corrupt weights ({error})") from None
    system = metadata.get("system")
    if system is None:
        raise CheckpointError(f"{path}: holds no model exported by ginr_fast")
    if system == LaGinrRecipe.system and "recipe" not in metadata:  # as version 0.1 wrote them
        parts = {"model": "config", "views": "views"}
        recipe = {ours: json.loads(metadata[name]) for ours, name in parts.items()}
    else:
        recipe = json.loads(metadata["recipe"])
    return Saved(path, system, recipe, weights)
