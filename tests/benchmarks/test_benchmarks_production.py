"""The commands about a service in production: run against a stand-in that has the faults that they must find."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks import production
from benchmarks.http_client import ServerError
from benchmarks.load.questions import Asked
from benchmarks.load.tree import Memory
from benchmarks.production import overload, reload, soak, workers
from benchmarks.production.verdict import Bar, Verdict
from tests.benchmarks.helpers import Bench, read_json

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = "tests.benchmarks.stand_in_service"
OVERLOAD = overload.Options(seconds=0.5, k=5, clients=1)

Faults = Callable[[str], None]


@pytest.fixture(scope="module")
def overloaded(bundles: tuple[Path, Path]) -> overload.Run:
    """A run with a stand-in that has no fault."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(production, "SERVICE", STAND_IN)
        patch.setenv("PYTHONPATH", str(ROOT))
        return overload.measure(bundles[0], dataclasses.replace(OVERLOAD, clients=2))


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """The stand-in takes the service's place; gives it these faults."""
    monkeypatch.setattr(production, "SERVICE", STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lambda names: monkeypatch.setenv("STAND_IN", names)


def met(verdict: Verdict) -> dict[str, bool]:
    return {bar.name: bar.met for bar in verdict.bars}


def test_overload_of_a_service_that_keeps_its_limits(
    overloaded: overload.Run,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "overload.json"
    monkeypatch.setattr(overload, "measure", lambda *_: overloaded)
    assert bench("overload", "x", "--json", place) == 0
    found = read_json(place)
    stretches, rates = found["stretches"], found["offered_per_second"]
    saturation = stretches["saturation"]["accepted_per_second"]
    assert rates["overload"] == pytest.approx(3 * saturation)
    assert rates["unloaded"] == rates["recovered"] == pytest.approx(0.1 * saturation)
    loaded = stretches["overload"]
    # Everybody who was due has got an answer of one kind or the other.
    assert loaded["accepted"] + loaded["refused"] == pytest.approx(0.5 * rates["overload"], abs=2)
    assert min(loaded["refused"], loaded["accepted"]) > 0
    assert loaded["refused_without_retry_after"] == 0
    assert all(stretch["errors"] == {} for stretch in stretches.values())
    assert len(loaded["accepted_latencies_microseconds"]) == len(loaded["begun_seconds"]) == loaded["accepted"]
    assert sorted(found["memory"]) == ["after", "before", "during"]
    assert all(held["resident"] > held["proportional"] > 1e6 for held in found["memory"].values())
    assert len(found["resident_bytes"]["process_1"]) == len(found["resident_bytes"]["seconds"]) >= 5
    assert found["verdict"]["faults"] == []
    assert "unloaded requests says nothing, wanted 500" in " ".join(found["verdict"]["doubts"])
    shown = capsys.readouterr().out
    for said in ("saturation", "recovered", "p99 of the refusals", "memory during"):
        assert said in shown
    found.pop("command")
    assert str(tmp_path) not in json.dumps(found)


def test_overload_finds_slow_and_silent_refusals_and_failures(faults: Faults, bundles: tuple[Path, Path]) -> None:
    faults("slow,silent,fail")
    run = overload.measure(bundles[0], OVERLOAD)
    verdict = overload.judge(run)
    assert not met(verdict)["refused_p99"]
    assert not met(verdict)["refused_max"]
    assert "requests with status 500" in " ".join(verdict.faults)
    assert f"overload: {len(run.overload.refused)} refusals without Retry-After" in verdict.faults
    assert verdict.code(check=False) == 1


def test_overload_finds_a_service_that_lets_everybody_wait(faults: Faults, bundles: tuple[Path, Path]) -> None:
    faults("queue,leak")
    run = overload.measure(bundles[0], dataclasses.replace(OVERLOAD, seconds=0.4))
    verdict = overload.judge(run)
    assert "nobody was refused" in " ".join(verdict.faults)
    assert not met(verdict)["tail"]
    assert not met(verdict)["resident"]


@pytest.fixture(scope="module")
def kept(overloaded: overload.Run) -> overload.Run:
    """A run whose every bar is met: its figures replaced by planted ones."""
    run = overloaded
    begun = np.arange(1000) / 100
    calm = dataclasses.replace(
        run.unloaded,
        started=0,
        elapsed=10.0,
        begun=begun,
        latencies=np.full(1000, 0.01),
        refused=np.empty(0),
        late=np.zeros(1000),
        client_share=0.1,
    )
    loaded = dataclasses.replace(calm, latencies=np.full(1000, 0.02), refused=np.full(2000, 0.001))
    held = {"before": run.held["before"], "after": run.held["before"]}
    return dataclasses.replace(
        run, saturation=calm, unloaded=calm, overload=loaded, recovered=calm, held=held, other_cores=float("nan")
    )


def change(run: overload.Run, stretch: str, **changes: object) -> overload.Run:
    changed = dataclasses.replace(getattr(run, stretch), **changes)
    return dataclasses.replace(run, **{stretch: changed})


def test_every_bar_of_the_overload_alone_decides(kept: overload.Run) -> None:
    assert overload.judge(kept).code(check=True) == 0
    assert json.dumps(overload.document(kept, overload.judge(kept)), allow_nan=False)
    after = kept.held["after"]._replace(resident=int(1.06 * kept.held["before"].resident))
    slow = np.where(np.arange(2000) == 7, 0.06, 0.001)
    for name, lost in {
        "refused_p99": change(kept, "overload", refused=np.where(np.arange(2000) % 50 == 0, 0.06, 0.001)),
        "refused_max": change(kept, "overload", refused=slow),
        "tail": change(kept, "overload", latencies=np.full(1000, 0.031)),
        "resident": dataclasses.replace(kept, held={**kept.held, "after": after}),
        "goodput": change(kept, "overload", elapsed=21.0),
        "calm": change(kept, "unloaded", refused=np.full(20, 0.001)),
    }.items():
        verdict = overload.judge(lost)
        assert not met(verdict)[name]
        assert (verdict.code(check=True), verdict.code(check=False)) == (1, 0), name
    verdict = overload.judge(change(kept, "overload", latencies=np.empty(0), begun=np.empty(0)))
    assert not met(verdict)["tail"]
    assert verdict.code(check=True) == 1


def test_a_client_that_cannot_offer_the_rate_proves_nothing(kept: overload.Run) -> None:
    for lost in (
        change(kept, "overload", late=np.where(np.arange(3000) % 50 == 0, 0.5, 0.0)),
        change(kept, "overload", client_share=0.95),
        change(kept, "saturation", client_share=0.95),
    ):
        verdict = overload.judge(lost)
        assert all(bar.met for bar in verdict.bars)
        assert (verdict.code(check=True), verdict.code(check=False)) == (4, 0)
        assert any("choose a bundle of more items" in doubt for doubt in verdict.doubts)
    few = overload.judge(change(kept, "unloaded", latencies=np.full(499, 0.01), begun=np.arange(499) / 50))
    assert few.code(check=True) == 4


def test_a_soak_finds_a_leak_and_failures(faults: Faults, bundles: tuple[Path, Path]) -> None:
    faults("leak,fail")
    run = soak.measure(bundles[0], soak.Options(seconds=1.0, warm_up=0.1, k=5))
    verdict = soak.judge(run)
    assert met(verdict) == {"growth": False}
    assert soak.growth(run).low > 100
    assert "status 500" in verdict.faults[0]
    assert len(run.log.readings[-1]) == 2  # the process that was started, and the one that answers
    for line in soak.report(run, verdict):
        assert line
    _soak_without_a_leak(run)


def _soak_without_a_leak(run: soak.Run) -> None:
    """What the verdict says of other readings of the same processes."""
    fine = dataclasses.replace(run.soak, errors={}, late=np.zeros(10), client_share=0.1)
    run = dataclasses.replace(run, soak=fine, saturation=fine)
    pid = next(iter(run.log.readings[0]))

    def judged(resident: np.ndarray[tuple[int], np.dtype[np.float64]], processes: int = 1) -> Verdict:
        readings = [{pid: int(value)} for value in resident]
        if processes > 1:
            readings[300:] = [{pid + 1: int(value)} for value in resident[300:]]
        log = dataclasses.replace(run.log, times=np.arange(600.0).tolist(), readings=readings)
        return soak.judge(dataclasses.replace(run, log=log))

    generator = np.random.default_rng(0)
    flat = 200e6 + 1e4 * generator.standard_normal(600)
    assert judged(flat).code(check=True) == 0
    per_hour = 200e6 * np.arange(600) / 3600
    assert judged(flat + 0.005 * per_hour).code(check=True) == 0  # half a per cent is below the bar
    assert judged(flat + 0.02 * per_hour).code(check=True) == 1
    assert judged(flat - 0.5 * per_hour).code(check=True) == 0
    assert judged(200e6 + 2e7 * np.sin(np.arange(600) / 60)).code(check=True) == 4
    assert "processes of the service ended" in judged(flat, processes=2).faults[0]
    refused = dataclasses.replace(fine, refused=np.ones(2))
    assert "2 requests with status 503" in soak.judge(dataclasses.replace(run, soak=refused)).faults[0]


def test_workers_that_share_and_workers_that_do_not(
    faults: Faults, bench: Bench, bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--workers", "2", "--seconds", "0.1", "--k", "5", "--check")
    monkeypatch.setattr(workers, "MANY", 5)
    place = tmp_path / "workers.json"
    assert bench("workers", bundles[0], *options, "--json", place) == 0
    one, two = read_json(place)["services"]
    assert (len(one["workers"]), len(two["workers"]), two["processes"]) == (1, 2, 3)
    assert sum(two["requests_of_each_worker"]) > 10
    assert min(two["requests_of_each_worker"]) >= 5
    faults("unshared")
    two = workers.Options(workers=2, seconds=0.1, k=5)
    asked = Asked.read(bundles[0], 5, 0)
    little = Memory(10_000_000, 10_000_000)
    first = workers.Held([little], little, 1, [100.0], [10.0], {}, 0.1)
    run = workers.Run(asked, two, first, workers._held(asked, two, 2, lambda _: None))
    verdict = workers.judge(run)
    assert met(verdict) == {"tree": False}
    assert verdict.code(check=True) == 1
    idle = dataclasses.replace(run, many=dataclasses.replace(run.many, answered=[100.0, 4.0]))
    assert workers.judge(idle).code(check=True) == 4


def test_a_service_of_too_few_workers_is_refused(
    faults: Faults, bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults("alone")
    with pytest.raises(ServerError, match="started with 2 workers and has 1"):
        workers._held(Asked.read(bundles[0], 5, 0), workers.Options(workers=2), 2, lambda _: None)


def test_reloads_that_nobody_notices(
    faults: Faults, bench: Bench, bundles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "reload.json"
    before = sorted(path.name for path in bundles[0].rglob("*"))
    arguments = ("--times", "3", "--every", "0.3", "--k", "5", "--work", tmp_path)
    assert bench("reload", bundles[0], *arguments, "--json", place) == 0
    found = read_json(place)
    assert len(found["reloads"]) == 3
    for one in found["reloads"]:
        assert one["begun"] < one["published"] <= one["served"] <= one["settled"]
    assert found["load"]["errors"] == {}
    assert found["verdict"]["faults"] == []
    assert found["milliseconds"]["calm"]["p99"] > 0
    assert "0 failed requests" in capsys.readouterr().out
    assert sorted(path.name for path in bundles[0].rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["reload.json"]


def test_reloads_that_cost_requests_and_reloads_that_never_come(
    faults: Faults, bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = reload.Options(times=3, every=0.3, k=5)
    faults("drop")
    run = reload.measure(bundles[0], options, None)
    verdict = reload.judge(run)
    assert "requests with no reply" in " ".join(verdict.faults)
    assert verdict.code(check=False) == 1
    assert sum(map(len, run.parts().values())) == len(run.seen.latencies)
    seen = dataclasses.replace(run.seen, errors={}, client_share=0.1, late=np.zeros(3))
    fine = dataclasses.replace(run, seen=seen, failed=[])
    assert reload.judge(fine).code(check=True) == 0
    early = dataclasses.replace(fine, reloads=[*fine.reloads[:2], dataclasses.replace(fine.reloads[2], settled=0.0)])
    assert len(early.parts()["calm"]) <= len(fine.parts()["calm"])
    assert reload.judge(early).doubts == ["2 of 3 reloads were over when the load ended; use more --every"]
    faults("stay")
    monkeypatch.setattr(reload, "PATIENCE_S", 0.1)
    with pytest.raises(ServerError, match="does not serve version"):
        reload.measure(bundles[0], options, None)


def test_bars_say_what_was_wanted() -> None:
    assert Bar("x", "it", 4.0, 3.0, "ms").line() == "it: 4 ms, wanted at most 3 ms: MISSED"
    assert Bar("x", "it", 3.0, 3.0, "", "[1, 2]").line() == "it: 3 [1, 2], wanted at most 3: met"
    nothing = Bar("x", "it", float("nan"), 3.0)
    assert not nothing.met
    assert nothing.document()["value"] is None


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_no_process(bundles: tuple[Path, Path], sent: signal.Signals) -> None:
    # Who started the tests in the background of a shell has them ignore SIGINT.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import benchmarks.production as p; p.SERVICE = {STAND_IN!r}\nfrom benchmarks.__main__ import main\nmain()"
    )
    command = [sys.executable, "-c", program, "soak", str(bundles[0]), "--k", "5", "--clients", "2", "--warm-up", "60"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, env=variables
    ) as process:
        try:
            parent = psutil.Process(process.pid)
            deadline = time.monotonic() + 60
            children: list[psutil.Process] = []
            while len(children) < 4:  # the service, its worker and two clients
                assert time.monotonic() < deadline
                assert process.poll() is None
                children = parent.children(recursive=True)
                time.sleep(0.05)
            if sent == signal.SIGINT:
                os.killpg(process.pid, sent)
            else:
                process.send_signal(sent)
            assert process.wait(30) == {signal.SIGTERM: 143, signal.SIGINT: 130}[sent]
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
            gone, alive = psutil.wait_procs(children, timeout=10)
            assert (len(gone), alive) == (4, [])
        finally:
            process.kill()
