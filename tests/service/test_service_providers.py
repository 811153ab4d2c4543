"""Which execution provider ONNX Runtime's sessions really got: where it is told, and that another can be refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import onnxruntime
import pytest

from service.engine import Engine
from service.process import generation
from service.settings import Settings
from tests.service.processes import command, run
from tests.service.scrape import samples
from training.common.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service.processes import StartServer

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def test_the_service_says_what_its_sessions_got(serve: StartServer, folder: Path) -> None:
    with serve("--bundle", f"toy={folder}", "--port", "0", DVIB_SERVE_REQUIRE_PROVIDER=CPU) as server:
        [model] = httpx.get(f"{server.url}/models").json()["models"]
        found = samples(httpx.get(f"{server.url}/metrics").content)
    assert model["providers"] == {"user_tower": [CPU], "scan": [CPU]}
    told = {
        tuple(sorted(labels)): value for (name, labels), value in found.items() if name == "dvib_serve_session_info"
    }
    assert told == {
        (("model", "toy"), ("provider", CPU), ("session", session)): 1.0 for session in ("user_tower", "scan")
    }


def test_the_service_does_not_start_without_the_provider_that_must_be(folder: Path) -> None:
    done = run(*command("--bundle", f"toy={folder}", "--port", "0"), DVIB_SERVE_REQUIRE_PROVIDER=CUDA)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line == (
        f"dvib-serve: model toy: DVIB_SERVE_REQUIRE_PROVIDER wants {CUDA}, the session user_tower got {CPU}; "
        f"leave the variable out, or set it to {CPU}"
    )


def test_it_is_the_session_that_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what was wished for, nor what is installed: ONNX Runtime replaces the one by the other and goes on."""
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _: [CUDA, CPU])
    engine = Engine.load(folder)
    assert engine.providers == {"user_tower": (CUDA, CPU), "scan": (CUDA, CPU)}
    bundles = [("toy", str(folder), engine.manifest.version)]
    assert set(generation.load(bundles, Settings(require_provider=CUDA))) == {"toy"}
    with pytest.raises(ConfigError, match=f"wants {CPU}, the session user_tower got {CUDA}"):
        generation.load(bundles, Settings(require_provider=CPU))
