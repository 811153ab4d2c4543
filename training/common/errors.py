"""Errors that a person can act on. Each message says what was wanted, what came, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError

_SHOWN = 60
_PLAIN = re.compile(r"[\w.-]{1,60}")


class DvibError(Exception):
    """Base of all errors that end a command with one line on stderr and exit code 2."""


class ConfigError(DvibError):
    """An unknown key, a value of the wrong type or outside its range."""


class DataError(DvibError):
    """A data set that is missing, malformed or inconsistent."""


class CheckpointError(DvibError):
    """A checkpoint that is missing, incomplete or of another schema version."""


class BundleError(DvibError):
    """A bundle that is missing, incomplete, altered or of another schema version."""


class ExportError(DvibError):
    """An export that could not be made or whose proof failed."""


class MissingGroupError(DvibError):
    """An optional dependency group that is not installed, or two groups that exclude each other."""


def shown(text: str | bytes) -> str:
    """Quote a stranger's text for a line of ours: short, and without control characters."""
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")


def printable(text: str) -> str:
    """Return a line as it is, or quoted where it holds what would steer a terminal: parts of it may be a stranger's."""
    return text if text.isprintable() else repr(text)


def first_problem(error: ValidationError) -> str:
    """Say the first thing that is wrong with a document, as ``place: what``."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # The names on the way may be a stranger's.
    parts = (str(part) for part in first["loc"])
    place = ".".join(part if _PLAIN.fullmatch(part) else shown(part) for part in parts)
    return f"{place or 'the document'}: {first['msg']}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to ``name``, else the list of known names."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"
