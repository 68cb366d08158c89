"""IPC of audio: tokenizer, model, scores, recipes and training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from small_training import QUIET, Stopped, same, stop_at, weights_of

import ginr_fast
from ginr_fast.data.audio import audio_folder
from ginr_fast.encoders.audio import AudioTokenizer
from ginr_fast.systems.audio_inr import AudioIpc, AudioIpcConfig
from ginr_fast.training.checkpoints import load_saved
from ginr_fast.training.loop import train
from ginr_fast.training.recipes import as_plain, from_plain, recipe
from ginr_fast.training.recipes.audio import AudioIpcRecipe
from ginr_fast.training.tasks import (
    DataOptions,
    EvaluationOptions,
    open_data,
    restored,
    task_for,
)
from ginr_fast.training.waveforms import audio_scores, drawn, waveform_psnr

MODEL = AudioIpcConfig(
    length=96,
    patch_size=12,
    encoder_dim=32,
    encoder_depth=1,
    encoder_heads=2,
    encoder_head_dim=16,
    encoder_mlp_dim=48,
    hidden_dim=32,
    hidden_layers=1,
    frequencies=24,
    bandwidth=16.0,
    latents=16,
)
RECIPE = AudioIpcRecipe(
    model=MODEL,
    rate=4000,
    coordinates=48,
    held_out_clips=3,
    made_clips=8,
    made_held_out=4,
    made_seconds=0.1,
    steps=6,
    batch_size=4,
    learning_rate=1e-3,
    gradient_clip=1.0,
)


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, 4000, values.astype(np.float32))


# Tokenizer and model


def test_tokens_are_linear_in_their_patches() -> None:
    torch.manual_seed(0)
    tokenizer = AudioTokenizer(length=10, patch_size=4, dim=5).double()
    waves = torch.randn(2, 10, dtype=torch.float64)
    padded = torch.cat([waves, torch.zeros(2, 2, dtype=torch.float64)], 1)
    tokens = tokenizer(waves)
    assert tokens.shape == (2, 3, 5)
    weight, bias = tokenizer.embed.weight, tokenizer.embed.bias
    for index in range(3):
        expected = padded[:, 4 * index : 4 * index + 4] @ weight.T + bias
        torch.testing.assert_close(tokens[:, index], expected + tokenizer.position[index])


def test_published_token_counts() -> None:
    assert AudioTokenizer(16000, 200, dim=2).count == 80
    assert AudioTokenizer(48000, 200, dim=2).count == 240


def test_tokenizer_names_bad_arguments() -> None:
    with pytest.raises(ValueError, match="patch_size: expected a positive integer, got 0"):
        AudioTokenizer(10, 0)
    with pytest.raises(ValueError, match=r"waves: expected shape \(B, 10\), got \(1, 9\)"):
        AudioTokenizer(10, 5, 4)(torch.zeros(1, 9))


def published(model: AudioIpc, tokens: torch.Tensor, seconds: float, samples: int) -> torch.Tensor:
    """IPC's field of one instance by hand: coordinates of ±seconds, frequencies from 1, float64."""
    config, decoder = model.config, model.decoder
    index = np.arange(samples)
    coords = torch.from_numpy(seconds * (2 * (index + 0.5) / samples - 1))
    steps = torch.linspace(0, 1, config.frequencies, dtype=torch.float64)
    phases = math.pi * coords[:, None] * config.bandwidth**steps
    hidden = torch.cat([phases.cos(), phases.sin()], 1)
    patterns = decoder.head(tokens)
    shared = iter(decoder.shared)
    for layer in range(config.hidden_layers + 2):
        weight = decoder.mixing @ patterns if layer == config.modulated_layer else next(shared)
        hidden = hidden @ weight.T + next(shared)
        hidden = hidden.relu() if layer < config.hidden_layers + 1 else hidden
    return hidden


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_the_field_is_the_published_one(seconds: float) -> None:
    torch.manual_seed(0)
    model = AudioIpc(replace(MODEL, cycles=seconds)).double()
    tokens = model.encode(torch.randn(2, 96, dtype=torch.float64))
    where = ginr_fast.grid(150, dtype=torch.float64)
    values = model.decode(where, tokens)
    expected = torch.stack([published(model, token, seconds, 150) for token in tokens])
    torch.testing.assert_close(values, expected)
    shared = model.decode(where.tensor()[::7], tokens)
    torch.testing.assert_close(shared, expected[:, ::7])


def test_reconstructions_have_any_rate_and_stay_in_range() -> None:
    model = AudioIpc(MODEL)
    waves = torch.rand(2, 96) * 2 - 1
    same_rate, double = model.reconstruct(waves), model.reconstruct(waves, 2.0)
    assert (same_rate.shape, double.shape) == ((2, 96), (2, 192))
    expected = model(waves, ginr_fast.grid(96))[..., 0].clamp(-1, 1)
    torch.testing.assert_close(same_rate, expected)
    with pytest.raises(ValueError, match="scale"):
        model.reconstruct(waves, 0.0)
    with pytest.raises(ValueError, match=r"waves: expected shape \(B, 96\), got \(2, 95\)"):
        model.encode(waves[:, 1:])
    with pytest.raises(TypeError, match="waves: expected floating point"):
        model.encode(torch.zeros(1, 96, dtype=torch.int16))


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = AudioIpc(MODEL)
    model(torch.randn(2, 96), ginr_fast.grid(96)).square().mean().backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None]
    assert not missing


# Scores and pictures


def test_psnr_has_a_peak_of_one_and_is_never_infinite() -> None:
    rng = np.random.default_rng(0)
    values, targets = rng.uniform(-1, 1, (2, 3, 50))
    expected = [
        -10 * math.log10(((a - b) ** 2).mean()) for a, b in zip(values, targets, strict=True)
    ]
    found = waveform_psnr(torch.from_numpy(values), torch.from_numpy(targets))
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    silent = torch.zeros(1, 50)
    assert waveform_psnr(silent, silent).item() == pytest.approx(101.1, abs=0.1)
    with pytest.raises(ValueError, match="clips: expected at least one"):
        audio_scores(torch.zeros(3))


def test_a_drawn_waveform_shows_where_it_is_loud() -> None:
    wave = torch.zeros(480)
    wave[:240:2], wave[1:240:2] = 1, -1
    picture = drawn(wave, 1.0)
    blue = (picture == np.array([31, 91, 165])).all(-1).sum(0)
    assert (blue[:119] == picture.shape[0]).all() and (blue[121:] == 1).all()


# Training


def test_recipes_have_the_published_sizes() -> None:
    one, three = recipe("ipc-audio-1s"), recipe("ipc-audio-3s")
    assert isinstance(one, AudioIpcRecipe) and isinstance(three, AudioIpcRecipe)
    assert (one.model.length, three.model.length, one.rate) == (16000, 48000, 16000)
    spec = one.model.spec
    assert (spec.layers, spec.hidden_dim, spec.coord_dim, spec.out_dim) == (5, 256, 1, 1)
    for given, seconds in ((one, 1), (three, 3)):
        encoding = given.model.spec.encoding
        assert encoding is not None and len(encoding.frequencies) == 2048
        cycles = np.array(encoding.frequencies) / math.pi / seconds  # Hz
        assert cycles[[0, -1]].tolist() == pytest.approx([1, 1024])
    assert (three.coordinates, one.coordinates) == (12000, None)
    assert from_plain(AudioIpcRecipe, as_plain(three)) == three


@pytest.mark.parametrize("bad", [{"rate": 0}, {"coordinates": 97}, {"made_clips": -1}])
def test_recipes_name_bad_values(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(bad))}: expected"):
        replace(RECIPE, **bad)


def test_published_recipes_ask_for_a_folder() -> None:
    with pytest.raises(ValueError, match="folder of audio files; name it with --data"):
        open_data(recipe("ipc-audio-1s"))


def test_a_resumed_run_ends_with_the_same_weights_and_its_export_is_evaluated(
    tmp_path: Path, one_thread: None, own_cache: Path
) -> None:
    data = open_data(RECIPE)
    whole = train(RECIPE, data, tmp_path / "whole", QUIET)
    with pytest.raises(Stopped):
        train(RECIPE, data, tmp_path / "stopped", QUIET, stop_at(5))
    train(RECIPE, data, tmp_path / "stopped", QUIET)
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped"))

    saved = load_saved(whole.weights)
    task = restored(saved, DataOptions(), torch.device("cpu"))
    picture = tmp_path / "picture.png"
    table = task.table(EvaluationOptions(batch_size=2, picture=picture))
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["clips"], cells["samples"], cells["rate (Hz)"]) == ("3", "96", "4000")
    assert float(cells["PSNR (dB, peak 1)"]) == pytest.approx(whole.scores.psnr, abs=0.006)
    with Image.open(picture) as image:
        assert image.width > 3 * 240
    everything = task.table(EvaluationOptions(all_images=True))
    assert everything.rows[0][0] == "12"


def test_training_reconstructs_what_silence_does_not(tmp_path: Path) -> None:
    """Tones of any pitch and phase: held-out ones come back far better than silence."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 200), ("test", 16)):
        for index in range(count):
            phase, cycles = rng.uniform(0, 2 * np.pi), rng.uniform(2, 5)
            wave = rng.uniform(0.3, 0.9) * np.cos(2 * np.pi * cycles * np.arange(96) / 96 + phase)
            write(tmp_path / "tones" / split / f"{index}.wav", wave)
    learn = replace(
        RECIPE, steps=300, batch_size=16, learning_rate=3e-3, held_out_clips=16, schedule="cosine"
    )
    data = open_data(learn, DataOptions(tmp_path / "tones"))
    options = replace(QUIET, checkpoint_every=10**6, evaluate_every=10**6)
    scores = train(learn, data, tmp_path / "run", options).scores.values()
    assert scores["psnr"] > scores["silence_psnr"] + 6


def test_all_samples_are_trained_where_no_number_is_given(tmp_path: Path) -> None:
    """The loss of a step over every sample is the mean of the losses over its halves."""
    for split, count in (("train", 4), ("test", 1)):
        for index in range(count):
            wave = 0.5 * np.sin(0.1 * (index + 1) * np.arange(96))
            write(tmp_path / split / f"{index}.wav", wave)
    task = task_for(replace(RECIPE, coordinates=None), audio_folder(tmp_path))
    torch.manual_seed(0)
    model = task.build()
    task.place(torch.device("cpu"))
    batch = next(iter(task.batches(0, 1, range(4), 0, False)))
    loss = task.loss(model, batch, 0, range(4)).total
    values = model(batch, ginr_fast.grid(96))[..., 0]
    expected = (values - batch).double().square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
