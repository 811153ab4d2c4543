"""Lines of JSON between the processes of one service: short, rare, and from a parent to its child or back."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.process.watch import Target
    from service.settings import Settings

MOST_BYTES = 2**20
"""Longest line: more models than anybody serves."""

READY = "ready"
FAILED = "failed"
WORKERS = "workers"

_SUPERVISOR_ONLY = {"admin_port", "admin_token"}


def send(descriptor: int, **message: Any) -> None:
    """Write a message.

    A reader who is gone is not waited for: whoever loses his parent ends for that reason, and not for this one.

    Args:
        descriptor: Of a pipe or a socket.
        message: Plain values.
    """
    line = memoryview(json.dumps(message).encode() + b"\n")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while line:
            line = line[os.write(descriptor, line) :]


def read(descriptor: int) -> dict[str, Any] | None:
    """Wait for one message, the only one that is coming; None where the writer has gone without a word."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(descriptor, MOST_BYTES)
        if not part:
            return None
        line += part
    return parse(line)


def parse(line: bytes) -> dict[str, Any]:
    """Return the message of one line."""
    message: dict[str, Any] = json.loads(line)
    return message


def order(settings: Settings, targets: Mapping[str, Target], number: int) -> dict[str, Any]:
    """Return what a generation is told: everything, for nothing is read from the environment twice.

    Args:
        settings: Of the service.
        targets: Model name to bundle and version; the first is the default model.
        number: Of the generation.
    """
    plain = settings.model_dump(mode="json", exclude=_SUPERVISOR_ONLY)
    if settings.api_key is not None:
        plain["api_key"] = settings.api_key.get_secret_value()
    bundles = [[name, str(folder), version] for name, (folder, version) in targets.items()]
    return {"settings": plain, "bundles": bundles, "number": number}
