"""``ginr-fast export-latents CHECKPOINT``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import Positional, arg

from ginr_fast.commands import common
from ginr_fast.ops.checks import check_count
from ginr_fast.training.tasks.base import DataOptions


@dataclass(frozen=True)
class ExportLatentsArguments:
    """Encode a data set by a trained model, for latent diffusion to be trained on its latents.

    An mNIF fits them (CAVIA) or has them from training (auto-decoding); LA-GINR, TransINR and IPC
    encode them. Images in subfolders of their class get labels.

    Args:
        checkpoint: the folder of a run, a .pt checkpoint, or exported .safetensors.
        out: the file to write.
        source: what is encoded; as in training if not given.
        split: which instances of it.
        instances: at most this many of each split. Of recipes that cut crops from images it is how
            many crops are cut from training images, 4096 if not given.
        batch_size: instances encoded at a time.
        storage: how values are kept. Half the bytes are enough for most latents; the statistics
            are kept in float32 in any case.
        progress: whether to show a progress bar.
    """

    checkpoint: Positional[Path]
    out: Path
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)
    split: Literal["train", "held-out", "all"] = "train"
    instances: int | None = None
    batch_size: int = 64
    storage: Literal["float32", "float16", "bfloat16"] = "float32"
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("instances", "batch_size"):
            check_count(name, getattr(self, name), optional=True)
        common.check_out(self.out)


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(ExportLatentsArguments, arguments, "export-latents")
    from ginr_fast.generation.latents import About
    from ginr_fast.generation.latents_writer import write_latents
    from ginr_fast.progress import progress_bar
    from ginr_fast.training.checkpoints import load_saved
    from ginr_fast.training.latent_export import instances_of, joined, stage_of, weights_digest
    from ginr_fast.training.tasks import restored

    saved = load_saved(given.checkpoint)
    task = restored(saved, given.source, common.best_device())
    stage = stage_of(task)
    found, batches = joined(instances_of(task, given.split, given.instances), given.batch_size)
    weights = {name: value.detach().cpu() for name, value in stage.state_dict().items()}
    about = About(
        system=saved.system,
        recipe=saved.recipe,
        weights=weights_digest(weights),
        data=task.fingerprint(),
        split=given.split,
        classes=found.classes if found.labels is not None else (),
    )
    bar = progress_bar("encoding") if given.progress else nullcontext()
    with bar as progress:
        if progress is not None:
            batches = _counted(batches, len(found.names), progress)
        about = write_latents(
            given.out, batches, found.names, about, weights, found.labels, given.storage
        )
    classes = f" of {len(about.classes)} classes" if about.classes else ""
    print(f"{len(found.names)} latents{classes}: {given.out}")
    if about.constant:
        print(
            f"{about.constant} elements do not vary: their standard deviation is a millionth of "
            f"the largest one"
        )


def _counted(
    batches: Iterable[torch.Tensor], total: int, progress: Callable[[int, int], None]
) -> Iterator[torch.Tensor]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        progress(done, total)
