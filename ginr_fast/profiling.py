"""NVTX ranges for operators and training phases; off unless ``GINR_FAST_NVTX=1``."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

ENABLED = os.environ.get("GINR_FAST_NVTX") == "1"

Function = TypeVar("Function", bound=Callable)


def annotate(name: str) -> Callable[[Function], Function]:
    """Decorator: an NVTX range called ``ginr_fast.<name>`` around each call of the function."""
    if not ENABLED:
        return lambda function: function
    import nvtx

    return nvtx.annotate(f"ginr_fast.{name}", domain="ginr_fast")


def phase(name: str) -> AbstractContextManager[object]:
    """Context manager: the same around a block, for training phases."""
    if not ENABLED:
        return nullcontext()
    import nvtx

    return nvtx.annotate(f"ginr_fast.{name}", domain="ginr_fast")
