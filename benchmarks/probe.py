"""A measurement in a process of its own: starting it, and answering from within."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from training.common.errors import DvibError


def run_probe(command: Sequence[str], what: str) -> dict[str, Any]:
    """Run a probe and return what it answered.

    Args:
        command: Its command line.
        what: Which process it is, for the message.

    Raises:
        DvibError: What the probe complains of, or how it ended.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        ended = f"signal {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"code {done.returncode}"
        raise DvibError(f"{what} ended with {ended}; too little memory ends it with SIGKILL")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in result:
        raise DvibError(result["error"])
    return result


def answer(probe: Callable[..., dict[str, Any]], arguments: str) -> None:
    """Call a probe with arguments from JSON, and write its result, or what went wrong, as the last line of stdout."""
    try:
        result = probe(**json.loads(arguments))
    except DvibError as error:
        result = {"error": str(error)}
    sys.stdout.write(json.dumps(result) + "\n")
