"""Synthetic audio, made on the spot: sung vowels, plucked strings, glides and bursts of noise.

A clip is a handful of such events, one after the other and overlapping. Voices follow the
source-filter model of speech: harmonics of a gliding pitch, whose strengths fall with frequency and
rise at the formants of the vowels that the voice moves between (the means of Peterson and Barney,
1952). Strings are Karplus and Strong's (1983): a burst of noise in a loop that smooths it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ginr_fast.data.making import check_settings
from ginr_fast.files import locked, replace_atomically
from ginr_fast.ops.checks import check_count

SETTINGS = "audio.json"
TRAIN, TEST = "train", "test"

# Part of the settings: clips made by another version are other clips.
_VERSION = 1

# First three formants of vowels, in Hz.
_VOWELS = np.array(
    [
        (270.0, 2290.0, 3010.0),  # heed
        (530.0, 1840.0, 2480.0),  # head
        (660.0, 1720.0, 2410.0),  # had
        (730.0, 1090.0, 2440.0),  # hod
        (570.0, 840.0, 2410.0),  # hawed
        (300.0, 870.0, 2240.0),  # who'd
    ]
)
_FORMANT_WIDTH = 120.0  # Hz


@dataclass(frozen=True)
class AudioConfig:
    """What is made.

    Args:
        clips: to train on.
        test_clips: never trained on.
        seconds: length of a clip.
        rate: samples a second.
        seed: of the clips.
    """

    clips: int = 512
    test_clips: int = 64
    seconds: float = 1.0
    rate: int = 16000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clips", "test_clips"):
            check_count(name, getattr(self, name))
        if self.rate < 4000:
            raise ValueError(f"rate: expected at least 4000 samples a second, got {self.rate}")
        if not 0.05 <= self.seconds < float("inf"):
            raise ValueError(f"seconds: expected at least 0.05, got {self.seconds}")
        if self.seed < 0:
            raise ValueError(f"seed: expected an integer of at least 0, got {self.seed}")


def make_audio(
    out: Path | str,
    config: AudioConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a folder of WAV files that :func:`ginr_fast.data.audio.audio_folder` reads.

    A clip appears whole or not at all, so that an interrupted run is taken up by the next one. A
    second process that makes the same folder waits for the first.

    Args:
        out: the folder; ``train`` and ``test`` are made in it.
        config: what to make; :class:`AudioConfig`'s defaults if None.
        progress: called with the clips done and the clips to do, after each clip.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds something else, or audio made with other settings; the message
            names the differences.
    """
    from scipy.io import wavfile

    out, config = Path(out), config or AudioConfig()
    check_settings(out, SETTINGS, "audio", {"version": _VERSION, **asdict(config)})
    jobs = [(TRAIN, 0, index) for index in range(config.clips)]
    jobs += [(TEST, 1, index) for index in range(config.test_clips)]
    with locked(out / ".lock"):
        for abandoned in out.glob("*/.*.partial"):
            abandoned.unlink()
        for done, (split, kind, index) in enumerate(jobs, 1):
            path = out / split / f"clip-{index:06d}.wav"
            if not path.is_file():
                rng = np.random.default_rng((config.seed, kind, index))
                wave = draw_clip(rng, config.seconds, config.rate)
                samples = np.round(wave * 32767).astype(np.int16)
                replace_atomically(path, partial(wavfile.write, rate=config.rate, data=samples))
            if progress is not None:
                progress(done, len(jobs))
    return out


def draw_clip(rng: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """A random clip, ``(round(seconds · rate),)`` float64 in (-1, 1)."""
    total = round(seconds * rate)
    clip = np.zeros(total)
    at = -rng.uniform(0, 0.5)  # a clip begins in the middle of something
    while at < seconds - 0.05:
        length = rng.uniform(0.15, 0.6)
        event = _EVENTS[rng.integers(len(_EVENTS))](rng, max(2, round(length * rate)), rate)
        event *= rng.uniform(0.3, 1.0) / max(np.abs(event).max(), 1e-9)
        first = round(at * rate)
        start, stop = max(first, 0), min(first + len(event), total)
        if start < stop:
            clip[start:stop] += event[start - first : stop - first]
        at += length * rng.uniform(0.5, 0.9)
    return clip * (rng.uniform(0.3, 0.9) / max(np.abs(clip).max(), 1e-9))


def _voice(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """A vowel that becomes another, on a gliding pitch with vibrato."""
    time = np.arange(samples) / rate
    part = np.linspace(0, 1, samples)
    pitch = np.exp(np.interp(part, (0, 1), np.log(rng.uniform(80, 220)) + rng.normal(0, 0.2, 2)))
    pitch *= 1 + 0.015 * np.sin(2 * np.pi * (rng.uniform(4, 7) * time + rng.random()))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    ends = _VOWELS[rng.integers(len(_VOWELS), size=2)] * rng.uniform(0.9, 1.2)
    formants = ends[0][:, None] + (ends[1] - ends[0])[:, None] * part
    wave = np.zeros(samples)
    for number in range(1, int(rate / 2 / pitch.min()) + 1):
        frequency = number * pitch
        envelope = (1 / (1 + ((frequency - formants) / _FORMANT_WIDTH) ** 2)).sum(0) + 0.02
        heard = frequency < 0.45 * rate  # below the Nyquist frequency
        wave += heard * envelope / number * np.sin(number * phase + 2 * np.pi * rng.random())
    return wave * _attack_and_decay(samples, rate, 0.03, 0.06)


def _string(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """A plucked string, ``y_n = x_n + g·(y_{n-p} + y_{n-p-1})/2``."""
    from scipy.signal import lfilter

    period = round(rate / rng.uniform(80, 300))
    pluck = np.zeros(samples)
    pluck[:period] = rng.uniform(-1, 1, period)[:samples]
    loop = np.zeros(period + 2)
    loop[0] = 1
    loop[period:] = -0.5 * rng.uniform(0.985, 0.999)
    return lfilter([1.0], loop, pluck) * _attack_and_decay(samples, rate, 0.002, 0.03)


def _glide(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """A whistle whose pitch moves by up to an octave, with a weak overtone."""
    start = rng.uniform(120, 600)
    frequency = start * 2 ** (rng.uniform(-1, 1) * np.linspace(0, 1, samples))
    phase = 2 * np.pi * np.cumsum(frequency) / rate
    wave = np.sin(phase) + rng.uniform(0, 0.3) * np.sin(2 * phase)
    return wave * _attack_and_decay(samples, rate, 0.04, 0.08)


def _burst(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Noise in a band, as of a consonant or a drum, that dies away."""
    from scipy.signal import butter, lfilter

    low = rng.uniform(100, 800)
    high = min(low * rng.uniform(1.5, 2.5), 0.45 * rate)
    numerator, denominator = butter(2, (low, high), "bandpass", fs=rate)
    noise = lfilter(numerator, denominator, rng.normal(size=samples))
    return noise * np.exp(-np.arange(samples) / (rng.uniform(0.02, 0.1) * rate))


# Voices as often as all the rest.
_EVENTS: tuple[Callable[[np.random.Generator, int, int], np.ndarray], ...] = (
    _voice,
    _voice,
    _voice,
    _string,
    _glide,
    _burst,
)


def _attack_and_decay(samples: int, rate: int, attack: float, decay: float) -> np.ndarray:
    """An envelope that rises within ``attack`` and falls within ``decay`` seconds."""
    time = np.arange(samples) / rate
    return np.minimum(1, time / attack) * np.minimum(1, time[::-1] / decay)
