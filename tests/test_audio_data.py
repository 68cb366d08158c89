"""Audio files, clips cut from them, and synthetic audio."""

from __future__ import annotations

import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from ginr_fast.data.audio import AudioFiles, BrokenAudioError, audio_folder, load_audio, resample
from ginr_fast.data.clips import HeldOutClips, TrainingClips
from ginr_fast.data.tones import AudioConfig, make_audio


def tone(samples: int, hertz: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)


def write(path: Path, values: np.ndarray, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, values)
    return path


# Reading


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 128, 255], np.uint8), [-1, 0, 127 / 128]),
        (np.array([-32768, 0, 16384], np.int16), [-1, 0, 0.5]),
        (np.array([-(2**31), 0, 2**30], np.int32), [-1, 0, 0.5]),
        (np.array([-0.25, 0, 0.5], np.float32), [-0.25, 0, 0.5]),
        (np.array([-0.25, 3, -2], np.float64), [-0.25, 1, -1]),
        (np.array([[-32768, 0], [16384, 0]], np.int16), [-0.5, 0.25]),
    ],
)
def test_every_kind_of_sample_is_read_at_full_scale(
    tmp_path: Path, values: np.ndarray, expected: list[float]
) -> None:
    wave, rate = load_audio(write(tmp_path / "a.wav", values))
    assert (wave.dtype, rate) == (np.float32, 8000)
    assert wave.tolist() == pytest.approx(expected)


def test_resampling_keeps_a_tone_and_drops_what_the_new_rate_cannot_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(4410, 300, 44100).astype(np.float32), 44100)
    wave, rate = load_audio(path, 16000)
    assert (len(wave), rate) == (1600, 16000)
    inside = slice(100, 1500)
    assert np.abs(wave - tone(1600, 300, 16000))[inside].max() < 2e-3
    high = resample(tone(4410, 10000, 44100).astype(np.float32), 44100, 16000)
    assert np.abs(high[inside]).max() < 5e-3


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.wav", np.arange(1000, dtype=np.int16)).read_bytes()
    broken = {
        "empty.wav": b"",
        "text.wav": b"not audio at all",
        "header.wav": whole[:30],
        "truncated.wav": whole[:1000],
        "nothing.wav": whole[:4] + (36).to_bytes(4, "little") + whole[8:40] + bytes(4),
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BrokenAudioError, match=name):
            load_audio(tmp_path / name)
    write(tmp_path / "nan.wav", np.array([0, np.nan], np.float32))
    with pytest.raises(BrokenAudioError, match="nan.wav: holds values that are not finite"):
        load_audio(tmp_path / "nan.wav")
    with pytest.raises(BrokenAudioError, match="a.mid: expected one of .wav, .flac, .ogg"):
        load_audio(tmp_path / "a.mid")
    with pytest.raises(FileNotFoundError):
        load_audio(tmp_path / "absent.wav")
    with pytest.raises(ValueError, match="rate: expected a positive integer, got 0"):
        load_audio(tmp_path / "whole.wav", 0)


def test_chunks_with_tags_do_not_warn(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.arange(10, dtype=np.int16))
    content = path.read_bytes() + b"LIST" + (4).to_bytes(4, "little") + b"INFO"
    path.write_bytes(content[:4] + (len(content) - 8).to_bytes(4, "little") + content[8:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_audio(path)[0]) == 10


def test_flac_is_read_by_soundfile_or_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.flac", "b.FLAC"):
        (tmp_path / name).write_bytes(b"fLaC")
    monkeypatch.setattr("ginr_fast.data.audio.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="a.flac is read by soundfile.*pip install soundfile"):
        audio_folder(tmp_path)
    fake = types.ModuleType("soundfile")
    fake.read = lambda path, dtype: (np.full((5, 2), 0.25, dtype), 8000)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "soundfile", fake)
    monkeypatch.setattr("ginr_fast.data.audio.find_spec", lambda name: object())
    assert len(audio_folder(tmp_path).train) == 1
    assert load_audio(tmp_path / "b.FLAC")[0].tolist() == [0.25] * 5


# Folders and clips


@pytest.fixture
def many(tmp_path: Path) -> Path:
    for index in range(10):
        samples = np.full(50 + 10 * index, 100 * (index + 1), np.int16)
        write(tmp_path / f"speaker-{index % 2}" / f"{index}.wav", samples)
    (tmp_path / "speaker-0" / "words.trans.txt").write_text("a transcript")
    return tmp_path


def test_a_folder_is_split_by_name_and_passes_over_what_is_no_audio(many: Path) -> None:
    files = audio_folder(many, held_out=0.2, strict=True)
    assert (len(files.train), len(files.held_out)) == (8, 2)
    assert not set(files.train) & set(files.held_out)
    assert audio_folder(many, held_out=0.2) == files
    longer = write(files.train[0], np.zeros(500, np.int16))
    changed = AudioFiles(many, files.train, files.held_out)
    assert longer in changed.train
    assert changed.fingerprint() == audio_folder(many, held_out=0.2).fingerprint()
    assert changed.fingerprint() != replace(files, held_out=files.held_out[:1]).fingerprint()


def test_broken_files_of_a_folder_are_skipped_or_refused(many: Path) -> None:
    before = audio_folder(many).fingerprint()
    (many / "broken.wav").write_bytes(b"RIFF")
    with pytest.warns(UserWarning, match="1 file.s. skipped: .*broken.wav"):
        assert audio_folder(many).fingerprint() == before
    with pytest.raises(ValueError, match="1 file.s. refused: .*broken.wav"):
        audio_folder(many, strict=True)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent is no folder"):
        audio_folder(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds 0 readable clip"):
        audio_folder(tmp_path)
    with pytest.raises(ValueError, match="held_out: expected a fraction"):
        audio_folder(tmp_path, held_out=1.0)


def test_training_clips_are_a_pure_function_of_seed_step_and_slots(many: Path) -> None:
    files = audio_folder(many)
    clips = TrainingClips(files, 8000, 64, batch_size=4, seed=3)
    whole = clips.batch(5, range(4))
    assert whole.shape == (4, 64) and whole.dtype == torch.float32
    again = TrainingClips(files, 8000, 64, batch_size=4, seed=3)
    parts = [again.batch(5, range(2, 4)), again.batch(5, range(2))]
    assert torch.equal(whole, torch.cat(parts[::-1]))
    assert not torch.equal(whole, clips.batch(6, range(4)))
    assert not torch.equal(whole, TrainingClips(files, 8000, 64, 4, 4).batch(5, range(4)))
    assert clips.steps_per_epoch() == 9 // 4


def test_an_epoch_sees_every_file_once_and_short_ones_end_in_zeros(many: Path) -> None:
    files = audio_folder(many, held_out=0.2)
    clips = TrainingClips(files, 8000, 64, batch_size=4, seed=0)
    epoch = torch.cat([clips.batch(step, range(4)) for step in range(2)])
    levels = sorted(round(float(clip[0]) * 32768) // 100 for clip in epoch)
    assert levels == sorted(int(path.stem) + 1 for path in files.train)
    for clip in epoch:
        index = round(float(clip[0]) * 32768) // 100 - 1
        assert int((clip != 0).sum()) == min(64, 50 + 10 * index)


def test_crops_reach_both_ends_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.arange(1, 13, dtype=np.int16))
    clips = TrainingClips(AudioFiles(tmp_path, (path,), (path,)), 8000, 10, 1, 0)
    starts = {round(float(clips.batch(step, range(1))[0, 0]) * 32768) for step in range(40)}
    assert starts == {1, 2, 3}


def test_held_out_clips_are_the_beginnings_of_files(many: Path) -> None:
    files = audio_folder(many, held_out=0.3)
    clips = HeldOutClips(files, 8000, 40, at_most=2)
    assert len(clips) == 2
    expected = [load_audio(path)[0][:40] for path in files.held_out[:2]]
    assert np.array_equal(clips.clips(range(2)).numpy(), np.stack(expected))


# Synthetic audio


def test_made_audio_is_the_same_everywhere_and_finishes_what_was_interrupted(
    tmp_path: Path,
) -> None:
    config = AudioConfig(clips=6, test_clips=2, seconds=0.3, rate=8000)
    counts: list[tuple[int, int]] = []
    made = make_audio(tmp_path / "a", config, lambda done, total: counts.append((done, total)))
    assert counts[-1] == (8, 8)
    files = audio_folder(made, strict=True)
    assert (len(files.train), len(files.held_out)) == (6, 2)
    waves = [load_audio(path)[0] for path in (*files.train, *files.held_out)]
    assert all(len(wave) == 2400 and 0.2 < np.abs(wave).max() < 1 for wave in waves)
    assert len({wave.tobytes() for wave in waves}) == 8
    files.train[0].unlink()
    (files.train[1].parent / ".clip-000009.wav.1.partial").write_bytes(b"abandoned")
    again = audio_folder(make_audio(tmp_path / "a", config))
    other = audio_folder(make_audio(tmp_path / "b", config))
    for one, two, before in zip(again.train, other.train, waves, strict=False):
        assert one.read_bytes() == two.read_bytes()
        assert np.array_equal(load_audio(one)[0], before)
    assert not list((tmp_path / "a").glob("*/.*.partial"))


def test_made_audio_of_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    make_audio(tmp_path, AudioConfig(clips=1, test_clips=1, seconds=0.1, rate=4000))
    with pytest.raises(ValueError, match="audio made otherwise .*seed is 0, asked for 1"):
        make_audio(tmp_path, AudioConfig(clips=1, test_clips=1, seconds=0.1, rate=4000, seed=1))


@pytest.mark.parametrize("bad", [{"clips": 0}, {"rate": 100}, {"seconds": 0.0}, {"seed": -1}])
def test_bad_settings_of_made_audio_are_named(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(bad))}: expected"):
        AudioConfig(**bad)
