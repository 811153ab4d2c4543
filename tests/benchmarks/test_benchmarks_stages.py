from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from benchmarks import stages
from benchmarks.stages import EMPTY, ENGINE, PASS, Options, bar_of, open_stages, ratio_to_floors
from benchmarks.warm_up import warm_up
from export.bundle import BundleReader
from export.manifest import Manifest
from export.serving import load_for_serving
from service.http.app import create_app
from service.http.asked import Asked
from service.retrieval.ranking import Query
from service.retrieval.scores import Ranked
from service.values import Recommendation, Request
from tests.benchmarks.helpers import Bench, make_bundle, read_json
from tests.helpers_bundle import make_content
from training.common.errors import BundleError

SHORT = ("--rounds", "2", "--calls", "3")


def manifest_of(folder: Path) -> Manifest:
    with BundleReader(folder) as reader:
        return reader.manifest


def test_the_whole_way_from_the_command_line(
    bench: Bench, bundles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "stages.json"
    assert bench("stages", bundles[0], *SHORT, "--check", "--json", place) == 0
    document = read_json(place)
    assert list(document["stages"]) == list(stages.STAGES)
    for stage in document["stages"].values():
        assert np.shape(stage["samples_microseconds"]) == (2, 3)
        assert stage["microseconds"]["p50"] == pytest.approx(np.median(stage["samples_microseconds"]), abs=1e-3)
    medians = {name: np.median(entry["samples_microseconds"], axis=1) for name, entry in document["stages"].items()}
    ratios = medians[ENGINE] / (medians[EMPTY] + medians[PASS])
    found = document["floors"]["ratio"]
    assert found["value"] == pytest.approx(np.exp(np.log(ratios).mean()), rel=1e-3)
    assert found["low"] <= found["value"] <= found["high"]
    left = document["remainders_microseconds"]
    names = medians[ENGINE] - medians["user"] - medians["ranking"]
    framework = medians["request"] - medians["parse"] - medians[ENGINE] - medians["serialise"]
    assert list(left.values()) == pytest.approx([np.median(names), np.median(framework)], abs=0.01)
    # The toy's vectors are shorter than those that the bar was set for.
    assert document["floors"]["bar"] is None
    shown = capsys.readouterr().out
    assert "engine ÷ (empty call + one pass)" in shown
    assert "no bar for this size" in shown


def test_several_users_per_call(bench: Bench, bundles: tuple[Path, Path], tmp_path: Path) -> None:
    place = tmp_path / "stages.json"
    assert bench("stages", bundles[0], *SHORT, "--users-per-call", "4", "--json", place) == 0
    document = read_json(place)
    assert list(document["stages"]) == ["user", "ranking", ENGINE, EMPTY, PASS]
    assert list(document["remainders_microseconds"]) == ["ids, titles and objects"]


@pytest.mark.parametrize(("bar", "code", "said"), [(1.6, 1, "MISSED"), (1e9, 0, "held")])
def test_a_missed_bar_is_an_exit_code(  # 100 items are looked at in no time: the rest of an answer takes far longer
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bar: float,
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(stages, "BARS", ((0, 10_000, bar),))
    folder = make_bundle(tmp_path / "bundle", n_items=100, dimension=128, graph=False)
    assert bench("stages", folder, *SHORT, "--check") == code
    assert f"bar {bar}: {said}" in capsys.readouterr().out
    assert bench("stages", folder, *SHORT) == 0


def test_bars_are_for_what_they_were_set_for(bundles: tuple[Path, Path]) -> None:
    manifest = manifest_of(bundles[0])

    def bar(n_items: int, dimension: int = 128, users: int = 1) -> float | None:
        dataset = manifest.dataset.model_copy(update={"n_items": n_items})
        return bar_of(manifest.model_copy(update={"dataset": dataset, "dimension": dimension}), users)

    assert [bar(n_items) for n_items in (4_999, 7_050, 10_000, 10_001, 18_357, 30_000, 30_001)] == [
        None,
        1.6,
        1.6,
        1.3,
        1.3,
        1.3,
        None,
    ]
    assert bar(7_050, dimension=64) is None
    assert bar(7_050, users=32) is None


def test_the_ratio_is_that_of_each_rounds_medians() -> None:
    """Rounds of very different speed, each 1.5 times its own floors; a few slow calls of each change nothing."""
    generator = np.random.default_rng(0)
    speeds = generator.lognormal(0, 1, (12, 1))
    samples = {name: np.tile(part * speeds, 21) for name, part in ((EMPTY, 1.0), (PASS, 3.0), (ENGINE, 6.0))}
    for times in samples.values():
        times[:, :5] *= 100
    ratio = ratio_to_floors(samples, generator)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.5, 1.5, 1.5))


def test_every_stage_does_its_part(bundles: tuple[Path, Path]) -> None:
    """The parts together give what the engine gives, and that is what NumPy gives in float64."""
    content = make_content(seed=0)
    users = np.array([5, 2, 7])
    scores = content.users[users].astype(np.float64) @ content.items.astype(np.float64).T
    for row, user in enumerate(users):
        scores[row, content.seen[user]] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :4]
    with open_stages(load_for_serving(bundles[0]), 4, 3) as (calls, n_users):
        assert n_users == len(content.users)
        queries: list[Query] = calls["user"](users)  # type: ignore[assignment]
        np.testing.assert_array_equal([query.vector for query in queries], content.users[users])
        assert [query.seen.tolist() for query in queries] == [content.seen[user].tolist() for user in users]
        ranked: list[Ranked] = calls["ranking"](users)  # type: ignore[assignment]
        assert [answer.rows.tolist() for answer in ranked] == best.tolist()
        answers: list[Recommendation] = calls[ENGINE](users)  # type: ignore[assignment]
        assert [[item.row for item in answer.items] for answer in answers] == best.tolist()
        reply = orjson.loads(calls["serialise"](users))  # type: ignore[arg-type]
        assert reply["user_id"] == content.user_ids[5]
        assert [item["item_id"] for item in reply["items"]] == [content.item_ids[row] for row in best[0]]
        assert calls[PASS](users) == content.items.max()
        empty: Any = calls[EMPTY](users)
        assert np.shape(empty) == (1, 3, content.items.shape[1])
        assert calls["parse"](users) == Asked(Request(content.user_ids[5], 4), "model")
        calls["request"](users[:1])


def test_another_status_than_the_wanted_one_is_an_error(
    bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the time of a refusal could pass for that of an answer."""
    monkeypatch.setattr(stages, "create_app", lambda _engines, settings: create_app({}, settings))
    refused = pytest.raises(BundleError, match=r"404 Not Found.*wanted 200")
    with refused, open_stages(load_for_serving(bundles[0]), 4, 1):
        pass


def test_everybody_is_asked_for_once_before_the_time_is_taken() -> None:
    """Or as many as the time allows; every call gets as many users as it will."""
    asked: list[list[int]] = []
    generator = np.random.default_rng(0)
    assert warm_up(lambda users: asked.append(users.tolist()), 10, 4, generator, clock=lambda: 0.0) == 3
    assert [len(users) for users in asked] == [4, 4, 4]
    assert {user for users in asked for user in users} == set(range(10))
    seconds = iter(range(100))
    assert warm_up(lambda _: None, 10, 1, generator, clock=lambda: 0.1 * next(seconds)) == 3


def test_options_name_the_stages() -> None:
    assert "request" in Options().stages
    assert "request" not in Options(users_per_call=2).stages


def test_bad_input_is_one_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("stages", "none-such") == 2
    shown = capsys.readouterr().err
    assert "none-such" in shown
    assert shown.count("\n") == 1


def test_help_shows_examples(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("stages", "--help") == 0
    assert "dvib-bench stages bundles/dvib --check" in " ".join(capsys.readouterr().out.split())
