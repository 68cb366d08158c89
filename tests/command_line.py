"""Commands as a user runs them, for several test files."""

from __future__ import annotations

import pytest

from ginr_fast import cli


def run(*arguments: object) -> None:
    """Run a command that must succeed."""
    assert cli.main([str(argument) for argument in arguments]) == 0


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail as a user's mistake: one line, status 2."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ginr-fast: error: ") and error.count("\n") == 1
    return error
