from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers_bundle import Content, make_content, write_bundle
from tests.service.processes import StartServer, serving

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> StartServer:
    """Starts `python -m service` in an empty folder and waits until it announces its address."""
    cwd = tmp_path_factory.mktemp("cwd")
    return lambda *arguments, **extra: serving(*arguments, cwd=cwd, **extra)


@pytest.fixture(scope="session")
def content() -> Content:
    return make_content()


@pytest.fixture(scope="session")
def folder(content: Content, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "toy"
    write_bundle(path, content)
    return path
