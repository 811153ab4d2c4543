"""``dvib-export diff``: 0 for the same architecture, 1 for another, 2 for what is no bundle; and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export import bundle
from tests.helpers_export import dvib_export, edit_json, python, reseal

Copy = Callable[[Path], Path]


def document(first: Path, second: Path, code: int) -> dict[str, Any]:
    outcome = dvib_export("diff", first, second, "--json")
    assert (outcome.code, outcome.err) == (code, "")
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_a_baseline_and_a_dvib_bundle_have_the_same_graph(baseline_bundle: Path, adaptive_bundle: Path) -> None:
    found = document(baseline_bundle, adaptive_bundle, 0)
    assert found["same_architecture"]
    assert found["same_fingerprint"]
    assert found["same_wiring"]
    assert found["same_blanked"]
    assert not found["same_bytes"]
    assert found["operators"] == found["tensors"] == {}
    figures = found["figures"]
    assert figures["variant"] == ["none", "adaptive"]
    for name in ("parameters", "FLOPs per user", "FLOPs in products", "bytes", "nodes", "operator set"):
        assert figures[name][0] == figures[name][1] > 0
    assert figures["removed parameters"] == [0, 1377]
    assert figures["removed nodes"][0] == 0 < figures["removed nodes"][1]
    assert found["removed"]["net_phi.at_fused.4.bias"] == [None, [1]]
    metrics = json.loads((baseline_bundle / bundle.MANIFEST).read_text("utf-8"))["metrics"]
    assert found["metrics"]["test recall@10"][0] == metrics["test"]["recall@10"]


def test_another_architecture_is_explained_by_name(baseline_bundle: Path, wide_bundle: Path) -> None:
    found = document(baseline_bundle, wide_bundle, 1)
    assert not found["same_architecture"]
    assert not found["same_blanked"]
    assert found["tensors"] == {
        "model.users": [[23, 16], [23, 24]],
        "model.items": [[41, 8], [41, 12]],
        "model.weight": [[8, 12], [12, 12]],
        "model.bias": [[8], [12]],
    }
    assert found["operators"] == {}
    assert found["figures"]["dimension"] == [16, 24]


def test_the_text_says_the_same(baseline_bundle: Path, wide_bundle: Path, adaptive_bundle: Path) -> None:
    same = dvib_export("diff", baseline_bundle, adaptive_bundle)
    assert (same.code, same.err) == (0, "")
    assert "same   architecture" in same.out
    assert "OTHER  graph\n" in same.out
    assert "net_phi.at_fused.0.weight" in same.out
    assert "tensors that differ" not in same.out
    other = dvib_export("diff", baseline_bundle, wide_bundle)
    assert other.code == 1
    assert "OTHER  architecture" in other.out
    line = next(line for line in other.out.splitlines() if line.startswith("model.bias"))
    assert line.split() == ["model.bias", "8", "12", "≠"]


def test_a_bundle_is_the_same_as_itself(wide_bundle: Path) -> None:
    found = document(wide_bundle, wide_bundle, 0)
    assert found["same_bytes"]
    assert all(left == right for left, right in found["figures"].values())


def test_what_is_no_bundle(wide_bundle: Path, tmp_path: Path, copy_of: Copy) -> None:
    for pair in ((wide_bundle, tmp_path / "nowhere"), (tmp_path / "nowhere", wide_bundle)):
        outcome = dvib_export("diff", *pair)
        assert (outcome.code, outcome.out) == (2, "")
        assert "nowhere" in outcome.complaint
    altered = copy_of(wide_bundle)
    edit_json(altered / bundle.CERTIFICATE, lambda content: content["exported"].update(parameters=1))
    outcome = dvib_export("diff", wide_bundle, altered)
    assert (outcome.code, outcome.out) == (2, "")
    assert bundle.CERTIFICATE in outcome.complaint


def test_it_needs_no_torch(baseline_bundle: Path, adaptive_bundle: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["torch"] = None
sys.argv = ["dvib-export", "diff", {str(baseline_bundle)!r}, {str(adaptive_bundle)!r}]
from export.__main__ import main
main()"""
    done = python("-c", program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "same   architecture" in done.stdout


def test_a_strangers_words_do_not_steer_the_terminal(baseline_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(baseline_bundle)
    reseal(spoiled, metrics={"test": {"recall\x1b[2J": 0.5}})
    outcome = dvib_export("diff", baseline_bundle, spoiled)
    assert outcome.code == 0
    assert "recall\\x1b[2J" in outcome.out
    assert "\x1b" not in outcome.out
