"""A real ``python -m service`` process for tests."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pathlib import Path

START_S = 30
STOP_S = 10


@dataclass(frozen=True)
class Server:
    """A server that has announced its address."""

    process: subprocess.Popen[str]
    url: str
    announcement: str


def tree(server: Server) -> list[psutil.Process]:
    """Return the supervisor and everything that it has started."""
    process = psutil.Process(server.process.pid)
    return [process, *process.children(recursive=True)]


def generations(server: Server) -> list[psutil.Process]:
    """Return the processes that load models, the oldest first."""
    return sorted(psutil.Process(server.process.pid).children(), key=lambda process: process.create_time())


def until(condition: Callable[[], object], seconds: float = 20, what: str = "it") -> None:
    """Wait for something to become true.

    Raises:
        AssertionError: It has not, in so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.02)


def all_gone(processes: list[psutil.Process]) -> bool:
    """Tell whether none of some processes runs any more; one that nobody has waited for does not run."""
    return not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


StartServer = Callable[..., AbstractContextManager[Server]]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without the project's own variables, and with some more."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DVIB_")} | extra


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "service", *arguments]


def run(*line: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command line that ends by itself."""
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, env=environment(**extra))


@contextmanager
def serving(*arguments: str, cwd: Path, **extra: str) -> Iterator[Server]:
    """Start the service in a folder, wait for its address, stop it at the end."""
    with subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(**extra),
    ) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], START_S)
            line = process.stdout.readline() if ready else ""
            if "http://" not in line:
                process.kill()
                raise AssertionError(f"the server did not start: {line!r} {process.communicate()[1]}")
            yield Server(process, line.split("listening on ")[1].split(",")[0], line)
        finally:
            process.terminate()
            deadline = time.monotonic() + STOP_S
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            process.kill()
