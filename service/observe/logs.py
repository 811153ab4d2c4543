"""Logs: one JSON object per line on stderr, from every logger of the process."""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from types import TracebackType

    from service.settings import Settings

request_id: ContextVar[bytes] = ContextVar("request_id", default=b"")
"""Id of the request in work, in ASCII: each line that is logged for it carries it."""

ACCESS = "service.access"
"""Logger of one line per request."""
FIELDS = ("request_id", "method", "path", "query", "status", "ms", "model", "source", "version", "generation")
"""What a record may carry as ``extra``; anything else that it carries is not written."""
_MOST_TEXT = 16_384
"""Characters of a message and of a traceback: a pipe takes lines of that length in one piece."""
_DROPPED = "... "


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON.

    Args:
        slot: What this process is called among those of the service.
    """

    def __init__(self, slot: str) -> None:
        super().__init__()
        self._static = {"slot": slot, "pid": os.getpid(), "release": importlib.metadata.version("dvib")}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: when, how grave, by which logger, what, for which request, by which process."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _head(record.getMessage()),
        }
        if current := request_id.get():
            line["request_id"] = current.decode()
        line |= {name: value for name in FIELDS if (value := record.__dict__.get(name)) is not None}
        if record.exc_info:
            line["exception"] = _tail(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = _tail(record.stack_info)
        return orjson.dumps(line | self._static, default=str).decode()


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()  # a lone surrogate is no JSON


def _head(text: str) -> str:
    return _printable(text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + _DROPPED)


def _tail(text: str) -> str:
    """Shorten a traceback at its beginning: the cause stands at its end."""
    return _printable(text if len(text) <= _MOST_TEXT else _DROPPED + text[-_MOST_TEXT:])


def configure_logging(settings: Settings, slot: str) -> None:
    """Send whatever this process logs to stderr, as JSON. uvicorn must be run with ``log_config=None``.

    The announcement on stdout and the one plain line of a start that failed are not logged, but printed.

    Args:
        settings: Whether each request is logged.
        slot: What this process is called: a worker's number, ``supervisor``, ...
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(slot))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name, level in (
        ("faiss", logging.WARNING),  # tells at length which of its builds it takes
        ("uvicorn", logging.WARNING),
        ("uvicorn.error", logging.WARNING),
        ("uvicorn.access", logging.CRITICAL),  # its lines hold query strings: the gate writes one of its own
        (ACCESS, logging.INFO if settings.access_log else logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(level)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("service").critical("the process ends by an error", exc_info=(kind, error, traceback))
