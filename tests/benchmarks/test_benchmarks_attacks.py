"""``dvib-bench attacks``: a real service is attacked, and every way of failing is found."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.http_client import Server
from benchmarks.load.tree import leaves
from benchmarks.production import attacks
from benchmarks.production.attacker import Job
from benchmarks.production.hostile import LIMITS, all_attacks
from tests.benchmarks.helpers import Bench, read_json

KINDS = len(all_attacks())
OPTIONS = attacks.Options(rounds=1, seconds=2.0, attacks=KINDS / 2 + 1, idle=20, k=5)


@pytest.fixture(scope="module")
def run(bundles: tuple[Path, Path]) -> attacks.Run:
    return attacks.measure(bundles[0], OPTIONS)


@pytest.fixture(scope="module")
def kept(run: attacks.Run) -> attacks.Run:
    """A run that meets the bar: what the others have seen is replaced by planted latencies."""
    calm = dataclasses.replace(
        run.calm[0], begun=np.arange(1000) / 100, latencies=np.full(1000, 0.001), late=np.zeros(10), client_share=0.1
    )
    attacked = dataclasses.replace(calm, latencies=np.full(1000, 0.0019))
    return dataclasses.replace(run, calm=[calm], attacked=[attacked])


def test_every_kind_of_attack_comes_and_none_gets_through(run: attacks.Run) -> None:
    assert run.kinds == KINDS
    assert run.attacks >= KINDS
    assert (run.wrong, run.survived) == ({}, True)
    assert attacks.judge(run).faults == []
    [calm], [attacked] = run.calm, run.attacked
    assert len(calm.latencies) > 0
    assert len(attacked.latencies) > 0
    assert run.attacker_share > 0


def test_the_bar_and_every_fault_alone_decide(kept: attacks.Run) -> None:
    assert attacks.judge(kept).code(check=True) == 0
    [calm], [attacked] = kept.calm, kept.attacked
    slow = dataclasses.replace(attacked, latencies=np.where(np.arange(1000) % 50 == 0, 0.0021, 0.001))
    verdict = attacks.judge(dataclasses.replace(kept, attacked=[slow]))
    assert (verdict.code(check=True), verdict.code(check=False)) == (1, 0)
    silent = dataclasses.replace(attacked, latencies=np.empty(0), begun=np.empty(0))
    assert attacks.judge(dataclasses.replace(kept, attacked=[silent])).code(check=True) == 1
    errors: dict[str, object] = {"errors": {"status 500": 1}}
    for more, said in (
        (errors, "under attack: 1 requests with status 500"),
        ({"refused": np.ones(3)}, "under attack: 3 requests with status 503"),
    ):
        lost = dataclasses.replace(attacked, **more)
        assert attacks.judge(dataclasses.replace(kept, attacked=[lost])).faults == [said]
    for changed, said in (
        ({"survived": False}, "processes of the service ended or began"),
        ({"wrong": {"10 MB: 422": 2}}, "an attack was let through: 2 × 10 MB: 422"),
    ):
        verdict = attacks.judge(dataclasses.replace(kept, **changed))
        assert verdict.faults == [said]
        assert verdict.code(check=False) == 1
    for few in (
        dataclasses.replace(kept, attacks=KINDS - 1),
        dataclasses.replace(kept, calm=[dataclasses.replace(calm, latencies=calm.latencies[:9], begun=calm.begun[:9])]),
        dataclasses.replace(kept, calm=[dataclasses.replace(calm, client_share=0.95)]),
    ):
        assert attacks.judge(few).code(check=True) == 4


def test_an_attack_that_is_let_through_is_found(bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that reads bodies of 20 MB has another reason to refuse them."""
    monkeypatch.setattr(attacks, "LIMITS", LIMITS | {"DVIB_SERVE_MAX_BODY_BYTES": "20000000"})
    run = attacks.measure(bundles[0], dataclasses.replace(OPTIONS, idle=0))
    assert any(found.startswith("10 MB: ") for found in run.wrong)
    assert attacks.judge(run).code(check=False) == 1


def test_a_worker_that_an_attack_ends_is_missed(bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = attacks.attacker_of

    @contextmanager
    def deadly(server: Server) -> Iterator[attacks.Attacker]:
        with real(server) as attacker:
            start = attacker.start

            def kill(job: Job) -> None:
                for worker in leaves(server.pid):
                    os.kill(worker, signal.SIGKILL)
                start(job)

            monkeypatch.setattr(attacker, "start", kill)
            yield attacker

    monkeypatch.setattr(attacks, "attacker_of", deadly)
    verdict = attacks.judge(attacks.measure(bundles[0], dataclasses.replace(OPTIONS, seconds=0.5, attacks=4.0)))
    assert "processes of the service ended or began" in verdict.faults
    assert verdict.code(check=False) == 1


def test_the_whole_way_from_the_command_line(
    bench: Bench, bundles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "attacks.json"
    options = ("--rounds", "1", "--seconds", "0.5", "--attacks", "10", "--idle", "2", "--k", "5")
    assert bench("attacks", bundles[0], *options, "--check", "--json", place) == 4
    found = read_json(place)
    assert found["attacks"]["kinds"] == KINDS
    assert found["attacks"]["wrong"] == {}
    assert set(found["stretches"]) == {"calm", "under attack"}
    assert json.dumps(found, allow_nan=False)
    said = capsys.readouterr().out
    assert f"5 attacks of {KINDS} kinds" in said
    assert "inconclusive: 5 attacks" in said
