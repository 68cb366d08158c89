"""Writing latents and their statistics as they come, without holding them all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import torch

from ginr_fast.files import replace_atomically
from ginr_fast.generation.latents import FORMAT, STAGE, About

Storage = Literal["float32", "float16", "bfloat16"]
_FLOOR = 1e-6  # of the largest standard deviation
_NOTHING = 1e-12  # a standard deviation below counts as none
_SLACK = 64  # bytes of the header that are left for what is known only at the end
_CODES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.bool: "BOOL",
    torch.uint8: "U8",
}
_Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def write_latents(
    path: Path,
    batches: Iterable[torch.Tensor],
    names: Sequence[str],
    about: About,
    stage: Mapping[str, torch.Tensor],
    labels: Sequence[int] | None = None,
    storage: Storage = "float32",
) -> About:
    """Write a file that :class:`~ginr_fast.generation.latents.Latents` reads, atomically.

    Args:
        path: the file.
        batches: latents ``(B, H)`` or ``(B, R, D)``, as many in all as there are names; a batch
            may be empty.
        names: of the instances, none of them empty.
        about: where they come from; how many elements are constant is found here.
        stage: the weights of the stage-1 model.
        labels: classes of the instances.
        storage: the dtype latents are kept in.

    Returns:
        ``about``, as written.

    Raises:
        ValueError: not as many latents as names, an empty name, shapes that differ or hold nothing,
            values that are not finite or too large for the storage (the message names the
            instance), or nothing varies.
    """
    if storage not in get_args(Storage):
        raise ValueError(f"storage: expected {', '.join(get_args(Storage))}, got {storage!r}")
    if not names:
        raise ValueError("latents: expected at least one instance")
    if not all(names):
        raise ValueError(
            f"names: expected one an instance, number {list(names).index('')} is empty"
        )
    if labels is not None and len(labels) != len(names):
        raise ValueError(f"labels: expected {len(names)}, one a name, got {len(labels)}")
    beside = {STAGE + name: value for name, value in stage.items()}
    if labels is not None:
        beside["labels"] = torch.tensor(list(labels), dtype=torch.int64)
    lines = "\n".join(name.replace("\n", " ") for name in names).encode()
    beside["names"] = torch.frombuffer(bytearray(lines), dtype=torch.uint8)
    written: list[About] = []

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            dtype = getattr(torch, storage)
            written.append(_write(file, iter(batches), names, about, beside, dtype))

    replace_atomically(path, write)
    return written[0]


def _write(
    file: BinaryIO,
    batches: Iterable[torch.Tensor],
    names: Sequence[str],
    about: About,
    beside: dict[str, torch.Tensor],
    dtype: torch.dtype,
) -> About:
    layout: _Layout = {}
    done = 0
    for batch in batches:
        if not len(batch):
            continue
        if not layout:
            shape = tuple(batch.shape[1:])
            statistics = _Statistics(shape)
            layout = {name: (part.dtype, tuple(part.shape)) for name, part in beside.items()}
            layout |= {name: (torch.float32, shape) for name in ("mean", "std")}
            layout["latents"] = (dtype, (len(names), *shape))
            start, offsets = _laid_out(layout, about)
            file.seek(start + offsets["latents"])
        rows = _checked(batch, shape, dtype, names[done : done + len(batch)])
        file.write(_bytes(rows))
        statistics.update(rows)
        done += len(rows)
    if done != len(names):
        raise ValueError(f"latents: expected {len(names)}, one a name, got {done}")
    mean, std, constant = statistics.found()
    for name, part in {**beside, "mean": mean, "std": std}.items():
        file.seek(start + offsets[name])
        file.write(_bytes(part))
    about = replace(about, constant=constant)
    file.seek(0)
    file.write(_header(layout, about, start))
    return about


class _Statistics:
    """Mean and standard deviation of rows as they come, in float64 (Chan et al., 1983)."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.count = 0
        self.mean = torch.zeros(*shape, dtype=torch.float64)
        self.squares = torch.zeros(*shape, dtype=torch.float64)

    def update(self, rows: torch.Tensor) -> None:
        count, rows = len(rows), rows.double()
        mean, total = rows.mean(0), self.count + count
        apart = mean - self.mean
        self.squares += (rows - mean).square().sum(0)
        self.squares += apart.square() * (self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total

    def found(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Mean, standard deviation with its floor, and how many elements stand on that."""
        std = (self.squares / self.count).sqrt()
        if not std.max() > _NOTHING:
            raise ValueError(
                f"latents: expected some that differ, all {self.count} of them are alike"
            )
        floor = _FLOOR * float(std.max())
        return self.mean.float(), std.clamp(min=floor).float(), int((std <= floor).sum())


def _checked(
    batch: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, names: Sequence[str]
) -> torch.Tensor:
    """A batch as it is stored, on the CPU."""
    if tuple(batch.shape[1:]) != shape or len(shape) not in (1, 2) or not batch.numel():
        raise ValueError(
            f"latents: expected (B, H) or (B, R, D) like the first ones, {shape} each, "
            f"got {tuple(batch.shape)}"
        )
    rows = batch.detach().cpu().to(dtype)
    finite = rows.flatten(1).isfinite().all(1)
    for name, good in zip(names, finite.tolist(), strict=False):
        if not good:
            raise ValueError(f"latents: expected values that {dtype} holds, {name} has others")
    return rows


def _bytes(part: torch.Tensor) -> Any:
    flat = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy()


def _laid_out(layout: _Layout, about: About) -> tuple[int, dict[str, int]]:
    """Where the tensors start in the file, and each of them after that."""
    header = _header(layout, about, None)
    return len(header), _offsets(layout)


def _offsets(layout: _Layout) -> dict[str, int]:
    """Wider types first, so that each tensor lies on a multiple of its type's size."""
    offsets, at = {}, 0
    for name in sorted(layout, key=lambda name: (-layout[name][0].itemsize, name)):
        offsets[name] = at
        at += _size(*layout[name])
    return offsets


def _size(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return dtype.itemsize * int(torch.Size(shape).numel())


def _header(layout: _Layout, about: About, length: int | None) -> bytes:
    """The length of what follows in eight bytes, then JSON and blanks; ``length`` bytes in all."""
    entries: dict[str, object] = {
        "__metadata__": {"format": FORMAT, "about": json.dumps(vars(about))}
    }
    offsets = _offsets(layout)
    for name in sorted(layout, key=offsets.__getitem__):
        dtype, shape = layout[name]
        ends = [offsets[name], offsets[name] + _size(dtype, shape)]
        entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": ends}
    text = json.dumps(entries).encode()
    if length is None:
        length = -(-(8 + len(text) + _SLACK) // 8) * 8
    return (length - 8).to_bytes(8, "little") + text.ljust(length - 8)
