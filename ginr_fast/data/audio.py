"""Audio files: reading one, naming what is wrong with it, resampling; folders of them."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

import numpy as np

from ginr_fast.data.folder import check_folder, files_in, held_out_split, readable

# Read by SciPy, which the training extra brings; the others need soundfile (libsndfile).
WAV_SUFFIXES = (".wav",)
SOUNDFILE_SUFFIXES = (".flac", ".ogg")
SUFFIXES = (*WAV_SUFFIXES, *SOUNDFILE_SUFFIXES)

_FILTERS = Lock()  # the filters of warnings belong to the process, not to a thread


class BrokenAudioError(ValueError):
    """A file that is no audio, is truncated, or holds no samples or values that are not finite."""


@dataclass(frozen=True)
class AudioFiles:
    """The audio files of one data set, split.

    Args:
        root: the folder that holds them.
        train: clips to learn from.
        held_out: clips never learned from.
    """

    root: Path
    train: tuple[Path, ...]
    held_out: tuple[Path, ...]

    def fingerprint(self) -> str:
        """A digest of the names, sizes in bytes and split of the files, wherever the folder is."""
        digest = hashlib.sha256()
        for split, paths in (("train", self.train), ("held_out", self.held_out)):
            for path in paths:
                name = path.relative_to(self.root).as_posix()
                digest.update(f"{split}\0{name}\0{path.stat().st_size}\n".encode())
        return digest.hexdigest()


def load_audio(path: Path, rate: int | None = None) -> tuple[np.ndarray, int]:
    """Read a clip as one channel of values in [-1, 1].

    Integers are divided by the largest magnitude of their type, unsigned bytes about their middle;
    several channels are averaged.

    Args:
        path: a WAV file, or one in FLAC or Ogg if soundfile is installed.
        rate: samples a second to resample to; None keeps the file's own.

    Returns:
        The waveform ``(samples,)``, float32, and its samples a second.

    Raises:
        BrokenAudioError: names the file and what is wrong with it.
        FileNotFoundError: no such file.
        ValueError: ``rate`` is no positive integer, or soundfile is needed and not installed.
    """
    if rate is not None and (not isinstance(rate, int) or rate < 1):
        raise ValueError(f"rate: expected a positive integer, got {rate!r}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BrokenAudioError(f"{path}: expected one of {', '.join(SUFFIXES)}")
    check_readable([path])
    try:
        own, values = _read_wav(path) if suffix in WAV_SUFFIXES else _read_soundfile(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # the readers raise whatever the damaged bytes lead them to
        raise BrokenAudioError(f"{path}: cannot be decoded ({error})") from None
    if own < 1 or not values.size:
        raise BrokenAudioError(f"{path}: holds {len(values)} samples at {own} Hz")
    wave = _scaled(values)
    wave = wave.mean(axis=1) if wave.ndim == 2 else wave
    if not np.isfinite(wave).all():
        raise BrokenAudioError(f"{path}: holds values that are not finite")
    # Decoded floating-point files may exceed full scale.
    return resample(wave.clip(-1, 1), own, rate or own), rate or own


def resample(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A waveform at another rate, by a polyphase filter against aliasing (a Kaiser window).

    Args:
        wave: ``(samples,)``, float32 in [-1, 1].
        rate: its samples a second.
        wanted: samples a second asked for.

    Returns:
        ``(⌈samples · wanted / rate⌉,)``, float32 in [-1, 1].
    """
    if rate == wanted:
        return wave
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    made = resample_poly(wave.astype(np.float64), wanted // common, rate // common)
    return made.clip(-1, 1).astype(np.float32)


def audio_folder(root: Path | str, held_out: float = 0.1, strict: bool = False) -> AudioFiles:
    """The audio files below a folder, checked and split into training and held-out ones.

    Every one is decoded once, so that a broken one shows up now and not after hours of training;
    files with other suffixes than those of audio, such as LibriSpeech's transcripts, are passed
    over. The split is that of :func:`ginr_fast.data.folder`: subfolders ``train`` and ``test`` (or
    ``val``), or else the files whose names have the smallest hashes are held out.

    Args:
        root: the folder; searched recursively.
        held_out: fraction of the clips to hold out (at least one), in (0, 1).
        strict: refuse broken files instead of skipping them with a warning.

    Returns:
        The files, each split sorted by name.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: fewer than two clips, ``strict`` and a file that is broken, or files that need
            soundfile, which is not installed; the message names the files.
    """
    root = Path(root)
    check_folder(root, held_out)
    paths = [path for path in files_in(root) if path.suffix.lower() in SUFFIXES]
    check_readable(paths)
    good = readable(paths, load_audio, BrokenAudioError, strict)
    train, test = held_out_split(root, good, held_out)
    if not train or not test:
        raise ValueError(
            f"data: {root} holds {len(good)} readable clip(s) ({', '.join(SUFFIXES)}), "
            f"{len(train)} to train on and {len(test)} to hold out; expected at least one of each"
        )
    return AudioFiles(root, tuple(train), tuple(test))


def check_readable(paths: Iterable[Path]) -> None:
    """Refuse files that only soundfile can read if it is not installed.

    Raises:
        ValueError: names the first of them and the remedy.
    """
    compressed = [path for path in paths if path.suffix.lower() in SOUNDFILE_SUFFIXES]
    if compressed and find_spec("soundfile") is None:
        raise ValueError(
            f"data: {compressed[0]} is read by soundfile, which is not installed; "
            "pip install soundfile, or convert the clips to WAV"
        )


def _read_wav(path: Path) -> tuple[int, np.ndarray]:
    from scipy.io import wavfile

    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks with tags
        warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
        rate, values = wavfile.read(path)
    return int(rate), values


def _read_soundfile(path: Path) -> tuple[int, np.ndarray]:
    values, rate = import_module("soundfile").read(path, dtype="float32")
    return int(rate), values


def _scaled(values: np.ndarray) -> np.ndarray:
    """float32 of full scale 1; 24-bit samples come as 32-bit ones with the lowest byte zero."""
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if values.dtype.kind == "i":
        return (values / float(-np.iinfo(values.dtype).min)).astype(np.float32)
    return values.astype(np.float32)
