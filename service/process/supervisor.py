"""The supervisor: owns the socket and the signals, and replaces one generation by the next."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from service.process.endings import EXPECTED, how_it_ended, sentence
from service.process.launch import Launched
from training.common.errors import BundleError, printable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from service.observe.metrics import ReloadMetrics
    from service.process.watch import Target, Watch
    from service.settings import Settings

_LOG = logging.getLogger(__name__)
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Between attempts to replace a generation that has ended."""


@dataclass(frozen=True)
class Outcome:
    """How the latest reload went.

    Attributes:
        state: ``none`` where there was no reload yet.
        reason: Why it failed.
        time: When it ended, or began where it has not ended.
    """

    state: Literal["none", "running", "succeeded", "failed"] = "none"
    reason: str = ""
    time: str = ""


class StoppingError(Exception):
    """The service ends, and reloads nothing any more."""


class Supervisor:
    """Keeps one generation serving until it is told to stop.

    Args:
        settings: Of the service.
        watch: Tells which versions are published.
        listener: Listens; workers accept from it.
        metrics: Told how each reload ends.
    """

    def __init__(self, settings: Settings, watch: Watch, listener: socket.socket, metrics: ReloadMetrics) -> None:
        self._settings, self._watch, self._listener, self._metrics = settings, watch, listener, metrics
        self._serving: Launched | None = None
        self._targets: Mapping[str, Target] = {}
        self._seen: Mapping[str, Target] | str = {}
        self._outcome = Outcome()
        self._wake = asyncio.Event()
        self._demanded = False
        self._waiting: list[asyncio.Future[Outcome]] = []
        self._alive: set[Launched] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def run(self, on_ready: Callable[[str], Any]) -> None:
        """Serve until SIGTERM or SIGINT.

        Args:
            on_ready: Called with what is served, once it is.

        Raises:
            BundleError: A bundle cannot be served from the start.
        """
        loop = asyncio.get_running_loop()
        work = asyncio.create_task(self._work(on_ready))

        def stop(number: signal.Signals) -> None:
            if self._stopping and number == signal.SIGINT:
                for launched in self._alive:
                    launched.kill()
            self._stopping = True
            work.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._demand)
        loop.add_signal_handler(signal.SIGCHLD, self._wake.set)
        try:
            await asyncio.wait({work})
        finally:
            await self._end_all()
        if not work.cancelled():
            work.result()

    async def reload(self) -> Outcome:
        """Reload what is published now, and say how that went.

        Raises:
            StoppingError: The service ends.
        """
        if self._stopping:
            raise StoppingError
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._demand()
        return await waiter

    def status(self) -> dict[str, Any]:
        """Return what is served, by whom, and how the latest reload went."""
        serving = self._serving
        return {
            "generation": serving.number if serving else None,
            "workers": [{"pid": pid} for pid in serving.pids] if serving else [],
            "models": serving.models if serving else [],
            "last_reload": asdict(self._outcome),
        }

    def _demand(self) -> None:
        self._demanded = True
        self._wake.set()

    async def _work(self, on_ready: Callable[[str], Any]) -> None:
        self._seen = targets = self._watch.look()
        serving = await self._replace(targets)
        on_ready(", ".join(f"{model['name']} ({model['model']} {model['version']})" for model in serving.models))
        while True:
            await self._step()
            # Not wait_for: where it is cancelled just as what it waits for comes, it goes on, and nobody would stop.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.watch_s):
                    await self._wake.wait()
            self._wake.clear()

    async def _step(self) -> None:
        """Look at everything once: at the generation, at what is published, and whether somebody wants a reload."""
        if self._serving is not None and self._serving.exit_code is not None:
            await self._revive(self._serving.exit_code)
        # Whoever comes from here on has seen a pointer that this look may not see.
        demanded, self._demanded = self._demanded, False
        waiting, self._waiting = self._waiting, []
        seen: Mapping[str, Target] | str
        try:
            seen = self._watch.look()
        except EXPECTED as error:
            seen = sentence(error)
        if not demanded and seen == self._seen:
            return
        self._seen = seen
        try:
            await self._reload(seen, demanded=demanded)
        finally:
            for waiter in waiting:
                if waiter.done():
                    continue  # whoever asked has gone
                if self._stopping:
                    waiter.set_exception(StoppingError())
                else:
                    waiter.set_result(self._outcome)

    async def _reload(self, seen: Mapping[str, Target] | str, *, demanded: bool) -> None:
        self._note("running")
        before = _versions(self._targets)
        try:
            if isinstance(seen, str):
                raise BundleError(seen)
            # A pointer that has come back from a version that could not be loaded needs nothing.
            if demanded or seen != self._targets:
                await self._replace(seen)
        except EXPECTED as error:
            self._note("failed", printable(sentence(error)))
            self._metrics.failed()
            _LOG.error("reload failed, %s serves on: %s", before, self._outcome.reason)
        else:
            self._note("succeeded")
            self._metrics.succeeded()
            _LOG.info("reloaded: %s, before: %s", _versions(self._targets), before)

    async def _replace(self, targets: Mapping[str, Target]) -> Launched:
        """Start the next generation, and let the present one go when the next one answers.

        Raises:
            BundleError: It cannot serve; the present one stays.
        """
        # Two at a time: the names of their workers' files are two.
        await self._settle()
        serving = self._serving
        launched = Launched.start(
            self._settings,
            targets,
            number=serving.number + 1 if serving else 0,
            listener=self._listener,
            on_change=self._wake.set,
        )
        self._alive.add(launched)
        try:
            await launched.ready()
        except BaseException:
            self._let_go(launched)
            raise
        self._serving, self._targets = launched, targets
        self._metrics.serves(launched.number)
        if serving:
            self._let_go(serving)
        # It is done when nobody is answered by the old one any more.
        await self._settle()
        return launched

    async def _revive(self, code: int) -> None:
        """Replace a generation whose first process has ended. Its workers, which serve on, end when that is done."""
        _LOG.error("the process that holds the models %s; it is started again", how_it_ended(code))
        attempt = 0
        while True:
            for published in (False, True):
                try:
                    await self._replace(self._watch.look() if published else self._targets)
                except EXPECTED as error:
                    self._metrics.failed()
                    _LOG.error("the models cannot be loaded again: %s", printable(sentence(error)))
                else:
                    return
            await asyncio.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
            attempt += 1

    def _let_go(self, launched: Launched) -> None:
        async def end() -> None:
            await launched.end(self._settings.drain_s)
            self._alive.discard(launched)

        launched.release()
        task = asyncio.create_task(end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_all(self) -> None:
        """Let everybody go. The socket is closed here first: the last worker that closes it then refuses newcomers."""
        self._stopping = True
        self._listener.close()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(StoppingError())
        self._waiting.clear()
        if self._serving:
            self._let_go(self._serving)
        await self._settle()

    async def _settle(self) -> None:
        """Wait until everybody who has been let go has ended."""
        while self._ending:
            await asyncio.wait(self._ending)

    def _note(self, state: Literal["running", "succeeded", "failed"], reason: str = "") -> None:
        self._outcome = Outcome(state, reason, datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"))


def _versions(targets: Mapping[str, Target]) -> str:
    return ", ".join(f"{name} {target.version}" for name, target in targets.items())
