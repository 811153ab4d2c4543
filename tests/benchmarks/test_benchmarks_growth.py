from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.growth import measure as growth
from benchmarks.growth.measure import COMMAND, Point, bundle_of, bundles_of, measure, needed_bytes, points
from benchmarks.growth.probe import probe
from benchmarks.probe import run_probe
from benchmarks.synth_bundle import Options, write_bundle
from tests.benchmarks.helpers import Bench, read_json
from training.common.errors import ConfigError, DvibError

TINY = Options(items=300, users=40, dimension=16, seen=5)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Axes of few small bundles."""
    for name, value in {"BASE": TINY, "KS": (3, 7), "SEEN": (0,), "USERS": (40,)}.items():
        monkeypatch.setattr(growth, name, value)


def test_the_whole_way_from_the_command_line(
    bench: Bench, tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, stem, work = tmp_path / "growth.json", tmp_path / "plots" / "growth", tmp_path / "work"
    options = ("--items", "1000", "--calls", "12", "--work", work, "--json", place, "--plot", stem)
    assert bench("growth", *options) == 0
    document = read_json(place)
    found = [(point["axis"], point["value"]) for point in document["points"]]
    assert found == [("items", 1000), ("users", 40), ("k", 3), ("k", 7), ("seen", 0)]
    for point in document["points"]:
        samples = point["samples_microseconds"]
        assert len(samples) == 12
        assert point["microseconds"]["p50"] == pytest.approx(np.median(samples), abs=0.02)
        assert point["microseconds"]["p50"] <= point["microseconds"]["p99"] <= max(samples)
        assert 0 < point["memory_bytes"]["imports"] < point["memory_bytes"]["loaded"] <= point["memory_bytes"]["most"]
        assert point["factory"] == "Flat"
        assert point["one_pass_microseconds"] > 0
    assert document["skipped"] == []
    # The tiny bundle is on three axes and was made once.
    assert len(list(work.iterdir())) == 3
    assert (tmp_path / "plots" / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "latency against the size of the catalogue" in (tmp_path / "plots" / "growth.svg").read_text("utf-8")
    shown = capsys.readouterr().out
    assert "memory MB" in shown
    assert "drawn: " in shown


def test_each_axis_varies_one_thing() -> None:
    found = points(growth.SIZES, seed=7)
    base = Options(**{**vars(growth.BASE), "seed": 7})
    assert {point.axis for point in found} == set(growth.AXES)
    for point in found:
        varied = {name for name, value in vars(point.options).items() if value != getattr(base, name)}
        assert varied <= {point.axis}
    values = {axis: [point.value for point in found if point.axis == axis] for axis in growth.AXES}
    assert values == {
        "items": [7_000, 100_000, 1_000_000],
        "users": [1_000, 10_000, 100_000],
        "k": [10, 100, 1_000],
        "seen": [0, 100, 1_000, 10_000],
    }
    assert all(point.options.seen < point.options.items for point in found)


def test_large_catalogues_have_the_other_index() -> None:
    def kinds(*, full: bool) -> list[tuple[int, str]]:
        sizes = (7_000, 100_000, 1_000_000, 10_000_000)
        found = points(sizes, "IVF64,SQ8", full=full)
        return [(point.value, point.options.index) for point in found if point.axis == "items"]

    small = [(7_000, "flat"), (100_000, "flat")]
    assert kinds(full=False) == [*small, (1_000_000, "flat"), (10_000_000, "IVF64,SQ8")]
    assert kinds(full=True) == [
        *small,
        (100_000, "IVF64,SQ8"),
        (1_000_000, "flat"),
        (1_000_000, "IVF64,SQ8"),
        (10_000_000, "IVF64,SQ8"),
    ]


def test_what_does_not_fit_into_memory_is_skipped_and_said(
    bench: Bench, tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "available_bytes", lambda: needed_bytes(TINY) - 1)
    assert bench("growth", "--items", "1000", "--calls", "1", "--work", tmp_path, "--json", tmp_path / "g.json") == 0
    document = read_json(tmp_path / "g.json")
    # Without seen items it needs a little less.
    assert [(point["axis"], point["value"]) for point in document["points"]] == [("seen", 0)]
    assert [entry["bundle"] for entry in document["skipped"]] == ["synthetic-1000x40-seed0", "synthetic-300x40-seed0"]
    assert "skipped: synthetic-1000x40-seed0, flat: needs about 0.3 GB" in capsys.readouterr().out


def test_more_of_anything_needs_more_memory() -> None:
    needed = needed_bytes(TINY)
    assert needed > 4 * TINY.items * TINY.dimension
    for change in ({"items": 600}, {"users": 80}, {"dimension": 32}, {"seen": 10}):
        assert needed_bytes(Options(**{**vars(TINY), **change})) > needed
    assert growth.available_bytes() is None or growth.available_bytes() > 0  # type: ignore[operator]


def test_a_bundle_that_is_there_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But only if it was made from these very options, whatever its folder is called."""
    made: list[Options] = []

    def write(options: Options, folder: Path, on_step: Callable[[str], None]) -> None:
        made.append(options)
        write_bundle(options, folder, on_step)

    monkeypatch.setattr(growth, "write_bundle", write)
    other = Options(**{**vars(TINY), "dimension": 8})
    for options in (TINY, TINY, other, other, TINY):
        folder = bundle_of(options, tmp_path, lambda _: None)
    assert made == [TINY, other, TINY]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("probed")
    kinds = {"flat": TINY, "SQ8": Options(**{**vars(TINY), "index": "SQ8"}), "large": Options(60_000, 40, seen=5)}
    for name, options in kinds.items():
        write_bundle(options, root / name)
    return {name: root / name for name in kinds}


@pytest.mark.parametrize(("kind", "more"), [("flat", ["one pass"]), ("SQ8", [])])
def test_the_probe_times_every_length(folders: dict[str, Path], kind: str, more: list[str]) -> None:
    result = probe(str(folders[kind]), [2, 9], 43, seed=0)
    samples: dict[str, list[float]] = result["samples_microseconds"]
    assert list(samples) == ["2", "9", *more]
    assert all(len(times) == 43 and min(times) > 0 for times in samples.values())


def test_memory_is_that_of_the_bundle(folders: dict[str, Path]) -> None:
    """60,000 vectors of 128 numbers are 31 MB; whatever else is kept of them, they are in the process."""
    loaded = {}
    for kind in ("flat", "large"):
        arguments: dict[str, Any] = {"folder": str(folders[kind]), "ks": [1], "calls": 1, "seed": 0}
        loaded[kind] = run_probe([*COMMAND, json.dumps(arguments)], "the measured process")["memory_bytes"]["loaded"]
    assert loaded["large"] - loaded["flat"] > 4 * 60_000 * 128


def test_what_the_probe_complains_of_is_an_error(tmp_path: Path) -> None:
    arguments = {"folder": str(tmp_path / "none"), "ks": [1], "calls": 1, "seed": 0}
    with pytest.raises(DvibError, match="no bundle at"):
        run_probe([*COMMAND, json.dumps(arguments)], "the measured process")


def test_an_answer_longer_than_the_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="301 items from a catalogue of 300"):
        measure([Point("k", TINY, 301)], tmp_path, calls=1, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_measured_once_for_all_its_points() -> None:
    assert bundles_of([Point("k", TINY, 1), Point("k", TINY, 2), Point("users", TINY)]) == [TINY]


def test_help_shows_examples(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("growth", "--help") == 0
    assert "dvib-bench growth --full --work bundles/growth" in " ".join(capsys.readouterr().out.split())
