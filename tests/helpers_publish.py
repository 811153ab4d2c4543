"""What tests of publishing do in other processes, which may die, run short of space, or get in each other's way."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from export import publish, publish_history
from export.bundle import BundleReader
from training.common import folders

_TRACED = {publish.__file__, publish_history.__file__, folders.__file__}


def names(folder: Path) -> list[str]:
    """Return the names of what is in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


def kill_at_every_line(template: Path, out: Path, action: Callable[[Path], object]) -> int:
    """Run an action in processes of its own, each of which is killed before another line of it.

    A line that is run over and over is the last one of two processes: the first time, and the third.

    Args:
        template: A root; each process works on a copy of it, or on none where it is missing.
        out: Gets the copies, ``0`` to ``n - 1``.
        action: What to do with a root.

    Returns:
        n, the number of processes that were killed; one more came to its end.
    """
    for line in itertools.count():
        root = out / str(line)
        if template.exists():
            shutil.copytree(template, root)
        child = os.fork()
        if child == 0:
            _die_at(line)
            action(root)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return line
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError


def _die_at(line: int) -> None:
    passed = 0
    seen: Counter[tuple[str, int]] = Counter()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal passed
        if frame.f_code.co_filename not in _TRACED:
            return None
        if event == "line":
            place = frame.f_code.co_filename, frame.f_lineno
            seen[place] += 1
            if seen[place] in {1, 3}:
                if passed == line:
                    os.kill(os.getpid(), signal.SIGKILL)
                passed += 1
        return trace

    sys.settrace(trace)


def publish_at_once(bundles: list[Path], root: Path, *, processes: int, steps: int) -> None:
    """Let several processes publish bundles and roll back, in any order, all at once; a reader looks on."""
    ready, start = os.pipe()
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            os.close(start)
            os.read(ready, 1)  # returns when the parent closes its end
            draw = random.Random(number)  # noqa: S311
            for _ in range(steps):
                publish.publish(draw.choice(bundles), root)
                publish.rollback(root, draw.choice([one.version for one in publish.published(root)]))
            os._exit(0)
        children.append(child)
    os.close(start)
    while children:
        child, status = os.waitpid(children[-1], os.WNOHANG)
        if child:
            assert status == 0
            children.pop()
        if publish.is_root(root) and (root / publish.CURRENT).exists():
            with BundleReader(publish.current(root)) as reader:
                reader.verify_all()
                assert reader.manifest.version == reader.folder.name
