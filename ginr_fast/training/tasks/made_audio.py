"""Audio that recipes make for themselves, once for all runs."""

from __future__ import annotations

from pathlib import Path

from ginr_fast.data.tones import AudioConfig, make_audio
from ginr_fast.progress import progress_bar
from ginr_fast.training.recipes.audio import AudioIpcRecipe
from ginr_fast.training.tasks.made import cache_folder


def made_audio(recipe: AudioIpcRecipe) -> Path:
    """The folder of the clips that a recipe trains on, made if it is not there."""
    config = AudioConfig(
        clips=recipe.made_clips,
        test_clips=recipe.made_held_out,
        seconds=recipe.made_seconds,
        rate=recipe.rate,
    )
    sizes = f"{config.clips}-{config.test_clips}x{config.seconds:g}s"
    out = cache_folder() / f"audio-{sizes}-{config.rate}hz"
    with progress_bar("making audio") as progress:
        return make_audio(out, config, progress)
