"""The latency benchmark's part of the report: the verdict, a table of each level, and what it costs to start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from benchmarks.latency.lines import FOLDING
from benchmarks.report.latency_document import Latency
from benchmarks.report.text import NONE, Check, cell, figure, listed, megabytes, outcome_of, picture, ratio_text, table

ECDF, FOREST = "latency-ecdf", "latency-forest"
"""Stems of the plots' files."""
_THERE_FOR = {
    "baseline": "what the others are compared with",
    "same": "the baseline once more: must be equivalent, or the run is void",
    "control": "slower on purpose: must be found slower, or the run is void",
    "measured": "what the run is about",
    "shown": "what other weights alone do; not judged",
}
_LOADING = {
    "engine_load_s": ("service: load, ms", 1e3, 1),
    "engine_first_answer_s": ("first answer, ms", 1e3, 2),
    "engine_resident_bytes": ("resident memory, MB", 1e-6, 2),
    "graph_load_s": ("model.onnx: load, ms", 1e3, 2),
    "graph_first_call_s": ("first call, ms", 1e3, 3),
}
_FILES = ("model.onnx", "user_tower.onnx", "items.faiss", "items.npy")


def headline(document: Latency) -> str:
    """Return the verdict as one sentence."""
    arms, verb = listed(document.measured), "is" if len(document.measured) == 1 else "are"
    within = listed([f"±{margin:.0%}" for margin in sorted({level.margin for level in document.levels.values()})])
    slower = f", each slowed down on purpose by {document.options.inject:.0%}," if document.options.inject else ""
    return {
        "equivalent": f"Equivalent: {arms}{slower} {verb} as fast as the plain model in the median at every level, "
        f"within {within}",
        "different": f"Different: {_deciding(document)}{slower} beyond the margin of {within}",
        "void": f"Void: this run says nothing about DVIB, its own controls failed: {_deciding(document)}",
        "inconclusive": f"Inconclusive: too few rounds, or too noisy a machine, to decide: {_deciding(document)}",
    }[document.verdict.word]


def _deciding(document: Latency) -> str:
    arms = dict.fromkeys(reason.arm for reason in document.verdict.reasons)
    counts = {arm: sum(reason.arm == arm for reason in document.verdict.reasons) for arm in document.order(arms)}
    return listed([f"{arm} at {count} of {len(document.comparisons(arm))} levels" for arm, count in counts.items()])


def reasons(document: Latency) -> Iterator[str]:
    """Yield what decided the verdict, line by line."""
    for reason in document.verdict.reasons:
        level = document.levels[reason.level]
        ratio = ratio_text(level.ratio_of_medians[reason.arm].ratio)
        yield (
            f"- {cell(level.description)}: {cell(reason.arm)} ({_wanted(reason.role, level.margin)}) is "
            f"{reason.finding}: {ratio}"
        )
    if document.verdict.reasons:
        yield ""


def checks(document: Latency) -> Iterator[Check]:
    """Yield one check of each arm that is judged."""
    for arm, entry in document.arms.items():
        compared = document.comparisons(arm)
        if entry.role == "shown" or not compared:
            continue
        good = sum(comparison.as_wanted for comparison in compared)
        values = [comparison.ratio.value for comparison in compared]
        ratios = f"ratios {min(values):.3f} to {max(values):.3f}" if len(values) > 1 else f"ratio {values[0]:.3f}"
        found = f"{good} of {len(compared)} levels, {ratios}"
        word = "found slower" if entry.role == "control" else "equivalent to the baseline"
        yield Check(f"{arm}: {word}", found, "all levels", outcome_of(good == len(compared)))


def compared(document: Latency, dataset: str) -> Iterator[str]:
    """Yield what was compared.

    Args:
        document: The run.
        dataset: Name of the data set; empty where no document tells.
    """
    arm, options = document.arms[document.baseline], document.options
    yield (
        f"Model {cell(arm.model)} with the settings *{cell(arm.preset)}*"
        f"{f' on {cell(dataset)}' if dataset else ''}: {arm.n_items:,} items of d = {arm.dimension}, {cell(arm.index)} "
        f"index, k = {options.k}, {cell(options.provider)}, one thread, seed {options.seed}. Arms take turns in random "
        f"order within a round; the round is the unit of the bootstrap, and intervals hold {options.confidence:.1%}. "
        "*Equivalent*: the interval lies inside the margin; *different*: wholly outside; else *inconclusive*."
    )
    yield ""
    rows = (
        (
            cell(name),
            _THERE_FOR[entry.role],
            cell(entry.variant),
            cell(entry.version),
        )
        for name, entry in document.arms.items()
    )
    yield from table(("arm", "there for", "DVIB", "bundle"), rows, left=4)


def levels(document: Latency) -> Iterator[str]:
    """Yield a table of each level, and the plots."""
    yield "## Levels"
    yield ""
    yield FOLDING
    yield ""
    yield from picture("Distribution of the times of all arms, level by level", ECDF)
    for name, level in document.levels.items():
        yield f"### {cell(level.description)}"
        yield ""
        yield f"Margin ±{level.margin:.0%}, {level.rounds} rounds. Times in microseconds; ratios to the baseline."
        whose = (
            "the baseline's median at one in flight, with every answer" if level.kind == "http" else "its own median"
        )
        yield from (f"{cell(name)} waits {share:.0%} of {whose}." for name, share in level.delays.items())
        yield ""
        header = ("arm", "wanted", "finding", "p50 µs", "p99 µs", "ratio of p50 [interval]", "ratio of p99 [interval]")
        yield from table(header, (_row(document, name, arm) for arm in document.order(level.microseconds)), left=3)


def _wanted(role: str, margin: float) -> str:
    return {
        "baseline": NONE,
        "same": f"within ±{margin:.0%}",
        "measured": f"within ±{margin:.0%}",
        "control": f"slower by more than {margin:.0%}",
        "shown": "anything",
    }[role]


def _row(document: Latency, level: str, arm: str) -> Sequence[str]:
    entry, role = document.levels[level], document.arms[arm].role
    times = entry.microseconds[arm]
    first, microseconds = (cell(arm), _wanted(role, entry.margin)), (figure(times.p50), figure(times.p99))
    if role == "baseline":
        return (*first, NONE, *microseconds, NONE, NONE)
    finding = entry.findings[arm] if document.comparison(level, arm).as_wanted else f"**{entry.findings[arm]}**"
    ratios = (ratio_text(of[arm].ratio) for of in (entry.ratio_of_medians, entry.ratio_of_p99))
    return (*first, finding, *microseconds, *ratios)


def loading(document: Latency) -> Iterator[str]:
    """Yield what the bundles cost before their first answer, and on disk."""
    yield "## Loading, cold start, memory, files"
    yield ""
    if document.loading:
        repeats = max(len(values) for figures in document.loading.values() for values in figures.values())
        yield f"Medians of {repeats} loads, each in a process that has loaded no bundle before."
        yield ""
        header = ("arm", *(title for title, _, _ in _LOADING.values()))
        yield from table(header, ((cell(arm), *_loaded(figures)) for arm, figures in document.loading.items()))
    yield "Sizes of the files in MB."
    yield ""
    arms = {name: document.arms[name] for name in document.loading or document.arms}
    rows = (
        (cell(name), *(megabytes(arm.bytes.get(file)) for file in _FILES), megabytes(sum(arm.bytes.values())))
        for name, arm in arms.items()
    )
    yield from table(("arm", *_FILES, "all files"), rows)


def _loaded(figures: dict[str, list[float | None]]) -> Iterator[str]:
    for name, (_, factor, digits) in _LOADING.items():
        values = [value for value in figures.get(name, []) if value is not None]
        yield figure(median(values) * factor, digits) if values else NONE
