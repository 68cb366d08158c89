"""What a comparison found, for the eye: a table, CSV, bars, and a sheet of pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ginr_fast.coords import grid
from ginr_fast.data.views import HeldOutViews
from ginr_fast.files import replace_atomically
from ginr_fast.generation.sampling import SamplingOptions
from ginr_fast.pictures import save_png
from ginr_fast.training.checkpoints import load_model
from ginr_fast.training.comparison import SAMPLING_STEPS, Result
from ginr_fast.training.generative import load_generative
from ginr_fast.training.images import comparison
from ginr_fast.training.recipes import ImagesRecipe, InrctRecipe
from ginr_fast.training.tasks import DataOptions, open_data

if TYPE_CHECKING:
    from rich.table import Table


def _row(result: Result) -> dict[str, str]:
    return {
        "model": result.name,
        "PSNR (dB)": f"{result.psnr:.2f}",
        "SSIM": f"{result.ssim:.4f}",
        "distance": "" if result.distance is None else f"{result.distance:.3f}",
        "params": f"{result.parameters / 1e6:.2f} M",
        "decoder": f"{result.decoder_parameters / 1e6:.2f} M",
        "seconds": "" if result.seconds is None else f"{result.seconds:.1f}",
        "paper (dB)": "" if result.published is None else f"{result.published:.2f}",
        "paper (FID)": "" if result.published_fid is None else f"{result.published_fid:g}",
    }


def table(results: Sequence[Result], title: str | None = None) -> Table:
    """Results as a table to print, parameters in millions.

    The highest PSNR is bold, of generative models the shortest distance.

    Args:
        results: of :func:`ginr_fast.training.comparison.compare`.
        title: what stands above it.
    """
    from rich.table import Table

    rows = [_row(result) for result in results]
    best = min(results, key=lambda found: (found.distance or 0.0, -found.psnr))
    generative = any(result.distance is not None for result in results)
    # Variants of a generative model are one network; what differs has the room.
    left_out = {"SSIM", "params", "decoder"} if generative else {"distance"}
    left_out |= {name for name in rows[0] if "paper" in name and not any(r[name] for r in rows)}
    columns = [name for name in rows[0] if name not in left_out]
    drawn = Table(title=title)
    for name in columns:
        drawn.add_column(name, no_wrap=name == "model")
    for result, row in zip(results, rows, strict=True):
        style = "bold" if result is best else None
        drawn.add_row(*(row[name] for name in columns), style=style)
    return drawn


def write_csv(results: Sequence[Result], path: Path | str) -> Path:
    """Results as CSV, a row each; numbers are not rounded.

    Args:
        results: of :func:`ginr_fast.training.comparison.compare`.
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

    Of generative models the distance of their samples, too.

    Args:
        results: of :func:`ginr_fast.training.comparison.compare`.
        path: the file; its folder is made if need be.
        title: what stands above them.

    Returns:
        The path.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = Path(path)
    distances = [result.distance for result in results if result.distance is not None]
    panels = 1 + bool(distances)
    figure, axes = plt.subplots(
        1,
        panels,
        figsize=(7.5 + 3.5 * bool(distances), 1.4 + 0.42 * len(results)),
        layout="constrained",
        squeeze=False,
    )
    axis, *others = axes[0]
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
    for other in others:
        lengths = [result.distance or 0.0 for result in results]
        bars = other.barh(places, lengths, color="#6a9f58", height=0.62)
        other.bar_label(bars, fmt="%.3g", padding=3, fontsize=9)
        other.set_xlim(0, 1.2 * max(distances))
        other.set_yticks([])
        other.invert_yaxis()
        other.set_xlabel(f"distance of {SAMPLING_STEPS}-step samples (small features)")
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def draw_reconstructions(
    results: Sequence[Result],
    recipe: ImagesRecipe | InrctRecipe,
    path: Path | str,
    data: DataOptions | None = None,
    count: int = 8,
) -> Path:
    """Held-out views, and what each model makes of them, one row a model, as PNG.

    A generative model has a row of samples of two steps, too.

    Args:
        results: of :func:`ginr_fast.training.comparison.compare`.
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
        model: Any = _loaded(result.weights, recipe)
        rows.append(model.reconstruct(targets))
        titles.append(f"{result.name}: {result.psnr:.2f} dB over all held-out views")
        if isinstance(recipe, InrctRecipe):
            drawn = model.draw(range(len(targets)), SamplingOptions(steps=SAMPLING_STEPS))
            rows.append(model.render(drawn, grid(*targets.shape[-2:])))
            titles.append(f"{result.name}: samples of {SAMPLING_STEPS} steps")
    path = Path(path)
    save_png(comparison(rows, titles), path)
    return path


def _loaded(weights: Path, recipe: ImagesRecipe | InrctRecipe) -> Any:
    generative = isinstance(recipe, InrctRecipe)
    return load_generative(weights).model if generative else load_model(weights)
