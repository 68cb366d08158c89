"""The training loop: exact to resume, the same on one device or many.

Everything random in a step follows from (seed, step): the views and the coordinates by their own
generators, anything a model might draw by seeding the global ones. A run that was killed and
started again therefore ends with the weights of one that was not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.data.images import ImageFiles
from ginr_fast.data.views import HeldOutViews, TrainingViews, training_batches
from ginr_fast.profiling import phase
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.training import checkpoints
from ginr_fast.training.images import enlarged, save_png, sheet, to_pixels
from ginr_fast.training.losses import reconstruction_loss
from ginr_fast.training.metrics import Scores, score_views
from ginr_fast.training.recipes import LaGinrRecipe, as_plain
from ginr_fast.training.reporting import Reporter

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_COORDINATE_STREAM = 1
_GLOBAL_STREAM = 2
_OFFSET_STREAM = 3


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out and reported; none of it changes the weights it ends with.

    Args:
        devices: processes, each with its own device; under torchrun, what that started.
        accelerator: the kind of device; auto takes GPUs if there are any.
        workers: processes that prepare the batches of each device ahead; 0 prepares them in the
            training process.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between evaluations on the held-out views, with a picture each.
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
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if self.workers < 0:
            raise ValueError(f"workers: expected a non-negative integer, got {self.workers}")


@dataclass(frozen=True)
class TrainingResult:
    """What a run ends with.

    Args:
        model: trained, in evaluation mode, on the CPU.
        scores: on the held-out views.
        weights: the exported weights.
        is_main: True in one of the processes of a run: the one that reports.
    """

    model: LaGinr
    scores: Scores
    weights: Path
    is_main: bool = True


def choose_coordinates(seed: int, step: int, pixels: int, count: int) -> torch.Tensor:
    """``count`` different pixels of ``pixels``, int64, a pure function of the arguments."""
    rng = np.random.default_rng((seed, step, _COORDINATE_STREAM, pixels))
    return torch.from_numpy(rng.choice(pixels, count, replace=False, shuffle=False))


def choose_offsets(seed: int, step: int, count: int) -> torch.Tensor:
    """Places within pixels, ``(count, 2)`` float32 in [-½, ½), a pure function of the arguments."""
    rng = np.random.default_rng((seed, step, _OFFSET_STREAM))
    return torch.from_numpy(rng.random((count, 2), dtype=np.float32) - 0.5)


def interpolated(images: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    """Images at coordinates shared by the batch, by bicubic interpolation.

    Args:
        images: ``(B, C, H, W)``.
        coords: ``(N, 2)``, (row, column) in [-1, 1].

    Returns:
        ``(B, N, C)``.
    """
    where = coords.flip(-1).expand(images.shape[0], 1, -1, -1)  # grid_sample wants (x, y)
    found = F.grid_sample(images, where, "bicubic", "border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)


def train(
    recipe: LaGinrRecipe,
    files: ImageFiles,
    out: Path | str,
    options: RunOptions | None = None,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
) -> TrainingResult:
    """Train a model, or go on with the training that ``out`` holds.

    Args:
        recipe: what to train and how.
        files: the images.
        out: the folder of the run: ``checkpoints/``, ``images/``, ``tensorboard/`` and, at the
            end, ``model.safetensors``.
        options: how to carry it out.
        on_step: called after each step with the number of steps done and the loss (a detached
            scalar of the batch of this process).

    Returns:
        The trained model and its held-out scores.

    Raises:
        ValueError: the batch cannot be divided by the devices, or there are no such devices.
        CheckpointError: the last checkpoint in ``out`` is damaged, or of another recipe or of
            other images.
    """
    options, out = options or RunOptions(), Path(out)
    fabric = _launch(recipe, options)
    if recipe.batch_size % fabric.world_size:
        raise ValueError(
            f"devices: expected a divisor of the batch of {recipe.batch_size}, "
            f"got {fabric.world_size}"
        )
    run = _Run(fabric, recipe, files, out, options)
    run.resume()
    run.train(on_step)
    return run.finish()


def _launch(recipe: LaGinrRecipe, options: RunOptions) -> Fabric:
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
        self,
        fabric: Fabric,
        recipe: LaGinrRecipe,
        files: ImageFiles,
        out: Path,
        options: RunOptions,
    ) -> None:
        self.fabric, self.recipe, self.out, self.options = fabric, recipe, out, options
        self.data = files.fingerprint()
        size = recipe.model.image_size
        self.views = TrainingViews(files, recipe.views, size, recipe.batch_size, recipe.seed)
        self.held_out = HeldOutViews(files, recipe.views, size)
        self.total = recipe.total_steps(self.views.steps_per_epoch())
        self.step = 0
        torch.manual_seed(recipe.seed)
        self.model = LaGinr(recipe.model)
        # The fused update is one pass over the weights on every device.
        optimizer = torch.optim.Adam(
            self.model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, fused=True
        )
        wrapped, self.optimizer = fabric.setup(self.model, optimizer)
        self.forward: Callable[..., torch.Tensor] = wrapped
        # Not Fabric's mixed precision: that rounds what goes into a model, coordinates too.
        self.mixed = recipe.precision == "bf16-mixed"
        self.grid = grid(size, size, device=fabric.device)
        self.pixels = self.grid.tensor().reshape(-1, 2)

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        found = checkpoints.checkpoints_in(self.out / "checkpoints")
        if not found:
            return
        state = checkpoints.load_checkpoint(found[-1])
        state.check_same_run(found[-1], as_plain(self.recipe), self.data)
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.step = state.step

    def train(self, on_step: Callable[[int, torch.Tensor], None] | None) -> None:
        """All the steps that are left, with checkpoints and evaluations between."""
        recipe, options, fabric = self.recipe, self.options, self.fabric
        share = recipe.batch_size // fabric.world_size
        slots = range(fabric.global_rank * share, (fabric.global_rank + 1) * share)
        batches = training_batches(
            self.views, self.step, self.total, slots, options.workers, fabric.device.type == "cuda"
        )
        shown = fabric.is_global_zero
        with Reporter(self.out, self.step, self.total, recipe.batch_size, options, shown) as report:
            iterator = iter(batches)
            while self.step < self.total:
                with phase("data"):
                    images = next(iterator).to(fabric.device, non_blocking=True)
                loss = self._optimise(images)
                self.step += 1
                report.step(self.step, loss, self.optimizer.param_groups[0]["lr"])
                if on_step is not None:
                    on_step(self.step, loss)
                last = self.step == self.total
                if self.step % options.checkpoint_every == 0 or last:
                    self._save()
                if self.step % options.evaluate_every == 0 and not last:
                    report.scores(self.step, self.evaluate())
                    self._picture()

    def _optimise(self, images: torch.Tensor) -> torch.Tensor:
        recipe, step = self.recipe, self.step
        seed = np.random.SeedSequence((recipe.seed, step, _GLOBAL_STREAM, self.fabric.global_rank))
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]) >> 1)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step, self.total)
        images = images.float() / 255
        coords, target = self._targets(images, step)
        with phase("forward"), self._autocast():
            loss = reconstruction_loss(self.forward(images, coords), target)
        with phase("backward"):
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
        with phase("optimizer"):
            if recipe.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.gradient_clip)
            self.optimizer.step()
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=self.mixed)

    def _targets(
        self, images: torch.Tensor, step: int
    ) -> tuple[torch.Tensor | CoordinateGrid, torch.Tensor]:
        recipe, size = self.recipe, self.recipe.model.image_size
        count = recipe.coordinates or size**2
        if count == size**2 and not recipe.subpixel:
            return self.grid, images.permute(0, 2, 3, 1)
        chosen = choose_coordinates(recipe.seed, step, size**2, count).to(images.device)
        if not recipe.subpixel:
            return self.pixels[chosen], images.flatten(2)[:, :, chosen].transpose(1, 2)
        offsets = choose_offsets(recipe.seed, step, count).to(images.device)
        coords = self.pixels[chosen] + offsets * (2 / size)
        return coords, interpolated(images, coords)

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            state: dict[str, Any] = dict(self.optimizer.state_dict())
            checkpoints.save_checkpoint(
                checkpoints.Checkpoint(
                    self.step, as_plain(self.recipe), self.data, self.model.state_dict(), state
                ),
                self.out / "checkpoints",
            )
        self.fabric.barrier()

    def evaluate(self) -> Scores:
        """Scores on the held-out views, shared out over the processes."""
        fabric = self.fabric
        mine = range(fabric.global_rank, len(self.held_out), fabric.world_size)
        self.model.eval()
        with phase("evaluate"), self._autocast():
            total = score_views(
                self.model, self.held_out, mine, self.recipe.batch_size, fabric.device
            )
        self.model.train()
        summed = fabric.all_reduce(total.sums, reduce_op="sum")
        assert isinstance(summed, torch.Tensor)
        total.sums = summed
        return total.scores()

    def _picture(self, count: int = 8) -> None:
        if not self.fabric.is_global_zero:
            return
        indices = np.linspace(0, len(self.held_out) - 1, min(count, len(self.held_out)), dtype=int)
        images = torch.stack([self.held_out[int(index)] for index in indices])
        targets = images.to(self.fabric.device).float() / 255
        self.model.eval()
        with self._autocast():
            found = self.model.reconstruct(targets)
        self.model.train()
        side = max(self.recipe.model.image_size, 96)
        rows = [
            [enlarged(to_pixels(image), side, side) for image in images]
            for images in (targets, found)
        ]
        picture = sheet(rows, ["held-out images", f"reconstructed after {self.step} steps"])
        save_png(picture, self.out / "images" / f"step-{self.step:09d}.png")

    def finish(self) -> TrainingResult:
        """Scores, the last picture and the exported weights."""
        scores = self.evaluate()
        self._picture()
        path = self.out / checkpoints.WEIGHTS_NAME
        main = self.fabric.is_global_zero
        if main:
            checkpoints.export_weights(self.model, path, self.recipe.views)
        self.fabric.barrier()
        return TrainingResult(self.model.cpu().eval(), scores, path, main)
