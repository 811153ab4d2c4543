"""What is measured of loading and calling a graph; no figure is tested, only that it is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from export import bundle
from export.measure import measure_here, write_measurements
from training.common.errors import ExportError


def test_a_bundle_holds_its_measurements(adaptive_bundle: Path) -> None:
    document = json.loads((adaptive_bundle / bundle.MEASUREMENTS).read_text("utf-8"))
    assert document.keys() == {
        "schema_name",
        "schema_version",
        "processor",
        "system",
        "threads",
        "onnxruntime",
        "folding_bytes",
        "folded",
        "unfolded",
    }
    for name in ("folded", "unfolded"):
        figures = document[name]
        assert figures["load_seconds"] > 0
        assert 0 < figures["memory_before_bytes"] <= figures["memory_peak_bytes"]
        assert figures["call_seconds"].keys() == {"1", "32"}
        assert all(seconds > 0 for seconds in figures["call_seconds"].values())
    assert str(adaptive_bundle) not in json.dumps(document)


def test_the_certificate_holds_none_of_them(adaptive_bundle: Path) -> None:
    """These figures change from build to build, and the certificate's bytes do not."""
    for name in (bundle.CERTIFICATE, bundle.CERTIFICATE_TEXT):
        text = (adaptive_bundle / name).read_text("utf-8")
        assert not [word for word in ("seconds", "memory_", "processor") if word in text]


def test_folding_is_what_differs(adaptive_bundle: Path) -> None:
    graph = adaptive_bundle / bundle.MODEL_ONNX
    assert measure_here(graph, folded=True).keys() == {"onnxruntime", "folding_bytes", "folded"}
    assert measure_here(graph, folded=False).keys() == {"onnxruntime", "folding_bytes", "unfolded"}


def test_a_graph_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"measuring model\.onnx folded failed with code"):
        write_measurements(tmp_path / "model.onnx", tmp_path / "measurements.json")
    assert not (tmp_path / "measurements.json").exists()


def test_the_working_directory_does_not_matter(
    adaptive_bundle: Path, copy_of: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where it is called from, nor modules of the same names that lie there."""
    copy_of(adaptive_bundle).rename(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").write_text("raise ImportError")
    write_measurements(Path("here") / bundle.MODEL_ONNX, Path("measured.json"))
    assert json.loads((tmp_path / "measured.json").read_text("utf-8"))["schema_name"] == "dvib.measurements"
