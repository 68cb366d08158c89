"""Argument checks that every public operator runs before a kernel sees a pointer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Size = int | str | None

VALUE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PHASE_DTYPES = (torch.float32, torch.float64)
"""Half precision cannot carry a Fourier phase."""


def _described(shape: Sequence[Size]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def autocasts(tensor: torch.Tensor) -> bool:
    """Whether autocast is on for the tensor's device and dtype; it leaves float64 alone."""
    device = tensor.device.type
    return (
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and tensor.dtype != torch.float64
    )


def check_tensor(
    argument: str,
    value: object,
    shape: Sequence[Size],
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Return ``value`` if it is a tensor as described, else raise an error that names ``argument``.

    Args:
        argument: the name the caller knows it by.
        value: what came.
        shape: an integer is required, ``None`` or a string (shown in the message) is any size.
        dtypes: the dtypes allowed; any if None.
        device: the device required; any if None.

    Raises:
        TypeError: not a dense tensor, or of a dtype not allowed.
        ValueError: wrong shape or device.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{argument}: expected a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{argument}: expected a dense tensor, got layout {value.layout}")
    if dtypes is not None and value.dtype not in dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = str(value.dtype).removeprefix("torch.")
        raise TypeError(f"{argument}: expected dtype {allowed}, got {got}")
    matches = len(value.shape) == len(shape) and all(
        not isinstance(want, int) or want == got
        for want, got in zip(shape, value.shape, strict=True)
    )
    if not matches:
        raise ValueError(
            f"{argument}: expected shape {_described(shape)}, got {_described(tuple(value.shape))}"
        )
    if device is not None and value.device != device:
        raise ValueError(f"{argument}: expected device {device}, got {value.device}")
    return value


def check_count(name: str, value: object, optional: bool = False) -> None:
    """Refuse what is no positive integer (or None, if ``optional``), by name.

    Raises:
        ValueError: says what came.
    """
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
