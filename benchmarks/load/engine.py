"""The engine without HTTP, in a process of its own that works only when it is told to; see ``measure``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.http_client import ServerError
from training.common.console import EXIT_BAD_INPUT
from training.common.errors import DvibError

BATCH = 32
"""Users of one call."""


class EngineProcess:
    """The other end of the process.

    Args:
        process: Running ``main`` below.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Which process it is."""
        return self._process.pid

    def cpu_per_user(self, seconds: float) -> float:
        """Answer batches for some time.

        Returns:
            CPU seconds of the process for each user.

        Raises:
            ServerError: The process has ended; stderr says why.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise ServerError("the engine's process has no input or output")
        try:
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise ServerError("the engine's process has ended")
        return float(line)


@contextmanager
def engine_process(folder: Path, k: int, seed: int) -> Iterator[EngineProcess]:
    """Run the engine of a bundle in a process of its own until the block ends.

    Args:
        folder: The bundle.
        k: Items per answer.
        seed: Draws the users that are asked for.

    Yields:
        The process; it loads the bundle while the caller goes on.
    """
    arguments = json.dumps({"folder": str(folder.absolute()), "k": k, "seed": seed})
    command = [sys.executable, "-P", "-m", "benchmarks.load.engine", arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield EngineProcess(process)
        finally:
            process.kill()


def work(folder: str, k: int, seed: int) -> None:
    """Read numbers of seconds from stdin; for each, answer batches for that long and write CPU seconds per user.

    Raises:
        BundleError: The bundle is unusable.
    """
    from benchmarks.load.questions import Asked
    from service.engine import Engine
    from service.values import Request

    asked = Asked.read(Path(folder), k, seed)
    engine = Engine.load(asked.folder, index_threads=1)
    generator = np.random.default_rng(seed)

    def batch() -> None:
        users = generator.integers(len(asked.users), size=BATCH).tolist()
        engine.recommend_many([Request(asked.users[user], k) for user in users])

    batch()
    for line in sys.stdin:
        batches, end = 0, time.perf_counter() + float(line)
        before = time.process_time()
        while time.perf_counter() < end or not batches:
            batch()
            batches += 1
        sys.stdout.write(f"{(time.process_time() - before) / (batches * BATCH)!r}\n")
        sys.stdout.flush()


def main() -> None:
    """Read the arguments of ``work`` as JSON from the command line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    try:
        work(**json.loads(sys.argv[1]))
    except DvibError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EXIT_BAD_INPUT) from error


if __name__ == "__main__":
    main()
