from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.http_client import ServerError, running
from benchmarks.latency import http_level
from benchmarks.latency.http_level import HttpArm, calibrate, http_round
from benchmarks.load import arm_server
from benchmarks.load.questions import Asked, Recommend
from service.engine import Engine
from service.settings import Settings
from service.values import Request
from training.common.errors import BundleError

DELAY_US = 20_000.0


def test_an_arm_that_is_made_slower_is_slower(bundles: tuple[Path, Path]) -> None:
    arms = [
        HttpArm("baseline", bundles[0]),
        HttpArm("dvib + more", bundles[1]),
        HttpArm("baseline again", bundles[0]),
        HttpArm("slow", bundles[0], DELAY_US),
    ]
    times = http_round(arms, k=5, requests={1: 7, 2: 7}, seed=1)
    assert list(times) == ["http_1", "http_2"]
    for by_arm in times.values():
        assert sorted(by_arm) == sorted(arm.name for arm in arms)
        assert all(len(values) == 7 for values in by_arm.values())
        assert min(by_arm["slow"]) >= DELAY_US * 1e-6
        for name in ("baseline", "dvib + more", "baseline again"):
            assert 0 < min(by_arm[name]) < DELAY_US * 1e-6


def test_the_delay_is_for_every_answer_and_changes_none(bundles: tuple[Path, Path]) -> None:
    slow, plain = (arm_server.load_arm(str(bundles[0]), delay, Settings()) for delay in (DELAY_US, 0.0))
    assert type(plain) is Engine
    requests = [Request(user, 4) for user in Asked.read(bundles[0], 5, 0).users[:3]]
    started = time.perf_counter()
    answers = slow.recommend_many(requests)
    assert time.perf_counter() - started >= 3 * DELAY_US * 1e-6
    assert answers == plain.recommend_many(requests)


def test_arms_of_a_turn_are_asked_for_the_same_users(
    bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[str]] = {"arm00": [], "arm01": []}

    def note(_connections: object, questions: list[Recommend], lead: int) -> list[float]:
        asked[questions[0].wanted["model"]] += [question.wanted["user_id"] for question in questions]
        assert lead == 2
        return [1.0] * len(questions)

    monkeypatch.setattr(http_level, "closed_block", note)
    arms = [HttpArm("a", bundles[0]), HttpArm("b", bundles[0])]
    times = http_round(arms, k=5, requests={2: 50}, seed=0)
    assert {name: len(values) for name, values in times["http_2"].items()} == {"a": 50, "b": 50}
    assert asked["arm00"] == asked["arm01"]
    assert len(set(asked["arm00"])) > 5


def test_a_reply_from_another_bundle_is_refused(bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    of = Recommend.of
    monkeypatch.setattr(Recommend, "of", lambda user, model, _version, k: of(user, model, "0" * 12, k))
    with pytest.raises(ServerError, match='another "version"'):
        http_round([HttpArm("a", bundles[0])], k=5, requests={1: 1}, seed=0)


def test_calibration_gives_a_median(bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_level, "_CALIBRATION", 11)
    found = calibrate(bundles[0], k=5, concurrency=(1, 2))
    assert sorted(found) == [1, 2]
    assert all(0 < value < 1 for value in found.values())


def test_a_bundle_that_is_not_there(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        http_round([HttpArm("a", tmp_path / "none")], k=5, requests={1: 1}, seed=0)


def test_the_server_says_why_it_cannot_start(tmp_path: Path) -> None:
    document = f'{{"arms": [{{"name": "a", "folder": "{tmp_path}/none", "delay_us": 0}}]}}'
    with (
        pytest.raises(ServerError, match="did not start: no bundle at"),
        running("benchmarks.load.arm_server", document),
    ):
        pass


def test_an_arm_of_one_level_is_timed_there_only(bundles: tuple[Path, Path]) -> None:
    arms = [HttpArm("a", bundles[0]), HttpArm("b", bundles[0], delay_us=10.0, only=2)]
    times = http_round(arms, k=5, requests={1: 5, 2: 5}, seed=0)
    assert {level: sorted(by_arm) for level, by_arm in times.items()} == {"http_1": ["a"], "http_2": ["a", "b"]}
