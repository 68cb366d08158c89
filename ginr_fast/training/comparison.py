"""Several models of images trained under one budget on the same images, side by side."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ginr_fast.data.images import ImageFiles
from ginr_fast.files import replace_text
from ginr_fast.generation.averaging import TWIN
from ginr_fast.training.checkpoints import WEIGHTS_NAME, CheckpointError
from ginr_fast.training.loop import RunOptions, train
from ginr_fast.training.recipes import ImagesRecipe, InrctRecipe, as_plain, differences
from ginr_fast.training.tasks import DataOptions, open_data, task_for

RESULT_NAME = "result.json"
# What a comparison is only fair with: the same images, as often, in the same parts.
_BUDGET = (
    "views",
    "steps",
    "epochs",
    "batch_size",
    "coordinates",
    "subpixel",
    "seed",
    "made_images",
    "samples",
)

SAMPLING_STEPS = 2
"""Of the samples that generative models are compared by, as in INRCT's ablation."""


@dataclass(frozen=True)
class Entry:
    """One of the models compared.

    Args:
        name: what tables and pictures call it; its run's folder is named after it.
        recipe: how it is trained.
        published: the PSNR in dB that the paper prints for it, on the paper's data and budget.
        published_fid: (generative models) likewise the FID.

    Raises:
        ValueError: a name without a letter or digit.
    """

    name: str
    recipe: ImagesRecipe | InrctRecipe
    published: float | None = None
    published_fid: float | None = None

    def __post_init__(self) -> None:
        if not self.folder:
            raise ValueError(f"name: expected letters or digits, got {self.name!r}")

    @property
    def folder(self) -> str:
        """The name with whatever might not suit a file system replaced."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-.")


@dataclass(frozen=True)
class Result:
    """What became of an entry.

    Args:
        name: of the entry.
        psnr: of the held-out views, in dB, of each, then averaged.
        ssim: likewise; NaN for images below 11×11 pixels.
        parameters: learned numbers of encoder and decoder.
        decoder_parameters: those of the decoder.
        steps: optimiser steps.
        seconds: the steps times their median duration in the session that ended the run, so that
            interruptions, evaluations and checkpoints do not count; None if that had no two steps.
        published: of the entry.
        weights: the trained weights.
        distance: (generative models) Fréchet distance of samples of two steps from training images
            in the small features (:class:`ginr_fast.generation.features.SmallFeatures`), which is
            no FID.
        published_fid: of the entry.
    """

    name: str
    psnr: float
    ssim: float
    parameters: int
    decoder_parameters: int
    steps: int
    seconds: float | None
    published: float | None
    weights: Path
    distance: float | None = None
    published_fid: float | None = None


def compare(
    entries: Sequence[Entry],
    data: DataOptions | None = None,
    out: Path | str = Path("runs/compare"),
    run: RunOptions | None = None,
    on_start: Callable[[Entry, bool], None] | None = None,
) -> list[Result]:
    """Train every entry under one budget and score it on the same held-out views.

    Each entry has the folder ``out/<its name>``. One that is finished is not trained again, one
    that was interrupted goes on where it stopped.

    Args:
        entries: what is compared.
        data: the images; the photographs the recipes ship if None.
        out: the folder of all runs.
        run: how runs are carried out, on one device.
        on_start: called with each entry and whether it is finished already.

    Returns:
        One result an entry, in order.

    Raises:
        ValueError: no entry, two of one name, unequal budgets, or several devices.
        CheckpointError: a folder holds a run of another recipe or of other data.
    """
    run = run or RunOptions()
    _check(entries, run)
    files: ImageFiles = open_data(entries[0].recipe, data)
    results = []
    for entry in entries:
        folder = Path(out) / entry.folder
        found = _finished(entry, files, folder)
        if on_start is not None:
            on_start(entry, found is not None)
        results.append(_trained(entry, files, folder, run) if found is None else found)
    return results


def _check(entries: Sequence[Entry], run: RunOptions) -> None:
    if not entries:
        raise ValueError("entries: expected at least one")
    folders = [entry.folder for entry in entries]
    if len(set(folders)) < len(folders):
        raise ValueError(f"entries: expected different names, got {', '.join(folders)}")
    if run.devices != 1:
        raise ValueError(f"devices: expected 1, a comparison trains on one, got {run.devices}")
    first, *others = entries
    for other in others:
        changed = differences(_budget(first.recipe), _budget(other.recipe))
        if changed:
            raise ValueError(
                f"entries: expected one budget, but {first.name} and {other.name} differ: "
                f"{'; '.join(changed)}"
            )


def _budget(recipe: ImagesRecipe | InrctRecipe) -> dict[str, Any]:
    plain = as_plain(recipe)
    size = {"image_size": recipe.model.image_size, "channels": recipe.model.channels}
    return {**{name: plain[name] for name in _BUDGET if name in plain}, **size}


def _finished(entry: Entry, files: ImageFiles, folder: Path) -> Result | None:
    """The result that an earlier call left in ``folder``, if any."""
    path = folder / RESULT_NAME
    if not path.is_file():
        return None
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        changed = differences(content["recipe"], _identity(entry))
        result = Result(
            **content["result"],
            published=entry.published,
            published_fid=entry.published_fid,
            weights=folder / WEIGHTS_NAME,
        )
        same_data = content["data"] == files.fingerprint()
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no result of this version of ginr_fast ({error})") from None
    if changed or not same_data:
        what = f"with another recipe ({'; '.join(changed)})" if changed else "on other data"
        raise CheckpointError(f"{path}: was trained {what}; name another folder to start anew")
    return result if result.weights.is_file() else None


def _trained(entry: Entry, files: ImageFiles, folder: Path, run: RunOptions) -> Result:
    marks: list[float] = []
    trained = train(
        entry.recipe, files, folder, run, lambda step, loss: marks.append(time.perf_counter())
    )
    values, model = trained.scores.values(), trained.model
    durations = [later - sooner for sooner, later in zip(marks, marks[1:], strict=False)]
    steps = entry.recipe.total_steps(task_for(entry.recipe, files).steps_per_epoch())
    result = Result(
        entry.name,
        values["psnr"],
        values["ssim"],
        _parameters(model),
        _parameters(model.decoder),
        steps,
        steps * statistics.median(durations) if durations else None,
        entry.published,
        trained.weights,
        values.get(f"distance_{SAMPLING_STEPS}"),
        entry.published_fid,
    )
    of_entry = ("published", "published_fid", "weights")
    kept = {k: v for k, v in asdict(result).items() if k not in of_entry}
    content = {"result": kept, "recipe": _identity(entry), "data": files.fingerprint()}
    replace_text(folder / RESULT_NAME, json.dumps(content, indent=1) + "\n")
    return result


def _identity(entry: Entry) -> dict[str, Any]:
    return {"system": entry.recipe.system, **as_plain(entry.recipe)}


def _parameters(module: torch.nn.Module) -> int:
    # A model that is the average of a twin in training is not counted twice.
    names = ((name.split(".")[0], parameter) for name, parameter in module.named_parameters())
    return sum(parameter.numel() for first, parameter in names if first != TWIN)
