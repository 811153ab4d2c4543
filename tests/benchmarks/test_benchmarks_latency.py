from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import latency
from benchmarks.http_client import Connection, ServerError, serving
from export.parity import session
from service.engine import Engine
from tests.benchmarks.helpers import Bench, make_bundle, read_json
from training.common.errors import BundleError

QUICK = latency.Options(rounds=2, calls=3)
LEVELS = ["graph_load", "graph_batch_1", "graph_batch_32", "engine", "http"]


def test_the_whole_way_from_the_command_line(
    bench: Bench,
    bundles: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DVIB_SERVE_NONSENSE", "1")  # the server would refuse to start with it
    place = tmp_path / "latency.json"
    sizes = ("--rounds", "3", "--calls", "12", "--users-per-call", "2", "--k", "5")
    assert bench("latency", "--baseline", bundles[0], "--dvib", bundles[1], *sizes, "--json", place) == 0
    document = read_json(place)
    assert document["benchmark"] == "latency"
    assert document["bundles"]["dvib"]["variant"] == "adaptive"
    assert document["environment"]["versions"]["onnxruntime"]
    assert document["options"]["bootstrap_unit"] == "round"
    assert list(document["levels"]) == LEVELS
    assert len(LEVELS) == latency.LEVELS
    for name, level in document["levels"].items():
        calls = 1 if name == "graph_load" else 12
        for arm in ("baseline", "dvib"):
            assert np.shape(level["samples_microseconds"][arm]) == (3, calls)
            found = level["microseconds"][arm]
            assert 0 < found["p50"] <= found["p95"] <= found["p99"]
        ratio = level["ratio_of_medians"]
        assert 0 < ratio["low"] <= ratio["high"]
        assert ratio["confidence"] == 0.9
    assert {name: level["users_per_call"] for name, level in document["levels"].items()} == {
        "graph_load": 1,
        "graph_batch_1": 1,
        "graph_batch_32": 32,
        "engine": 2,
        "http": 1,
    }
    shown = capsys.readouterr().out
    assert "folds" in shown
    assert "HTTP request" in shown
    assert str(tmp_path) not in place.read_text("utf-8")


def test_both_arms_run_with_the_same_settings(bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, set[str]] = {"baseline": set(), "dvib": set()}
    arms = {name: latency.BundleArm.read(folder) for name, folder in zip(settings, bundles, strict=True)}
    opening = ""

    def record_session(data: bytes, **options: Any) -> Any:
        settings[opening].add(f"session {options}")
        return session(data, **options)

    load = Engine.load

    def record_engine(folder: Path, **options: Any) -> Engine:
        settings[opening].add(f"engine {options}")
        return load(folder, **options)

    monkeypatch.setattr(latency, "session", record_session)
    monkeypatch.setattr(Engine, "load", record_engine)
    users = np.zeros(1, dtype=np.int64)
    for level in latency.local_levels(arms, QUICK):
        for opening in settings:
            level.open(opening)(users)
    assert settings["baseline"] == settings["dvib"] == {"session {'threads': 1}", "engine {'index_threads': 1}"}


def test_every_call_does_what_its_level_says(bundles: tuple[Path, Path]) -> None:
    arm = latency.BundleArm.read(bundles[0])
    engine = Engine.load(bundles[0])
    rows = np.array([4, 5])
    levels = {level.name: level.open("x") for level in latency.local_levels({"x": arm}, QUICK)}
    scores: Any = levels["graph_batch_1"](rows)
    assert scores[0].shape == (2, arm.manifest.dataset.n_items)
    assert levels["engine"](rows) == [engine.recommend(arm.users[row], QUICK.k) for row in rows]
    with latency.http_level({"x": arm}, QUICK) as level:
        body: Any = level.open("x")(rows)
    assert all(item.item_id in body.decode() for item in engine.recommend(arm.users[4], QUICK.k).items)


def test_a_reply_from_elsewhere_is_refused(bundles: tuple[Path, Path]) -> None:
    with (
        serving({"one": bundles[0]}) as (host, port),
        closing(Connection(host, port, "one", 3)) as connection,
        closing(Connection(host, port, "two", 3)) as other,
    ):
        with pytest.raises(ServerError, match="wanted"):
            connection.check("u-1", "000000000000")
        with pytest.raises(ServerError, match="popular; wanted"):
            connection.check("nobody", read_json(bundles[0] / "manifest.json")["version"])
        with pytest.raises(ServerError, match="status 404"):
            other.post(other.target("u-1"))
    with pytest.raises(ServerError, match="no reply"):
        connection.post(connection.target("u-1"))


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"did not start: .*no bundle at"), serving({"one": tmp_path / "none"}):
        pass


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"dimension": 6}, "dimension 7 and 6"),
        ({"fingerprint": "1" * 64}, "data set fingerprint 000000000000 and 111111111111"),
        ({"graph": False}, "model.onnx is no ONNX model"),
    ],
)
def test_bundles_that_cannot_be_compared_are_refused(
    bench: Bench,
    bundles: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    other: dict[str, Any],
    said: str,
) -> None:
    place = tmp_path / "latency.json"
    folder = make_bundle(tmp_path / "other", variant="adaptive", **other)
    assert bench("latency", "--baseline", bundles[0], "--dvib", folder, "--json", place) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not place.exists()


def test_an_altered_graph_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "altered")
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="differs from its hash"):
        latency.BundleArm.read(folder)
