"""What a release says of itself is the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import ginr_fast

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_version_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    stated = re.search(r'^version = "(.+)"', PROJECT, re.MULTILINE)
    assert stated is not None and stated[1] == ginr_fast.__version__
    assert citation["version"] == ginr_fast.__version__ == changes[0]
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["title"]


def test_wheels_are_built_for_every_python_that_is_supported():
    minor = re.search(r'requires-python = ">=3\.(\d+)"', PROJECT)
    built = re.search(r'^build = "(.+)"', PROJECT, re.MULTILINE)
    assert minor is not None and built is not None
    assert [int(n) for n in re.findall(r"cp3(\d+)-\*", built[1])][0] == int(minor[1])
    smoke = re.search(r"^test-command = .*\{project\}/(\S+?)\"", PROJECT, re.MULTILINE)
    assert smoke is not None and (ROOT / smoke[1]).is_file()
