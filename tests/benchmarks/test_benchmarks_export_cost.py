from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import export_cost
from tests.benchmarks.helpers import Bench, read_json
from training.common.errors import DvibError

STEPS = ("export", "verify", "load", "load unfolded")


def test_every_step_is_measured(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "export.json"
    assert bench("export", "--shape", "small", "--model", "vbpr", "--json", place) == 0
    (result,) = read_json(place)["results"]
    assert (result["model"], result["variant"]) == ("vbpr", "adaptive")
    for step in STEPS:
        assert result[step]["seconds"] > 0
        assert 30e6 < result[step]["peak_bytes"] < 4e9
    assert result["verify"]["passed"]
    assert result["export"]["parity"].keys() >= {"onnx", "torchscript", "program", "towers_index"}
    # P, Q and W of the tuned preset's 64 dimensions, and the features.
    graph = 4 * (600 * 128 + 400 * 64 + 64 * (64 + 1) + 400 * 64)
    assert graph < result["export"]["graph_bytes"] < graph + 10_000 < result["export"]["bundle_bytes"]
    shown = capsys.readouterr().out
    assert "load unfolded" in shown
    assert "vbpr" in shown


def measured(**changes: float) -> dict[str, Any]:
    """A measurement that keeps every bar exactly, but for ``STEP_FIGURE``."""
    result: dict[str, Any] = {"shape": "baby", "model": "vbpr", "export": {}, "verify": {"passed": True}}
    for name, bar in export_cost.bars_of("baby", "vbpr").items():
        result.setdefault(name, {}).update(seconds=bar.seconds, peak_bytes=bar.peak_bytes)
    for place, more in changes.items():
        step, figure = place.split("__")
        result[step.replace("_", " ")][figure] += more
    return result


@pytest.mark.parametrize("step", STEPS)
def test_bars(step: str) -> None:
    name = step.replace(" ", "_")
    assert export_cost.beyond(measured()) == []
    (slow,) = export_cost.beyond(measured(**{f"{name}__seconds": 0.1}))
    (fat,) = export_cost.beyond(measured(**{f"{name}__peak_bytes": 1e8}))
    assert slow.startswith(f"{step} takes")
    assert slow.endswith(" s")
    assert fat.startswith(f"{step} takes")
    assert fat.endswith(" GB")


def test_bars_are_for_what_they_were_set_for() -> None:
    slow = measured(export__seconds=100, verify__peak_bytes=5e9)
    assert len(export_cost.beyond(slow)) == 2
    assert export_cost.beyond({**slow, "shape": "sports"}) == export_cost.beyond({**slow, "model": "mmgcn"}) == []


def test_the_graph_alone(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "load.json"
    assert bench("export", "--shape", "small", "--model", "bm3", "--only-load", "--check", "--json", place) == 0
    (result,) = read_json(place)["results"]
    assert result.keys() == {"shape", "model", "variant", "graph", "load", "load unfolded"}
    assert 0 < result["load"]["seconds"] < 15
    assert "graph" in capsys.readouterr().out


def test_a_failed_verification_is_said() -> None:
    result = measured()
    result["verify"]["passed"] = False
    assert export_cost.beyond(result) == ["verification failed"]


def test_how_a_process_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_cost, "COMMAND", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(DvibError, match="process of prepare ended with signal SIGKILL"):
        export_cost.measure("small", "vbpr", "none", "paper")


@pytest.mark.parametrize("wrong", [("nowhere", "vbpr"), ("small", "vbrp")])
def test_what_there_is_not(wrong: tuple[str, str]) -> None:
    with pytest.raises(DvibError, match=r"no shape 'nowhere'|vbrp"):
        export_cost.measure(*wrong, "none", "paper")
