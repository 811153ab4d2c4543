"""Indexes at export: what the manifest says of them is measured, the least that reaches the recall, and repeatable."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from export import bundle, index_search, index_tuning
from export.index import build_index, read_index
from export.index_layout import Layout
from export.index_search import MAX_RECALL_USERS, RECALL_TOLERANCE, ItemIndex, Truth, sample_users, search_threads
from export.index_tuning import IndexChoice, factory_of, flat_index, search_grid
from export.manifest import IndexEntry, Manifest
from service.engine import Engine
from tests.helpers_export import dvib_export, edit_json, reseal
from tests.helpers_index import vectors
from training.common.errors import BundleError, ExportError

N, D, U = 700, 8, 60
ITEMS, USERS = vectors(N, D), vectors(U, D, seed=1)
ORDER = np.argsort(-(USERS.astype(np.float64) @ ITEMS.astype(np.float64).T), axis=1)
# The first users have seen all items, all but four, none; the others as many of their best as their number says, for a
# trained model ranks them high.
SEEN = [np.sort(ORDER[user, : (N, N - 4, 0)[user] if user < 3 else user]).astype(np.int32) for user in range(U)]
KINDS = ("hnsw", "ivf", "ivfpq", "SQfp16", "SQ8", "PQ4x4", "IVF12,SQ8", "IVF12,PQ4x4fs", "HNSW16,SQ8")


def built(path: Path, name: str, min_recall: float | None = None) -> tuple[ItemIndex, IndexEntry]:
    entry = build_index(ITEMS, path, USERS, IndexChoice(name, min_recall), SEEN)
    return read_index(memoryview(path.read_bytes()), entry, N, D), entry


def recall_by_definition(index: ItemIndex, k: int = 10) -> float:
    """Sets of rows, from float64 scores: nothing of how the exporter counts."""
    found = wanted = 0
    for user in range(U):
        seen = set(SEEN[user].tolist())
        best = [row for row in ORDER[user].tolist() if row not in seen][:k]
        count = min(index.entry.search.get("overfetch", 1) * k + len(seen), N)
        proposed = set(index.index.search(USERS[user][None], count)[1][0].tolist())
        reply = [row for row in ORDER[user].tolist() if row in proposed - seen][:k]
        found, wanted = found + len(set(reply) & set(best)), wanted + len(best)
    return found / wanted


@pytest.mark.parametrize("name", KINDS)
def test_the_manifest_says_what_the_index_finds(name: str, tmp_path: Path) -> None:
    index, entry = built(tmp_path / "index", name)
    assert entry.recall is not None
    assert (entry.recall.k, entry.recall.users) == (10, U)
    assert entry.recall.value == pytest.approx(recall_by_definition(index), abs=1e-9)
    assert entry.recall.value >= 0.99
    assert entry.factory == index.entry.factory == factory_of(name, N, D)


@pytest.mark.parametrize("name", ["IVF12,Flat", "HNSW4,SQ8", "PQ4x4"])
def test_a_low_recall_is_of_the_best_that_are_not_seen(name: str, tmp_path: Path) -> None:
    index, entry = built(tmp_path / "index", name, 0.6)
    assert entry.recall is not None
    assert 0.6 <= entry.recall.value < 0.99
    assert entry.recall.value == pytest.approx(recall_by_definition(index), abs=1e-9)
    # Seen ones count neither as wanted nor as found: over all items it is another.
    assert abs(index.recall(Truth(ITEMS, USERS)).value - entry.recall.value) > 0.002


def test_nothing_is_missed_by_those_who_have_seen_everything() -> None:
    everything = np.arange(N, dtype=np.int32)
    assert flat_index(ITEMS).recall(Truth(ITEMS, USERS, [everything] * U)).value == 1


def test_a_truth_is_the_same_in_blocks_and_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, _ = built(tmp_path / "index", "IVF12,Flat", 0.6)
    whole = index.recall(Truth(ITEMS, USERS, SEEN))
    some = index.recall(Truth(ITEMS, USERS[[0, 29, 59]], [SEEN[0], SEEN[29], SEEN[59]]))
    monkeypatch.setattr(index_search, "_BLOCK_SCORES", 7 * N)
    in_blocks = Truth(ITEMS, USERS, SEEN)
    assert index.recall(in_blocks) == whole
    assert index.recall(in_blocks.some(3)) == some


def test_scores_that_overflow_are_refused() -> None:
    with pytest.raises(BundleError, match="overflow float32"):
        Truth(ITEMS * np.float32(1e30), USERS * np.float32(1e10))


@pytest.mark.parametrize("name", KINDS)
def test_the_same_vectors_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    entries = [built(tmp_path / str(number), name)[1] for number in range(2)]
    assert entries[0] == entries[1]
    # Nor do they depend on how the index was searched while it was tuned.
    built(tmp_path / "2", name, 0.5)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(3)}) == 1


def test_one_thread_builds_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its edges depend on which thread comes first, though hardly ever in a catalogue as small as this."""
    asked: list[int] = []

    def recorded(count: int) -> AbstractContextManager[None]:
        asked.append(count)
        return search_threads(count)

    monkeypatch.setattr(index_tuning, "search_threads", recorded)
    monkeypatch.setattr(index_tuning, "_SMALL", 0)
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 2)
    for factory in ("HNSW4,Flat", "HNSW4,SQ8", "IVF12,Flat", "IVF12_HNSW4,Flat"):
        index_tuning.make_index(factory, ITEMS)
    assert asked == [1, 1, 2, 1]


@pytest.mark.parametrize("name", ["IVF12,Flat", "HNSW16,SQ8", "IVF12,PQ4x4fs"])
def test_nothing_cheaper_reaches_the_recall(name: str, tmp_path: Path) -> None:
    index, entry = built(tmp_path / "index", name)
    grid = search_grid(Layout(entry.factory, 0.0, 12 if "IVF" in name else 0), N, D, 10)
    chosen = grid.index(dict(entry.search))  # type: ignore[arg-type]
    assert chosen > 0
    for search in grid[:chosen]:
        layout = Layout(entry.factory, 1.0, 12 if "IVF" in name else 0)
        cheaper = ItemIndex(index.index, IndexEntry.model_validate({**entry.model_dump(), "search": search}), layout)
        assert recall_by_definition(cheaper) < 0.99


@pytest.mark.parametrize("factory", ["IVF64,Flat", "IVF64,SQ8", "HNSW16,Flat", "IVF64,PQ8x4fs", "SQ8", "Flat"])
def test_the_grid_rises_in_cost_to_a_full_search_or_several(factory: str) -> None:
    layout = Layout(factory, 0.0, 64 if "IVF" in factory else 0)
    grid = search_grid(layout, 5000, 8, 10)
    assert all("nprobe" in search for search in grid) == ("IVF" in factory)
    assert all("efSearch" in search for search in grid) == ("HNSW" in factory)
    assert max(search.get("nprobe", 64) for search in grid) == 64
    # A graph with 32 edges per vector reads all vectors eight times at a breadth of a quarter of them.
    assert 5000 / 8 < max(search.get("efSearch", 1250) for search in grid) <= 5000 / 4
    # More of everything never comes before less of everything.
    for before, search in enumerate(grid):
        assert not [later for later in grid[before + 1 :] if all(later[key] <= search[key] for key in search)]


def test_the_grid_is_never_empty() -> None:
    assert search_grid(Layout("HNSW64,Flat", 0.0), 1, 8, 10) == [{"overfetch": 1, "efSearch": 1}]


def test_flat_is_exact_and_needs_no_users(tmp_path: Path) -> None:
    for name in ("flat", "Flat"):
        entry = build_index(ITEMS, tmp_path / name, USERS, IndexChoice(name, 1.0))
        assert entry == IndexEntry(factory="Flat", exact=True)
    assert build_index(ITEMS, tmp_path / "plain") == entry
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with pytest.raises(ExportError, match="there are none"):
        build_index(ITEMS, tmp_path / "other", None, IndexChoice("ivf"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nonsense", "could not parse"),
        ("", "could not parse"),
        ("PQ3x4", "multiple of the number of subquantizers"),
        ("IVF9999,Flat", "at least as large as"),
        ("HNSW4_PQ4", "no inner product"),
        ("LSH", "--index LSH"),
        ("OPQ4,PQ4x4", "IndexPreTransform, which is not served; known: Flat, SQ8"),
        ("Flat,RFlat", "not served"),
        ("NSG8,Flat", "not served"),
        ("SQ6", "not served"),
        ("IVF8,RQ2x4", "not served"),
    ],
)
def test_what_cannot_be_made_or_served_is_one_line(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        build_index(ITEMS, tmp_path / "index", USERS, IndexChoice(name))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "index").exists()


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[ItemIndex], float]) -> list[str]:
    """Let indexes take these seconds; return the factory strings that are timed."""
    asked: list[str] = []

    def measured(candidates: list[ItemIndex], items: NDArray[np.float32], truth: Truth) -> list[float]:
        asked.extend(candidate.entry.factory for candidate in candidates)
        return [seconds(candidate) for candidate in candidates]

    monkeypatch.setattr(index_tuning, "seconds_per_query", measured)
    return asked


def test_auto_stays_with_flat_while_it_is_fast_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, lambda _: 0.009)
    assert build_index(ITEMS, tmp_path / "index", USERS, IndexChoice("auto")).exact
    assert asked == ["Flat"]


@pytest.mark.parametrize("fastest", ["HNSW32,Flat", "IVF16,SQ8", "Flat"])
def test_auto_takes_the_fastest_that_finds_enough(
    fastest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed(monkeypatch, lambda index: 0.011 if index.entry.factory == fastest else 0.012)
    entry = build_index(ITEMS, tmp_path / "index", USERS, IndexChoice("auto"))
    assert entry.factory == fastest
    assert {"HNSW32,Flat", "HNSW32,SQ8", "IVF16,Flat", "IVF16,SQ8"} <= set(asked)


def test_auto_keeps_no_more_than_two_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[weakref.ref[ItemIndex]] = []

    def falling(candidates: list[ItemIndex], items: NDArray[np.float32], truth: Truth) -> list[float]:
        met.extend(weakref.ref(candidate) for candidate in candidates)
        assert {id(index) for known in met if (index := known()) is not None} == {id(index) for index in candidates}
        return [1.0 / len(met) + place for place in range(len(candidates))][:: -1 if len(met) % 3 else 1]

    monkeypatch.setattr(index_tuning, "seconds_per_query", falling)
    build_index(ITEMS, tmp_path / "index", USERS, IndexChoice("auto"))
    assert len(met) >= 9


def test_auto_leaves_out_what_finds_too_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(layout: Layout, n_items: int, dimension: int, k: int) -> list[dict[str, int]]:
        return [search_grid(layout, n_items, dimension, k)[0 if layout.nlist else -1]]

    monkeypatch.setattr(index_tuning, "search_grid", narrow)
    asked = timed(monkeypatch, lambda index: 0.011 if index.entry.kind == "ivf" else 0.012)
    entry = build_index(ITEMS, tmp_path / "index", USERS, IndexChoice("auto"))
    assert entry.kind in {"flat", "hnsw"}
    assert not [factory for factory in asked if factory.startswith("IVF")]


def test_times_are_medians_of_searches_taken_in_turns(tmp_path: Path) -> None:
    indexes = [built(tmp_path / name, name)[0] for name in ("SQ8", "ivf")]
    ticks = iter(range(10**6))
    seconds = index_tuning.seconds_per_query(indexes, ITEMS, Truth(ITEMS, USERS), clock=lambda: float(next(ticks)))
    assert seconds == [1.0, 1.0]


@pytest.mark.parametrize(("count", "sampled"), [(1, 1), (17, 17), (MAX_RECALL_USERS + 1, MAX_RECALL_USERS)])
def test_sampled_users_are_distinct_and_spread(count: int, sampled: int) -> None:
    rows = sample_users(count)
    assert len(np.unique(rows)) == len(rows) == sampled
    assert (rows[0], rows[-1]) == (0, count - 1)


@pytest.fixture(scope="session")
def lists_bundle(adaptive_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adaptive run with an approximate index; never changed by a test."""
    out = tmp_path_factory.mktemp("bundles") / "lists"
    outcome = dvib_export("build", adaptive_run, "--out", out, "--index", "IVF9,Flat", "--min-recall", "0.8")
    assert (outcome.code, outcome.err) == (0, "")
    assert "index IVF9,Flat (overfetch 1, nprobe" in outcome.out
    return out


def manifest_of(folder: Path) -> Manifest:
    with bundle.BundleReader(folder) as reader:
        return reader.manifest


def test_a_bundle_with_an_approximate_index_is_verified_and_served(lists_bundle: Path, adaptive_bundle: Path) -> None:
    entry = manifest_of(lists_bundle).index
    assert (entry.kind, entry.exact) == ("ivf", False)
    assert entry.recall is not None
    assert 0.8 <= entry.recall.value < 1
    outcome = dvib_export("verify", lists_bundle)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"recall@10 {entry.recall.value:.4f} over 23 users" in outcome.out
    exact, served = Engine.load(adaptive_bundle), Engine.load(lists_bundle)
    items = np.load(lists_bundle / bundle.ITEMS)
    found = wanted = 0
    for user in (exact._users[row] for row in range(23)):
        scores = {item.row: item.score for item in exact.recommend(user, len(items)).items}
        reply = served.recommend(user, 10).items
        assert len(reply) == min(10, len(scores))
        assert all(scores[item.row] == item.score for item in reply)
        found += len({item.row for item in reply} & set(list(scores)[:10]))
        wanted += len(reply)
    # What the manifest says is what clients get.
    assert found / wanted == pytest.approx(entry.recall.value, abs=1e-9)


def stated(recall: float) -> Callable[[Path], object]:
    return lambda folder: edit_json(
        folder / bundle.MANIFEST, lambda document: document["index"]["recall"].update(value=recall)
    )


def test_a_recall_that_is_not_so_fails_the_verification(lists_bundle: Path, copy_of: Callable[[Path], Path]) -> None:
    recall = manifest_of(lists_bundle).index.recall
    assert recall is not None
    for value, code in ((recall.value + 1.5 * RECALL_TOLERANCE, 1), (recall.value + 0.5 * RECALL_TOLERANCE, 0)):
        spoiled = copy_of(lists_bundle)
        stated(value)(spoiled)
        reseal(spoiled)
        outcome = dvib_export("verify", spoiled)
        assert outcome.code == code
        assert ("FAIL  index:" in outcome.out) == bool(code)
        spoiled.rename(spoiled.with_name(str(value)))


def test_an_index_of_other_vectors_finds_too_little(lists_bundle: Path, copy_of: Callable[[Path], Path]) -> None:
    spoiled = copy_of(lists_bundle)
    items = np.load(spoiled / bundle.ITEMS)
    entry = manifest_of(spoiled).index
    build_index(-items, spoiled / bundle.INDEX, items, IndexChoice("IVF9,Flat"))
    assert entry.factory == "IVF9,Flat"
    reseal(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert outcome.code == 1
    assert "FAIL  index: IVF9,Flat" in outcome.out


def test_no_bundle_is_written_that_falls_short(
    adaptive_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_tuning, "search_grid", lambda *_: [{"overfetch": 1, "nprobe": 1}])
    outcome = dvib_export(
        "build", adaptive_run, "--out", tmp_path / "b", "--index", "IVF9,Flat", "--min-recall", "0.99"
    )
    assert outcome.code == 2
    assert "reaches recall@10 0." in outcome.complaint
    assert "wanted 0.99 (--min-recall)" in outcome.complaint
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_is_not_served_is_one_line(adaptive_run: Path, tmp_path: Path) -> None:
    outcome = dvib_export("build", adaptive_run, "--out", tmp_path / "b", "--index", "NSG8,Flat")
    assert outcome.code == 2
    assert "--index NSG8,Flat makes a IndexNSGFlat, which is not served" in outcome.complaint
    assert list(tmp_path.iterdir()) == []
