"""Rows of weights at unit length, w = v / max(‖v‖, ε), as ``torch.nn.functional.normalize``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

EPSILON = 1e-12

# Weights of a block of instances: on a CPU they stay in the second-level cache from one pass to
# the next; on a GPU a block bounds the workspace.
CPU_BLOCK = 1 << 17
GPU_BLOCK = 1 << 24


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums of a dtype are accumulated in."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def normalized(rows: Tensor) -> Tensor:
    """``rows`` (..., fan in) at unit length, by the formula."""
    return torch.nn.functional.normalize(rows, dim=-1, eps=EPSILON)


def lengths_of(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """max(‖v‖, ε) of ``rows``, (..., 1)."""
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, out=out)
    return lengths.clamp_min_(EPSILON)


def gradient(grad: Tensor, rows: Tensor, lengths: Tensor, out: Tensor | None = None) -> Tensor:
    """∂v = (g − w (w·g)) / n from ∂w = g, the unit rows w and n; g / n where ‖v‖ ≤ ε."""
    out = torch.mul(rows, grad, out=out)
    along = out.sum(-1, keepdim=True)
    along.masked_fill_(lengths <= EPSILON, 0.0)
    return torch.addcmul(grad, rows, along, value=-1.0, out=out).mul_(lengths.reciprocal())


def instance_blocks(batch: int, size: int, device: torch.device) -> Iterator[slice]:
    """Instances of ``size`` weights each, a block at a time."""
    step = max(1, (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK) // size)
    for first in range(0, batch, step):
        yield slice(first, min(first + step, batch))
