from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a few milliseconds would wait for the disk most of their time; the folders' own tests do wait."""
    if request.node.path.name != "test_training_folders.py":
        monkeypatch.setattr(os, "fsync", lambda _: None)
