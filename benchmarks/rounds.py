"""Rounds in processes of their own, each forked from one that has only imported the libraries."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import ParamSpec, Protocol, TypeVar

from benchmarks.ending import orderly_at_sigterm
from training.common.errors import DvibError

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class Runner(Protocol):
    """Calls a module-level function in a fresh process and returns its answer."""

    def __call__(
        self, function: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Answer:
        """Call it."""


@contextmanager
def fresh_processes(*modules: str) -> Iterator[Runner]:
    """Yield a way to call functions, each call in a process of its own, one at a time.

    The processes are forked from a server that has imported these modules and done nothing else: they start within
    milliseconds, without threads, from one and the same heap.

    Args:
        modules: What the functions need.

    Raises:
        DvibError: A process died, as one does that runs out of memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    # The pool starts the next round's process ahead; nobody but the pool ends it.
    with orderly_at_sigterm(), ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:

        def run(function: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
            try:
                return pool.submit(function, *args, **kwargs).result()
            except BrokenProcessPool as error:
                raise DvibError("a round's process died; too little memory ends one") from error

        yield run
