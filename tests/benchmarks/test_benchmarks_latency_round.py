"""One round of ``dvib-bench latency``: what is called with which settings, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from benchmarks.latency import round as latency_round
from benchmarks.latency.arms import AGAIN, BASELINE, CONTROL_DELAY, DELAYED, UNSTRIPPED, Arm
from benchmarks.latency.round import Round, open_session, play, unstripped_engine
from benchmarks.rounds import fresh_processes
from benchmarks.sampling import Contestant
from export.bundle import MODEL_ONNX
from export.parity import session
from export.serving import SeenItems, load_for_serving
from service.engine import Engine
from service.values import Recommendation, Request
from training.common.errors import BundleError, ConfigError, DvibError

CPU = "CPUExecutionProvider"


class Opened:
    """Stands for ``sample``: keeps what it was given."""

    def __init__(self) -> None:
        self.contestants: dict[int, dict[str, Contestant]] = {}

    def __call__(
        self, contestants: Mapping[str, Contestant], n_users: int, users: int, _generator: np.random.Generator
    ) -> dict[str, NDArray[np.float64]]:
        assert n_users == 12
        self.contestants[users] = dict(contestants)
        return {}


def opened(monkeypatch: pytest.MonkeyPatch, arms: Sequence[Arm], kind: latency_round.Kind) -> Opened:
    record = Opened()
    monkeypatch.setattr(latency_round, "sample", record)
    play(Round(kind, arms, {1: 100, 32: 50}, 5, CPU, (0,)))
    return record


def test_every_call_does_what_its_level_says(monkeypatch: pytest.MonkeyPatch, arms: list[Arm]) -> None:
    rows = np.array([4, 5])
    users = [load_for_serving(arms[0].folder).users[row] for row in rows]
    engines = {arm.name: Engine.load(arm.folder) for arm in arms}
    for name, contestant in opened(monkeypatch, arms, "engine").contestants[1].items():
        answers: Any = contestant.call(rows)
        if name == UNSTRIPPED:
            # Equal items may come in any order here.
            for answer, user in zip(answers, users, strict=True):
                expected = engines["DVIB adaptive"].recommend(user, 5).items
                assert [score for _, score in answer] == pytest.approx([item.score for item in expected], abs=1e-5)
        else:
            assert answers == [engines[name].recommend(user, 5) for user in users]
    kinds: tuple[latency_round.Kind, ...] = ("graph", "unfolded")
    for kind in kinds:
        for name, contestant in opened(monkeypatch, arms, kind).contestants[1].items():
            scores: Any = contestant.call(rows)
            folder = arms[0].folder if name in (BASELINE, AGAIN, DELAYED) else None
            assert scores[0].shape == (2, 60)
            if folder is not None:
                model = onnx.load(folder / MODEL_ONNX)
                tables = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
                assert np.allclose(scores[0], tables["table"][rows] @ tables["items"], atol=1e-5)


def test_calls_and_delays_reach_the_arms(monkeypatch: pytest.MonkeyPatch, arms: list[Arm]) -> None:
    record = opened(monkeypatch, arms, "engine").contestants
    assert {name: entry.calls for name, entry in record[1].items()} == {
        arm.name: 10 if arm.name == UNSTRIPPED else 100 for arm in arms
    }
    assert UNSTRIPPED not in record[32]
    assert {name: entry.delay for name, entry in record[1].items() if entry.delay} == {DELAYED: CONTROL_DELAY}


def test_all_arms_run_with_the_same_settings(monkeypatch: pytest.MonkeyPatch, arms: list[Arm]) -> None:
    asked: list[tuple[str, str]] = []

    def record_session(data: bytes, **options: Any) -> Any:
        asked.append(("session", str(options)))
        return session(data, **options)

    def record_engine(bundle: Any, **options: Any) -> Any:
        asked.append(("engine", f"{options} {id(bundle.users)} {id(bundle.seen)} {id(bundle.titles)}"))
        return Engine(bundle, **options)

    monkeypatch.setattr(latency_round, "session", record_session)
    monkeypatch.setattr(latency_round, "Engine", record_engine)
    kinds: tuple[latency_round.Kind, ...] = ("graph", "unfolded", "engine")
    for kind in kinds:
        asked.clear()
        opened(monkeypatch, arms[:-1], kind)
        assert len(asked) == 5
        assert len(set(asked)) == 1
        assert ("'threads': 1" if kind != "engine" else "'index_threads': 1") in asked[0][1]
        assert ("'folded': False" in asked[0][1]) == (kind == "unfolded")


def test_all_engines_are_asked_for_the_same_users_before_any_is_timed(
    monkeypatch: pytest.MonkeyPatch, arms: list[Arm]
) -> None:
    asked: list[list[str]] = []

    class Listening(Engine):
        def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
            self.mine += [request.user_id for request in requests]
            return super().recommend_many(requests)

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.mine: list[str] = []
            asked.append(self.mine)

    monkeypatch.setattr(latency_round, "Engine", Listening)
    opened(monkeypatch, arms, "engine")
    assert len(asked) == 5
    assert all(users == asked[0] for users in asked)
    assert set(asked[0]) == set(load_for_serving(arms[0].folder).users)


def test_a_provider_that_another_stands_in_for_is_refused(
    bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = (bundles[0] / MODEL_ONNX).read_bytes()
    assert open_session(graph, folded=True).get_providers() == [CPU]
    monkeypatch.setattr(latency_round, "session", lambda data, **_: session(data))
    with pytest.raises(ConfigError, match="CUDAExecutionProvider does not work"):
        open_session(graph, folded=True, provider="CUDAExecutionProvider")


def test_a_graph_that_cannot_be_loaded_is_an_error_of_one_line() -> None:
    with pytest.raises(BundleError, match="cannot load the graph"):
        open_session(b"no graph", folded=False)


@pytest.mark.parametrize(("k", "found"), [(1, 1), (2, 2), (3, 2), (4, 2), (50, 2)])
def test_the_unstripped_engine_gives_what_is_left(k: int, found: int) -> None:
    seen = SeenItems(np.array([0, 2]), np.array([0, 3], dtype=np.int32))
    scores = np.array([[4.0, 1.0, 2.0, 3.0]], dtype=np.float32)
    answer: Any = unstripped_engine(lambda _: [scores.copy()], seen, list("abcd"), k)(np.zeros(1, dtype=np.int64))
    assert answer == [[("c", 2.0), ("b", 1.0)][:found]]


TERMINATED = """
import os, time
from benchmarks.rounds import fresh_processes
if __name__ == "__main__":
    with fresh_processes() as run:
        print(run(os.getpid), flush=True)
        time.sleep(60)
"""


def test_no_process_is_left_after_sigterm(tmp_path: Path) -> None:
    (tmp_path / "terminated.py").write_text(TERMINATED)
    command = [sys.executable, str(tmp_path / "terminated.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        process.terminate()
        # Its output ends when the last that has inherited it has gone.
        assert process.communicate(timeout=30)[0] == ""
        assert process.returncode == 128 + signal.SIGTERM


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_round_has_a_process_of_its_own() -> None:
    with fresh_processes("numpy") as run:
        pids = {run(os.getpid) for _ in range(3)}
        assert len(pids | {os.getpid()}) == 4


def test_a_round_that_dies_is_an_error_of_one_line() -> None:
    with pytest.raises(DvibError, match="process died"), fresh_processes("numpy") as run:
        run(kill_itself)
