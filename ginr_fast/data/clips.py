"""Clips cut from audio files: random ones to train on, fixed ones to evaluate with."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from ginr_fast.data.audio import AudioFiles, load_audio
from ginr_fast.data.order import instance_order

_CROP_STREAM = 4


class _Waves:
    """Decoded files at one rate, least recently used ones dropped beyond ``max_bytes``."""

    def __init__(self, paths: tuple[Path, ...], rate: int, max_bytes: int = 1 << 30) -> None:
        self.paths, self.rate, self.max_bytes = paths, rate, max_bytes
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self.bytes = 0

    def __getitem__(self, index: int) -> np.ndarray:
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        wave, _ = load_audio(self.paths[index], self.rate)
        self.kept[index] = wave
        self.bytes += wave.nbytes
        while self.bytes > self.max_bytes and len(self.kept) > 1:
            self.bytes -= self.kept.popitem(last=False)[1].nbytes
        return wave


class TrainingClips:
    """What training steps see: a random cut of each file, files in a new order every epoch.

    Args:
        files: the audio files.
        rate: samples a second; files of another rate are resampled.
        length: samples of a clip; shorter files are followed by zeros.
        batch_size: slots of a step, over all processes.
        seed: of the choices.
    """

    def __init__(
        self, files: AudioFiles, rate: int, length: int, batch_size: int, seed: int
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.count = len(files.train)
        self.waves = _Waves(files.train, rate)

    def steps_per_epoch(self) -> int:
        """Steps in which every file is seen about once; at least one."""
        return max(1, self.count // self.batch_size)

    def batch(self, step: int, slots: range) -> torch.Tensor:
        """Clips of one step, a pure function of (seed, step, slots).

        Args:
            step: from 0.
            slots: which of the batch's clips.

        Returns:
            ``(len(slots), length)``, float32 in [-1, 1].
        """
        order = instance_order(self.seed, step, self.count, self.batch_size)
        clips = []
        for slot in slots:
            wave = self.waves[int(order[slot])]
            rng = np.random.default_rng((self.seed, step, slot, _CROP_STREAM))
            first = int(rng.integers(max(0, len(wave) - self.length) + 1))
            clips.append(_cut(wave, first, self.length))
        return torch.from_numpy(np.stack(clips))


class HeldOutClips:
    """What a model is evaluated with: the beginning of each held-out file, as IPC does.

    Args:
        files: the audio files.
        rate: samples a second.
        length: samples of a clip; shorter files are followed by zeros.
        at_most: how many files, the first ones by name.
    """

    def __init__(self, files: AudioFiles, rate: int, length: int, at_most: int) -> None:
        self.length, self.count = length, min(at_most, len(files.held_out))
        self.waves = _Waves(files.held_out, rate)

    def __len__(self) -> int:
        return self.count

    def clips(self, indices: range | list[int]) -> torch.Tensor:
        """Some of the clips, ``(len(indices), length)``, float32 in [-1, 1]."""
        cut = [_cut(self.waves[index], 0, self.length) for index in indices]
        return torch.from_numpy(np.stack(cut))


def _cut(wave: np.ndarray, first: int, length: int) -> np.ndarray:
    part = wave[first : first + length]
    return np.pad(part, (0, length - len(part)))
