"""Options in the configurations of published code, read by name and refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_REQUIRED: Any = object()


class Options:
    """One level of a configuration.

    Args:
        given: its options; None for none.
        path: its name, in messages.

    Raises:
        ValueError: no mapping. Reading an option raises it, by name, where it is missing, not of
            its kind, or has no counterpart in this library.
    """

    def __init__(self, given: Any, path: str) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"{path}: expected options by name, got {given!r}")
        self._given: Mapping[str, Any] = given or {}
        self.path = path

    def part(self, name: str) -> Options:
        """The options under ``name``."""
        return Options(self._given.get(name), f"{self.path}.{name}")

    def value(self, name: str, default: Any = _REQUIRED) -> Any:
        """An option, or what the published class takes for it."""
        found = self._given.get(name, default)
        if found is _REQUIRED:
            raise ValueError(f"{self.path}.{name}: missing from the configuration")
        return found

    def count(self, name: str, default: Any = _REQUIRED, least: int = 1) -> int:
        """A whole number, ``least`` at the least; of a pair of equal ones, that one."""
        found = self.value(name, default)
        if isinstance(found, Sequence) and len(found) == 2 and found[0] == found[1]:
            found = found[0]
        if isinstance(found, bool) or not isinstance(found, int) or found < least:
            raise ValueError(f"{self.path}.{name}: expected {least} or more, got {found!r}")
        return found

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A number."""
        found = self.value(name, default)
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            raise ValueError(f"{self.path}.{name}: expected a number, got {found!r}")
        return float(found)

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """True or False."""
        found = self.value(name, default)
        if not isinstance(found, bool):
            raise ValueError(f"{self.path}.{name}: expected true or false, got {found!r}")
        return found

    def counts(self, name: str, default: Any = _REQUIRED) -> list[int]:
        """A list of whole numbers, not empty."""
        found = self.value(name, default)
        if not isinstance(found, Sequence) or isinstance(found, str) or not found:
            raise ValueError(f"{self.path}.{name}: expected a list of numbers, got {found!r}")
        if any(isinstance(part, bool) or not isinstance(part, int) for part in found):
            raise ValueError(f"{self.path}.{name}: expected whole numbers, got {found!r}")
        return list(found)

    def must(self, name: str, wanted: Any, default: Any = _REQUIRED) -> None:
        """Refuse any other value of an option: it has no counterpart here."""
        found = self.value(name, default)
        if found != wanted:
            raise self.refused(name, found, f"only {wanted!r} has")

    def refused(self, name: str, found: Any, why: str) -> ValueError:
        """What to raise for a value that has no counterpart here."""
        return ValueError(f"{self.path}.{name}: {found!r} has no counterpart here, {why}")
