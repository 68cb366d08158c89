"""Progress bar, lines of text and TensorBoard of a training run."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from ginr_fast.training.losses import psnr_of

if TYPE_CHECKING:
    from ginr_fast.training.loop import RunOptions
    from ginr_fast.training.tasks.base import Scores, StepLoss


class Reporter:
    """Tells how a run goes; a context manager around its steps.

    Args:
        out: the folder of the run.
        first: steps done already.
        total: steps of the whole run.
        batch_size: instances a step, for the throughput.
        unit: what they are.
        options: how much is shown and logged.
        shown: False in every process but one, which then says nothing.
    """

    def __init__(
        self,
        out: Path,
        first: int,
        total: int,
        batch_size: int,
        unit: str,
        options: RunOptions,
        shown: bool,
    ) -> None:
        self.first, self.total, self.batch_size, self.unit = first, total, batch_size, unit
        self.every = options.log_every
        self.bar: Any = self._bar() if shown and options.progress else None
        self.writer: Any = None
        if shown and options.tensorboard and first < total:
            from lightning.fabric.loggers import TensorBoardLogger

            # What a killed run had logged beyond its last checkpoint is purged.
            self.writer = TensorBoardLogger(out, name="", version="tensorboard", purge_step=first)
        self.since, self.since_step = time.perf_counter(), first
        self.losses: list[torch.Tensor] = []  # total and error of each step

    def _bar(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Remaining(compact=True),
            TextColumn("{task.fields[status]}"),
        )
        self.task = bar.add_task("training", total=self.total, completed=self.first, status="")
        return bar

    def __enter__(self) -> Reporter:
        if self.bar is not None:
            self.bar.start()
            if self.first:
                self.bar.console.print(f"resuming after step {self.first}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.writer is not None:
            self.writer.finalize("success" if error is None else "failed")

    def step(self, step: int, loss: StepLoss, learning_rate: float) -> None:
        """After each step. Reads the loss only every few steps: that waits for a GPU."""
        if self.bar is None and self.writer is None:
            return
        self.losses.append(torch.stack([loss.total, loss.error]).detach())
        if step % self.every and step != self.total:
            return
        mean, error = torch.stack(self.losses).mean(0).tolist()
        self.losses.clear()
        now = time.perf_counter()
        rate = (step - self.since_step) * self.batch_size / max(now - self.since, 1e-9)
        self.since, self.since_step = now, step
        if self.bar is not None:
            status = f"loss {mean:.2e}  PSNR {psnr_of(error):.2f} dB  {rate:.0f} {self.unit}/s"
            self.bar.update(self.task, completed=step, status=status)
        if self.writer is not None:
            values = {
                "train/loss": mean,
                "train/psnr": psnr_of(error),
                f"train/{self.unit}_per_second": rate,
                "train/learning_rate": learning_rate,
            }
            self.writer.log_metrics(values, step)

    def scores(self, step: int, scores: Scores) -> None:
        """After each evaluation, whose time does not count against the throughput."""
        if self.bar is not None:
            self.bar.console.print(f"step {step}: {scores.summary()}")
        if self.writer is not None:
            values = {f"held_out/{name}": value for name, value in scores.values().items()}
            self.writer.log_metrics(values, step)
        self.since, self.since_step = time.perf_counter(), step
