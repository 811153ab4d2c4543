from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export import bundle
from service.engine import Engine
from service.retrieval.scores import exact_scores
from service.values import Request
from tests.helpers_bundle import Content, cancelling, flat_index, gather_tower, make_content, seal, write_bundle
from training.common.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


KS = (1, 2, 3, 5, 10, 37, 1000)


def expected(content: Content, user: int, k: int) -> list[tuple[int, float]]:
    """The definition: float64 scores, unseen rows, (score descending, row ascending)."""
    scores = (content.items.astype(np.float64) * content.users[user].astype(np.float64)).sum(axis=1)
    unseen = np.setdiff1d(np.arange(len(scores)), content.seen[user])
    order = unseen[np.lexsort((unseen, -scores[unseen]))][:k]
    return [(int(row), float(scores[row])) for row in order]


CONTENTS = {
    "plain": make_content(),
    "larger": make_content(n_users=30, n_items=701, dimension=33, seen_share=0.05, seed=1),
    "exact ties": make_content(n_items=400, dimension=2, levels=1, seen_share=0.03, seed=2),
    "cancellation": cancelling(),
    "one item": replace(
        make_content(n_users=4, n_items=4, seed=3),
        items=np.ones((1, 7), dtype=np.float32),
        item_ids=["only"],
        titles=[""],
        seen=[np.array(rows, dtype=np.int32) for rows in ([0], [], [], [])],
        popularity=np.array([1], dtype=np.int64),
        categories=None,
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_user_and_k_equals_brute_force(name: str, tmp_path: Path) -> None:
    content = CONTENTS[name]
    write_bundle(tmp_path / "b", content)
    engine = Engine.load(tmp_path / "b")
    for user, user_id in enumerate(content.user_ids):
        for k in KS:
            answer = engine.recommend(user_id, k)
            assert answer.source == "model"
            assert [(item.row, item.score) for item in answer.items] == expected(content, user, k), (user_id, k)
            assert all(item.item_id == content.item_ids[item.row] for item in answer.items)
            assert all(item.title == (content.titles[item.row] or None) for item in answer.items)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_batch_answers_like_single_calls(name: str, tmp_path: Path) -> None:
    content = CONTENTS[name]
    write_bundle(tmp_path / "b", content)
    engine = Engine.load(tmp_path / "b")
    draw = np.random.default_rng(0)
    ids = [*content.user_ids, "nobody", ""]
    for size in (0, 1, 2, 19, 20, 64):  # FAISS changes its kernel at 20 queries
        requests = [Request(str(draw.choice(ids)), int(draw.choice(KS))) for _ in range(size)]
        assert engine.recommend_many(requests) == [engine.recommend(request.user_id, request.k) for request in requests]


def test_seen_all_or_nearly_all(content: Content, folder: Path) -> None:
    engine = Engine.load(folder)
    assert engine.recommend(content.user_ids[0], 10).items == []
    assert {item.row for item in engine.recommend(content.user_ids[1], 10).items} == {1, len(content.items) - 2}
    assert len(engine.recommend(content.user_ids[2], 1000).items) == len(content.items)


def test_unknown_user_gets_popular_items_in_row_order_of_ties(content: Content, folder: Path) -> None:
    answer = Engine.load(folder).recommend("nobody", 1000)
    ranking = sorted(range(len(content.items)), key=lambda row: (-content.popularity[row], row))
    assert answer.source == "popular"
    assert [item.row for item in answer.items] == ranking
    assert [item.score for item in answer.items] == [float(content.popularity[row]) for row in ranking]
    assert len(set(content.popularity.tolist())) < len(content.items)  # there were ties


def test_equal_items_score_equally_wherever_they_lie() -> None:
    draw = np.random.default_rng(0)
    vector = draw.standard_normal(37).astype(np.float32)
    items = np.tile(draw.standard_normal(37).astype(np.float32), (9001, 1))
    for rows in (np.arange(9001), np.arange(5, 6), np.arange(3, 4500)):
        assert set(exact_scores(items, rows, vector)) == set(exact_scores(items, np.array([0]), vector))


def damaged(folder: Path, content: Content, name: str, data: bytes) -> Path:
    write_bundle(folder, content)
    (folder / name).write_bytes(data)
    seal(folder, content)  # the hashes fit: only looking at the content can tell
    return folder


def shifted_tower(content: Content, delta: float) -> bytes:
    users = content.users.copy()
    users[-1, -1] = delta
    return gather_tower(users)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (bundle.INDEX, lambda _: b"", "items.faiss: it ends too early"),
        (bundle.INDEX, lambda c: b"IwFl" + flat_index(c.items)[4:], "items.faiss: it probes"),
        (bundle.INDEX, lambda c: flat_index(c.items)[:-5], "it ends too early"),
        (bundle.INDEX, lambda c: flat_index(c.items[:-1]), "wanted"),
        (bundle.INDEX, lambda c: flat_index(np.ascontiguousarray(c.items[:, :-1])), "wanted"),
        (bundle.INDEX, lambda c: flat_index(c.items + 1), "other vectors"),
        (bundle.USER_TOWER, lambda _: b"nonsense", "user_tower.onnx is no ONNX model"),
        (
            bundle.USER_TOWER,
            lambda c: gather_tower(c.users).replace(b"Gather", b"Gazzer"),
            "uses the operator 'Gazzer'",
        ),
        (bundle.USER_TOWER, lambda c: gather_tower(c.users[:-1]), "has a table of type"),
        (bundle.USER_TOWER, lambda c: gather_tower(c.users[:, :-1]), "wanted"),
        (
            bundle.USER_TOWER,
            lambda c: gather_tower(c.users).replace(b"users", b"usars"),
            "does not look vectors float32 up for users int64",
        ),
        (bundle.USER_TOWER, lambda c: shifted_tower(c, float("nan")), "NaN"),
        (bundle.USER_TOWER, lambda c: shifted_tower(c, 3e38), "overflow"),
    ],
)
def test_content_that_does_not_fit_is_refused_at_load(
    name: str, make: Callable[[Content], bytes], message: str, content: Content, tmp_path: Path
) -> None:
    path = damaged(tmp_path / "b", content, name, make(content))
    with pytest.raises(BundleError, match=message) as caught:
        Engine.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("kind", "message"), [("users", "user ids"), ("items", "item ids"), ("titles", "titles")])
@pytest.mark.parametrize("cut", [False, True])
def test_names_that_are_no_utf8_are_refused(
    kind: str, message: str, cut: bool, content: Content, tmp_path: Path
) -> None:
    """Bytes that no character has, and a string that begins within a character of the one before."""
    write_bundle(tmp_path / "b", content)
    arrays = load_file(tmp_path / "b" / bundle.IDS)
    blob, offsets = arrays[f"{kind}.bytes"].copy(), arrays[f"{kind}.offsets"].copy()
    if cut:
        within = int(np.flatnonzero(blob & 0xC0 == 0x80)[0])
        offsets[np.searchsorted(offsets, within)] = within
    else:
        blob[int(offsets[2])] = 0xFF
    names = [blob[offsets[row] : offsets[row + 1]].tobytes() for row in range(len(offsets) - 1)]
    order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
    changed = {f"{kind}.bytes": blob, f"{kind}.offsets": offsets, f"{kind}.order": order}
    save_file({**arrays, **changed}, tmp_path / "b" / bundle.IDS)
    seal(tmp_path / "b", content)
    with pytest.raises(BundleError, match=f"the {message} are not valid UTF-8"):
        Engine.load(tmp_path / "b")


@pytest.mark.parametrize("rows", [[3, 3], [5, 2]])
def test_seen_items_out_of_order_are_refused(rows: list[int], content: Content, tmp_path: Path) -> None:
    seen = [*content.seen[:-1], np.array(rows, dtype=np.int32)]
    write_bundle(tmp_path / "b", replace(content, seen=seen))
    with pytest.raises(BundleError, match="strictly ascending"):
        Engine.load(tmp_path / "b")
