"""A plugin of pytest that tests the extension of build/sanitize in place of the installed one.

``make sanitize`` loads it (``-p sanitized_extension``) with the sanitizers' libraries preloaded.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load() -> None:
    """Make ``ginr_fast._C`` the extension in GINR_FAST_SANITIZED, a folder."""
    folder = ROOT / os.environ.get("GINR_FAST_SANITIZED", "build/sanitize")
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    found = [folder / f"_C{suffix}" for suffix in suffixes if (folder / f"_C{suffix}").exists()]
    if not found:
        raise FileNotFoundError(f"{folder}: expected the extension, built with sanitizers")
    spec = importlib.util.spec_from_file_location("ginr_fast._C", found[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["ginr_fast._C"] = module


load()
