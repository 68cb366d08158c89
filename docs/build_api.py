"""Writes docs/api.md from the docstrings of the public names: ``python docs/build_api.py``."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import ginr_fast

PAGE = Path(__file__).with_name("api.md")
HEADER = """# Public API

Generated from the docstrings by `python docs/build_api.py`; every example runs as a test.
"""


def _members(value: object) -> list[tuple[str, str]]:
    """Documented public methods and properties of a class, in order of definition."""
    found = []
    for name, member in vars(value).items():
        target = member.fget if isinstance(member, property) else member
        target = getattr(target, "__func__", target)
        public = not name.startswith("_") and (callable(target) or isinstance(member, property))
        if public and inspect.isfunction(target) and inspect.getdoc(target):
            signature = "" if isinstance(member, property) else str(inspect.signature(target))
            found.append((f"{name}{signature}", inspect.getdoc(target) or ""))
    return found


def _section(name: str) -> str:
    value = getattr(ginr_fast, name)
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError):
        signature = ""
    text = [f"## `ginr_fast.{name}`", "", "```text", f"{name}{signature}", "```", ""]
    text += ["```text", inspect.getdoc(value) or "", "```", ""]
    if inspect.isclass(value):
        for heading, documentation in _members(value):
            text += [f"### `{heading}`", "", "```text", documentation, "```", ""]
    return "\n".join(text)


def page() -> str:
    """The whole page."""
    return "\n".join([HEADER, *(_section(name) for name in sorted(ginr_fast.__all__))])


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}", file=sys.stderr)
