"""Ways to run ``dvib-train`` inside the tests' process."""

from __future__ import annotations

import logging

import pytest

from training.cli import app
from training.common import console


def command(*arguments: object) -> int:
    """Run a subcommand and return its exit code."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with pytest.raises(SystemExit) as caught:
            console.run("dvib-train", lambda: app, [str(argument) for argument in arguments])
    finally:
        # The commands set up the process's logging.
        root.handlers[:] = handlers
        root.setLevel(level)
    code = caught.value.code
    return 0 if code is None else int(code)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command that refused has written."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("dvib-train: ")
    return err
