"""``ginr-fast eval CHECKPOINT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ginr_fast.commands import common


@dataclass(frozen=True)
class EvalArguments:
    """PSNR and SSIM of a trained model on images it was not trained on.

    Args:
        checkpoint: the folder of a run, a .pt checkpoint, or exported .safetensors.
        data: a folder of images; without it, the photographs that come with scikit-image.
        all_images: evaluate on every image of the folder, not only on the held-out ones.
        held_out: fraction of the folder's images that training held out, unless it has train
            and val subfolders.
        strict: refuse broken and non-image files instead of skipping them with a warning.
        batch_size: images at a time.
    """

    checkpoint: Positional[Path]
    data: Path | None = None
    all_images: bool = False
    held_out: float = 0.1
    strict: bool = False
    batch_size: int = 16


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(EvalArguments, arguments, "eval")
    from dataclasses import replace

    from rich.console import Console
    from rich.table import Table

    from ginr_fast.data.views import HeldOutViews
    from ginr_fast.training.checkpoints import load_run
    from ginr_fast.training.metrics import score_views

    if given.batch_size < 1:
        raise ValueError(f"batch_size: expected a positive integer, got {given.batch_size}")
    model, config = load_run(given.checkpoint)
    size = model.config.image_size
    files = common.images(given.data, config, size, given.strict, given.held_out)
    if given.all_images:
        files = replace(files, held_out=tuple(sorted((*files.train, *files.held_out))))
    device = common.best_device()
    model = model.to(device)
    views = HeldOutViews(files, config, size)
    scores = score_views(model, views, range(len(views)), given.batch_size, device).scores()
    table = Table("images", "views", "size", "PSNR (dB)", "SSIM")
    table.add_row(
        str(given.data or "photographs of scikit-image"),
        str(scores.images),
        f"{size}x{size}",
        f"{scores.psnr:.2f}",
        f"{scores.ssim:.4f}",
    )
    Console().print(table)
