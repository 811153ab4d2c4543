"""The report's parts about a request's stages, HTTP, growth and lists for all users."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.report.parts_documents import AllUsers, Growth, GrowthPoint, Load, LoadFigures, Peers, Stages
from benchmarks.report.text import (
    NONE,
    Check,
    Outcome,
    cell,
    code,
    figure,
    megabytes,
    outcome_of,
    picture,
    ratio_text,
    table,
)
from training.common.console import EXIT_DIFFERENT, EXIT_INCONCLUSIVE

STAGES_PLOT, LOAD_PLOT, GROWTH_PLOT, PEERS_PLOT = "stages", "load", "growth", "peers"
"""Stems of the plots' files."""


def stages_checks(document: Stages) -> Iterator[Check]:
    """Yield the engine's distance to its floors."""
    floors, bundle = document.floors, document.bundle
    wanted = "no bar for this size" if floors.bar is None else f"at most {floors.bar:g}"
    yield Check(
        f"time of the engine ÷ its floors, {bundle.n_items:,} items, d = {bundle.dimension}",
        ratio_text(floors.ratio.ratio, 2),
        wanted,
        outcome_of(floors.holds),
    )


def stages(document: Stages) -> Iterator[str]:
    """Yield a table of a request's stages."""
    bundle, options = document.bundle, document.options
    yield "## Where the time of a request goes"
    yield ""
    yield (
        f"{cell(bundle.dataset)}, {cell(bundle.model)} {cell(bundle.variant)} (bundle {cell(bundle.version)}), "
        f"{bundle.n_items:,} items of d = {bundle.dimension}, {cell(bundle.index)} index, k = {options.k}, "
        f"users per call: {options.users_per_call}, one thread; {options.rounds} rounds of {options.calls} calls. "
        "Each stage is timed by itself, in turns with the others."
    )
    yield ""
    yield from picture("Where the time of a request goes", STAGES_PLOT)
    rows = [
        (cell(name), cell(stage.what), figure(stage.microseconds.p50), figure(stage.microseconds.p99))
        for name, stage in document.stages.items()
    ]
    rows += [
        (cell(name), "what is left of the whole without its parts", figure(left), NONE)
        for name, left in document.remainders_microseconds.items()
    ]
    yield from table(("stage", "what", "p50 µs", "p99 µs"), rows, left=2)
    floors = document.floors
    bar = "no bar was set for this size" if floors.bar is None else f"the bar is {floors.bar:g}"
    yield f"The engine takes {ratio_text(floors.ratio.ratio, 2)} times the sum of its two floors; {bar}."
    yield ""


def load_checks(document: Load) -> Iterator[Check]:
    """Yield the bars of the load benchmark, which are for one size only, and whether all replies were right."""
    size = f"{document.bundles.bundle.n_items:,} items"
    for name, bar in document.bars.items():
        least = "least" if name.startswith("throughput") else "most"
        wanted = f"at {least} {bar.limit:g}, for {document.bars_are_for}"
        yield Check(f"HTTP, {size}: {bar.text}", ratio_text(bar.ratio.ratio, 2), wanted, outcome_of(bar.met))
    count = len(document.errors)
    yield Check("HTTP: loads with wrong replies", f"{count}", "0", outcome_of(count == 0))


def load(document: Load) -> Iterator[str]:
    """Yield what the service costs over HTTP."""
    bundle, options = document.bundles.bundle, document.options
    yield "## HTTP"
    yield ""
    yield (
        f"{cell(document.dataset)}, {cell(bundle.model)} {cell(bundle.variant)} (bundle {cell(bundle.version)}), "
        f"{bundle.n_items:,} items of d = {bundle.dimension}, k = {options.k}, one worker; {options.rounds} rounds of "
        f"{options.seconds:g} s slices in random order. The constant reply comes from the same framework and has "
        f"{document.reply_bytes} bytes, as the service's typical reply has. In an open loop requests go out when they "
        "are due, answered or not, and latency counts from when they were due. Latencies pool all rounds; the other "
        "figures are medians of the rounds."
    )
    yield ""
    yield from picture("Latency against the rate of requests", LOAD_PLOT)
    header = ("load", "endpoint", "replies/s", "p50 ms", "p99 ms", "longest ms", "server CPU µs/request", "server MB")
    rows = (
        (_load_name(name, found), cell(endpoint), *_load_row(found))
        for name, endpoints in document.loads.items()
        for endpoint, found in endpoints.all.items()
    )
    yield from table(header, rows, left=2)
    other = document.other_cores_busy
    yield (
        f"The engine alone, in batches of {document.engine_batch}: "
        f"{figure(median(document.engine_cpu_microseconds_per_user))} µs of CPU per user."
        f"{'' if other is None else f' Meanwhile other programs kept {other:.1f} cores busy.'}"
    )
    yield ""
    for line in (*document.client_limits, *document.errors):
        yield f"- {cell(line)}"
    if document.client_limits or document.errors:
        yield ""


def _load_name(name: str, found: LoadFigures) -> str:
    if found.offered_per_second is None:
        return f"closed loop, {cell(name.removeprefix('closed_'))} at a time"
    return f"open loop, {found.offered_per_second:,.0f}/s"


def _load_row(found: LoadFigures) -> Iterator[str]:
    times = found.latency_microseconds
    yield figure(found.replies_per_second, 0)
    for value in (times.p50, times.p99, times.max):
        yield figure(value / 1e3, 2)
    yield figure(found.server_cpu_microseconds, 0)
    yield megabytes(found.server_resident_bytes)


def growth(document: Growth) -> Iterator[str]:
    """Yield a table of each axis along which latency and memory may grow."""
    base = document.base
    yield "## Growth"
    yield ""
    yield (
        f"Bundles of made-up vectors, one user per call, one thread, {document.calls} calls of each, d = "
        f"{base.dimension}; but for what is varied: {base.items:,} items, {base.users:,} users, {base.seen:,} items "
        "seen, flat index. Each is measured in a process of its own, whose memory includes the libraries."
    )
    yield ""
    yield from picture("Latency and memory against the size of the catalogue", GROWTH_PLOT)
    header = (
        "varied",
        "index",
        "value",
        "p50 µs",
        "p99 µs",
        "÷ one pass over the items",
        "recall",
        "memory MB",
        "files MB",
        "load s",
    )
    yield from table(header, (tuple(_growth_row(point)) for point in document.points), left=2)
    for left_out in document.skipped:
        yield f"- Not measured: {cell(left_out.bundle)}, {cell(left_out.index)}: {cell(left_out.reason)}"
    if document.skipped:
        yield ""


def _growth_row(point: GrowthPoint) -> Iterator[str]:
    yield {"items": "items", "users": "users", "k": "items per answer", "seen": "items a user has seen"}[point.axis]
    yield cell(point.factory)
    yield f"{point.value:,}"
    yield figure(point.microseconds.p50)
    yield figure(point.microseconds.p99)
    passed = point.one_pass_microseconds
    yield NONE if passed is None else figure(point.microseconds.p50 / passed, 2)
    yield "exact" if point.recall is None else f"{point.recall.value:.3f} @{point.recall.k}"
    yield figure(point.memory_bytes.loaded / 1e6, 0)
    yield figure(point.file_bytes / 1e6, 1)
    yield figure(point.load_seconds, 2)


def peers_checks(document: Peers) -> Iterator[Check]:
    """Yield one check of each peer, and one more where it does another job."""
    size = f"{document.bundle.n_items:,} items"
    for name, arm in document.arms.items():
        ratio = arm.ratio_to_ours.ratio
        if name != document.ours:
            what = f"peers, {size}: {name}'s time ÷ this engine's"
            yield Check(what, ratio_text(ratio, 2), "the peer is no faster", outcome_of(ratio.high >= 1))
        if arm.differing_answers:
            yield Check(f"peers, {size}: {name}'s answers that differ", f"{arm.differing_answers}", "0", "missed")


def peers(document: Peers) -> Iterator[str]:
    """Yield what the same job costs when others do it."""
    bundle, options = document.bundle, document.options
    yield "## Peers"
    yield ""
    yield (
        f"{cell(bundle.dataset)}: the {options.k} best unseen of {bundle.n_items:,} items of d = {bundle.dimension}, "
        f"one user per call, one thread, the same vectors; {options.rounds} rounds of {options.calls} calls, in turns. "
        f"Answers of {options.compared} users are compared. Versions: "
        f"{cell(', '.join(f'{name} {version}' for name, version in document.versions.items()))}."
    )
    yield ""
    yield from picture("Time of one answer, by whom", PEERS_PLOT)
    header = ("who", "how", "p50 µs", "p99 µs", "÷ this engine [interval]", "answers that differ")
    yield from table(header, (tuple(_peer_row(document, name)) for name in document.arms), left=2)
    for name, packages in document.not_installed.items():
        yield f"- {cell(name)} is not installed and was left out; to have it: {code(f'pip install {packages}')}"
    if document.not_installed:
        yield ""


def _peer_row(document: Peers, name: str) -> Iterator[str]:
    arm = document.arms[name]
    yield cell(name)
    yield cell(arm.what)
    yield figure(arm.microseconds.p50)
    yield figure(arm.microseconds.p99)
    if name == document.ours:
        yield from (NONE, NONE)
        return
    yield ratio_text(arm.ratio_to_ours.ratio, 2)
    strong = "**" if arm.differing_answers else ""
    yield f"{strong}{arm.differing_answers} of {document.options.compared}{strong}"


def all_users_checks(document: AllUsers) -> Iterator[Check]:
    """Yield the whole command's time beside a bare product's."""
    outcomes: dict[int, Outcome] = {0: "met", EXIT_DIFFERENT: "missed", EXIT_INCONCLUSIVE: "inconclusive"}
    yield Check(
        f"lists for {document.users:,} users × {document.items:,} items to Parquet ÷ a bare product of that shape",
        ratio_text(document.ratios.command.ratio, 2),
        f"at most {document.bar.max_ratio:g}",
        outcomes[document.bar.code],
    )


def all_users(document: AllUsers) -> Iterator[str]:
    """Yield what lists for all users cost."""
    yield "## Lists for all users"
    yield ""
    yield (
        f"{cell(document.dataset)}: {document.users:,} users × {document.items:,} items of d = {document.dimension}, "
        f"top {document.k}, {document.seen:,} seen items left out, {document.threads} threads on both sides, "
        f"{document.rounds} rounds in random order; medians. Some lists are compared with brute force."
    )
    yield ""
    seconds, ratios = document.seconds, document.ratios
    rows = [("bare float32 product (NumPy)", figure(seconds.product, 2), NONE)]
    for label, taken, ratio in (
        ("`dvib-export recommend --all-users`, as a whole", seconds.command, ratios.command),
        ("of that: ranking and writing", seconds.ranking, ratios.ranking),
        ("of that: loading", seconds.loading, ratios.loading),
    ):
        rows.append((label, figure(taken, 2), ratio_text(ratio.ratio, 2)))
    yield from table(("what", "seconds", "÷ product [interval]"), rows)
