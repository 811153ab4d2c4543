"""Curves from a log, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tests.helpers_training import Interrupted, StopAt, make_config, planted_blocks, write_mmrec
from training.cli import app
from training.common import console
from training.common.errors import CheckpointError, ConfigError, MissingGroupError
from training.curves import best_epoch, draw_curves, read_log
from training.reporting import SilentReporter
from training.tensorboard import TensorBoardReporter
from training.trainer import Trainer

DATASET = planted_blocks(n_users=12, n_items=40)
CURVES = ("curves.png", "curves.svg")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dvib"
    config = make_config("adaptive", "training.epochs=8", "training.learning_rate=0.05", "training.monitor=recall@20")
    Trainer(config, DATASET, out).fit()
    return out


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands set up the process's logging; put it back."""
    monkeypatch.delenv("DVIB_DATA", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def write_log(folder: Path, entries: Sequence[dict[str, float]], tail: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + tail)
    return folder


def drawn(monkeypatch: pytest.MonkeyPatch, run: Path, metric: str | None = None) -> dict[str, Axes]:
    """Return title → axes of what is drawn, without writing it."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    draw_curves(run, metric)
    return {axes.get_title().split(",")[0]: axes for axes in figures[0].axes}


def at(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def points(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {str(line.get_label()): at(line) for line in axes.get_lines()}


def test_both_files_are_pictures_and_the_same_log_gives_the_same_bytes(run: Path) -> None:
    paths = draw_curves(run)
    assert [path.name for path in paths] == ["curves.png", "curves.svg"]
    assert paths[0].read_bytes().startswith(PNG)
    root = ElementTree.fromstring(paths[1].read_text("utf-8"))  # noqa: S314  # our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(root.itertext())
    assert all(part in text for part in ("validation recall@20", "distillation", "gradient of each term", "dvib"))
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in draw_curves(run)] == first


def test_the_lines_are_the_logs_numbers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = read_log(run)
    axes = drawn(monkeypatch, run)
    assert set(axes) == {"loss terms", "validation recall@20", "gradient of each term"}
    losses = points(axes["loss terms"])
    assert {"total", "bpr", "decay", "general_perturbed", "distillation", "variational"} <= losses.keys()
    assert not {"phi_mean", "hidden_norm"} & losses.keys()  # no losses
    assert losses["total"] == [(entry["epoch"], entry["loss/total"]) for entry in entries]
    worth = points(axes["gradient of each term"])
    assert worth["distillation"] == [
        (entry["epoch"], entry["worth/distillation"]) for entry in entries if "worth/distillation" in entry
    ]
    assert axes["gradient of each term"].get_yscale() == "log"


def test_the_best_epoch_is_marked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for metric in ("recall@20", "ndcg@5"):
        entries = read_log(run)
        values = [entry[f"valid/{metric}"] for entry in entries]
        best = 1 + values.index(max(values))
        assert best_epoch(entries, metric) == best
        with monkeypatch.context() as patch:
            axes = drawn(patch, run, metric)[f"validation {metric}"]
        stars = [line for line in axes.get_lines() if line.get_marker() == "*"]
        assert at(stars[0]) == [(best, max(values))]
        assert axes.get_title().endswith(f"best {max(values):.4f} in epoch {best}")


def test_the_marked_epoch_is_the_one_that_stopping_took_where_the_run_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    settings = ["training.epochs=1", "training.monitor_decimals=1", "training.monitor=recall@20"]
    Trainer(make_config("none", *settings), DATASET, run).fit()
    values = {"valid/recall@20": (0.11, 0.12, 0.13), "valid/ndcg@20": (0.11, 0.12, 0.13)}
    write_log(run, [{"epoch": n + 1.0, "loss/bpr": 0.7} | {name: v[n] for name, v in values.items()} for n in range(3)])

    def title(metric: str) -> str:
        with monkeypatch.context() as patch:
            return str(drawn(patch, run, metric)[f"validation {metric}"].get_title())

    assert title("recall@20").endswith("best 0.1100 in epoch 1")
    assert title("ndcg@20").endswith("best 0.1300 in epoch 3")
    (run / "best" / "checkpoint.json").chmod(0o644)
    (run / "best" / "checkpoint.json").write_text("{}")  # a log is drawn without one
    assert title("recall@20").endswith("best 0.1300 in epoch 3")


def test_plot_goes_on_with_the_other_runs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"epoch": 1.0, "loss/bpr": 0.7, "valid/recall@10": 0.1}
    (tmp_path / "a").mkdir()
    (tmp_path / "table.md").write_text("no run")
    write_log(tmp_path / "z", [entry])
    assert command("plot", tmp_path / "a", run, tmp_path / "table.md", tmp_path / "z") == 2
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(folder / name) for folder in (run, tmp_path / "z") for name in CURVES]
    told = err.splitlines()
    assert [line.split(": ")[:2] for line in told] == [
        ["dvib-train", str(tmp_path / "a")],
        ["dvib-train", str(tmp_path / "table.md" / "log.jsonl")],
    ]
    assert command("plot", run, tmp_path / "z", "--metric", "recall@10") == 0
    capsys.readouterr()
    assert command("plot", tmp_path / "z", run, "--metric", "recall@20") == 2
    assert capsys.readouterr().out.splitlines() == [str(run / name) for name in CURVES]


def test_of_equal_values_the_first_is_the_best() -> None:
    entries = [{"epoch": float(epoch), "valid/recall@20": value} for epoch, value in enumerate((0.1, 0.3, 0.3), 1)]
    assert best_epoch(entries, "recall@20") == 2


def test_no_two_lines_look_alike_in_grey(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for axes in drawn(monkeypatch, run).values():
        looks = [(line.get_linestyle(), line.get_marker()) for line in axes.get_lines()]
        assert len(looks) == len(set(looks))
        for line in axes.get_lines():
            assert float(str(line.get_color())) <= 0.6  # a grey: matplotlib's "0.0" to "1.0"


def test_an_old_log_a_short_one_and_one_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"epoch": 1.0, "loss/total": 0.7, "loss/bpr": 0.7, "valid/recall@10": 0.1}
    old = write_log(tmp_path / "old", [entry], tail='{"epoch": 2.0, "loss/to')
    assert [path.stat().st_size > 0 for path in draw_curves(old)] == [True, True]
    axes = drawn(monkeypatch, old)
    assert set(axes) == {"loss terms", "validation recall@10"}
    assert points(axes["loss terms"])["bpr"] == [(1.0, 0.7)]


def test_terms_of_either_sign_and_of_no_size(tmp_path: Path) -> None:
    entries = [
        {"epoch": 1.0, "loss/cosine": -0.9, "loss/js": 0.0, "loss/d": 1e-9, "valid/recall@10": 0.0, "worth/d": 0.0},
        {"epoch": 2.0, "loss/cosine": -0.95, "loss/js": 0.0, "loss/d": 0.0, "valid/recall@10": 0.0, "worth/d": 1e-9},
    ]
    assert len(draw_curves(write_log(tmp_path / "run", entries))) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no run, log\.jsonl is missing; run dvib-train fit first"),
        ("", "one line of numbers per epoch is wanted; the run has made none yet"),
        ("[1, 2]\n", "one line of numbers per epoch is wanted"),
        ('{"epoch": "one"}\n', "one line of numbers per epoch is wanted"),
        ("epoch 1\n", "cannot be read"),
    ],
)
def test_what_is_no_log(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        draw_curves(tmp_path)
    assert not list(tmp_path.glob("curves*"))


def test_an_unknown_metric_names_the_nearest(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"no validation metric 'recal@20'; did you mean 'recall@20'\?"):
        draw_curves(run, "recal@20")


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        console.run("dvib-train", lambda: app, [str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.mark.usefixtures("undisturbed")
def test_fit_draws_its_curves_and_writes_for_tensorboard_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mmrec(DATASET, tmp_path)
    settings = ["training.batch_size=64", "model.dimension=8", "training.monitor=recall@10"]
    more = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "run"
    common = ["fit", "--dataset", DATASET.name, "--data-dir", tmp_path, "--device", "cpu", *more]
    assert command(*common, "--out", out, "--epochs", 2, "--tensorboard") == 0
    assert f"curves: {out / 'curves.png'}, {out / 'curves.svg'}" in capsys.readouterr().out
    assert (out / "curves.png").read_bytes().startswith(PNG)
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert command(*common, "--out", tmp_path / "quiet", "--epochs", 1) == 0
    assert not (tmp_path / "quiet" / "tensorboard").exists()
    (out / "curves.png").unlink()
    capsys.readouterr()
    assert command("plot", out, "--metric", "ndcg@10") == 0
    assert capsys.readouterr().out.splitlines() == [str(out / "curves.png"), str(out / "curves.svg")]
    assert "ndcg@10" in (out / "curves.svg").read_text("utf-8")
    assert command("plot", tmp_path) == 2
    assert "log.jsonl is missing" in capsys.readouterr().err


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        name: [(event.step, event.value) for event in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
    }


class Passed(SilentReporter):
    def __init__(self) -> None:
        self.what: list[str] = []

    def epoch_started(self, epoch: int, steps: int) -> None:
        self.what.append(f"started {epoch} {steps}")

    def step_done(self) -> None:
        self.what.append("step")

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:
        self.what.append(f"done {entry['epoch']:.0f} {improved}")

    def warned(self, message: str) -> None:
        self.what.append(f"warned {message}")


def test_the_event_file_holds_the_log(tmp_path: Path) -> None:
    inner = Passed()
    config = make_config("adaptive", "training.epochs=3", "training.batch_size=100")
    with TensorBoardReporter(tmp_path / "tensorboard", inner) as reporter:
        info = Trainer(config, DATASET, tmp_path / "run", reporter=reporter).fit()
        reporter.warned("look")
    found = scalars(tmp_path / "tensorboard")
    assert found.keys() == {name for entry in info.history for name in entry} - {"epoch"}
    for name, values in found.items():
        wanted = [(int(entry["epoch"]), entry[name]) for entry in info.history if name in entry]
        assert [step for step, _ in values] == [step for step, _ in wanted]
        assert [value for _, value in values] == pytest.approx([value for _, value in wanted], rel=1e-6)
    assert inner.what[:4] == ["started 1 2", "step", "step", f"done 1 {True}"]
    assert inner.what[-1] == "warned look"


def test_a_resumed_runs_epochs_stand_there_once(tmp_path: Path) -> None:
    config = make_config("none", "training.epochs=5")

    def fit(inner: SilentReporter) -> None:
        with TensorBoardReporter(tmp_path / "tensorboard", inner) as reporter:
            Trainer(config, DATASET, tmp_path / "run", reporter=reporter).fit(resume=True)

    with pytest.raises(Interrupted):
        fit(StopAt(epochs=3))  # the state is still that of the start
    fit(SilentReporter())
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert [step for step, _ in scalars(tmp_path / "tensorboard")["loss/bpr"]] == [1, 2, 3, 4, 5]


def test_without_tensorboard_the_error_names_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        MissingGroupError, match=r"--tensorboard needs tensorboard; run: pip install 'dvib\[training,te"
    ):
        TensorBoardReporter(tmp_path, SilentReporter())
