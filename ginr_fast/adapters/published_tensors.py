"""The tensors of a published state dict, taken by name, and what was missing or left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ginr_fast.systems.published import check_published

_SHOWN = 8


def some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


class Tensors:
    """The tensors of a published state dict.

    Args:
        state: the state dict.
        zeros: ends of names that may be missing: they are then zero.
    """

    def __init__(self, state: Mapping[str, Tensor], zeros: tuple[str, ...] = ()) -> None:
        self._state, self._zeros = state, zeros
        self._taken: set[str] = set()
        self._missing: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """One tensor; zeros if it is missing, which :meth:`finish` tells.

        Raises:
            ValueError: another shape, or no real floats.
        """
        self._taken.add(name)
        value = self._state.get(name)
        if value is None:
            if not any(name.endswith(end) for end in self._zeros):
                self._missing.append(name)
            return torch.zeros(tuple(shape))
        return check_published(name, value, shape)

    def finish(self) -> list[str]:
        """The names of what nobody took.

        Raises:
            ValueError: what was missing, by name.
        """
        if self._missing:
            raise ValueError(f"state: {len(self._missing)} missing: {some(self._missing)}")
        return [name for name in self._state if name not in self._taken]
