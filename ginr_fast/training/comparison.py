"""Several models of images trained under one budget on the same images, side by side."""

from __future__ import annotations

import csv
import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ginr_fast.data.images import ImageFiles
from ginr_fast.data.views import HeldOutViews
from ginr_fast.files import replace_atomically
from ginr_fast.training.checkpoints import WEIGHTS_NAME, CheckpointError, load_model
from ginr_fast.training.images import comparison, save_png
from ginr_fast.training.loop import RunOptions, train
from ginr_fast.training.recipes import ImagesRecipe, as_plain, differences
from ginr_fast.training.tasks import DataOptions, open_data, task_for

if TYPE_CHECKING:
    from rich.table import Table

RESULT_NAME = "result.json"
# What a comparison is only fair with: the same images, as often, in the same parts.
_BUDGET = ("views", "steps", "epochs", "batch_size", "coordinates", "subpixel", "seed")


@dataclass(frozen=True)
class Entry:
    """One of the models compared.

    Args:
        name: what tables and pictures call it; its run's folder is named after it.
        recipe: how it is trained.
        published: the PSNR in dB that the paper prints for it, on the paper's data and budget.

    Raises:
        ValueError: a name without a letter or digit.
    """

    name: str
    recipe: ImagesRecipe
    published: float | None = None

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


def _budget(recipe: ImagesRecipe) -> dict[str, Any]:
    plain = as_plain(recipe)
    size = {"image_size": recipe.model.image_size, "channels": recipe.model.channels}
    return {**{name: plain[name] for name in _BUDGET}, **size}


def _finished(entry: Entry, files: ImageFiles, folder: Path) -> Result | None:
    """The result that an earlier call left in ``folder``, if any."""
    path = folder / RESULT_NAME
    if not path.is_file():
        return None
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        changed = differences(content["recipe"], _identity(entry))
        result = Result(
            **content["result"], published=entry.published, weights=folder / WEIGHTS_NAME
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
    )
    kept = {k: v for k, v in asdict(result).items() if k not in ("published", "weights")}
    content = {"result": kept, "recipe": _identity(entry), "data": files.fingerprint()}
    text = json.dumps(content, indent=1) + "\n"
    replace_atomically(folder / RESULT_NAME, lambda temporary: _write(temporary, text))
    return result


def _identity(entry: Entry) -> dict[str, Any]:
    return {"system": entry.recipe.system, **as_plain(entry.recipe)}


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _write(path: Path, text: str) -> None:
    path.write_text(text)


# What is shown of the results


def _row(result: Result) -> dict[str, str]:
    return {
        "model": result.name,
        "PSNR (dB)": f"{result.psnr:.2f}",
        "SSIM": f"{result.ssim:.4f}",
        "params": f"{result.parameters / 1e6:.2f} M",
        "decoder": f"{result.decoder_parameters / 1e6:.2f} M",
        "seconds": "" if result.seconds is None else f"{result.seconds:.1f}",
        "paper (dB)": "" if result.published is None else f"{result.published:.2f}",
    }


def table(results: Sequence[Result], title: str | None = None) -> Table:
    """Results as a table to print, parameters in millions; the highest PSNR is bold.

    Args:
        results: of :func:`compare`.
        title: what stands above it.
    """
    from rich.table import Table

    rows = [_row(result) for result in results]
    best = max(result.psnr for result in results)
    paper = any(result.published is not None for result in results)
    columns = [name for name in rows[0] if paper or name != "paper (dB)"]
    drawn = Table(title=title)
    for name in columns:
        drawn.add_column(name, no_wrap=name == "model")
    for result, row in zip(results, rows, strict=True):
        style = "bold" if result.psnr == best else None
        drawn.add_row(*(row[name] for name in columns), style=style)
    return drawn


def write_csv(results: Sequence[Result], path: Path | str) -> Path:
    """Results as CSV, a row each; numbers are not rounded.

    Args:
        results: of :func:`compare`.
        path: the file; its folder is made if need be.

    Returns:
        The path.
    """
    path = Path(path)

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, list(Result.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(result) for result in results)

    replace_atomically(path, write)
    return path


def draw(results: Sequence[Result], path: Path | str, title: str = "held-out PSNR") -> Path:
    """Bars of the held-out PSNR, as PNG; a dot where the paper has a figure, on its own data.

    Args:
        results: of :func:`compare`.
        path: the file; its folder is made if need be.
        title: what stands above them.

    Returns:
        The path.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = Path(path)
    height = 1.4 + 0.42 * len(results)
    figure, axis = plt.subplots(figsize=(7.5, height), layout="constrained")
    places = range(len(results))
    bars = axis.barh(places, [result.psnr for result in results], color="#4878a8", height=0.62)
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    published = [(place, result.published) for place, result in enumerate(results)]
    known = [(place, value) for place, value in published if value is not None]
    if known:
        dots = axis.plot([v for _, v in known], [p for p, _ in known], "o", color="#d1711f")
        figure.legend(dots, ["paper, on its data"], fontsize=8, loc="outside lower left")
    highest = max(result.psnr for result in results)
    axis.set_xlim(0, 1.14 * max([highest, *(value for _, value in known)]))
    axis.set_yticks(list(places), [result.name for result in results])
    axis.invert_yaxis()
    axis.set_xlabel("PSNR (dB)")
    axis.set_title(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def draw_reconstructions(
    results: Sequence[Result],
    recipe: ImagesRecipe,
    path: Path | str,
    data: DataOptions | None = None,
    count: int = 8,
) -> Path:
    """Held-out views, and what each model makes of them, one row a model, as PNG.

    Args:
        results: of :func:`compare`.
        recipe: any of those compared: it says how views are cut.
        path: the file; its folder is made if need be.
        data: the images; the photographs the recipes ship if None.
        count: views shown, evenly chosen.

    Returns:
        The path.

    Raises:
        ValueError: ``count`` is not positive.
        CheckpointError: weights are damaged.
    """
    if count < 1:
        raise ValueError(f"count: expected a positive integer, got {count}")
    held_out = HeldOutViews(open_data(recipe, data), recipe.views, recipe.model.image_size)
    indices = np.linspace(0, len(held_out) - 1, min(count, len(held_out)), dtype=int)
    targets = torch.stack([held_out[int(index)] for index in indices]).float() / 255
    rows, titles = [targets], ["held-out images"]
    for result in results:
        rows.append(load_model(result.weights).reconstruct(targets))
        titles.append(f"{result.name}: {result.psnr:.2f} dB over all held-out views")
    path = Path(path)
    save_png(comparison(rows, titles), path)
    return path
