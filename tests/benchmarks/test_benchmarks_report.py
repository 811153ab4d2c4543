from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.report.text import cell, figure, listed
from benchmarks.report.write import KINDS, REPORT, markdown, read_folder, write_report
from tests.benchmarks.helpers import Bench
from tests.benchmarks.helpers_report import EQUAL, EVERYTHING, FAR, ROLES, Document, latency, put, stages


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of all tables' lines."""
    return [[part.strip() for part in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every document and the report of it."""
    folder = put(tmp_path_factory.mktemp("whole"), *(make() for make in EVERYTHING.values()))
    written = write_report(folder, folder, "dvib-bench report whole")
    assert all(path.stat().st_size > 0 for path in written)
    return folder


def test_every_document_has_a_synthetic_one_here() -> None:
    assert set(EVERYTHING) == {kind.benchmark for kind in KINDS}


def test_every_plot_that_the_report_shows_is_there_in_both_forms(whole: Path) -> None:
    text = (whole / REPORT).read_text("utf-8")
    stems = [stem for kind in KINDS for stem in kind.plots]
    assert stems
    for stem in stems:
        assert text.count(f"({stem}.png)]({stem}.svg)") == 1
        assert (whole / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (whole / f"{stem}.svg").read_text("utf-8")


def test_the_tables_of_the_levels_hold_the_figures_of_the_document(whole: Path) -> None:
    document = latency(EQUAL | FAR)
    text = (whole / REPORT).read_text("utf-8")
    for name, level in document["levels"].items():
        section = text.split(f"### level {name}\n")[1].split("\n#")[0]
        assert "±2%, 8 rounds" in section
        rows = {row[0]: row for row in rows_of(section)}
        assert list(rows)[2:] == ["baseline", *ROLES]
        for arm, times in level["microseconds"].items():
            assert rows[arm][3:5] == [f"{times['p50']:,.1f}", f"{times['p99']:,.1f}"]
        for arm, found in level["ratio_of_medians"].items():
            assert rows[arm][5] == f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
            assert rows[arm][2] == level["findings"][arm]
            tail = level["ratio_of_p99"][arm]
            assert rows[arm][6] == f"{tail['value']:.3f} [{tail['low']:.3f}, {tail['high']:.3f}]"
        assert rows["DVIB constant"][1] == "within ±2%"
        assert rows["baseline + delay"][1] == "slower by more than 2%"
        assert rows["other seed"][1] == "anything"


@pytest.mark.parametrize(("kind", "said"), [("engine", "its own median"), ("http", "with every answer")])
def test_a_level_says_what_its_delay_is_a_share_of(tmp_path: Path, kind: str, said: str) -> None:
    document = latency(EQUAL)
    document["levels"]["engine_1"]["kind"] = kind
    write_report(put(tmp_path, document), tmp_path, "dvib-bench report here")
    section = (tmp_path / REPORT).read_text("utf-8").split("### level engine_1\n")[1]
    (line,) = [line for line in section.splitlines() if "baseline + delay waits 5% of" in line]
    assert said in line


def test_the_other_tables_hold_the_figures_of_their_documents(whole: Path) -> None:
    rows = rows_of((whole / REPORT).read_text("utf-8"))
    for wanted in (
        ["baseline", "500.0", "–", "–", "–", "–"],  # the median of three loads, in ms; memory is not known
        ["baseline", "1.50", "–", "–", "0.25", "1.75"],
        ["engine", "what it is", "64.5", "645.0"],
        ["queue and thread", "what is left of the whole without its parts", "17.8", "–"],
        ["closed loop, 32 at a time", "bundle", "4,321", "1.25", "3.75", "5.00", "222", "150.00"],
        ["open loop, 1,900/s", "constant", "1,900", "0.25", "0.75", "1.00", "222", "150.00"],
        ["items", "Flat", "100,000", "81.0", "99.5", "1.50", "exact", "123", "3.5", "0.75"],
        ["items", "Flat", "7,000", "81.0", "99.5", "1.50", "0.991 @10", "123", "3.5", "0.75"],
        ["dvib", "how dvib does it", "80.5", "161.0", "–", "–"],
        ["numpy", "how numpy does it", "40.2", "80.5", "0.50 [0.38, 0.62]", "0 of 500"],
        ["cornac", "how cornac does it", "322.0", "644.0", "4.00 [3.88, 4.12]", "**3 of 500**"],
        ["bare float32 product (NumPy)", "4.25", "–"],
        ["`dvib-export recommend --all-users`, as a whole", "12.50", "2.75 [2.62, 2.88]"],
        ["DVIB beside the plain model", "[latency.json](./latency.json)", "7", "0.5"],
        ["HTTP", "[load.json](./load.json)", "3", "0.5", "not recorded"],
        ["growth of latency and memory", "[growth.json](./growth.json)", "5", "0.5", "not recorded"],
    ):
        assert wanted in [row[: len(wanted)] for row in rows], wanted


def test_the_first_table_holds_every_bar(whole: Path) -> None:
    text = (whole / REPORT).read_text("utf-8")
    assert (
        text.splitlines()[0]
        == "# Equivalent: DVIB constant is as fast as the plain model in the median at every level, within ±2%"
    )
    first = rows_of(text.split("## What was compared")[0])
    outcomes = {row[0]: row[-1] for row in first[2:]}
    assert outcomes == {
        "baseline again: equivalent to the baseline": "met",
        "baseline + delay: found slower": "met",
        "DVIB constant: equivalent to the baseline": "met",
        "un-stripped DVIB: found slower": "met",
        "time of the engine ÷ its floors, 7,050 items, d = 128": "**missed**",
        "HTTP, 18,357 items: throughput it is": "met",
        "HTTP, 18,357 items: processor time": "**missed**",
        "HTTP: loads with wrong replies": "**missed**",
        "peers, 5,000 items: numpy's time ÷ this engine's": "**missed**",
        "peers, 5,000 items: cornac's time ÷ this engine's": "met",
        "peers, 5,000 items: cornac's answers that differ": "**missed**",
        "lists for 35,598 users × 18,357 items to Parquet ÷ a bare product of that shape": "**inconclusive**",
    }


def test_the_report_says_what_and_where_and_how(whole: Path) -> None:
    text = (whole / REPORT).read_text("utf-8")
    assert "Model vbpr with the settings *tuned* on a data set: 1,234 items of d = 16, Flat index, k = 10" in text
    assert "`dvib-bench latency --baseline b --dvib d`" in text
    assert "This report: `dvib-bench report whole`" in text
    assert (
        "a \\| CPU, 2 of 2 cores | 8.0 GiB | Linux x86_64; Python 3.11.7, numpy 2.4.6 | GOMP_SPINCOUNT=1000 |" in text
    )
    assert "- Not measured: synthetic-10m, Flat: too large" in text
    assert "- bundle, open_0.90, round 1: 2 replies with status 503" in text
    assert "Left out" not in text
    assert "in batches of 32: 60.0 µs of CPU per user. Meanwhile other programs kept 0.2 cores busy." in text
    assert "- implicit is not installed and was left out; to have it: `pip install implicit scipy`" in text
    assert "cornac 2.3.0" in text


@pytest.mark.parametrize(
    ("factors", "spread", "code", "first", "reason"),
    [
        ({}, {}, 0, "# Equivalent: ", None),
        (
            {"DVIB constant": 1.1},
            {},
            1,
            "# Different: DVIB constant at 1 of 1 levels beyond",
            "DVIB constant (within ±2%) is different: 1.100 [",
        ),
        (
            {"DVIB constant": 0.5},
            {},
            1,
            "# Different: DVIB constant at 1 of 1 levels beyond",
            "DVIB constant (within ±2%) is different: 0.500 [",
        ),
        (
            {"baseline + delay": 1.0},
            {},
            3,
            "# Void: ",
            "baseline + delay (slower by more than 2%) is equivalent: 1.000 [",
        ),
        ({"baseline again": 1.1}, {}, 3, "# Void: ", "baseline again (within ±2%) is different: 1.100 ["),
        (
            {},
            {"DVIB constant": 0.2},
            4,
            "# Inconclusive: ",
            "DVIB constant (within ±2%) is inconclusive: 1.000 [",
        ),
    ],
)
def test_the_first_line_is_the_verdict(
    tmp_path: Path,
    bench: Bench,
    factors: dict[str, float],
    spread: dict[str, float],
    code: int,
    first: str,
    reason: str | None,
) -> None:
    document = latency(EQUAL | factors, spread=spread, seconds={"engine_1": 9e-5})
    assert document["verdict"]["code"] == code
    assert bench("report", put(tmp_path, document), "--out", tmp_path / "new" / "out") == 0
    text = (tmp_path / "new" / "out" / REPORT).read_text("utf-8")
    assert text.startswith(first)
    missed = [row[0].split(":")[0] for row in rows_of(text) if row[-1] == "**missed**"]
    assert missed == ([] if reason is None else [reason.split(" (")[0]])
    judged = [line for line in text.splitlines() if line.startswith("- level")]
    assert len(judged) == (0 if reason is None else 1)
    assert all(f": {reason}" in line for line in judged)
    svg = (tmp_path / "new" / "out" / "latency-forest.svg").read_text("utf-8")
    assert f"<!-- {document['verdict']['word'].capitalize()}: " in svg
    assert "](../../latency.json)" in text


def test_a_delay_on_purpose_is_in_the_first_line(tmp_path: Path, bench: Bench) -> None:
    document = latency(EQUAL | {"DVIB constant": 1.1})
    document["options"]["inject"] = 0.1
    assert bench("report", put(tmp_path, document)) == 0
    assert "slowed down on purpose by 10%" in (tmp_path / REPORT).read_text("utf-8").splitlines()[0]


@pytest.mark.parametrize("alone", EVERYTHING)
def test_what_is_missing_is_named_with_how_to_make_it(tmp_path: Path, alone: str) -> None:
    found = read_folder(put(tmp_path, EVERYTHING[alone]()))
    text = "\n".join(markdown(found, tmp_path, tmp_path, "dvib-bench report"))
    lines = [line for line in text.splitlines() if line.startswith("- Left out")]
    assert len(lines) == len(KINDS) - 1
    for kind in KINDS:
        how = any(
            f"`dvib-bench {kind.benchmark} " in line and f"--json {tmp_path}/{kind.file}" in line for line in lines
        )
        assert how == (kind.benchmark != alone)
        assert all((f"({stem}.png)" in text) == (kind.benchmark == alone) for stem in kind.plots)
    assert (text.splitlines()[0] == "# No verdict: latency.json is missing") == (alone != "latency")


def test_help_shows_examples(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("report", "--help") == 0
    assert "dvib-bench report reports" in " ".join(capsys.readouterr().out.split())


def test_the_same_documents_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    for path in write_report(whole, tmp_path, "dvib-bench report whole")[1:]:
        assert path.read_bytes() == (whole / path.name).read_bytes(), path.name


def drop_margin(document: Document) -> None:
    del document["levels"]["graph_1"]["margin"]


def praise(document: Document) -> None:
    document["verdict"] = {"word": "equivalent", "code": 0, "reasons": []}


def other_word(document: Document) -> None:
    document["verdict"]["word"] = "equivalent"


def other_finding(document: Document) -> None:
    document["levels"]["graph_1"]["findings"]["DVIB constant"] = "equivalent"


def unknown_arm(document: Document) -> None:
    document["levels"]["graph_1"]["microseconds"]["x"] = {"p50": 1.0, "p99": 1.0}
    document["levels"]["graph_1"]["samples_microseconds"]["x"] = [[1.0]]


def no_baseline(document: Document) -> None:
    document["arms"]["baseline"]["role"] = "shown"


def no_level(document: Document) -> None:
    document["levels"] = {}


def no_time(document: Document) -> None:
    document["levels"]["graph_1"]["microseconds"]["baseline"]["p50"] = 0


def no_round(document: Document) -> None:
    document["levels"]["graph_1"]["samples_microseconds"]["baseline"] = [[]]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (drop_margin, "levels.graph_1.margin: Field required"),
        (praise, "says 'equivalent', but its intervals say 'different'"),
        (other_word, "verdict: Value error, 'equivalent' does not go with exit code 1"),
        (other_finding, "says 'equivalent' of 'DVIB constant', but its interval is different"),
        (unknown_arm, "level 'graph_1' and the list of arms do not go together"),
        (no_baseline, "wants one arm that is the baseline, got 0"),
        (no_level, "levels: Dictionary should have at least 1 item"),
        (no_time, "a median is not above 0"),
        (no_round, "List should have at least 1 item"),
    ],
)
def test_a_document_that_contradicts_itself_is_refused(
    tmp_path: Path, bench: Bench, capsys: pytest.CaptureFixture[str], spoil: Callable[[Document], None], said: str
) -> None:
    document = latency(EQUAL | {"DVIB constant": 1.1})
    spoil(document)
    assert bench("report", put(tmp_path, document)) == 2
    shown = capsys.readouterr().err
    assert f"{tmp_path}/latency.json: " in shown
    assert said in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / REPORT).exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("\udcff", "is no JSON"),
        ("[]", "was not written by dvib-bench load but by 'None'"),
        ('{"benchmark": "latency"}', "was not written by dvib-bench load but by 'latency'"),
        ('{"benchmark": "load"}', "environment: Field required"),
    ],
)
def test_a_broken_or_strange_file_is_one_line(
    tmp_path: Path, bench: Bench, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (tmp_path / "load.json").write_text(content, "utf-8", errors="surrogateescape")
    assert bench("report", tmp_path) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_a_folder_without_documents_is_one_line(
    tmp_path: Path, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, said in ((tmp_path, "holds none of latency.json"), (tmp_path / "none", "is no folder")):
        assert bench("report", place) == 2
        assert said in capsys.readouterr().err
    put(tmp_path, stages())
    (tmp_path / "file").write_text("")
    assert bench("report", tmp_path, "--out", tmp_path / "file") == 2
    assert "file" in capsys.readouterr().err


def test_pieces_of_text() -> None:
    assert cell("a|b\n<i>") == "a\\|b &lt;i>"
    assert figure(1234.56) == "1,234.6"
    assert figure(float("nan")) == figure(None) == "–"
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
