"""When two ways of scoring agree, by hand."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from export import parity
from export.certificate import PathParity
from export.parity import TOLERANCE, Agreement, LargeBlocks, TowersAndIndex, compare, top_k_of, user_blocks
from tests.helpers_bundle import gather_tower, make_content

Scores = NDArray[np.float32]
REFERENCE = np.array([[4.0, 3.0, 2.0, 1.0], [-8.0, 0.5, 0.25, 0.125]], dtype=np.float32)


def scored(other: Scores, reference: Scores = REFERENCE) -> Agreement:
    agreement = Agreement()
    agreement.add_scores(reference, other)
    return agreement


def listed(items: list[list[int]], reference: Scores = REFERENCE) -> int:
    agreement = Agreement()
    agreement.add_lists(reference, np.array(items, dtype=np.int64))
    return agreement.top_k_differing


def changed(row: int, column: int, value: float) -> Scores:
    other = REFERENCE.copy()
    other[row, column] = value
    return other


def test_equal_scores_agree() -> None:
    agreement = scored(REFERENCE.copy())
    assert agreement.passed
    assert (agreement.users, agreement.max_absolute, agreement.max_relative) == (2, 0.0, 0.0)


def test_nothing_compared_is_no_agreement() -> None:
    assert not Agreement().passed


def test_the_error_is_relative_to_the_users_largest_magnitude() -> None:
    # User 1's largest magnitude is 8, and negative: 2e-6 of it is 1.6e-5.
    assert scored(changed(1, 3, 0.125 + 1.5e-5)).passed
    above = scored(changed(1, 3, 0.125 + 1.7e-5))
    assert not above.passed
    assert above.max_relative == pytest.approx(1.7e-5 / 8, rel=1e-3)
    assert above.max_absolute == pytest.approx(1.7e-5, rel=1e-3)
    # The same difference is too much for user 0, whose largest is 4.
    assert not scored(changed(0, 3, 1 + 1.5e-5)).passed


def test_one_score_of_many_users_is_enough_to_fail() -> None:
    draw = np.random.default_rng(0)
    reference = draw.standard_normal((200, 50)).astype(np.float32)
    other = reference.copy()
    user = 137
    other[user, 41] += np.float32(3e-6) * np.abs(reference[user]).max()
    agreement = Agreement()
    for start in range(0, 200, 64):
        agreement.add_scores(reference[start : start + 64], other[start : start + 64])
    assert (agreement.users, agreement.worst_user) == (200, user)
    assert agreement.mean_relative == pytest.approx(agreement.max_relative / 200)
    assert not agreement.passed
    assert TOLERANCE < agreement.max_relative < 4e-6


def test_the_worst_block_counts_not_the_last() -> None:
    agreement = scored(changed(0, 0, 5.0))
    agreement.add_scores(REFERENCE, REFERENCE)
    assert not agreement.passed
    assert agreement.max_relative == 0.25
    assert agreement.max_absolute == 1.0


BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("value", BAD)
def test_a_score_that_is_no_number_fails_on_either_side(value: float) -> None:
    for reference, other in ((REFERENCE, changed(0, 2, value)), (changed(0, 2, value), REFERENCE)):
        agreement = scored(other, reference)
        assert not agreement.passed
        assert agreement.max_relative == np.inf
        assert agreement.max_absolute == np.inf


@pytest.mark.parametrize("value", BAD)
def test_the_same_bad_score_on_both_sides_fails(value: float) -> None:
    assert not scored(changed(1, 1, value), changed(1, 1, value)).passed


def test_scores_that_are_all_zero() -> None:
    zero = np.zeros((1, 3), dtype=np.float32)
    assert scored(zero.copy(), zero).passed
    for value in (1e-30, np.nan):
        assert not scored(np.array([[0.0, value, 0.0]], dtype=np.float32), zero).passed
    # With all scores tied, any list without a repetition will do.
    assert listed([[2, 0]], zero) == 0
    assert listed([[2, 2]], zero) == 1


def test_the_best_items_in_order_agree() -> None:
    assert listed([[0, 1, 2], [1, 2, 3]]) == 0


@pytest.mark.parametrize(
    "items",
    [
        [[1, 0, 2], [1, 2, 3]],  # two places swapped
        [[0, 1, 3], [1, 2, 3]],  # a worse item at the cut
        [[0, 2, 3], [1, 2, 3]],  # the second-best left out
        [[0, 1, 1], [1, 2, 3]],  # a repetition
    ],
)
def test_a_wrong_list_is_found(items: list[list[int]]) -> None:
    assert listed(items) == 1


def test_a_repetition_among_tied_items_is_found() -> None:
    tied = np.array([[2.0, 2.0, 1.0]], dtype=np.float32)
    assert listed([[0, 1]], tied) == listed([[1, 0]], tied) == 0
    assert listed([[1, 1]], tied) == 1


def test_either_of_two_items_tied_at_the_cut_will_do() -> None:
    almost = np.float32(3 + 4e-6)  # within 2e-6 of the user's largest score, 4
    reference = np.array([[4.0, 3.0, almost, 1.0]], dtype=np.float32)
    assert listed([[0, 1]], reference) == listed([[0, 2]], reference) == 0
    assert listed([[0, 1, 2]], reference) == listed([[0, 2, 1]], reference) == 0
    assert listed([[0, 3]], reference) == 1
    apart = np.array([[4.0, 3.0, 3 + 4e-5, 1.0]], dtype=np.float32)
    assert listed([[0, 2]], apart) == 0
    assert listed([[0, 1]], apart) == 1


def test_reference_scores_without_a_number_agree_with_no_list() -> None:
    assert listed([[0, 1], [1, 2]], changed(0, 0, np.nan)) == 1


def test_one_differing_list_fails_although_all_scores_agree() -> None:
    agreement = scored(REFERENCE.copy())
    agreement.add_lists(REFERENCE, np.array([[0, 1], [2, 1]]))
    assert agreement.top_k_differing == 1
    assert not agreement.passed
    assert PathParity.of(agreement).model_dump() == {
        "passed": False,
        "users": 2,
        "max_absolute_error": 0.0,
        "max_relative_error": 0.0,
        "mean_relative_error": 0.0,
        "worst_user": 0,
        "top_k_differing_users": 1,
    }


def test_top_k_breaks_ties_by_row() -> None:
    scores = np.array([[1, 3, 3, 2], [0, 0, 0, 0]], dtype=np.float32)
    np.testing.assert_array_equal(top_k_of(scores, 3), [[1, 2, 3], [0, 1, 2]])


@pytest.mark.parametrize(("users", "items"), [(1, 1), (7, 3), (5, 5_000_000), (9000, 1000)])
def test_blocks_cover_every_user_once(users: int, items: int) -> None:
    blocks = list(user_blocks(users, items))
    np.testing.assert_array_equal(np.concatenate(blocks), np.arange(users))
    assert max(len(block) for block in blocks) * items <= max(4_000_000, items)


def paths(*, items_of_index: Scores | None = None) -> dict[str, Agreement]:
    """Compare NumPy's product with itself, with one wrong user of the last block, and with tower and index."""
    content = make_content(n_users=30)
    index = faiss.IndexFlatIP(content.items.shape[1])
    index.add(content.items if items_of_index is None else items_of_index)

    def reference(users: NDArray[np.int64]) -> Scores:
        return content.users[users] @ content.items.T

    def wrong(users: NDArray[np.int64]) -> Scores:
        scores = reference(users)
        scores[users == 29, 3] += 1e-3
        return scores

    towers = TowersAndIndex(gather_tower(content.users), index)
    return compare(reference, {"same": reference, "wrong": wrong}, towers, 30, len(content.items))


def test_large_blocks_give_the_same_scores_in_fewer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for, also what lies beyond the block or before it, and the last block is a short one."""
    monkeypatch.setattr(parity, "_LARGE_BLOCK_SCORES", 4 * 10)
    table = np.random.default_rng(0).standard_normal((23, 4)).astype(np.float32)
    calls: list[int] = []

    def scores(users: NDArray[np.int64]) -> Scores:
        calls.append(len(users))
        return table[users]

    blocks = LargeBlocks(scores, 23, 4)
    for start in range(0, 23, 3):
        users = np.arange(start, min(start + 3, 23))
        np.testing.assert_array_equal(blocks(users), table[users], strict=True)
    assert calls == [10, 10, 5]
    for first, end in ((0, 1), (2, 19), (22, 23)):
        np.testing.assert_array_equal(blocks(np.arange(first, end)), table[first:end], strict=True)


def test_compare_reports_every_path() -> None:
    result = paths()
    assert {name: agreement.passed for name, agreement in result.items()} == {
        "same": True,
        "wrong": False,
        "towers_index": True,
    }
    assert {agreement.users for agreement in result.values()} == {30}


def test_compare_finds_an_index_of_other_vectors() -> None:
    items = make_content(n_users=30).items.copy()
    items[5] *= 1.001
    assert not paths(items_of_index=items)["towers_index"].passed
