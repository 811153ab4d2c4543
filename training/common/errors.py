"""Errors that a person can act on. Each message says what was wanted, what came, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError


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


def first_problem(error: ValidationError) -> str:
    """Say the first thing that is wrong with a document, as ``place: what``."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'the document'}: {first['msg']}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to ``name``, else the list of known names."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"
