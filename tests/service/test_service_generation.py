"""A generation and its supervisor's side, each without the other."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from export.bundle import BundleReader
from service.process import control
from service.process.generation import Generation, Place
from service.process.launch import Launched
from service.process.watch import Target
from service.settings import Settings
from tests.service.processes import all_gone, environment, until
from training.common.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HURRIED = """
import time
from service.process import generation
load = generation.load
generation.load = lambda *given: (time.sleep({loading}), load(*given))[1]
generation._START_S, generation._END_S = {patience}, 0.1
generation.main()
"""


@contextmanager
def generation_of(folder: Path, *, loading: float, patience: float, **settings: Any) -> Iterator[tuple[Any, ...]]:
    """Run a generation that loads, and waits for workers, for so long; yield it and our ends of lease and control."""
    with BundleReader(folder) as reader:
        targets = {"toy": Target(folder, reader.manifest.version)}
    reads, lease = os.pipe()
    ours, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener, ours, theirs:
        passed = (listener.fileno(), reads, theirs.fileno())
        line = [sys.executable, "-c", HURRIED.format(loading=loading, patience=patience), *map(str, passed)]
        with subprocess.Popen(line, pass_fds=passed, env=environment(OMP_NUM_THREADS="1")) as process:
            os.close(reads)
            control.send(ours.fileno(), **control.order(Settings(**settings), targets, 0))
            try:
                yield process, lease, ours.fileno()
            finally:
                process.kill()


def test_a_worker_that_loads_by_itself_takes_as_long_as_that_takes(folder: Path) -> None:
    """With two search threads everything is loaded after the fork; others are given up where they do not listen."""
    with generation_of(folder, loading=1.0, patience=0.3, index_threads=2) as (process, lease, channel):
        message = control.read(channel)
        assert message is not None
        assert message["event"] == control.READY, message
        os.close(lease)
        assert process.wait(10) == 0


def test_a_worker_that_never_listens_is_given_up(folder: Path) -> None:
    with generation_of(folder, loading=0.0, patience=0.0) as (process, lease, channel):
        message = control.read(channel)
        assert message is not None
        assert message["event"] == control.FAILED
        assert "SIGKILL" in message["reason"]
        os.close(lease)
        assert process.wait(10) == 2


def test_a_worker_that_hangs_is_ended_where_no_supervisor_is_left_to_do_it(folder: Path) -> None:
    with generation_of(folder, loading=0.0, patience=60, drain_s=0.1) as (process, lease, channel):
        control.read(channel)
        [worker] = psutil.Process(process.pid).children()
        worker.suspend()
        os.close(lease)
        assert process.wait(10) == 0
        until(lambda: all_gone([worker]), seconds=2, what="its end")


def test_a_worker_that_has_gone_without_a_word_does_not_listen() -> None:
    """Its pipe ends before it can be reaped; meanwhile another one may become ready, and both would count."""
    told, hears = socket.socketpair()
    with told, hears, socket.socket() as listener:
        generation = Generation(Settings(workers=2), [], 0, listener, lease=-1, control=told.fileno())
        places = generation._places = [Place(index, pid=1) for index in range(2)]
        pipes = [os.pipe() for _ in places]
        for place, (reads, _) in zip(places, pipes, strict=True):
            assert not place.listens
            place.reports = reads
        os.close(pipes[0][1])
        control.send(pipes[1][1], event=control.READY, models=[])
        os.close(pipes[1][1])
        for place in places:
            generation._hear(place)
        assert [place.listens for place in places] == [False, True]
        hears.setblocking(False)
        with pytest.raises(BlockingIOError):
            hears.recv(1)


def test_a_generation_that_ends_before_it_is_ready_leaves_nobody_waiting() -> None:
    """Its workers, forked already, live on and hold its connection open."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            ["sh", "-c", "sleep 60 & exit 3"], pass_fds=[theirs.fileno()], process_group=0, stdout=subprocess.DEVNULL
        )
        theirs.close()
        launched = Launched(process, os.open(os.devnull, os.O_RDONLY), ours, 0, lambda: None)
        async with asyncio.timeout(5):
            with pytest.raises(BundleError, match="ended with exit code 3"):
                await launched.ready()
            launched.kill()
            await launched.end(0)

    asyncio.run(run())


def test_a_generation_that_cannot_be_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with socket.socket() as listener:
        before = psutil.Process().num_fds()
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                Launched.start(Settings(), {}, number=0, listener=listener, on_change=lambda: None)
        assert psutil.Process().num_fds() == before
