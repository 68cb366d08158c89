"""CIFAR-10 and CIFAR-100 as they are distributed: the Python version, the binary one, archives.

Files of the Python version are pickles. They are read without running what a pickle might ask for:
only arrays, bytes, texts, numbers, lists and dictionaries are made of them, and anything else is
refused by name.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ginr_fast.data.images import ImageFiles, StoredImage
from ginr_fast.files import replace_atomically

SIZE = 32
"""Height and width of an image, in pixels."""

_PIXELS = 3 * SIZE * SIZE
_ARCHIVES = (".tar.gz", ".tgz", ".tar")


class BrokenCifarError(ValueError):
    """A file of CIFAR that is missing, truncated or no such file; the message names it."""


@dataclass(frozen=True)
class CifarFormat:
    """One of the four forms CIFAR comes in.

    Args:
        folder: the distribution's own folder.
        train: its files of training images.
        test: its file of test images.
        names: its file with the names of the classes.
        binary: whether files are rows of label bytes and pixels; else they are pickles.
        labels: (pickles) the key of an image's class.
        label_names: (pickles) the key of the names.
        label_bytes: (binary) bytes before the pixels; the last one is the class.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    binary: bool = False
    labels: str = "labels"
    label_names: str = "label_names"
    label_bytes: int = 1

    @property
    def images(self) -> tuple[str, ...]:
        """The files that hold images."""
        return (*self.train, self.test)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
PYTHON_10 = CifarFormat("cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta")
BINARY_10 = CifarFormat(
    "cifar-10-batches-bin",
    tuple(f"{name}.bin" for name in _BATCHES),
    "test_batch.bin",
    "batches.meta.txt",
    binary=True,
)
PYTHON_100 = CifarFormat(
    "cifar-100-python",
    ("train",),
    "test",
    "meta",
    labels="fine_labels",
    label_names="fine_label_names",
)
BINARY_100 = CifarFormat(
    "cifar-100-binary",
    ("train.bin",),
    "test.bin",
    "fine_label_names.txt",
    binary=True,
    label_bytes=2,
)
FORMATS = (PYTHON_10, BINARY_10, PYTHON_100, BINARY_100)


class _Found(NamedTuple):
    """Which form lies where, and the bytes of a file of it; None if there is no such file."""

    form: CifarFormat
    read: Callable[[str], bytes | None]
    where: str


def is_cifar(path: Path | str) -> bool:
    """Whether this is a folder or an archive of CIFAR, or a folder that holds such a folder.

    Args:
        path: what a user names as data; need not exist.

    Raises:
        BrokenCifarError: an archive that cannot be read.
    """
    path = Path(path)
    if _is_archive(path):
        with _opened(path) as archive:
            return next(_members(archive), None) is not None
    return _in_folder(path) is not None


def cifar(path: Path | str) -> ImageFiles:
    """CIFAR-10 or CIFAR-100: 50,000 images to learn from and 10,000 held out, with their classes.

    Args:
        path: ``cifar-10-batches-py``, ``cifar-10-batches-bin``, ``cifar-100-python`` or
            ``cifar-100-binary``; the folder that one of them lies in; or the archive
            (``cifar-10-python.tar.gz`` and so on), which is not unpacked to disk.

    Returns:
        Images in memory (180 MB), in the order of the files; their ``label`` is the number of the
        class, ``classes`` has the names. CIFAR-100 gives its hundred fine classes.

    Raises:
        FileNotFoundError: nothing there.
        BrokenCifarError: no CIFAR, or a file of it is missing or damaged; the message names it.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from ginr_fast.data.cifar import cifar, write_cifar
        >>> folder = tempfile.TemporaryDirectory()
        >>> images, labels = np.zeros((10, 32, 32, 3), np.uint8), np.arange(10) % 2
        >>> found = cifar(write_cifar(folder.name, (images, labels), (images[:2], labels[:2]),
        ...     ["frog", "ship"]))
        >>> len(found.train), len(found.held_out), found.classes[found.train[1].label]
        (10, 2, 'ship')
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"data: {path} does not exist")
    found = _in_archive(path) if _is_archive(path) else _in_folder(path)
    if found is None:
        names = ", ".join(form.folder for form in FORMATS)
        raise BrokenCifarError(f"data: {path} holds none of {names}")
    form = found.form
    contents = {name: found.read(name) for name in (*form.images, form.names)}
    missing = [name for name, content in contents.items() if content is None]
    if missing:
        raise BrokenCifarError(f"data: {found.where} lacks {', '.join(missing)}")
    given = {name: content for name, content in contents.items() if content is not None}
    classes = _class_names(form, f"{found.where}/{form.names}", given[form.names])
    batches = {
        name: _batch(form, f"{found.where}/{name}", given[name], len(classes))
        for name in form.images
    }
    first = len(batches[form.train[0]])
    for name in form.train:
        if len(batches[name]) != first:
            raise BrokenCifarError(
                f"{found.where}/{name}: expected {first} images as in {form.train[0]}, "
                f"got {len(batches[name])}"
            )
    train = tuple(image for name in form.train for image in batches[name])
    return ImageFiles(path, train, tuple(batches[form.test]), classes)


def write_cifar(
    folder: Path | str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
) -> Path:
    """Write images as the Python version of CIFAR-10, for this reader and others of the format.

    No file is ever half written, and the one with the names of the classes is the last.

    Args:
        folder: of the files; made if need be.
        train: images ``(N, 32, 32, 3)`` uint8 and their classes ``(N,)``; N is a multiple of 5,
            the number of files.
        test: the same, any N from 1.
        classes: their names.

    Returns:
        The folder.

    Raises:
        ValueError: arrays of other shapes or dtypes, a number of images that five files cannot
            share, or a class without a name.
    """
    folder = Path(folder)
    files = len(PYTHON_10.train)
    for name, (images, labels) in (("train", train), ("test", test)):
        if images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3) or images.dtype != np.uint8:
            raise ValueError(
                f"{name}: expected (N, {SIZE}, {SIZE}, 3) uint8, got {images.shape} {images.dtype}"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name}: expected classes as integers, got {labels.dtype}")
        if labels.shape != images.shape[:1] or not len(labels):
            raise ValueError(
                f"{name}: expected one class an image and at least one image, got "
                f"{labels.shape} for {images.shape[:1]}"
            )
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(f"{name}: expected classes 0 to {len(classes) - 1}, got others")
    if len(train[0]) % files:
        raise ValueError(f"train: expected a multiple of {files} images, got {len(train[0])}")
    parts = zip(
        PYTHON_10.images,
        [*np.split(train[0], files), test[0]],
        [*np.split(train[1], files), test[1]],
        strict=True,
    )
    for name, images, labels in parts:
        rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), _PIXELS)
        content = {PYTHON_10.labels: labels.tolist(), "data": rows}
        _write(folder / name, content)
    _write(folder / PYTHON_10.names, {PYTHON_10.label_names: list(classes)})
    return folder


def _write(path: Path, content: Mapping[str, Any]) -> None:
    data = pickle.dumps(content, protocol=2)
    replace_atomically(path, lambda temporary: temporary.write_bytes(data))


# Where the files are


def _in_folder(path: Path) -> _Found | None:
    for form in FORMATS:
        for folder in (path, path / form.folder):
            if any((folder / name).is_file() for name in form.images):
                return _Found(form, _reader(folder), str(folder))
    return None


def _reader(folder: Path) -> Callable[[str], bytes | None]:
    def read(name: str) -> bytes | None:
        return (folder / name).read_bytes() if (folder / name).is_file() else None

    return read


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.name.endswith(_ARCHIVES)


def _in_archive(path: Path) -> _Found | None:
    """The files of an archive, read in one pass; of an archive of something else only the names."""
    found: CifarFormat | None = None
    contents: dict[str, bytes] = {}
    with _opened(path) as archive:
        for form, member in _members(archive):
            found = found or form
            name = Path(member.name).name
            if form == found and name in (*form.images, form.names):
                file = archive.extractfile(member)
                assert file is not None  # of a regular file
                contents[name] = file.read()
        stream: Any = archive.fileobj
        while stream.read(1 << 20):  # the checksum is compared at the very end
            pass
    return _Found(found, contents.get, str(path)) if found else None


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise BrokenCifarError(f"{path}: truncated, damaged or no archive ({error})") from None


def _members(archive: tarfile.TarFile) -> Iterator[tuple[CifarFormat, tarfile.TarInfo]]:
    """The files in folders of CIFAR."""
    folders = {form.folder: form for form in FORMATS}
    for member in archive:
        folder = Path(member.name).parent.name
        if member.isfile() and folder in folders:
            yield folders[folder], member


# What is in them


def _class_names(form: CifarFormat, where: str, content: bytes) -> tuple[str, ...]:
    if form.binary:
        names: Any = content.split()
    else:
        names = _unpickled(where, content).get(form.label_names)
    if not isinstance(names, list) or not names:
        raise BrokenCifarError(f"{where}: expected the names of the classes, found none")
    return tuple(_text(name) for name in names)


def _batch(form: CifarFormat, where: str, content: bytes, classes: int) -> list[StoredImage]:
    read = _binary if form.binary else _pickled
    pixels, labels = read(form, where, content)
    wrong = [label for label in labels if not 0 <= label < classes]
    if wrong:
        raise BrokenCifarError(f"{where}: expected classes 0 to {classes - 1}, got {wrong[0]}")
    images = np.ascontiguousarray(pixels.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1))
    name = where.rsplit("/", 1)[-1]
    return [
        StoredImage(f"{name}/{row:05d}", image, label)
        for row, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def _binary(form: CifarFormat, where: str, content: bytes) -> tuple[np.ndarray, list[int]]:
    width = form.label_bytes + _PIXELS
    if not content or len(content) % width:
        raise BrokenCifarError(
            f"{where}: expected rows of {width} bytes, got {len(content)} bytes; it is truncated"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, width)
    return rows[:, form.label_bytes :], rows[:, form.label_bytes - 1].tolist()


def _pickled(form: CifarFormat, where: str, content: bytes) -> tuple[np.ndarray, list[int]]:
    found = _unpickled(where, content)
    pixels, labels = found.get("data"), found.get(form.labels)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != _PIXELS
        or not len(pixels)
    ):
        got = f"{pixels.shape} {pixels.dtype}" if isinstance(pixels, np.ndarray) else type(pixels)
        raise BrokenCifarError(f"{where}: expected data, (N, {_PIXELS}) uint8, got {got}")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise BrokenCifarError(f"{where}: expected {form.labels}, a list of integers")
    if len(labels) != len(pixels):
        raise BrokenCifarError(
            f"{where}: expected a label for each of {len(pixels)} images, got {len(labels)}"
        )
    return pixels, labels


class _Unpickler(pickle.Unpickler):
    """Makes nothing but arrays and plain values."""

    # An array's pickle names these, in files of NumPy 1 and 2 and of protocols up to 4, then 5.
    _ARRAYS: Mapping[str, Any] = {
        "_reconstruct": np.empty(0).__reduce__()[0],
        "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }
    _MODULES = (
        "numpy",
        *(
            f"numpy.{core}.{part}"
            for core in ("core", "_core")
            for part in ("multiarray", "numeric")
        ),
    )

    def find_class(self, module: str, name: str) -> Any:
        if module in self._MODULES and name in self._ARRAYS:
            return self._ARRAYS[name]
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _encoded
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"asks for bytes by {encoding!r}")
    return text.encode("latin1")


def _unpickled(where: str, content: bytes) -> dict[str, Any]:
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise BrokenCifarError(f"{where}: no file of CIFAR, or a damaged one ({error})") from None
    except Exception as error:  # damaged bytes lead an unpickler to whatever there is
        raise BrokenCifarError(f"{where}: truncated or damaged ({error})") from None
    if not isinstance(found, dict):
        raise BrokenCifarError(f"{where}: expected a dictionary, got {type(found).__name__}")
    return {_text(key): value for key, value in found.items()}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
