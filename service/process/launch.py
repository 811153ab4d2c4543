"""The supervisor's side of a generation: start it, hear from it, let it go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import service
from service.process import control
from service.process.endings import how_it_ended
from service.settings import PREFIX
from training.common.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from service.process.watch import Target
    from service.settings import Settings

_MARGIN_S = 3.0
"""Seconds more than a generation needs to end by itself."""
_LOOK_S = 0.2
"""Seconds between two looks at whether a generation that is not ready is still there."""


class Launched:
    """A generation that has been started.

    Args:
        process: Its first process, the leader of a process group of its own.
        lease: Write end of its lease.
        control: Our end of the connection with it.
        number: Of the generation.
        on_change: Called when its workers are others.

    Attributes:
        number: Of the generation.
        models: Name, model and version of each that it serves; empty before it is ready.
        pids: Of the workers that answer.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        lease: int,
        control: socket.socket,
        number: int,
        on_change: Callable[[], None],
    ) -> None:
        self.number = number
        self.models: list[dict[str, str]] = []
        self.pids: list[int] = []
        self._process, self._lease, self._on_change = process, lease, on_change
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Who asks for it may have gone, and nobody is to be told that nobody asked.
        self._ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._hearing = asyncio.create_task(self._hear(control))

    @classmethod
    def start(
        cls,
        settings: Settings,
        targets: Mapping[str, Target],
        *,
        number: int,
        listener: socket.socket,
        on_change: Callable[[], None],
    ) -> Self:
        """Start a generation; it is not ready yet.

        Args:
            settings: Of the service.
            targets: Model name to bundle and version.
            number: Of the generation.
            listener: Where its workers are to accept.
            on_change: See the class.
        """
        with contextlib.ExitStack() as ours_if_it_fails, contextlib.ExitStack() as theirs_alone:
            lease_read, lease = os.pipe()
            theirs_alone.callback(os.close, lease_read)
            ours_if_it_fails.callback(os.close, lease)
            ours, theirs = socket.socketpair()
            theirs_alone.enter_context(theirs)
            ours_if_it_fails.enter_context(ours)
            passed = (listener.fileno(), lease_read, theirs.fileno())
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "service.process.generation", *map(str, passed)],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                env=environment(settings),
                # Ctrl-C in a terminal reaches every process of its group: this one alone decides what it means.
                process_group=0,
            )
            ours_if_it_fails.pop_all()
        control.send(ours.fileno(), **control.order(settings, targets, number))
        return cls(process, lease, ours, number, on_change)

    async def ready(self) -> None:
        """Wait until all its workers answer.

        Raises:
            BundleError: They never will; says why.
        """
        ended = False
        while not (await asyncio.wait({self._ready}, timeout=_LOOK_S))[0]:
            # Its workers, if it had any, hold its connection open, and would for ever. What it has said itself, between
            # two looks, comes first.
            if ended:
                self._never_ready()
            ended = self.exit_code is not None
        self._ready.result()

    @property
    def exit_code(self) -> int | None:
        """How its first process ended, negative for a signal; None while it is there."""
        return self._process.poll()

    def release(self) -> None:
        """Let its lease go: its processes answer what they have accepted, and end."""
        if self._lease >= 0:
            os.close(self._lease)
            self._lease = -1

    async def end(self, drain_s: float) -> None:
        """Let it go, and wait until the last of its processes has ended; end them if that takes too long.

        Args:
            drain_s: Seconds that a worker may take.
        """
        self.release()
        done, _ = await asyncio.wait({self._hearing}, timeout=drain_s + _MARGIN_S)
        if not done:
            self.kill()
            await asyncio.wait({self._hearing})
        self._process.wait()
        # Workers that have outlived their parent may have become our children, where we are the first process.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-self._process.pid, 0)

    def kill(self) -> None:
        """End all its processes at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _hear(self, ours: socket.socket) -> None:
        """Take its messages until its last process has ended: each holds the other end of the connection."""
        reader, writer = await asyncio.open_connection(sock=ours, limit=control.MOST_BYTES)
        try:
            with contextlib.suppress(ConnectionResetError):
                async for line in reader:
                    self._take(control.parse(line))
        finally:
            writer.close()
            self.pids = []
            self._never_ready()

    def _never_ready(self) -> None:
        if not self._ready.done():
            how = how_it_ended(self._process.wait())
            self._ready.set_exception(BundleError(f"the process that loads the models {how}; its log says why"))

    def _take(self, message: dict[str, Any]) -> None:
        if message["event"] == control.FAILED:
            if not self._ready.done():
                self._ready.set_exception(BundleError(message["reason"]))
            return
        self.pids = message["pids"]
        if message["event"] == control.READY:
            self.models = message["models"]
            if not self._ready.done():
                self._ready.set_result(None)
        self._on_change()


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment of a generation.

    Args:
        settings: Of the service.
    """
    # What the variables say of the service is in its settings; its secrets need not be in one more place.
    variables = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    # See export.runtime; here it must not be otherwise, whatever somebody has set.
    variables["ORT_DISABLE_TELEMETRY"] = "1"
    if settings.index_threads == 1:
        # A thread that a library starts as it is loaded would not be in the workers.
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # The package that runs here is to run there, wherever this interpreter would look first.
    root = str(Path(service.__file__).parents[1])
    if root not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (root, variables.get("PYTHONPATH"))))
    return variables
