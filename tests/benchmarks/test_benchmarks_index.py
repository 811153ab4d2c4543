from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import index_data, index_speed
from benchmarks.index_speed import Bar, Baseline, best_point, holds, measure
from export.index_layout import Layout
from export.index_search import ItemIndex
from export.index_tuning import flat_index
from tests.benchmarks.helpers import Bench, read_json
from tests.helpers_index import entry_of

SMALL = ("--size", "1000", "--queries", "12", "--kind", "fp16", "--kind", "ivf")


def test_the_whole_way_from_the_command_line(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, stem = tmp_path / "index.json", tmp_path / "plots" / "index"
    assert bench("index", *SMALL, "--min-speedup", "0", "--json", place, "--plot", stem) == 0
    document = read_json(place)
    assert document["command"].startswith("dvib-bench index --size 1000")
    assert document["bar"] == {"recall": 0.99, "speedup": 0.0, "holds": True}
    (run,) = document["runs"]
    assert run["generator"]["centres"] == 2000
    assert [result["kind"] for result in run["kinds"]] == ["fp16", "ivf"]
    for result in run["kinds"]:
        for point in result["points"]:
            for name in ("near", "mixed"):
                assert 0 < point[name]["recall"] <= 1
                assert len(point[name]["samples"]["qps"]) == index_speed.ROUNDS
    assert (tmp_path / "plots" / "index.png").read_bytes().startswith(b"\x89PNG")
    assert "queries per second" in (tmp_path / "plots" / "index.svg").read_text("utf-8")
    shown = capsys.readouterr().out
    assert "recall near" in shown
    assert "flat:" in shown
    assert str(tmp_path) not in place.read_text("utf-8").replace(document["command"], "")


def test_a_missed_bar_is_an_exit_code_of_its_own(bench: Bench, tmp_path: Path) -> None:
    place = tmp_path / "index.json"
    assert bench("index", *SMALL, "--min-speedup", "1e9", "--json", place) == 1
    assert not read_json(place)["bar"]["holds"]


def test_an_unknown_kind_is_one_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("index", "--size", "1000", "--kind", "hnws") == 2
    assert "no kind 'hnws'; did you mean 'hnsw'?" in capsys.readouterr().err


def test_the_vectors_are_as_described() -> None:
    data, again = index_data.draw(20_000, 200), index_data.draw(20_000, 200)
    assert data.items.shape == (20_000, 128)
    for ours, theirs in ((data.items, again.items), (data.near, again.near), (data.mixed, again.mixed)):
        np.testing.assert_array_equal(ours, theirs)
    lengths = np.log(np.linalg.norm(data.items, axis=1))
    assert abs(lengths.mean()) < 0.01
    assert abs(lengths.std() - 0.25) < 0.01
    # Near an item: closer to one of them than any query of the other kind usually is.
    units = data.items / np.linalg.norm(data.items, axis=1, keepdims=True)
    closest = {
        name: (queries / np.linalg.norm(queries, axis=1, keepdims=True) @ units.T).max(axis=1)
        for name, queries in data.queries.items()
    }
    assert np.median(closest["near"]) > 0.85
    assert np.median(closest["mixed"]) < np.median(closest["near"])
    # The strongest direction has about the share of variance that 1 / j gives it.
    directions = np.linalg.eigvalsh(np.cov(units.T))[::-1]
    wanted = 1 / np.arange(1, 129)
    assert abs(directions[0] / directions.sum() - wanted[0] / wanted.sum()) < 0.06


def test_recall_is_the_share_of_the_best_items() -> None:
    """An index that proposes the seven best of every query, by float64 scores, and others that are no better."""
    data = index_data.draw(1500, 30)
    order = np.argsort(-(data.near.astype(np.float64) @ data.items.astype(np.float64).T), axis=1)
    rows = {query.tobytes(): np.append(best[:7], best[500:513]) for query, best in zip(data.near, order, strict=True)}

    class Stub:
        entry = entry_of("SQ8", overfetch=2)
        index = flat_index(data.items).index

        def candidates(self, query: NDArray[np.float32], k: int) -> NDArray[np.int64]:
            assert k == 10
            return rows[query.tobytes()]

    point = index_speed.measure_point(cast("ItemIndex", Stub()), Baseline(data), "near")
    assert point["recall"] == pytest.approx(0.7)
    for name, ours, theirs in (("ratio", "qps", "flat"), ("batch_ratio", "batch_qps", "flat_batch")):
        ratios = np.array(point["samples"][ours]) / np.array(point["samples"][theirs])
        assert point[name] == pytest.approx(np.median(ratios))


def run_with(*points: tuple[str, float, float, float]) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "build_seconds": seconds,
            "points": [{"search": {}, "near": {"recall": recall, "ratio": ratio, "samples": {}}}],
        }
        for kind, seconds, recall, ratio in points
    ]


def test_the_best_has_the_recall_and_was_built_in_time() -> None:
    bar = Bar(0.99, 5)
    points = [("slow", 10, 0.995, 2.0), ("late", 601, 0.999, 50.0), ("poor", 10, 0.98, 90.0), ("good", 599, 0.99, 6.0)]
    best = best_point(run_with(*points), bar)
    assert best is not None
    assert best["kind"] == "good"
    assert holds({"best": best}, bar)
    assert not holds({"best": best_point(run_with(*points[:3]), bar)}, bar)
    assert not holds({"best": best_point(run_with(points[2]), bar)}, bar)


@pytest.mark.parametrize("kind", index_speed.KINDS)
def test_every_kind_has_a_grid(kind: str) -> None:
    factory = index_speed.factory_string(kind, 1_000_000)
    lists = 4096 if "IVF" in factory else 0
    grid = index_speed.grid(kind, Layout(factory, 1.0, lists), 1_000_000)
    assert grid
    assert all(search.get("nprobe", 1) < 4096 for search in grid)


def test_the_flat_batch_leaves_no_setting_behind() -> None:
    before = faiss.cvar.distance_compute_blas_threshold
    run = measure(1000, 12, ["fp16"], Bar())
    assert faiss.cvar.distance_compute_blas_threshold == before
    assert run["flat"]["qps"] > 0
