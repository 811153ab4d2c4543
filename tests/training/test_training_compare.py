from __future__ import annotations

import csv
import io
import json
import math
import shlex
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tests.helpers_training import make_config, planted_blocks, write_mmrec
from tests.training.commands import command, error_line
from training.build import load_model
from training.checkpoint import load_checkpoint
from training.common.choices import Variant
from training.common.errors import CheckpointError, ConfigError
from training.data.load import load_dataset
from training.runs.compare import Comparison, chosen_metrics, compare
from training.runs.found import read_runs
from training.runs.paired import paired
from training.runs.tables import comma_separated, document, markdown
from training.trainer import Trainer

DATASET = planted_blocks()
SEEDS = (0, 1, 2)
METRICS = ("recall@5", "ndcg@10")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of the plain model and of DVIB_a."""
    folder = tmp_path_factory.mktemp("runs")
    variants: tuple[tuple[str, Variant], ...] = (("plain", "none"), ("dvib", "adaptive"))
    for (name, variant), seed in product(variants, SEEDS):
        config = make_config(variant, "training.epochs=3", f"training.seed={seed}", "dvib.gamma_r=0.1")
        Trainer(config, DATASET, folder / name / f"seed-{seed}").fit()
    return folder


def by_hand(run: Path, metric: str) -> NDArray[np.float64]:
    """Compute a metric of the test split for each user with plain loops over the stored model."""
    name, _, cutoff = metric.partition("@")
    checkpoint = load_checkpoint(run)
    data = checkpoint.dataset
    users, items = (part.detach().double().numpy() for part in load_model(checkpoint).vectors())
    values = []
    for user in range(data.n_users):
        seen = {i for u, i in zip(data.train.users, data.train.items, strict=True) if u == user}
        wanted = {i for u, i in zip(data.splits["test"].users, data.splits["test"].items, strict=True) if u == user}
        ranked = sorted((i for i in range(data.n_items) if i not in seen), key=lambda i: -float(users[user] @ items[i]))
        hits = [item in wanted for item in ranked[: int(cutoff)]]
        if name == "recall":
            values.append(sum(hits) / len(wanted))
        else:
            gain = sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits))
            values.append(gain / sum(1 / math.log2(rank + 2) for rank in range(min(len(wanted), int(cutoff)))))
    return np.array(values)


@pytest.fixture(scope="module")
def comparison(runs: Path) -> Comparison:
    return compare(read_runs([runs / "plain", runs / "dvib"]), metrics=METRICS)


def test_lines_are_runs_that_differ_only_in_the_seed(comparison: Comparison) -> None:
    assert [(line.label, line.seeds) for line in comparison.lines] == [
        ("vbpr", [0, 1, 2]),
        ("vbpr + DVIB adaptive", [0, 1, 2]),
    ]
    assert (comparison.lines[1].baseline, comparison.users, comparison.dataset) == ("vbpr", 24, "planted")
    assert (comparison.lines[0].versus, comparison.lines[0].baseline) == ({}, None)


@pytest.mark.parametrize("metric", METRICS)
def test_means_deviations_effects_and_p_values_are_those_of_scipy_on_metrics_by_hand(
    runs: Path, comparison: Comparison, metric: str
) -> None:
    tables = [np.stack([by_hand(runs / name / f"seed-{seed}", metric) for seed in SEEDS]) for name in ("plain", "dvib")]
    for line, table in zip(comparison.lines, tables, strict=True):
        assert line.mean(metric) == pytest.approx(table.mean(), abs=1e-12)
        assert line.deviation(metric) == pytest.approx(stats.tstd(table.mean(axis=1)), abs=1e-12)
        stored = [load_checkpoint(run.folder).info.metrics["test"] for run in line.runs]
        assert [values[metric] for values in stored] == pytest.approx(line.per_user[metric].mean(axis=1), abs=1e-12)
    plain, dvib = (table.mean(axis=0) for table in tables)
    found = comparison.lines[1].versus[metric]
    assert found.users == 24
    assert found.effect == pytest.approx((dvib - plain).mean(), abs=1e-12)
    test = stats.ttest_rel(dvib, plain)
    interval = test.confidence_interval(0.95)
    assert found.t_p == pytest.approx(test.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    difference = np.round(dvib - plain, 12)  # averages over seeds of the same values are ties, whatever their last bit
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(difference[difference != 0]).pvalue, rel=1e-9)
    assert (found.better, found.worse) == ((difference > 0).sum(), (difference < 0).sum())
    assert 0 < found.better + found.worse <= 24


def test_the_t_test_is_the_formula_and_wilcoxons_the_count_of_all_signs() -> None:
    ours, base = np.array([0.9, 0.1, 0.5, 0.75, 0.2, 0.4]), np.array([0.5, 0.2, 0.2, 0.7, 0.2, 0.13])
    difference = np.array([0.4, -0.1, 0.3, 0.05, 0.0, 0.27])
    found = paired(ours, base, 0.9)
    mean, error = difference.mean(), difference.std(ddof=1) / math.sqrt(6)
    assert found.effect == pytest.approx(mean)
    assert found.t_p == pytest.approx(2 * stats.t.sf(mean / error, 5))
    reach = stats.t.ppf(0.95, 5) * error
    assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach))
    # Ranks of |d| without the zero: 5, 2, 4, 1, 3. Every choice of signs is as likely as any other.
    ranks = np.array([5, 2, 4, 1, 3])
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign) for signs in product((0, 1), repeat=5)]
    least = min(2, 15 - 2)  # the rank of the only negative difference
    extreme = sum(min(total, 15 - total) <= least for total in sums)
    assert found.wilcoxon_p == pytest.approx(extreme / 32)
    assert (found.users, found.better, found.worse) == (6, 4, 1)


def test_averages_of_the_same_values_in_another_order_are_ties() -> None:
    seeds = np.array([0.1, 0.7, 0.3])
    ours = np.array([seeds.mean(), 0.5, 0.25])
    base = np.array([seeds[[1, 0, 2]].sum() / 3 + 1e-16, 0.4, 0.75])
    assert ours[0] != base[0]
    found = paired(ours, base)
    assert (found.better, found.worse) == (1, 1)


def test_where_nothing_is_random_the_p_values_say_so() -> None:
    same = paired(np.array([0.5, 0.25, 1.0]), np.array([0.5, 0.25, 1.0]))
    assert (same.effect, same.low, same.high, same.t_p, same.wilcoxon_p) == (0, 0, 0, 1, 1)
    assert (same.better, same.worse) == (0, 0)
    shifted = paired(np.array([0.75, 0.5]), np.array([0.5, 0.25]))
    assert (shifted.effect, shifted.t_p) == (0.25, 0)
    one = paired(np.array([0.75]), np.array([0.5]))
    assert one.effect == 0.25
    assert math.isnan(one.t_p)
    assert math.isnan(one.low)


def test_any_line_or_run_can_be_the_baseline(runs: Path) -> None:
    found = read_runs([runs])
    forwards = compare(found, metrics=METRICS, baseline="vbpr")
    for wanted in ("vbpr + DVIB adaptive", str(runs / "dvib" / "seed-1")):
        backwards = compare(found, metrics=METRICS, baseline=wanted)
        assert [line.baseline for line in backwards.lines if line.versus] == ["vbpr + DVIB adaptive"]
        there = {line.label: line for line in forwards.lines}["vbpr + DVIB adaptive"].versus["recall@5"]
        back = {line.label: line for line in backwards.lines}["vbpr"].versus["recall@5"]
        assert (back.effect, back.better, back.worse) == (-there.effect, there.worse, there.better)
        assert back.t_p == pytest.approx(there.t_p)
    with pytest.raises(ConfigError, match=r"no line 'vbrp' to compare with; did you mean 'vbpr'\?"):
        compare(found, metrics=METRICS, baseline="vbrp")


def test_each_line_is_compared_with_the_plain_one_of_its_model(runs: Path, tmp_path: Path) -> None:
    for name, variant, model, more in (
        ("a", "none", "vbpr", ("robust.mg=true",)),
        ("b", "none", "bm3", ("robust.mg=true",)),
        ("c", "adaptive", "bm3", ()),
        ("d", "none", "bm3", ()),
        ("e", "constant", "selfcf", ()),
    ):
        config = make_config(variant, "training.epochs=1", *more, model=model)  # type: ignore[arg-type]
        Trainer(config, DATASET, tmp_path / name).fit()
    found = compare(read_runs([runs / "plain", tmp_path]), metrics=["recall@5"])
    plain = found.lines[0].label
    assert [line.baseline for line in found.lines] == [
        None,
        plain,
        found.lines[4].label,
        found.lines[4].label,
        None,
        None,
    ]
    assert found.lines[4].label.startswith("bm3 (")
    of_bm3 = found.lines[3]
    assert of_bm3.base_means["recall@5"] == found.lines[4].mean("recall@5")
    expected = of_bm3.mean("recall@5") - found.lines[4].mean("recall@5")
    assert of_bm3.versus["recall@5"].effect == pytest.approx(expected)


def test_namesakes_are_told_apart_by_what_differs(runs: Path, tmp_path: Path) -> None:
    config = make_config("none", "training.epochs=1", "model.regularisation=0.5", "dvib.gamma_r=0.1")
    Trainer(config, DATASET, tmp_path / "other").fit()
    found = compare(read_runs([runs / "plain", tmp_path / "other"]), metrics=["recall@5"])
    assert [line.label for line in found.lines] == [
        "vbpr (model.regularisation=0.01, training.epochs=3)",
        "vbpr (model.regularisation=0.5, training.epochs=1)",
    ]
    assert found.lines[1].deviation("recall@5") is None
    assert "± " not in markdown(found).split("training.epochs=1) | 1 | ")[1].splitlines()[0]


def test_runs_on_other_features_are_another_line(runs: Path, tmp_path: Path) -> None:
    other = replace(DATASET, features={name: 2 * matrix for name, matrix in DATASET.features.items()})
    for seed in (0, 3):
        config = make_config("none", "training.epochs=3", f"training.seed={seed}", "dvib.gamma_r=0.1")
        Trainer(config, other, tmp_path / str(seed)).fit()
    found = compare(read_runs([runs / "plain", tmp_path, runs / "dvib"]), metrics=["recall@5"])
    assert [(line.label, line.seeds) for line in found.lines] == [
        (f"vbpr (data={DATASET.fingerprint()[:8]})", [0, 1, 2]),
        (f"vbpr (data={other.fingerprint()[:8]})", [0, 3]),
        ("vbpr + DVIB adaptive", [0, 1, 2]),
    ]
    assert found.lines[2].baseline == found.lines[0].label


def test_runs_that_differ_in_their_logs_alone_are_one_line(runs: Path, tmp_path: Path) -> None:
    settings = ("training.epochs=3", "dvib.gamma_r=0.1", "training.watch_every=0")
    Trainer(make_config("none", *settings, "training.seed=3"), DATASET, tmp_path / "a").fit()
    found = compare(read_runs([runs / "plain", tmp_path / "a"]), metrics=["recall@5"])
    assert [(line.label, line.seeds) for line in found.lines] == [("vbpr", [0, 1, 2, 3])]
    Trainer(make_config("none", *settings, "training.seed=2"), DATASET, tmp_path / "b").fit()
    with pytest.raises(ConfigError, match="are the same run twice; leave one out"):
        compare(read_runs([runs / "plain", tmp_path / "b"]), metrics=METRICS)


def test_the_advice_for_a_run_that_has_not_finished_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mmrec(DATASET, tmp_path / "data")
    config = make_config("constant", "training.epochs=2", "dvib.sigma=0.2", model="bm3")
    half = tmp_path / "half a run"
    Trainer(config, load_dataset("planted", tmp_path / "data", config.data), half).fit(test=False)
    with pytest.raises(CheckpointError) as caught:
        read_runs([half])
    advice = str(caught.value).partition("go on with it: ")[2]
    monkeypatch.setenv("DVIB_DATA", str(tmp_path / "data"))
    assert shlex.split(advice)[0] == "dvib-train"
    assert command(*shlex.split(advice)[1:]) == 0
    assert [run.info.config for run in read_runs([half])] == [config]


def test_the_validation_split_is_another(runs: Path) -> None:
    found = compare(read_runs([runs / "plain"]), metrics=["recall@5"], split="valid")
    stored = load_checkpoint(runs / "plain" / "seed-1").info.metrics["valid"]["recall@5"]
    assert found.lines[0].per_user["recall@5"][1].mean() == stored


def test_what_cannot_be_compared_is_refused(runs: Path, tmp_path: Path) -> None:
    config = make_config("none", "training.epochs=1")
    Trainer(config, planted_blocks(seed=1), tmp_path / "elsewhere").fit()
    with pytest.raises(ConfigError, match="interactions are others than those of"):
        compare(read_runs([runs / "plain", tmp_path / "elsewhere"]), metrics=METRICS)
    Trainer(
        make_config("none", "training.epochs=3", "training.seed=0", "dvib.gamma_r=0.1"), DATASET, tmp_path / "a"
    ).fit()
    with pytest.raises(ConfigError, match="are the same run twice; leave one out"):
        compare(read_runs([runs / "plain", tmp_path / "a"]), metrics=METRICS)
    Trainer(config, DATASET, tmp_path / "half").fit(test=False)
    with pytest.raises(
        CheckpointError, match=r"half: the run has not finished; go on with it: .*--resume --out .*half$"
    ):
        read_runs([tmp_path / "half"])
    (tmp_path / "nothing").mkdir()
    for place in ("nothing", "absent"):
        with pytest.raises(CheckpointError, match=f"no run at .*{place} or below it"):
            read_runs([tmp_path / place])
    with pytest.raises(ConfigError, match="cut-off 61 exceeds the catalogue of 60 items"):
        compare(read_runs([runs / "plain"]), metrics=["recall@61"])
    with pytest.raises(ConfigError, match=r"no metric 'recal@20'; did you mean 'recall@20'\?"):
        chosen_metrics("ndcg@7,recal@20")


def test_a_run_named_twice_counts_once(runs: Path) -> None:
    run = runs / "plain" / "seed-0"
    assert len(read_runs([run, run / "best", runs / "plain"])) == 3


def test_csv_json_and_markdown_say_the_same(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated(comparison))))
    assert [(row["line"], row["metric"]) for row in rows] == [
        (line.label, metric) for line in comparison.lines for metric in METRICS
    ]
    value = document(comparison)
    effect = comparison.lines[1].versus["recall@5"]
    assert value["lines"][1]["versus_baseline"]["recall@5"]["t_p"] == effect.t_p == float(rows[2]["t_p"])
    assert value["lines"][0]["metrics"]["recall@5"]["sd"] == float(rows[0]["sd"])
    assert (rows[0]["effect"], rows[0]["baseline"], rows[2]["baseline"]) == ("", "", "vbpr")
    text = markdown(comparison)
    line = comparison.lines[1]
    assert f"| {line.mean('recall@5'):.4f} ± {line.deviation('recall@5'):.4f} |" in text
    assert f"| {effect.effect:+.4f} | [{effect.low:+.4f}, {effect.high:+.4f}] |" in text
    assert "paired tests over 24 users (not over seeds)" in text


def test_the_tables_say_which_interval_it_is(runs: Path) -> None:
    found = read_runs([runs])
    for confidence, said in ((0.9, "90%"), (0.999, "99.9%"), (0.9999, "99.99%")):
        assert f" {said} interval" in markdown(compare(found, metrics=["recall@5"], confidence=confidence))


def test_the_command_prints_the_tables_and_writes_the_files(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], comparison: Comparison
) -> None:
    files = [tmp_path / "deep" / name for name in ("t.md", "t.csv", "t.json")]
    options = [part for pair in zip(("--markdown", "--csv", "--json"), files, strict=True) for part in pair]
    arguments = (runs / "plain", runs / "dvib", "--metrics", ",".join(METRICS), "--device", "cpu")
    assert command("compare", *arguments, *options) == 0
    out, _ = capsys.readouterr()
    line = comparison.lines[1]
    effect = line.versus["recall@5"]
    for cell in (
        line.label,
        f"{line.mean('recall@5'):.4f} ± {line.deviation('recall@5'):.4f}",
        f"{effect.effect:+.4f}",
    ):
        assert cell in out
    assert files[0].read_text() == markdown(comparison)
    assert files[1].read_text() == comma_separated(comparison)
    assert json.loads(files[2].read_text()) == document(comparison)
    assert command("compare", tmp_path) == 2
    assert "no run at" in error_line(capsys)
