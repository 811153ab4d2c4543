from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from benchmarks.http_client import running, serve_arguments
from benchmarks.load import lines as load_report
from benchmarks.load import measure as load
from benchmarks.load.engine import engine_process
from benchmarks.load.loops import Slice, arrivals
from benchmarks.load.process import Meter, Others, TreeMeter
from benchmarks.load.questions import Asked
from service.engine import Engine
from tests.benchmarks.helpers import Bench, make_bundle, read_json
from tests.helpers_bundle import make_content
from training.common.errors import BundleError, DvibError

OPTIONS = load.Options(rounds=2, seconds=0.04, k=5)


@pytest.fixture(scope="module")
def run(bundles: tuple[Path, Path]) -> load.Run:
    """A real run over two bundles."""
    return load.measure(bundles[0], [bundles[1]], OPTIONS)


@pytest.fixture
def measured(run: load.Run, monkeypatch: pytest.MonkeyPatch) -> load.Run:
    """The command shows this run instead of one of its own; the bars are such that it keeps them."""
    monkeypatch.setattr(load, "measure", lambda *_: run)
    monkeypatch.setattr(load_report, "THROUGHPUT", 0.0)
    monkeypatch.setattr(load_report, "CPU", 1e9)
    monkeypatch.setattr(load_report, "TAIL", 1e9)
    return run


def test_everything_is_loaded_in_every_round(run: load.Run) -> None:
    found = {(slice_.round, slice_.endpoint, slice_.load) for slice_ in run.slices}
    wanted = {
        (number, name, one)
        for number in range(OPTIONS.rounds)
        for name in ("bundle", "dvib", "constant")
        for one in (*load.CLOSED, *load.OPEN)
    }
    assert found == wanted
    assert len(run.slices) == len(wanted)
    assert len(run.slices) + len(run.engine_cpu) == OPTIONS.rounds * load.slices_of_a_round(2)
    assert all(slice_.seen.errors == {} for slice_ in run.slices)
    assert all(slice_.server_cpu > 0 and slice_.resident > 10e6 for slice_ in run.slices)
    assert all(cpu > 0 for cpu in run.engine_cpu)
    orders = [[(s.endpoint, s.load) for s in run.slices if s.round == number] for number in range(OPTIONS.rounds)]
    assert orders[0] != orders[1]


def test_rates_are_shares_of_what_the_round_has_shown(run: load.Run) -> None:
    for number in range(OPTIONS.rounds):
        by_load = {(s.endpoint, s.load): s for s in run.slices if s.round == number}
        saturation = by_load["bundle", load.CLOSED[-1]].throughput
        for one in load.OPEN:
            rates = {by_load[name, one].rate for name in ("bundle", "dvib", "constant")}
            assert len(rates) == 1  # all endpoints at the same rate
            assert rates.pop() == pytest.approx(one.fraction * saturation, abs=1 / OPTIONS.seconds)


def test_the_whole_way_from_the_command_line(
    bench: Bench, bundles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "load.json"
    sizes = ("--rounds", "2", "--seconds", "0.02", "--k", "3")
    assert bench("load", bundles[0], *sizes, "--json", place) == 0
    found = read_json(place)
    assert found["benchmark"] == "load"
    assert found["environment"]["versions"]["uvicorn"]
    assert sorted(found["bars"]) == ["cpu", "tail", "throughput"]
    assert list(found["loads"]) == [one.name for one in (*load.CLOSED, *load.OPEN)]
    for figures in found["loads"].values():
        for name in ("bundle", "constant"):
            times = figures[name]["latency_microseconds"]
            assert 0 < times["p50"] <= times["p95"] <= times["p99"] <= times["max"]
    assert sum(len(entry["latencies_microseconds"]) for entry in found["slices"]) == sum(
        figures[name]["requests"] for figures in found["loads"].values() for name in figures
    )
    shown = capsys.readouterr().out
    for said in ("closed, 32 at a time", "open, 0.50", "engine in batches of 32", "resident memory", "wanted at most"):
        assert said in shown
    found.pop("command")  # as it was given, paths and all
    assert str(tmp_path) not in json.dumps(found)
    assert str(bundles[0]) not in json.dumps(found)


@pytest.mark.parametrize(("bar", "limit"), [("THROUGHPUT", 1e9), ("CPU", 1e-9), ("TAIL", 1e-9)])
def test_each_bar_alone_decides(
    bench: Bench, measured: load.Run, monkeypatch: pytest.MonkeyPatch, bar: str, limit: float
) -> None:
    assert bench("load", "x", "--check") == 0
    monkeypatch.setattr(load_report, bar, limit)
    assert bench("load", "x", "--check") == 0  # the bars were set for other bundles than this small one
    monkeypatch.setattr(load_report, "_bars_apply", lambda _: True)
    assert bench("load", "x", "--check") == 1
    assert bench("load", "x") == 0


def test_a_client_that_sets_the_pace_makes_the_run_void(
    bench: Bench, measured: load.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slices = [
        dataclasses.replace(entry, seen=dataclasses.replace(entry.seen, client_cpu=0.95 * entry.seen.elapsed))
        if (entry.endpoint, entry.load) == ("constant", load.CLOSED[-1])
        else entry
        for entry in measured.slices
    ]
    monkeypatch.setattr(load, "measure", lambda *_: dataclasses.replace(measured, slices=slices))
    assert bench("load", "x", "--check") == 3
    assert "constant, 32 at a time: the client was busy 95%" in capsys.readouterr().out


def test_a_wrong_reply_is_never_passed_over(
    bench: Bench, measured: load.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = measured.slices[0]
    wrong = dataclasses.replace(first, seen=dataclasses.replace(first.seen, errors={"status 503": 2}))
    monkeypatch.setattr(load, "measure", lambda *_: dataclasses.replace(measured, slices=[wrong, *measured.slices[1:]]))
    assert bench("load", "x") == 1
    assert f"{first.endpoint}, {first.load.name}, round 0: 2 replies with status 503" in capsys.readouterr().out


def planted(
    run: load.Run, endpoint: str, number: int, one: load.Load, *, replies: float, cpu: float, tail: float
) -> Any:
    """A slice of one second whose p99 is ``tail``."""
    latencies = np.where(np.arange(int(replies)) % 40 == 0, tail, 1e-5)
    seen = Slice(latencies, latencies[:0], 1.0, 0.1, {})
    return load.Measured(number, endpoint, one, 0.0, seen, cpu * replies, 10**6)


def test_bars_are_the_middle_of_each_rounds_own_ratio(run: load.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round in which everything is slow has the same ratios."""
    monkeypatch.setattr(load_report, "_bars_apply", lambda _: True)
    slices = []
    for number, pace in enumerate((1.0, 0.1, 3.0)):
        for one in (*load.CLOSED, *load.OPEN):
            recommend = {"replies": 4000 * pace, "cpu": 200e-6 / pace, "tail": 0.006 / pace}
            constant = {"replies": 8000 * pace, "cpu": 80e-6 / pace, "tail": 0.002 / pace}
            slices.append(planted(run, "bundle", number, one, **recommend))
            slices.insert(0, planted(run, "constant", number, one, **constant))
    only = {"bundle": run.asked["bundle"]}
    engine = [45e-6 / pace for pace in (1.0, 0.1, 3.0)]
    made = load.Run(only, OPTIONS, 700, slices, engine)
    found = {bar.name: bar for bar in load_report.bars(made)}
    assert found["throughput"].ratio.value == pytest.approx(4000 / 8000)
    assert found["cpu"].ratio.value == pytest.approx(200 / (80 + 45))
    assert found["tail"].ratio.value == pytest.approx(3)
    assert [found[name].met for name in ("throughput", "cpu", "tail")] == [True, False, False]
    assert found["tail"].line().endswith("3.00 [3.00, 3.00], wanted at most 2.00: MISSED")


def test_the_constant_reply_looks_like_a_recommendation(bundles: tuple[Path, Path]) -> None:
    asked = Asked.read(bundles[0], 5, 0)
    with running("service", *serve_arguments({load.BUNDLE: bundles[0]})) as service:
        length = load.typical_length(service, asked, 5)
        params: dict[str, str | int] = {"user_id": asked.users[0], "k": 5}
        theirs = httpx.post(f"http://{service.host}:{service.port}/recommend", params=params)
    with running("benchmarks.load.arm_server", f'{{"constant": {length}}}') as constant:
        mine = httpx.post(f"http://{constant.host}:{constant.port}/constant")
    assert mine.status_code == theirs.status_code == 200
    assert sorted(mine.headers) == sorted(theirs.headers)
    assert mine.headers["content-type"] == theirs.headers["content-type"]
    assert abs(len(mine.content) - len(theirs.content)) < 50


def test_arrivals_come_at_their_rate() -> None:
    due = arrivals(500.0, 20.0, np.random.default_rng(3))
    assert len(due) == 10_000
    gaps = np.diff(due)
    assert bool((gaps >= 0).all())
    # Of a Poisson process: mean gap and its standard deviation are both 1/rate; 5 standard errors.
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 500, rel=0.1)
    assert len(arrivals(1.0, 0.01, np.random.default_rng(0))) == 1


def test_only_users_with_items_left_are_asked_for(bundles: tuple[Path, Path]) -> None:
    content = make_content(seed=0)
    asked = Asked.read(bundles[0], 10, 0)
    left = {user: len(content.items) - len(rows) for user, rows in zip(content.user_ids, content.seen, strict=True)}
    assert sorted(asked.users) == sorted(user for user, count in left.items() if count >= 10)
    assert len(asked.users) == 10
    with pytest.raises(BundleError, match="no user has 61 items left"):
        Asked.read(bundles[0], 61, 0)


BURN = """
import mmap, sys, threading, time
held = bytearray(60_000_000)
never_touched = mmap.mmap(-1, 300_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def burn():
    while time.process_time() < float(sys.argv[1]):
        pass
thread = threading.Thread(target=burn)
thread.start()
thread.join()
print(time.process_time(), flush=True)
sys.stdin.read()
"""


def test_the_meter_sees_what_a_process_has_burnt_in_a_thread_that_is_gone() -> None:
    for seconds in (0.05, 0.4):
        command = [sys.executable, "-c", BURN, str(seconds)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = float(process.stdout.readline())
            meter = Meter(process.pid)
            assert told <= meter.cpu_seconds() < told + 0.05
            assert 60e6 < meter.resident_bytes() < 200e6
            process.kill()
    with pytest.raises(DvibError, match="no CPU clock of process"):
        Meter(process.pid)


def test_what_a_request_costs_the_server_is_counted(bundles: tuple[Path, Path]) -> None:
    asked = Asked.read(bundles[0], 5, 0)
    arms = [{"name": name, "folder": str(bundles[0]), "delay_us": delay} for name, delay in (("a", 0), ("b", 20_000.0))]
    cpu = {}
    with running("benchmarks.load.arm_server", json.dumps({"arms": arms})) as server:
        for name in ("a", "b"):
            endpoint = load.Endpoint(server, asked.questions(name, 5), np.random.default_rng(0))
            seen, used, _ = endpoint.closed(4, 0.1)
            assert seen.errors == {}
            cpu[name] = used / seen.requests
    # The delay is busy waiting; the scheduler may take the processor away from it now and then.
    assert cpu["b"] > cpu["a"] + 0.002


CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], *sys.argv[2:]])"


def test_the_meter_of_a_tree_sees_what_a_child_has_burnt_and_holds() -> None:
    command = [sys.executable, "-c", CHILD, BURN, "0.3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        told = float(process.stdout.readline())
        meter = TreeMeter(process.pid)
        assert Meter(process.pid).cpu_seconds() < told <= meter.cpu_seconds() < told + 0.5
        assert 60e6 < meter.resident_bytes() < 200e6
        process.stdin.close()


def test_others_are_all_but_the_processes_that_are_ours() -> None:
    command = [sys.executable, "-c", "import time\nwhile True: time.process_time()"]
    with subprocess.Popen(command) as busy:
        ours, others = Others([busy.pid, os.getpid()]), Others([os.getpid()])
        used = Meter(busy.pid)
        started, before = time.perf_counter(), used.cpu_seconds()
        time.sleep(2)
        difference = others.cores() - ours.cores()
        share = (used.cpu_seconds() - before) / (time.perf_counter() - started)
        busy.kill()
    assert share > 0
    assert difference == pytest.approx(share, abs=0.1)


def test_the_engine_process_counts_its_work(bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_process(bundles[0], 5, 0) as engine:
        assert 0 < engine.cpu_per_user(0.02) < 0.1
        assert 0 < engine.cpu_per_user(0.0) < 0.1
    with engine_process(bundles[0] / "nothing", 5, 0) as engine, pytest.raises(DvibError, match="has ended"):
        engine.cpu_per_user(0.0)


def test_bad_input_is_one_line(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = make_bundle(tmp_path / "full")
    for arguments, said in (
        ((tmp_path / "none",), "no bundle at"),
        ((full, "--dvib", tmp_path / "none"), "no bundle at"),
        ((full, "--k", "61"), "choose a smaller --k"),
    ):
        assert bench("load", *arguments) == 2
        shown = capsys.readouterr().err
        assert said in shown
        assert shown.count("\n") == 1


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_leaves_no_process(bundles: tuple[Path, Path], sent: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "benchmarks", "load", str(bundles[0]), "--rounds", "500"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            parent = psutil.Process(process.pid)
            deadline = time.monotonic() + 60
            children: list[psutil.Process] = []
            while len(children) < 3:
                assert time.monotonic() < deadline
                assert process.poll() is None
                children = parent.children(recursive=True)
                time.sleep(0.05)
            # From a terminal Ctrl-C reaches the whole group, SIGTERM usually one process.
            if sent == signal.SIGINT:
                os.killpg(process.pid, sent)
            else:
                process.send_signal(sent)
            assert process.stderr is not None
            said = process.stderr.read()
            assert process.wait(30) == code, said
            assert "Traceback" not in said
            gone, alive = psutil.wait_procs(children, timeout=10)
            assert len(gone) == len(children)
            assert not alive
        finally:
            process.kill()


def test_engines_answer_alike(bundles: tuple[Path, Path]) -> None:
    """What the questions expect of a reply holds for every user that they are made for."""
    engine = Engine.load(bundles[0])
    for user in Asked.read(bundles[0], 10, 0).users:
        answer = engine.recommend(user, 10)
        assert (answer.source, len(answer.items)) == ("model", 10)
