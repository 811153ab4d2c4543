from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def no_outside_data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only tests marked ``data`` see the data sets of the caller, and none sees the caller's cache."""
    monkeypatch.setenv("DVIB_CACHE", str(tmp_path / "cache"))
    if request.node.get_closest_marker("data") is None:
        monkeypatch.delenv("DVIB_DATA", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file below ``tmp_path``; ``~`` stands for a tab, which editors like to eat."""

    def put(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("~", "\t"), encoding="utf-8")
        return path

    return put


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("DVIB_DATA")
    if not folder:
        pytest.skip("DVIB_DATA is not set: the research data sets are not here")
    return Path(folder)
