"""Blocks of coordinates, small enough to stay in cache.

A *block* is whole lines of a grid's last axis, or a part of one line; plain points are one long
line.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Rows of a block: on a CPU the operands of one product then sit in the second-level cache; on a
# GPU a block must be large enough to fill the device.
CPU_ROWS = 1536
GPU_ROWS = 32768


def block_rows(device: torch.device) -> int:
    """How many rows (coordinates × instances) a step of the blocked backends takes."""
    return CPU_ROWS if device.type == "cpu" else GPU_ROWS


@functools.cache
def settle_allocator() -> None:
    """Make temporaries cheap for the C allocator."""
    # glibc maps large blocks afresh and hands them back on every free, until it has seen one of
    # that size freed: then it keeps them. One 31 MiB block (the limit is 32) spares the page
    # faults of every temporary that follows. Elsewhere this does nothing.
    torch.empty(31 << 20, dtype=torch.uint8)


@dataclass(frozen=True)
class Block:
    """Lines ``first_line:last_line``, columns ``first:last`` of each."""

    first_line: int
    last_line: int
    first: int
    last: int
    line_length: int

    @property
    def points(self) -> slice:
        """The block in the flat order of the points: always one contiguous range."""
        start = self.first_line * self.line_length + self.first
        return slice(start, start + self.count)

    @property
    def count(self) -> int:
        return (self.last_line - self.first_line) * (self.last - self.first)


def blocks(lines: int, line_length: int, rows: int) -> Iterator[Block]:
    """Blocks of at most ``rows`` points."""
    if line_length > rows:
        parts = math.ceil(line_length / rows)
        step = math.ceil(line_length / parts)
        for line in range(lines):
            for first in range(0, line_length, step):
                last = min(first + step, line_length)
                yield Block(line, line + 1, first, last, line_length)
    else:
        step = rows // line_length
        for line in range(0, lines, step):
            yield Block(line, min(line + step, lines), 0, line_length, line_length)
