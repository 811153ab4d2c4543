from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.latency.arms import Arm, make_arms
from export.bundle import MODEL_ONNX
from tests.benchmarks.helpers import Bench, make_bundle


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A baseline's bundle and a DVIB bundle of the same data with other vectors."""
    root = tmp_path_factory.mktemp("bundles")
    return make_bundle(root / "baseline", seed=0), make_bundle(root / "dvib", variant="adaptive", seed=1)


@pytest.fixture(scope="session")
def other_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the baseline's model and data with the vectors of another seed."""
    return make_bundle(tmp_path_factory.mktemp("seeds") / "other", seed=2)


@pytest.fixture
def arms(bundles: tuple[Path, Path], other_seed: Path) -> list[Arm]:
    """All arms of ``dvib-bench latency``."""
    # Any graph does for the arm that is run from a file of its own.
    return make_arms(bundles[0], [bundles[1]], other_seed=other_seed, unstripped=bundles[1] / MODEL_ONNX)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs ``dvib-bench`` inside this process; returns its exit code."""

    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr("sys.argv", ["dvib-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code if isinstance(ended.value.code, int) else 0

    return run
