"""The training loop: exact to resume, the same on one device or many, whatever system it trains.

Everything random in a step follows from (seed, step): the data by generators of their own, anything
a model might draw by seeding the global ones. A run that was killed and started again therefore
ends with the weights of one that was not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ginr_fast.ops.checks import check_count
from ginr_fast.pictures import save_png
from ginr_fast.profiling import phase
from ginr_fast.training import checkpoints
from ginr_fast.training.recipes import Recipe, as_plain, from_plain
from ginr_fast.training.reporting import Reporter
from ginr_fast.training.tasks import task_for
from ginr_fast.training.tasks.base import Scores, StepLoss

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_GLOBAL_STREAM = 2


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out and reported; none of it changes the weights it ends with.

    Args:
        devices: processes, each with its own device; under torchrun, what that started.
        accelerator: the kind of device; auto takes GPUs if there are any.
        workers: processes that prepare the batches of each device ahead; 0 prepares them in the
            training process.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between evaluations, with a picture each.
        log_every: steps between entries in the TensorBoard log.
        tensorboard: whether to write that log.
        progress: whether to show a progress bar.
    """

    devices: int = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = 0
    checkpoint_every: int = 500
    evaluate_every: int = 1000
    log_every: int = 20
    tensorboard: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("devices", "checkpoint_every", "evaluate_every", "log_every"):
            check_count(name, getattr(self, name))
        if self.workers < 0:
            raise ValueError(f"workers: expected a non-negative integer, got {self.workers}")


@dataclass(frozen=True)
class TrainingResult:
    """What a run ends with.

    Args:
        model: trained, in evaluation mode, on the CPU; of the class that the recipe's system has.
        scores: of the last evaluation.
        weights: the exported weights.
        is_main: True in one of the processes of a run: the one that reports.
    """

    model: Any
    scores: Scores
    weights: Path
    is_main: bool = True


def train(
    recipe: Recipe,
    data: Any,
    out: Path | str,
    options: RunOptions | None = None,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
) -> TrainingResult:
    """Train a model, or go on with the training that ``out`` holds.

    Args:
        recipe: what to train and how.
        data: what it is trained on, see :func:`ginr_fast.training.tasks.open_data`.
        out: the folder of the run: ``checkpoints/``, ``images/``, ``tensorboard/`` and, at the
            end, ``model.safetensors``.
        options: how to carry it out.
        on_step: called after each step with the number of steps done and the loss (a detached
            scalar of the batch of this process).

    Returns:
        The trained model and its scores.

    Raises:
        ValueError: the batch cannot be divided by the devices, or there are no such devices; or
            the loss is not finite when a checkpoint is due.
        CheckpointError: the last checkpoint in ``out`` is damaged, or of another recipe or of
            other data.
    """
    options, out = options or RunOptions(), Path(out)
    fabric = _launch(recipe, options)
    if recipe.batch_size % fabric.world_size:
        raise ValueError(
            f"devices: expected a divisor of the batch of {recipe.batch_size}, "
            f"got {fabric.world_size}"
        )
    run = _Run(fabric, recipe, data, out, options)
    run.resume()
    run.train(on_step)
    return run.finish()


def _launch(recipe: Recipe, options: RunOptions) -> Fabric:
    from lightning.fabric import Fabric

    local = int(os.environ.get("LOCAL_WORLD_SIZE", options.devices))
    nodes = int(os.environ.get("WORLD_SIZE", local)) // local
    gpus = torch.cuda.device_count()
    accelerator = options.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if gpus else "cpu"
    if accelerator == "cuda" and gpus < local:
        raise ValueError(
            f"devices: expected at most the {gpus} GPU(s) of this machine, got {local}"
        )
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=nodes,
        strategy="ddp" if local * nodes > 1 else "auto",
    )
    fabric.launch()
    return fabric


class _Run:
    """One training run in one process."""

    def __init__(
        self, fabric: Fabric, recipe: Recipe, data: Any, out: Path, options: RunOptions
    ) -> None:
        self.fabric, self.recipe, self.out, self.options = fabric, recipe, out, options
        self.task = task_for(recipe, data)
        self.data = self.task.fingerprint()
        self.total = recipe.total_steps(self.task.steps_per_epoch())
        self.step = 0
        share = recipe.batch_size // fabric.world_size
        self.slots = range(fabric.global_rank * share, (fabric.global_rank + 1) * share)
        torch.manual_seed(recipe.seed)
        self.model = self.task.build()
        optimizer = self.task.optimizer(self.task.parameter_groups())
        wrapped, self.optimizer = fabric.setup(self.model, optimizer)
        self.forward: Callable[..., Any] = wrapped
        # Not Fabric's mixed precision: that rounds what goes into a model, coordinates too.
        self.mixed = recipe.precision == "bf16-mixed"
        self.task.place(fabric.device)

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        found = checkpoints.checkpoints_in(self.out / "checkpoints")
        if not found:
            return
        state = checkpoints.load_checkpoint(found[-1])
        with suppress(TypeError, ValueError):  # another system's, which is told next
            # What is newer than the checkpoint had its default.
            known = from_plain(type(self.recipe), state.recipe)
            state = replace(state, recipe=as_plain(known))
        state.check_same_run(found[-1], self.recipe.system, as_plain(self.recipe), self.data)
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.step = state.step

    def train(self, on_step: Callable[[int, torch.Tensor], None] | None) -> None:
        """All the steps that are left, with checkpoints and evaluations between."""
        options, fabric = self.options, self.fabric
        batches = self.task.batches(
            self.step, self.total, self.slots, options.workers, fabric.device.type == "cuda"
        )
        with self._reporter() as report:
            iterator = iter(batches)
            while self.step < self.total:
                with phase("data"):
                    batch = fabric.to_device(next(iterator))
                loss = self._optimise(batch)
                self.step += 1
                report.step(self.step, loss, self.optimizer.param_groups[0]["lr"])
                if on_step is not None:
                    on_step(self.step, loss.total)
                last = self.step == self.total
                if self.step % options.checkpoint_every == 0 or last:
                    self._check_finite(loss)
                    self._save()
                if self.step % options.evaluate_every == 0 and not last:
                    report.scores(self.step, self.evaluate())
                    self._picture()

    def _reporter(self) -> Reporter:
        shown, size, unit = self.fabric.is_global_zero, self.recipe.batch_size, self.task.unit
        return Reporter(self.out, self.step, self.total, size, unit, self.options, shown)

    def _optimise(self, batch: Any) -> StepLoss:
        recipe, step = self.recipe, self.step
        seed = np.random.SeedSequence((recipe.seed, step, _GLOBAL_STREAM, self.fabric.global_rank))
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]) >> 1)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step, self.total) * group.get("lr_scale", 1.0)
        with phase("forward"), self._autocast():
            loss = self.task.loss(self.forward, batch, step, self.slots)
        with phase("backward"):
            self.optimizer.zero_grad()
            self.fabric.backward(loss.total)
        with phase("optimizer"):
            if recipe.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.gradient_clip)
            self.optimizer.step()
            self.task.after_step(step)
        return StepLoss(loss.total.detach(), loss.error.detach())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=self.mixed)

    def _check_finite(self, loss: StepLoss) -> None:
        """A run that diverged ends before it replaces a checkpoint from before."""
        mean = self.fabric.all_reduce(loss.total, reduce_op="mean")
        assert isinstance(mean, torch.Tensor)
        if not mean.isfinite():
            raise ValueError(
                f"loss: {mean.item()} after step {self.step}; the run diverged, try a lower "
                f"learning rate (checkpoints in {self.out / 'checkpoints'} are from before)"
            )

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            state: dict[str, Any] = dict(self.optimizer.state_dict())
            checkpoints.save_checkpoint(
                checkpoints.Checkpoint(
                    self.step,
                    as_plain(self.recipe),
                    self.data,
                    self.model.state_dict(),
                    state,
                    self.recipe.system,
                ),
                self.out / "checkpoints",
            )
        self.fabric.barrier()

    def evaluate(self) -> Scores:
        """Scores of the model as it is, the work shared out over the processes."""
        fabric = self.fabric
        self.model.eval()
        with phase("evaluate"), self._autocast():
            sums = self.task.evaluate(fabric.global_rank, fabric.world_size)
        self.model.train()
        summed = fabric.all_reduce(sums, reduce_op="sum")
        assert isinstance(summed, torch.Tensor)
        return self.task.scores(summed)

    def _picture(self) -> None:
        if not self.fabric.is_global_zero:
            return
        self.model.eval()
        with self._autocast():
            picture = self.task.picture(self.step)
        self.model.train()
        save_png(picture, self.out / "images" / f"step-{self.step:09d}.png")

    def finish(self) -> TrainingResult:
        """Scores, the last picture and the exported weights."""
        scores = self.evaluate()
        self._picture()
        path = self.out / checkpoints.WEIGHTS_NAME
        main = self.fabric.is_global_zero
        if main:
            checkpoints.write_export(
                path, self.recipe.system, self.task.metadata(), dict(self.task.exported())
            )
        self.fabric.barrier()
        return TrainingResult(self.model.cpu().eval(), scores, path, main)
