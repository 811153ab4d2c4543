"""Whatever a request leaves out, allows or tells of its user, the answer is the one that brute force gives."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest

from export import bundle
from export.index import build_index
from export.index_tuning import IndexChoice
from service.engine import Engine
from service.retrieval.scan import ScanError
from service.values import Recommendation, Request, ScoredItems
from tests.helpers_bundle import Content, cancelling, make_content, seal, write_bundle
from tests.helpers_export import edit_json, reseal
from tests.service.reference import Answer, Reference, draw_request
from tests.service.vectors import KINDS, draw_vectors
from training.common.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from service.values import Recommendation

APPROXIMATE = ("HNSW16,Flat", "IVF8,Flat", "SQ8")
KNOWN, NOBODY = "u-1", "nobody"


def of_kind(kind: str, n_items: int = 700, dimension: int = 9) -> Content:
    base = make_content(n_items=n_items, dimension=dimension, seen_share=0.1, seed=2)
    items, users = draw_vectors(kind, n_items, len(base.users), dimension, 3)
    items[5] = 0
    return replace(base, items=items, users=users)


CONTENTS = {
    "plain": make_content(),
    "exact ties": make_content(n_items=400, dimension=2, levels=1, seen_share=0.03, seed=2),
    "cancellation": cancelling(),
    "many": make_content(n_users=6, n_items=5000, dimension=16, seen_share=0.01, seed=4),
    "no categories": replace(make_content(), categories=None),
    **{kind: of_kind(kind) for kind in KINDS},
}
"""Among many items a category is scanned, and not scored whole."""


def told(answer: Recommendation) -> Answer:
    return answer.source, [(item.item_id, item.score) for item in answer.items]


def requests(content: Content, count: int, seed: int) -> list[Request]:
    draw = np.random.default_rng(seed)
    users = [*content.user_ids, NOBODY, "", "somebody else"]
    return [draw_request(draw, content, str(draw.choice(users))) for _ in range(count)]


def check(engine: Engine, content: Content, asked: list[Request]) -> None:
    reference = Reference(content)
    wanted = [reference.answer(request) for request in asked]
    for start in range(0, len(asked), 16):
        part = asked[start : start + 16]
        for request, answer, right in zip(part, engine.recommend_many(part), wanted[start:], strict=False):
            assert told(answer) == right, request
    for request, right in zip(asked[::5], wanted[::5], strict=True):
        assert told(engine.recommend_many([request])[0]) == right, request


@pytest.mark.parametrize("name", CONTENTS)
def test_any_request_equals_brute_force(name: str, tmp_path: Path) -> None:
    content = CONTENTS[name]
    write_bundle(tmp_path / "b", content)
    check(Engine.load(tmp_path / "b"), content, requests(content, 60, 7))


def test_every_combination_of_filters(content: Content, folder: Path) -> None:
    """Each of them given or not, for a user of the bundle and for another."""
    names = content.item_ids
    values = {
        "exclude_seen": (True, False),
        "exclude": ((), (names[3], names[41], "no such item")),
        "allow": (None, (*names[2:58], "no such item")),
        "category": (None, "боевик & ?category="),
        "min_score": (None, 0.5),
        "history": ((), (names[9], names[2], names[9], "no such item")),
    }
    asked = [
        Request(user, 12, **dict(zip(values, chosen, strict=True)))  # type: ignore[arg-type]
        for user in (KNOWN, NOBODY, content.user_ids[2])
        for chosen in product(*values.values())
    ]
    assert len(asked) == 3 * 2**6
    engine, reference = Engine.load(folder), Reference(content)
    for request in asked:
        assert told(engine.recommend_many([request])[0]) == reference.answer(request), request


def test_empty_and_unknown_lists(content: Content, folder: Path) -> None:
    """Nothing allowed is not everything allowed; a history of unknown items is none."""
    engine, user = Engine.load(folder), content.user_ids[2]
    assert engine.recommend_many([Request(user, 5, allow=()), Request(NOBODY, 5, allow=("no such item",))]) == [
        Recommendation("model", ScoredItems.of()),
        Recommendation("popular", ScoredItems.of()),
    ]
    assert engine.recommend_many([Request(user, 5, category="no such category")])[0].items == []
    assert engine.recommend_many([Request(NOBODY, 5, history=("no such item",))]) == [engine.recommend(NOBODY, 5)]
    everything = engine.recommend_many([Request(user, 99, category="Everything")])[0]
    assert everything == engine.recommend(user, 99)
    assert len(everything.items) == len(content.items)


def test_a_history_in_any_order_and_repeated_is_the_same(content: Content, folder: Path) -> None:
    engine, names = Engine.load(folder), content.item_ids[10:20]
    first, second = engine.recommend_many(
        [Request(NOBODY, 20, history=tuple(names)), Request("other", 20, history=tuple(names[::-1] * 2))]
    )
    assert first == second
    assert first.source == "history"
    assert not {item.item_id for item in first.items} & set(names)


def test_a_machine_that_cannot_scan_answers_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ScanError("not on this machine")

    monkeypatch.setattr("service.retrieval.ranking.Scan", refuse)
    for name, content in CONTENTS.items():
        write_bundle(tmp_path / name, content)
        check(Engine.load(tmp_path / name), content, requests(content, 30, 8))


def approximate(folder: Path, factory: str, content: Content) -> Engine:
    write_bundle(folder, content)
    users = content.users if np.isfinite(content.users).all() else content.users[:1]
    entry = build_index(content.items, folder / bundle.INDEX, users, IndexChoice(factory), content.seen)
    edit_json(folder / bundle.MANIFEST, lambda document: document.update(index=entry.model_dump(mode="json")))
    reseal(folder)
    return Engine.load(folder)


@pytest.mark.parametrize("factory", APPROXIMATE)
def test_an_approximate_index_gives_whole_answers_with_exact_scores(factory: str, tmp_path: Path) -> None:
    content = make_content(n_users=100, n_items=3000, dimension=8, seen_share=0.02, seed=6)
    engine, reference = approximate(tmp_path / "b", factory, content), Reference(content)
    found = best = 0
    for request in requests(content, 250, 9):
        right, (answer,) = reference.answer(request), engine.recommend_many([request])
        source, items = told(answer)
        scores = dict(zip(content.item_ids, reference.scores(request)[1].tolist(), strict=True))
        there = dict(zip(content.item_ids, reference.may_be_answered(request).tolist(), strict=True))
        assert source == right[0]
        assert all(there[name] and scores[name] == score for name, score in items)
        rows = [item.row for item in answer.items]
        assert sorted(zip((-score for _, score in items), rows, strict=True)) == [
            (-item.score, item.row) for item in answer.items
        ]
        if request.min_score is None:
            assert len(set(rows)) == len(right[1])
        found, best = found + len(set(items) & set(right[1])), best + len(right[1])
    assert found >= 0.97 * best


@pytest.mark.parametrize("factory", APPROXIMATE)
def test_a_small_part_is_exact_with_an_approximate_index(factory: str, tmp_path: Path) -> None:
    content = make_content(n_users=100, n_items=3000, dimension=8, seen_share=0.02, seed=6)
    engine, reference = approximate(tmp_path / "b", factory, content), Reference(content)
    for user in content.user_ids[:40]:
        request = Request(user, 10, category="rare")
        assert told(engine.recommend_many([request])[0]) == reference.answer(request)


@pytest.mark.parametrize("factory", ["Flat", *APPROXIMATE])
def test_vectors_too_long_to_search_for_are_scored(factory: str, tmp_path: Path) -> None:
    """Users are short and items so long that some products of two of them are beyond float32: the bundle is served."""
    content = of_kind("normal")
    items = (content.items.astype(np.float64) * 1.3e19).astype(np.float32)
    content = replace(content, items=items, users=content.users * np.float32(1e-3))
    if factory == "Flat":
        write_bundle(tmp_path / "b", content)
        engine = Engine.load(tmp_path / "b")
    else:
        engine = approximate(tmp_path / "b", factory, content)
    reference = Reference(content)
    for category in (None, "боевик & ?category="):
        request = Request(NOBODY, 10, category=category, history=tuple(content.item_ids[20:24]))
        assert told(engine.recommend_many([request])[0]) == reference.answer(request)
    users = replace(content, users=content.users * np.float32(1e25))
    write_bundle(tmp_path / "long", users)
    with pytest.raises(BundleError, match="overflow"):
        Engine.load(tmp_path / "long")


@pytest.mark.parametrize("name", CONTENTS)
def test_similar_items_equal_brute_force(name: str, tmp_path: Path) -> None:
    content = CONTENTS[name]
    write_bundle(tmp_path / "b", content)
    engine, reference = Engine.load(tmp_path / "b"), Reference(content)
    for item_id in content.item_ids[:: max(1, len(content.items) // 25)] + content.item_ids[5:6]:
        for k in (1, 10, len(content.items)):
            answer = engine.similar(item_id, k)
            assert answer is not None
            assert [(item.item_id, item.score) for item in answer] == reference.similar(item_id, k), (item_id, k)
            assert all(item.title == (content.titles[item.row] or None) for item in answer)
    assert engine.similar("no such item", 3) is None


def test_similar_items_of_very_long_and_very_short_vectors(tmp_path: Path) -> None:
    content = of_kind("normal")
    scales = 10.0 ** np.random.default_rng(0).uniform(-44, 37.5, (len(content.items), 1))
    content = replace(content, items=(content.items * scales).astype(np.float32), users=content.users * np.float32(0))
    write_bundle(tmp_path / "b", content)
    engine, reference = Engine.load(tmp_path / "b"), Reference(content)
    for item_id in content.item_ids[::50]:
        answer = engine.similar(item_id, 10)
        assert answer is not None
        assert [(item.item_id, item.score) for item in answer] == reference.similar(item_id, 10)


@pytest.mark.parametrize("factory", APPROXIMATE)
def test_similar_items_by_an_approximate_index(factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.retrieval.similar._MOST", 0)
    content = make_content(n_users=100, n_items=3000, dimension=8, seen_share=0.02, seed=6)
    engine, reference = approximate(tmp_path / "b", factory, content), Reference(content)
    found = best = 0
    for item_id in content.item_ids[:1000:40]:
        everything = dict(reference.similar(item_id, len(content.items)))
        answer = engine.similar(item_id, 10)
        assert answer is not None
        assert len({item.row for item in answer}) == 10
        assert all(everything[item.item_id] == item.score for item in answer)
        assert answer == sorted(answer, key=lambda item: (-item.score, item.row))
        right = {score for _, score in reference.similar(item_id, 10)}
        found, best = found + len({item.score for item in answer} & right), best + len(right)
        whole = engine.similar(item_id, len(content.items))
        assert whole is not None
        assert [(item.item_id, item.score) for item in whole] == list(everything.items())
    assert found >= 0.8 * best


def test_the_history_of_a_user(content: Content, folder: Path) -> None:
    engine = Engine.load(folder)
    for user, user_id in enumerate(content.user_ids):
        known = engine.history(user_id)
        assert known == [
            (row, content.item_ids[row], content.titles[row] or None) for row in content.seen[user].tolist()
        ]
    assert engine.history(NOBODY) is None


def test_categories_and_certificate(content: Content, folder: Path, tmp_path: Path) -> None:
    engine = Engine.load(folder)
    assert content.categories is not None
    assert engine.categories == content.categories.names
    assert engine.certificate == (folder / bundle.CERTIFICATE).read_bytes()
    write_bundle(tmp_path / "b", CONTENTS["no categories"])
    without = Engine.load(tmp_path / "b")
    assert without.categories == ()
    assert without.recommend_many([Request(KNOWN, 5, category="rare")])[0].items == []


@pytest.mark.parametrize("factory", ["Flat", "HNSW16,Flat"])
def test_similar_and_history_from_other_threads(factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.retrieval.similar._MOST", 0)
    content = make_content(n_users=100, n_items=3000, dimension=8, seen_share=0.02, seed=6)
    engine = approximate(tmp_path / "b", factory, content) if factory != "Flat" else None
    if engine is None:
        write_bundle(tmp_path / "b", content)
        engine = Engine.load(tmp_path / "b")
    asked = requests(content, 60, 11)
    right = engine.recommend_many(asked), [engine.similar(name, 10) for name in content.item_ids[:60]]
    wrong: list[int] = []
    stop = threading.Event()

    def look(first: int) -> None:
        while not stop.is_set():
            wrong.extend(n for n in range(first, 60, 3) if engine.similar(content.item_ids[n], 10) != right[1][n])
            wrong.extend(
                n for n in range(first, 60, 3) if len(engine.history(content.user_ids[n]) or ()) == 0 and n != 2
            )

    threads = [threading.Thread(target=look, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            assert engine.recommend_many(asked) == right[0]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_an_altered_popularity_is_followed(content: Content, tmp_path: Path) -> None:
    """Ties of popular items fall by row within any part of them."""
    counts = np.zeros(len(content.items), dtype=np.int64)
    counts[[7, 30, 31]] = 4, 9, 9
    changed = replace(content, popularity=counts)
    write_bundle(tmp_path / "b", changed)
    seal(tmp_path / "b", changed)
    check(
        Engine.load(tmp_path / "b"), changed, [r._replace(user_id=NOBODY, history=()) for r in requests(content, 40, 3)]
    )
