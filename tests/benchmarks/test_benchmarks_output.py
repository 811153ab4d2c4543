from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.output import write_document
from tests.benchmarks.helpers import read_json


def test_a_document_is_read_back_as_it_was_and_samples_take_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/dvib-bench", "load", "x", "--json", "y"])
    document: dict[str, Any] = {
        "samples": [[1, 2.5, -3e-7], [1e22]],
        "mixed": ["x", 1, None, True],
        "text": "[\n 1,\n 2\n]",
        "empty": [],
        "inner": {"one": [7]},
    }
    place = tmp_path / "new" / "document.json"
    write_document(place, document)
    assert read_json(place) == {**document, "command": "dvib-bench load x --json y"}
    lines = [line.strip() for line in place.read_text("utf-8").splitlines()]
    assert {"[1,2.5,-3e-07],", "[1e+22]", '"one": [7]'} <= set(lines)
    assert json.dumps(document["text"]) in place.read_text("utf-8")
