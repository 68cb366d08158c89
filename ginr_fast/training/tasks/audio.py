"""IPC of audio as a task: clips reconstructed from their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from ginr_fast.coords import grid
from ginr_fast.data.audio import AudioFiles, audio_folder
from ginr_fast.data.clips import HeldOutClips, TrainingClips
from ginr_fast.pictures import save_png
from ginr_fast.systems.audio_inr import AudioIpc
from ginr_fast.systems.fit_instances import fit_clips
from ginr_fast.systems.fitting import FittingOptions, FittingTarget
from ginr_fast.training.losses import reconstruction_loss
from ginr_fast.training.recipes import as_plain
from ginr_fast.training.recipes.audio import AudioIpcRecipe
from ginr_fast.training.tasks.base import (
    TTO_COLUMN,
    DataOptions,
    EvaluationOptions,
    StepLoss,
    Table,
    Task,
    step_loader,
)
from ginr_fast.training.tasks.images import choose_coordinates
from ginr_fast.training.tasks.made_audio import made_audio
from ginr_fast.training.waveforms import (
    AudioScores,
    audio_scores,
    audio_sums,
    waveform_comparison,
)

_SHOWN = 4  # clips in a picture


class AudioIpcTask(Task):
    """Reconstruction of clips of audio by an IPC.

    Args:
        recipe: how it is trained.
        files: the audio files.
    """

    unit: ClassVar[str] = "clips"
    own_data: ClassVar[str] = "synthetic audio"

    tto_targets: ClassVar[tuple[FittingTarget, ...]] = ("tokens", "weights", "decoder")
    model: AudioIpc

    def __init__(self, recipe: AudioIpcRecipe, files: AudioFiles) -> None:
        self.recipe, self.files = recipe, files
        rate, length = recipe.rate, recipe.model.length
        self.clips = TrainingClips(files, rate, length, recipe.batch_size, recipe.seed)
        self.held_out = HeldOutClips(files, rate, length, recipe.held_out_clips)

    @classmethod
    def open(cls, recipe: AudioIpcRecipe, options: DataOptions) -> AudioFiles:
        """The audio files of a folder, or those that the recipe makes.

        Raises:
            FileNotFoundError, ValueError: see :func:`ginr_fast.data.audio.audio_folder`; or no
                folder is named for a recipe that makes nothing.
        """
        root = options.data
        if root is None:
            if not recipe.made_clips:
                raise ValueError(
                    "data: this recipe trains on a folder of audio files; name it with --data"
                )
            root = made_audio(recipe)
        return audio_folder(root, options.held_out, options.strict)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def steps_per_epoch(self) -> int:
        return self.clips.steps_per_epoch()

    def build(self) -> nn.Module:
        self.model = AudioIpc(self.recipe.model)
        return self.model

    def place(self, device: torch.device) -> None:
        self.device = device
        self.grid = grid(self.recipe.model.length, device=device)
        self.samples = self.grid.tensor()

    def batches(
        self, first: int, last: int, slots: range, workers: int, pin_memory: bool
    ) -> Iterable[torch.Tensor]:
        make = partial(self.clips.batch, slots=slots)
        return step_loader(make, first, last, workers, pin_memory)

    def loss(
        self, forward: Callable[..., Any], batch: torch.Tensor, step: int, slots: range
    ) -> StepLoss:
        recipe, length = self.recipe, self.recipe.model.length
        if recipe.coordinates is None:
            loss = reconstruction_loss(forward(batch, self.grid), batch[..., None])
        else:
            chosen = choose_coordinates(recipe.seed, step, length, recipe.coordinates)
            chosen = chosen.to(batch.device)
            values = forward(batch, self.samples[chosen])
            loss = reconstruction_loss(values, batch[:, chosen, None])
        return StepLoss(loss, loss)

    def evaluate(self, rank: int, world: int) -> torch.Tensor:
        mine = range(rank, len(self.held_out), world)
        return self._sums(self.held_out, mine, self.recipe.batch_size)

    def scores(self, sums: torch.Tensor) -> AudioScores:
        return audio_scores(sums)

    def picture(self, step: int) -> Image.Image:
        return self._picture(self.held_out, f"reconstructed after {step} steps")

    def metadata(self) -> dict[str, Any]:
        return {"recipe": as_plain(self.recipe)}

    def table(self, options: EvaluationOptions) -> Table:
        files, recipe, at_most = self.files, self.recipe, self.recipe.held_out_clips
        if options.all_images:
            files = replace(files, held_out=tuple(sorted((*files.train, *files.held_out))))
            at_most = len(files.held_out)
        at_most = options.instances or at_most
        clips = HeldOutClips(files, recipe.rate, recipe.model.length, at_most)
        rows = []
        for fitting in options.fittings:
            sums = self._sums(clips, range(len(clips)), options.batch_size, fitting)
            scores = audio_scores(sums)
            rows.append(
                (
                    str(scores.clips),
                    str(recipe.model.length),
                    str(recipe.rate),
                    f"{scores.psnr:.2f}",
                    f"{scores.silence_psnr:.2f}",
                    *options.noted(fitting),
                )
            )
        if options.picture is not None:
            title = "reconstructed" if options.tto is None else f"fitted, {options.tto} steps"
            save_png(self._picture(clips, title, options.fittings[-1]), options.picture)
        columns = ("clips", "samples", "rate (Hz)", "PSNR (dB, peak 1)", "silence (dB)")
        return Table((*columns, TTO_COLUMN) if options.tto else columns, rows)

    def _sums(
        self,
        clips: HeldOutClips,
        indices: range,
        batch_size: int,
        fitting: FittingOptions | None = None,
    ) -> torch.Tensor:
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for first in range(0, len(indices), batch_size):
            waves = clips.clips(indices[first : first + batch_size]).to(self.device)
            sums += audio_sums(self._reconstructed(waves, fitting), waves)
        return sums

    def _reconstructed(self, waves: torch.Tensor, fitting: FittingOptions | None) -> torch.Tensor:
        """Clips as the model gives them, ``(B, length)``, after test-time optimisation if any."""
        if fitting is None:
            return self.model.reconstruct(waves)
        found = fit_clips(self.model, waves, fitting).decode(self.grid)
        return found.squeeze(-1).clamp(-1, 1)

    def _picture(
        self, clips: HeldOutClips, title: str, fitting: FittingOptions | None = None
    ) -> Image.Image:
        count = min(_SHOWN, len(clips))
        indices = np.linspace(0, len(clips) - 1, count, dtype=int).tolist()
        waves = clips.clips(indices).to(self.device)
        titles = ("held-out clips", title, "error")
        return waveform_comparison(waves, self._reconstructed(waves, fitting), titles)
