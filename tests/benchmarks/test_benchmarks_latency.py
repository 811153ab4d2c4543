from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmarks.latency import cold
from benchmarks.latency import measure as latency
from benchmarks.latency.arms import AGAIN, BASELINE, CONTROL_DELAY, DELAYED, OTHER_SEED, UNSTRIPPED, Arm, make_arms
from benchmarks.latency.measure import Level, Options, margin_of
from benchmarks.latency.round import Times
from benchmarks.latency.verdict import Role, Verdict
from export.bundle import MODEL_ONNX, BundleReader
from tests.benchmarks.helpers import Bench, make_bundle, read_json
from training.common.errors import BundleError

Bundles = tuple[Path, Path]


def test_the_whole_way_from_the_command_line(
    bench: Bench, bundles: Bundles, other_seed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "latency.json"
    sizes = ("--rounds", "4", "--calls", "20", "--k", "5", "--level", "engine", "--level", "graph")
    named = ("--baseline", bundles[0], "--dvib", bundles[1], "--other-seed", other_seed)
    code = bench("latency", *named, *sizes, "--inject-delay-pct", "400", "--json", place)
    document = read_json(place)
    assert code == document["verdict"]["code"] in (1, 3)  # so few rounds may overlook a control
    assert document["benchmark"] == "latency"
    assert document["environment"]["versions"]["onnxruntime"]
    assert list(document["levels"]) == ["graph_1", "graph_32", "graph_256", "engine_1", "engine_32", "engine_256"]
    assert {name: arm["role"] for name, arm in document["arms"].items()} == {
        BASELINE: "baseline",
        AGAIN: "same",
        DELAYED: "control",
        "DVIB adaptive": "measured",
        OTHER_SEED: "shown",
    }
    for level in document["levels"].values():
        assert level["rounds"] in (4, 8, 16)
        for name, found in level["microseconds"].items():
            assert 0 < found["p50"] <= found["p95"] <= found["p99"]
            assert len(level["samples_microseconds"][name]) == level["rounds"]
        assert BASELINE not in level["ratio_of_medians"]
        assert level["findings"]["DVIB adaptive"] == "different"
        assert level["ratio_of_medians"]["DVIB adaptive"]["low"] > 3
    assert {name: len(values["engine_load_s"]) for name, values in document["loading"].items()} == dict.fromkeys(
        (BASELINE, AGAIN, "DVIB adaptive", OTHER_SEED), cold.REPEATS
    )
    shown = capsys.readouterr().out
    assert "folds" in shown
    assert f"verdict: {document['verdict']['word']}" in shown
    assert document.pop("command").startswith("dvib-bench latency --baseline ")
    assert str(tmp_path) not in json.dumps(document)


def test_the_arms_and_what_they_are_there_for(arms: list[Arm], bundles: Bundles) -> None:
    assert {arm.name: (arm.role, arm.delay, arm.folder == bundles[0].resolve()) for arm in arms} == {
        BASELINE: ("same", 0, True),
        AGAIN: ("same", 0, True),
        DELAYED: ("control", CONTROL_DELAY, True),
        "DVIB adaptive": ("measured", 0, False),
        OTHER_SEED: ("shown", 0, False),
        UNSTRIPPED: ("control", 0, True),
    }
    injected = make_arms(bundles[0], [bundles[1]], inject=0.07)
    assert {arm.name: arm.delay for arm in injected if arm.delay} == {DELAYED: CONTROL_DELAY, "DVIB adaptive": 0.07}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"dimension": 6}, "dimension 7 and 6"),
        ({"fingerprint": "1" * 64}, "data set fingerprint 000000000000 and 111111111111"),
        ({"n_items": 61}, "number of items 60 and 61"),
        ({"seen_share": 0.3}, "their users have seen other items"),
        ({"graph": False}, "model.onnx is no ONNX model"),
        ({"variant": "none"}, "is a plain model"),
    ],
)
def test_bundles_that_cannot_be_compared_are_refused(
    bench: Bench, bundles: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], said: str
) -> None:
    place = tmp_path / "latency.json"
    folder = make_bundle(tmp_path / "other", **{"variant": "adaptive", **other})
    assert bench("latency", "--baseline", bundles[0], "--dvib", folder, "--json", place) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not place.exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--baseline", 1, "--dvib", 1), "is a model trained with DVIB adaptive"),
        (("--baseline", 0, "--dvib", 1, "--dvib", 1), "a bundle of DVIB adaptive already"),
        (("--baseline", 0, "--dvib", 1, "--other-seed", 0), "other weights than the baseline"),
        (("--baseline", 0, "--dvib", 1, "--level", "grph"), "no level 'grph'; did you mean 'graph'?"),
        (("--baseline", 0, "--dvib", 1, "--device", "cuda"), "has no CUDAExecutionProvider"),
    ],
)
def test_arms_that_are_not_what_they_are_called_are_refused(
    bench: Bench, bundles: Bundles, capsys: pytest.CaptureFixture[str], given: Sequence[str | int], said: str
) -> None:
    assert bench("latency", *(bundles[part] if isinstance(part, int) else part for part in given)) == 2
    assert said in capsys.readouterr().err


def test_an_altered_graph_is_refused(bundles: Bundles, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "altered", variant="adaptive", seed=1)
    data = bytearray((folder / MODEL_ONNX).read_bytes())
    data[-1] ^= 1
    (folder / MODEL_ONNX).write_bytes(data)
    with pytest.raises(BundleError, match="differs from its hash"):
        make_arms(bundles[0], [folder])


@pytest.mark.parametrize(("field", "value"), [("model_name", "bm3"), ("fingerprint", "1" * 64)])
def test_a_checkpoint_of_other_data_is_no_control(
    bench: Bench,
    bundles: Bundles,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    field: str,
    value: str,
) -> None:
    with BundleReader(bundles[0]) as reader:
        known = {"model_name": reader.manifest.model, "fingerprint": reader.manifest.dataset.fingerprint, field: value}
    said = SimpleNamespace(**known)
    monkeypatch.setattr("training.checkpoint.load_checkpoint", lambda _: SimpleNamespace(info=Info(said, said)))
    monkeypatch.setattr("export.removed.unstripped_onnx", lambda _: pytest.fail("the graph was made"))
    assert bench("latency", "--baseline", bundles[0], "--dvib", bundles[1], "--checkpoint", "run") == 2
    shown = capsys.readouterr().err
    assert "--checkpoint run is a run of" in shown
    assert value[:12] in shown


class Info(NamedTuple):
    """What a checkpoint says of itself, as far as it is asked."""

    config: SimpleNamespace
    dataset: SimpleNamespace


def test_what_http_would_refuse_is_refused_before_anything_is_timed(bundles: Bundles) -> None:
    steps: list[str] = []
    options = Options(looks=(2,), calls=1, k=61, kinds=("graph", "http"))
    with pytest.raises(BundleError, match="61 items left"):
        latency.measure(make_arms(bundles[0], [bundles[1]]), 60, options, steps.append)
    assert steps == []


def times_of(ratios: Mapping[str, float], noise: float, calls: int = 20) -> Times:
    draw = np.random.default_rng(0)
    return {1: {name: 1e-4 * ratio * np.exp(noise * draw.standard_normal(calls)) for name, ratio in ratios.items()}}


ROLES: dict[str, Role] = {BASELINE: "same", "a": "same", "c": "control", "d": "measured"}
ARMS = [Arm(name, role, Path()) for name, role in ROLES.items()]


@pytest.mark.parametrize(
    ("last", "rounds", "code"),
    [(1.0, 4, 0), (1.1, 4, 1), (0.9, 4, 1), (1.02, 16, 4)],
    ids=["equal", "slower", "faster", "between"],
)
def test_a_level_is_looked_at_until_it_is_settled(last: float, rounds: int, code: int) -> None:
    options = Options(looks=(4, 8, 16), kinds=("graph",))
    level = Level("graph", 1, 0.02)
    orders: list[tuple[str, ...]] = []
    steps: list[str] = []
    draw = np.random.default_rng(3)

    def player(order: Sequence[str], number: int) -> Times:
        assert number == len(orders)
        orders.append(tuple(order))
        return times_of(
            {BASELINE: 1, "a": 1, "c": 1.05, "d": last * float(np.exp(0.003 * draw.standard_normal()))}, 1e-4
        )

    found = latency._until_settled([level], ARMS, options, player, steps.append)
    assert len(orders) == len(steps) == rounds
    assert Verdict.of(found).code == code
    assert {order[0] for order in orders[:4]} == {arm.name for arm in ARMS}
    assert level.document(ARMS)["rounds"] == rounds
    assert found[0].ratio.confidence == pytest.approx(1 - 0.1 / 3)


def test_margins() -> None:
    assert margin_of("graph", 10**6) == margin_of("unfolded", 7) == margin_of("engine", 7_050) == 0.02
    assert margin_of("engine", 18_357) == 0.03
    assert margin_of("http", 7) == 0.05


def test_a_delay_over_http_adds_the_same_share_at_every_level(arms: list[Arm]) -> None:
    medians = {1: 300e-6, 8: 1600e-6}
    found = {arm.name: latency._http_arms(arm, medians) for arm in arms}
    assert [entry.only for entry in found[DELAYED]] == [1, 8]
    # A request waits for eight answers.
    assert [entry.delay_us for entry in found[DELAYED]] == pytest.approx([0.15 * 300, 0.15 * 200])
    assert [(entry.only, entry.delay_us) for entry in found[AGAIN]] == [(None, 0.0)]


def test_a_crash_is_no_verdict(
    bench: Bench, bundles: Bundles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("benchmarks.latency.arms.check_comparable", crash)
    assert bench("latency", "--baseline", bundles[0], "--dvib", bundles[1]) == 70
    assert "RuntimeError: planted" in capsys.readouterr().err
