"""Signals at the moments that are easily missed: before anything is there, all at once, and when all is over."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from service.process import supervisor
from service.process.supervisor import Supervisor
from service.process.watch import Target
from service.settings import Settings
from tests.service.processes import command, environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.service.processes import StartServer


class Instant:
    """Stands for a generation that is ready, and ends, at once."""

    number, exit_code, pids = 0, None, (1,)
    models = ({"name": "toy", "model": "vbpr", "version": "0"},)
    wake: Callable[[], None]

    @classmethod
    def start(cls, *_: Any, on_change: Callable[[], None], **__: Any) -> Instant:
        cls.wake = on_change
        return cls()

    async def ready(self) -> None: ...

    async def end(self, _drain_s: float) -> None: ...

    def release(self) -> None: ...


class Nothing:
    """Stands for a watch that always sees the same, and for metrics that nobody reads."""

    def look(self) -> dict[str, Target]:
        return {}

    def serves(self, _number: int) -> None: ...


@pytest.mark.parametrize("turns", range(6))
def test_sigterm_is_heard_whatever_else_happens_in_the_same_turn(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many turns of the event loop after a change that wakes the supervisor up, as an ended child is one."""
    monkeypatch.setattr(supervisor, "Launched", Instant)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def then(left: int) -> None:
            if left:
                loop.call_soon(then, left - 1)
            else:
                signal.raise_signal(signal.SIGTERM)

        def wake_and_stop() -> None:
            Instant.wake()
            then(turns)

        def ready(_: str) -> None:
            loop.call_later(0.05, wake_and_stop)
            done.set()

        nothing: Any = Nothing()
        with socket.socket() as listener:
            async with asyncio.timeout(5):
                await Supervisor(Settings(watch_s=60), nothing, listener, nothing).run(ready)
        assert done.is_set()

    asyncio.run(run())


def test_both_ends_of_the_life_are_safe(serve: StartServer, folder: Path, tmp_path: Path) -> None:
    """SIGTERM and SIGHUP without pause until the process is gone; nothing is left in the temporary folder."""
    with serve("--bundle", f"toy={folder}", "--port", "0", TMPDIR=str(tmp_path)) as server:
        assert len(list(tmp_path.iterdir())) == 1
        deadline = time.monotonic() + 10
        while server.process.poll() is None and time.monotonic() < deadline:
            for number in (signal.SIGTERM, signal.SIGHUP):
                os.kill(server.process.pid, number)
            time.sleep(0.0005)
        assert server.process.returncode == 0
        assert server.process.stderr is not None
        assert "Traceback" not in server.process.stderr.read()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, True), (signal.SIGHUP, False)])
def test_a_signal_while_libraries_are_imported(folder: Path, number: signal.Signals, ends: bool) -> None:
    line = command("--bundle", f"toy={folder}", "--port", "0")
    line[1:1] = ["-X", "importtime"]  # says on stderr what is being imported
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "training.common.errors" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        if not ends:
            # Nobody reads on, so it gets no further than a pipe is long unless somebody does.
            while "service.settings" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(10) == 0
