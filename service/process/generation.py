"""A generation: one process that loads a set of bundles and forks the workers that answer from them.

Run as ``python -P -m service.process.generation LISTENER LEASE CONTROL``, three descriptors, by the supervisor alone.

What is loaded before the fork is shared by all workers. So nothing here may start a thread, which no fork takes along.

The *lease* is a pipe of which the supervisor holds the other end, and nobody else: generation and workers end when it
does, whether it let go on purpose or was killed. Until everything is loaded the system itself sees to that.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service.process import control
from service.process.endings import EXPECTED, ending_with, how_it_ended, sentence
from service.settings import PREFIX
from training.common.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.engine import Engine
    from service.settings import Settings

_START_S = 60.0
"""Seconds in which a forked worker must listen, where it has nothing to load."""
_END_S = 2.5
"""Seconds more than a worker may take to drain: more than it gives itself, less than the supervisor gives all."""
_LOOK_S = 0.02
_EARLY_S = 10.0
"""A worker that lives shorter has not worked."""
_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Before a worker is forked again, by how many in a row ended early before it."""

_LOG = logging.getLogger(__name__)


@dataclass
class Place:
    """One of the workers, and those that come after it.

    Attributes:
        index: From 0.
        pid: Of the process; 0 where there is none.
        reports: Where the process says that it listens; -1 where nothing more is to come.
        listens: Whether it has said so.
        began: When it was forked.
        due: When the next one is to be forked.
        early: How many have ended early in a row.
    """

    index: int
    pid: int = 0
    reports: int = -1
    listens: bool = False
    began: float = 0.0
    due: float = 0.0
    early: int = 0


@dataclass
class Generation:
    """Forks workers, and forks them again when they end, as long as the lease is held.

    Attributes:
        settings: Of the service.
        bundles: Name, folder and version of each model.
        number: Of the generation.
        listener: What workers accept from.
        lease: Read end of the pipe.
        control: Where the supervisor listens.
    """

    settings: Settings
    bundles: list[tuple[str, str, str]]
    number: int
    listener: socket.socket
    lease: int
    control: int
    _engines: dict[str, Engine] = field(default_factory=dict)
    _models: list[dict[str, str]] = field(default_factory=list)
    _ready: bool = False

    def run(self) -> int:
        """Load, fork, and stay until the lease ends; return the exit code."""
        try:
            if self.settings.index_threads == 1:
                with ending_with(self.lease):
                    self._load()
            self._places = [Place(index) for index in range(self.settings.workers)]
            self._woken, self._wakes = _wakeup_pipe()
            self._stay()
        except EXPECTED as error:
            control.send(self.control, event=control.FAILED, reason=sentence(error))
            return 2
        self.listener.close()
        self._see_workers_off()
        return 0

    def _load(self) -> None:
        self._engines = load(self.bundles, self.settings)
        self._models = [
            {"name": name, "model": engine.manifest.model, "version": engine.manifest.version}
            for name, engine in self._engines.items()
        ]
        import service.process.worker_entry  # noqa: F401 (what workers import is shared, too)

        gc.collect()
        gc.freeze()

    def _stay(self) -> None:
        """Fork who is due, and look after them, until the lease ends."""
        while True:
            now = time.monotonic()
            for place in self._places:
                if not place.pid and place.due <= now:
                    self._fork(place)
            dues = [place.due for place in self._places if not place.pid]
            dues += [place.began + _START_S for place in self._unheard()]
            reports = {place.reports: place for place in self._places if place.reports >= 0}
            pause = max(0.0, min(dues) - time.monotonic()) if dues else None
            ready, _, _ = select.select([self.lease, self._woken, *reports], [], [], pause)
            if self.lease in ready:
                return
            for descriptor in ready:
                if descriptor in reports:
                    self._hear(reports[descriptor])
            if self._woken in ready:
                os.read(self._woken, 4096)
            self._reap()
            self._lose_patience()

    def _fork(self, place: Place) -> None:
        reads, writes = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        place.began = time.monotonic()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(reads)
            os.close(writes)
            self._lose(place, f"cannot be started: {error.strerror}")
            return
        if not pid:
            os.close(reads)
            self._become_worker(place, writes)
        os.close(writes)
        place.pid, place.reports, place.listens = pid, reads, False

    def _become_worker(self, place: Place, reports: int) -> None:
        """Run a worker in the process that was forked just now. Does not return."""
        code = 1
        try:
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # From Python 3.12 on asyncio has done so already, and nothing is left that it could return.
            signal.set_wakeup_fd(-1)
            os.close(self._wakes)
            os.close(self._woken)
            for other in self._places:
                if other.reports >= 0:
                    os.close(other.reports)
            try:
                if not self._engines:
                    with ending_with(self.lease):
                        self._load()
            except EXPECTED as error:
                control.send(reports, event=control.FAILED, reason=sentence(error))
            else:
                self._work(place, reports)
                code = 0
        except BaseException:  # noqa: BLE001 (the process ends here, and the stack above belongs to its parent)
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _work(self, place: Place, reports: int) -> None:
        from service.process.worker_entry import work

        def say_ready() -> None:
            control.send(reports, event=control.READY, models=self._models)
            os.close(reports)

        work(
            self._engines,
            self.settings,
            self.listener,
            self.lease,
            name=f"worker-{self.number}-{place.index}",
            on_ready=say_ready,
        )

    def _hear(self, place: Place) -> None:
        """Take a worker's report; there is one, at most."""
        message = control.read(place.reports)
        os.close(place.reports)
        place.reports = -1
        if message is None:
            return  # it has ended, or is about to, and will be reaped
        if message["event"] == control.FAILED:
            raise BundleError(message["reason"])
        self._models = message["models"]
        place.listens = True
        self._tell()

    def _reap(self) -> None:
        for place in self._places:
            if not place.pid:
                continue
            pid, status = os.waitpid(place.pid, os.WNOHANG)
            if pid:
                if place.reports >= 0:
                    self._hear(place)
                self._lose(place, f"(process {pid}) {how_it_ended(os.waitstatus_to_exitcode(status))}")
                self._tell()

    def _lose(self, place: Place, how: str) -> None:
        """Note that there is no worker, and when the next one is to be forked."""
        if not self._ready:
            raise BundleError(f"a worker {how} before it could answer; its log says why")
        place.pid, place.listens, ended = 0, False, time.monotonic()
        place.early = place.early + 1 if ended - place.began < _EARLY_S else 0
        pause = _PAUSES_S[min(place.early, len(_PAUSES_S)) - 1] if place.early else 0.0
        place.due = ended + pause
        _LOG.warning("worker %d %s; another one starts in %g s", place.index, how, pause)

    def _lose_patience(self) -> None:
        """End workers that have been forked and do not listen."""
        for place in self._unheard():
            if time.monotonic() >= place.began + _START_S:
                os.kill(place.pid, signal.SIGKILL)
                place.began = time.monotonic()

    def _unheard(self) -> list[Place]:
        """Return whose worker should listen by and by; one that loads by itself takes as long as that takes."""
        return [place for place in self._places if self._engines and place.pid and not place.listens]

    def _see_workers_off(self) -> None:
        """Wait for the workers, which end by the same lease, and end those that hang: nobody else may be left to."""
        deadline = time.monotonic() + self.settings.drain_s + _END_S
        while left := [place for place in self._places if place.pid]:
            for place in left:
                if os.waitpid(place.pid, os.WNOHANG)[0]:
                    place.pid = 0
                elif time.monotonic() >= deadline:
                    os.kill(place.pid, signal.SIGKILL)
            time.sleep(_LOOK_S)

    def _tell(self) -> None:
        """Tell the supervisor who answers: all of them at first, then whoever is left."""
        pids = [place.pid for place in self._places if place.listens]
        if not self._ready and len(pids) == len(self._places):
            self._ready = True
            control.send(self.control, event=control.READY, models=self._models, pids=pids)
        elif self._ready:
            control.send(self.control, event=control.WORKERS, pids=pids)


def load(bundles: list[tuple[str, str, str]], settings: Settings) -> dict[str, Engine]:
    """Load every bundle.

    Args:
        bundles: Name, folder and version of each.
        settings: Threads of a search, and the provider that must be.

    Raises:
        BundleError: A bundle is missing, altered or inconsistent, or of another version.
        ConfigError: A session did not get the provider that must be.
    """
    from pathlib import Path

    from service.engine import Engine

    engines = {}
    for name, folder, version in bundles:
        engine = Engine.load(Path(folder), index_threads=settings.index_threads)
        if engine.manifest.version != version:
            raise BundleError(
                f"{folder} holds version {engine.manifest.version}, wanted {version}: it was replaced as it was being "
                "loaded; publish bundles with dvib-export publish"
            )
        _require(settings.require_provider, name, engine.providers)
        engines[name] = engine
    return engines


def _require(wanted: str, model: str, sessions: Mapping[str, Sequence[str]]) -> None:
    """Compare what every session of a model computes with to what was asked for, if anything was.

    Sessions are opened on the processor: their graphs are one look-up and one product of 8-bit integers, and workers
    that are forked after loading could not share a GPU. Who relies on one is to learn that at the start.

    Raises:
        ConfigError: A session computes with something else.
    """
    for session, providers in sessions.items():
        if wanted and providers[0] != wanted:
            raise ConfigError(
                f"model {model}: {PREFIX}REQUIRE_PROVIDER wants {wanted}, the session {session} got {providers[0]}; "
                f"leave the variable out, or set it to {providers[0]}"
            )


def _wakeup_pipe() -> tuple[int, int]:
    """Return what becomes readable when a child ends, and its other end."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    os.set_blocking(reads, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reads, writes


def main() -> None:
    """Run a generation on the descriptors of the command line."""
    listener, lease, channel = map(int, sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    message = control.read(channel)
    if message is None:
        return
    sys.exit(_of(message, listener, lease, channel).run())


def _of(message: dict[str, Any], listener: int, lease: int, channel: int) -> Generation:
    from service.observe.logs import configure_logging
    from service.settings import Settings

    settings = Settings(**message["settings"])
    configure_logging(settings, f"generation-{message['number']}")
    return Generation(
        settings=settings,
        bundles=[(name, folder, version) for name, folder, version in message["bundles"]],
        number=message["number"],
        listener=socket.socket(fileno=listener),
        lease=lease,
        control=channel,
    )


if __name__ == "__main__":
    main()
