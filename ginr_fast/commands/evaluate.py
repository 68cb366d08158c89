"""``ginr-fast eval CHECKPOINT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ginr_fast.commands import common
from ginr_fast.training.tasks.base import DataOptions, EvaluationOptions


@dataclass(frozen=True)
class EvalArguments:
    """How well a trained model reconstructs what it was not trained on.

    Args:
        checkpoint: the folder of a run, a .pt checkpoint, or exported .safetensors.
        source: what it is evaluated on.
        evaluation: how.
    """

    checkpoint: Positional[Path]
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)
    evaluation: Annotated[EvaluationOptions, arg(name="")] = field(
        default_factory=EvaluationOptions
    )


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(EvalArguments, arguments, "eval")
    from rich.console import Console
    from rich.table import Table

    from ginr_fast.training.checkpoints import load_saved
    from ginr_fast.training.tasks import restored

    saved, options = load_saved(given.checkpoint), given.evaluation
    task = restored(saved, given.source, common.best_device())
    if options.tto is not None:
        _check_target(saved.system, options.tto_target, task.tto_targets)
    found = task.table(options)
    table = Table("data", *found.columns)
    for row in found.rows:
        table.add_row(str(given.source.data or task.own_data), *row)
    Console().print(table)
    if options.picture is not None:
        print(f"picture: {options.picture}")


def _check_target(system: str, target: str, known: Sequence[str]) -> None:
    if not known:
        raise ValueError(f"tto: {system} has no test-time optimisation but its own fit")
    if target not in known:
        raise ValueError(f"tto_target: expected {' or '.join(known)} for {system}, got {target}")
