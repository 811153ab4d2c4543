"""The record of a long comparison: every run is in the file as soon as it is over, and none is made twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.output import write_document
from training.common.errors import DvibError

Record = dict[str, Any]


class Ledger:
    """Records of runs, written to a JSON file after each one.

    One process writes a file at a time.

    Args:
        path: The file, which may hold the records of earlier runs; None keeps them in memory.
        benchmark: What the document is called; a file of another benchmark is refused.

    Raises:
        DvibError: The file exists and is no such document.
    """

    def __init__(self, path: Path | None, benchmark: str) -> None:
        self._path = path
        self.document: dict[str, Any] = {"benchmark": benchmark, "runs": []}
        if path is not None and path.exists():
            self.document = _read(path, benchmark)

    @property
    def records(self) -> Iterator[Record]:
        """All records, the earliest first."""
        yield from self.document["runs"]

    def find(self, key: Mapping[str, Any]) -> Record | None:
        """Return the record whose entries of these names are equal to the given ones."""
        wanted = json.loads(json.dumps(key))  # as the file would give it back
        for record in self.records:
            if all(name in record and record[name] == value for name, value in wanted.items()):
                return record
        return None

    def add(self, record: Record) -> None:
        """Keep a record and write the file."""
        self.document["runs"].append(json.loads(json.dumps(record)))
        write_document(self._path, self.document)

    def write(self, **entries: Any) -> None:
        """Set other entries of the document and write the file."""
        self.document.update(entries)
        write_document(self._path, self.document)


def _read(path: Path, benchmark: str) -> dict[str, Any]:
    advice = "name another file, or move this one away"
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DvibError(f"--json {path} exists and is no JSON document: {error}; {advice}") from error
    if not isinstance(document, dict) or document.get("benchmark") != benchmark:
        raise DvibError(f"--json {path} exists and holds no figures of 'dvib-bench {benchmark}'; {advice}")
    runs = document.get("runs")
    if not isinstance(runs, list) or not all(isinstance(record, dict) for record in runs):
        raise DvibError(f"--json {path} holds figures of another version of this program; {advice}")
    return document
