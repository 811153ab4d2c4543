"""A process that loads bundles for a test, so that a crash is seen as one: ``python -m tests.security.child``.

Reads one JSON object per line, ``{"folder": …, "k": …, "limit": …}``, and answers each with a line.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from service.engine import Engine
from training.common.errors import BundleError

UNKNOWN = "nobody of this name"
_MEMORY = 4 * 2**30
_opened: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        _opened.append(str(arguments[0]))


def answers(engine: Engine, user_ids: list[str], k: int) -> dict[str, list[Any]]:
    found = {}
    for user_id in [*user_ids, UNKNOWN]:
        answer = engine.recommend(user_id, k)
        found[user_id] = [answer.source, [list(item) for item in answer.items]]
    return found


def load(folder: Path, k: int, limit: int) -> dict[str, Any]:
    """Load one bundle and answer its first users."""
    _opened.clear()
    try:
        engine = Engine.load(folder)
    except BundleError as error:
        return {"refused": str(error), "opened": list(_opened)}
    opened = list(_opened)
    users = engine._users  # the ids that the bundle itself declares
    return {"answers": answers(engine, [users[row] for row in range(min(limit, len(users)))], k), "opened": opened}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    sys.addaudithook(_watch)
    for line in sys.stdin:
        request = json.loads(line)
        reply = load(Path(request["folder"]), request["k"], request["limit"])
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
