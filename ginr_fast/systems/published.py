"""What tensors of published checkpoints must be to be taken over."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def check_published(name: str, value: torch.Tensor, shape: Sequence[int | None]) -> torch.Tensor:
    """Return a tensor of a published state dict, if it holds real floats in such a shape.

    Args:
        name: its name there.
        value: the tensor.
        shape: what is wanted; None for any size, in all dimensions or in none.

    Raises:
        ValueError: another shape, or integers, complex numbers, or no numbers at all, by name.
    """
    got, wanted = tuple(value.shape), tuple(shape)
    fits = len(got) == len(wanted) if None in wanted else got == wanted
    dense = value.layout == torch.strided and not value.is_meta
    if fits and dense and value.is_floating_point():
        return value
    size = f"{len(wanted)} dimensions" if None in wanted else f"shape {wanted}"
    kind = value.dtype if dense else f"{value.layout} on {value.device}"
    raise ValueError(f"state: expected {name} of {size}, real floats, got {got} {kind}")
