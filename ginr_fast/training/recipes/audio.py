"""Recipes of IPC for audio (CVPR 2023, arXiv 2211.13223; sizes of its published code)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ginr_fast.ops.checks import check_count
from ginr_fast.systems.audio_inr import AudioIpcConfig
from ginr_fast.training.recipes.base import Recipe


@dataclass(frozen=True)
class AudioIpcRecipe(Recipe):
    """How an IPC is trained to reconstruct clips of audio.

    Args:
        model: the sizes of the model.
        rate: samples a second; files of another rate are resampled.
        coordinates: samples decoded a step, the same ones for the whole batch; all if None.
        held_out_clips: held-out files to evaluate with, at most.
        made_clips: synthetic clips that a run makes to train on if no data is named; 0 for none.
        made_held_out: synthetic clips to evaluate with.
        made_seconds: length of a synthetic clip.

    Raises:
        ValueError: a value out of range, or neither ``epochs`` nor ``steps``.
    """

    system: ClassVar[str] = "ipc-audio"

    model: AudioIpcConfig = field(default_factory=AudioIpcConfig)
    rate: int = 16000
    coordinates: int | None = None
    held_out_clips: int = 1024
    made_clips: int = 0
    made_held_out: int = 64
    made_seconds: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rate", "held_out_clips", "made_held_out"):
            check_count(name, getattr(self, name))
        check_count("coordinates", self.coordinates, optional=True)
        if self.coordinates is not None and self.coordinates > self.model.length:
            raise ValueError(
                f"coordinates: expected at most the {self.model.length} samples of a clip, "
                f"got {self.coordinates}"
            )
        if self.made_clips < 0:
            raise ValueError(f"made_clips: expected a non-negative integer, got {self.made_clips}")


# Two layers fewer than published: with them, minutes are not enough to leave the plateau at which
# every clip is silence.
_TINY = AudioIpcRecipe(
    model=AudioIpcConfig(
        length=256,
        patch_size=16,
        encoder_dim=64,
        encoder_depth=1,
        encoder_heads=2,
        encoder_head_dim=32,
        encoder_mlp_dim=128,
        hidden_dim=64,
        hidden_layers=1,
        frequencies=48,
        bandwidth=64.0,
        latents=32,
    ),
    rate=4000,
    made_clips=1024,
    made_held_out=128,
    steps=6000,
    batch_size=16,
    learning_rate=2e-3,
    warmup_steps=100,
    schedule="cosine",
    gradient_clip=1.0,
)

AUDIO_RECIPES: Mapping[str, tuple[str, AudioIpcRecipe]] = {
    "ipc-audio-tiny": ("64 ms of synthetic audio at 4 kHz, minutes on two CPU cores", _TINY),
    "ipc-audio-1s": ("LibriSpeech, 1 s at 16 kHz, 1000 epochs", AudioIpcRecipe(epochs=1000)),
    "ipc-audio-3s": (
        "LibriSpeech, 3 s at 16 kHz, 1000 epochs",
        AudioIpcRecipe(
            model=AudioIpcConfig(length=48000, cycles=3.0), coordinates=12000, epochs=1000
        ),
    ),
}
