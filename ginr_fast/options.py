"""Options that would be ignored are refused instead."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, fields, is_dataclass
from typing import Any


def refuse_set(options: Any, why: str, but: Collection[str] = ()) -> None:
    """Refuse options that are set though nothing would come of them.

    Args:
        options: a dataclass; dataclasses in it are looked into. Fields without a default are left
            alone.
        why: they are refused, in words that follow the name.
        but: the names of fields that have a use.

    Raises:
        ValueError: names the first.

    Example:
        >>> from ginr_fast.generation.sampling import SamplingOptions
        >>> from ginr_fast.options import refuse_set
        >>> refuse_set(SamplingOptions(), "only of samples")
        >>> refuse_set(SamplingOptions(steps=3), "only of samples")
        Traceback (most recent call last):
        ValueError: steps: only of samples
    """
    for each in fields(options):
        value = getattr(options, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if each.name in but or default is MISSING:
            continue
        if is_dataclass(value):
            refuse_set(value, why)
        elif value != default:
            raise ValueError(f"{each.name}: {why}")
