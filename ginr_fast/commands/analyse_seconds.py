"""``ginr-fast analyse CHECKPOINT seconds``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ginr_fast.analysis.fitting_curves import CurveOptions
from ginr_fast.commands import common
from ginr_fast.training.tasks.base import DataOptions


@dataclass(frozen=True)
class SecondsArguments:
    """Quality against seconds (LA-GINR, Figure 7): a trained model of images, test-time
    optimisation from what it gives, and an FFNet fitted to each image from nothing.

    Args:
        checkpoint: the folder of a run, a .pt checkpoint, or exported .safetensors.
        what: this analysis.
        image: files of images to fit, each a square from its middle; held-out images of the data if
            not given.
        count: so many held-out images, evenly chosen.
        source: the data.
        curves: how long and what.
        out: the folder to write seconds.csv and seconds.png to; analysis in the run's folder if not
            given.
    """

    checkpoint: Positional[Path]
    what: Positional[Literal["seconds"]]
    image: tuple[Path, ...] = ()
    count: int = 4
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)
    curves: Annotated[CurveOptions, arg(name="")] = field(default_factory=CurveOptions)
    out: Path | None = None


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(SecondsArguments, arguments, "analyse")
    import torch
    from rich.console import Console
    from rich.table import Table

    from ginr_fast.analysis.fitting_curves import draw_curves, fitting_curves, write_curves
    from ginr_fast.analysis.instances import run_folder
    from ginr_fast.analysis.locality import evenly_chosen
    from ginr_fast.training.checkpoints import load_saved
    from ginr_fast.training.tasks import restored
    from ginr_fast.training.tasks.ffnet import photograph
    from ginr_fast.training.tasks.images import ImagesTask

    saved, device = load_saved(given.checkpoint), common.best_device()
    task = restored(saved, given.source, device)
    if not isinstance(task, ImagesTask):
        raise ValueError(
            f"checkpoint: expected one of images made from latent tokens, got {saved.system}"
        )
    if given.image:
        views = [photograph(path, task.model.config.image_size).pixels for path in given.image]
    else:
        chosen = evenly_chosen(len(task.held_out), given.count)
        views = [task.held_out[index] for index in chosen]

    def progress(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    images = torch.stack(views).to(device).float() / 255
    curves = fitting_curves(task.model, images, given.curves, progress)
    out = given.out or run_folder(given.checkpoint) / "analysis"
    write_curves(curves, out / "seconds.csv")
    draw_curves(curves, out / "seconds.png")
    shown = [0, len(curves[0].seconds) // 2, len(curves[0].seconds) - 1]
    title = f"mean PSNR (dB) of {len(images)} images, each fitted by itself"
    table = Table("", *(f"{curves[0].seconds[at]:.2g} s" for at in shown), title=title)
    for curve in curves:
        table.add_row(curve.name, *(f"{curve.psnr[at]:.2f}" for at in shown))
    Console().print(table)
    print(f"curves: {out / 'seconds.png'}, {out / 'seconds.csv'}")
