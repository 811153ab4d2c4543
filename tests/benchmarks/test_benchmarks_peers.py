from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.peer_services import PEERS, Answer, Ask, Material, Peer
from benchmarks.peers import OURS, Options, agree, askable_users, compare, lacking
from export.serving import load_for_serving
from tests.benchmarks.helpers import Bench, make_bundle, read_json
from tests.helpers_bundle import make_content
from training.common.errors import BundleError, ConfigError

INSTALLED = [name for name in PEERS if not lacking([name])]
SHORT = ("--rounds", "2", "--calls", "3")


def test_the_whole_way_from_the_command_line(
    bench: Bench, bundles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "peers.json"
    assert bench("peers", bundles[0], "--peer", "numpy", "--peer", "torch", *SHORT, "--k", "4", "--json", place) == 0
    document = read_json(place)
    assert list(document["arms"]) == [OURS, "numpy", "torch"]
    assert set(document["versions"]) == {"numpy", "torch"}
    assert document["options"]["threads"] == 1
    assert set(document["thread_pools"].values()) == {1}
    medians = {name: np.median(arm["samples_microseconds"], axis=1) for name, arm in document["arms"].items()}
    for name, arm in document["arms"].items():
        assert np.shape(arm["samples_microseconds"]) == (2, 3)
        assert arm["differing_answers"] == 0
        ratio = np.exp(np.log(medians[name] / medians[OURS]).mean())
        assert arm["ratio_to_ours"]["value"] == pytest.approx(ratio, rel=1e-3)
    shown = capsys.readouterr().out
    assert document["compared_users"] == 10  # one of the twelve has seen everything, another all but two
    assert "0/10" in shown
    assert "versions: numpy " in shown


@pytest.mark.parametrize("name", INSTALLED)
def test_every_peer_finds_the_best_unseen_items(tmp_path: Path, name: str) -> None:
    """Beside NumPy in float64, for every user who has enough items left; the toy is full of ties."""
    content, k = make_content(n_items=2000), 700
    bundle = load_for_serving(make_bundle(tmp_path / "bundle", n_items=2000, graph=False))
    ask = PEERS[name].open(Material.of(bundle, k))
    scores = content.users.astype(np.float64) @ content.items.astype(np.float64).T
    places = {item: row for row, item in enumerate(content.item_ids)}
    for user in askable_users(bundle, k).tolist():
        scores[user, content.seen[user]] = -np.inf
        best = np.sort(scores[user])[::-1][:k]
        answer = ask(content.user_ids[user])
        rows = [places[item] for item, _ in answer]
        assert len(set(rows)) == k
        np.testing.assert_allclose(scores[user, rows], best, rtol=1e-6)
        if name != "cornac":
            np.testing.assert_allclose([score for _, score in answer], best, rtol=1e-5, atol=1e-6)


def test_answers_are_compared(bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that shows what a user has seen, and one that never looks at the last item."""

    def careless(material: Material) -> Ask:
        nothing = type(material.seen)(np.zeros_like(material.seen.offsets), material.seen.items)
        return PEERS["numpy"].open(Material(**{**vars(material), "seen": nothing}))

    def short(material: Material) -> Ask:
        whole = PEERS["numpy"].open(Material(**{**vars(material), "k": material.k + 1}))

        def ask(user_id: str) -> Answer:
            return whole(user_id)[1:]

        return ask

    for name, opened in (("careless", careless), ("short", short)):
        monkeypatch.setitem(PEERS, name, Peer("", (), opened))
    users, found, _ = compare(bundles[0], ["numpy", "careless", "short"], Options(k=4))
    assert users == len(askable_users(load_for_serving(bundles[0]), 4))
    assert compare(bundles[0], ["numpy"], Options(k=4, compared=5))[:2] == (5, {"numpy": 0})
    assert found["numpy"] == 0
    assert 0 < found["careless"] <= users
    assert users - 1 <= found["short"] <= users  # to the user without a vector all items are the same


def test_what_is_the_same_answer() -> None:
    items = np.array([[3.0], [2.0], [2.0 + 1e-6], [1.0], [0.5]], dtype=np.float32)
    vector, seen = np.array([1.0]), np.array([3], dtype=np.int32)

    def same(*theirs: int) -> bool:
        return agree([0, 2], theirs, items, vector, seen)

    assert same(0, 2)
    assert same(0, 1)  # as near as rounding
    assert not same(0, 4)
    assert not same(2, 0)
    assert not same(0)
    assert not same(0, 2, 1)
    assert not agree([0, 2], [0, 0], items[[0, 1, 0]], vector, seen[:0])
    assert not agree([3, 4], [3, 4], items, vector, seen)


def test_only_users_with_enough_items_left_are_asked_for(bundles: tuple[Path, Path]) -> None:
    """User 0 has seen all items, user 1 all but two."""
    bundle = load_for_serving(bundles[0])
    assert askable_users(bundle, 2).tolist() == list(range(1, 12))
    assert askable_users(bundle, 3).tolist() == list(range(2, 12))
    with pytest.raises(BundleError, match="no user of this bundle has 61 items left"):
        askable_users(bundle, 61)


def test_what_is_not_installed_is_skipped_and_said(
    bench: Bench, bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PEERS, "absent", Peer("", ("numpy", "no_such_package"), PEERS["numpy"].open))
    assert bench("peers", bundles[0], "--peer", "absent", "--peer", "numpy", *SHORT, "--k", "4") == 0
    assert "absent: not installed, skipped; to have it: pip install no_such_package" in capsys.readouterr().out
    assert bench("peers", bundles[0], "--peer", "absent") == 2
    assert capsys.readouterr().err == "dvib-bench: no peer is installed; run: pip install no_such_package\n"


@pytest.mark.parametrize(
    ("high", "differing", "code"), [(1.2, 0, 0), (1.0, 0, 0), (0.99, 0, 1), (1.2, 3, 3), (0.5, 3, 3)]
)
def test_the_check_can_fail(
    bench: Bench, bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, high: float, differing: int, code: int
) -> None:
    """Faster beyond the interval is 1; another job is void, however fast."""

    def measured(*_: Any) -> dict[str, Any]:
        ratio = {"value": 0.4, "low": 0.3}
        arm = {"microseconds": {"p50": 1.0, "p99": 1.0}, "what": "", "differing_answers": 0}
        return {
            "bundle": {"dataset": "", "n_items": 1, "dimension": 1, "index": "Flat"},
            "options": vars(Options()),
            "versions": {},
            "not_installed": {},
            "compared_users": 500,
            "arms": {
                OURS: {**arm, "ratio_to_ours": {"value": 1.0, "low": 1.0, "high": 1.0}},
                "numpy": {**arm, "ratio_to_ours": {**ratio, "high": high}, "differing_answers": differing},
            },
        }

    monkeypatch.setattr(peers, "measure", measured)
    assert bench("peers", bundles[0], "--check") == code
    assert bench("peers", bundles[0]) == 0


def test_an_unknown_peer_is_one_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("peers", "none-such", "--peer", "nunpy") == 2
    assert capsys.readouterr().err == "dvib-bench: --peer: no peer 'nunpy'; did you mean 'numpy'?\n"
    with pytest.raises(ConfigError):
        lacking(["nunpy"])


def test_help_shows_examples(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("peers", "--help") == 0
    assert "dvib-bench peers bundles/dvib --check" in " ".join(capsys.readouterr().out.split())
