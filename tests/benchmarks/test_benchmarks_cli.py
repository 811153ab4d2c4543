from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.environment import describe_environment, summary
from benchmarks.ranking_speed import DisagreementError
from tests.benchmarks.helpers import Bench, read_json

COMMANDS = (
    *("training", "ranking", "memory", "latency", "load", "stages", "growth", "peers", "all-users"),
    *("quality", "matrix", "index", "export"),
    *("overload", "attacks", "soak", "workers", "reload", "environment"),
)


def test_training_on_the_small_shape(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "new" / "training.json"
    assert bench("training", "--shape", "small", "--dvib", "constant", "--epochs", "1", "--json", place) == 0
    document = read_json(place)
    assert document["model"] == "vbpr"
    assert sorted(document["seconds_per_epoch"]) == ["dvib", "none", "reference_loop"]
    assert document["ratio_dvib"] > 0
    assert document["ratio_reference"] > 0
    assert document["environment"]["versions"]["torch"]
    shown = capsys.readouterr().out
    assert "vbpr + DVIB constant" in shown
    assert "reference loop ÷ without" in shown


def test_ranking_on_the_small_shape(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "ranking.json"
    assert bench("ranking", "--shape", "small", "--rounds", "1", "--json", place) == 0
    document = read_json(place)
    assert sorted(document["seconds"]) == ["ours", "reference"]
    assert document["ratio"] > 0
    assert 0 < document["metrics"]["recall@20"] < 1
    assert "both give recall@20" in capsys.readouterr().out


def test_a_comparison_of_different_things_is_void(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def disagree(*_: object) -> None:
        raise DisagreementError("void: planted")

    monkeypatch.setattr("benchmarks.ranking_speed.check_agreement", disagree)
    assert bench("ranking", "--shape", "small", "--rounds", "1") == 3
    assert capsys.readouterr().err == "dvib-bench: void: planted\n"


@pytest.mark.parametrize("command", ["training", "ranking", "memory"])
def test_an_unknown_shape_is_one_line(bench: Bench, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert bench(command, "--shape", "smal") == 2
    assert capsys.readouterr().err == "dvib-bench: no shape 'smal'; did you mean 'small'?\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("training", "--shape", "small", "--model", "vbrp"), "did you mean 'vbpr'"),
        (("training", "--shape", "small", "--device", "tpu9"), "no device 'tpu9'"),
        (("quality", "--dataset", "none-such"), "no data set 'none-such'"),
        (("matrix", "--dataset", "none-such"), "no data set 'none-such'"),
        (("matrix", "--set", "model.dimensions=3", "--model", "vbpr"), "did you mean 'model.dimension'"),
        (("memory", "--shape", "small", "--model", "bm4"), "did you mean 'bm3'"),
        (("latency", "--baseline", "none-such", "--dvib", "none-such"), "no bundle at none-such"),
    ],
)
def test_bad_input_is_one_line(
    bench: Bench, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert bench(*arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_a_json_file_that_cannot_be_written_is_refused_before_the_work(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for place, said in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.json", "cannot be written")):
        assert bench("training", "--shape", "none-such", "--json", place) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(bench: Bench, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert bench(command, "--help") == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert f"dvib-bench {command}" in " ".join(shown.split())


def test_the_program_lists_its_commands_without_loading_torch() -> None:
    program = (
        "import sys\nfrom benchmarks.__main__ import _load\n_load()\nimport benchmarks.latency.measure\n"
        "print({'torch', 'sklearn', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert all(command in done.stdout for command in COMMANDS)


def test_the_environment_names_what_figures_depend_on() -> None:
    found = describe_environment()
    assert found["usable_cores"] >= 1
    assert found["versions"]["numpy"]
    assert found["versions"]["dvib"]
    assert found["thread_variables"]["GOMP_SPINCOUNT"] == os.environ["GOMP_SPINCOUNT"]
    assert "Python" in summary(found)
