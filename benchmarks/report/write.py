"""One report for people out of the documents of several benchmarks: Markdown, with plots beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.growth import plot as growth_plot
from benchmarks.report import latency as report_latency
from benchmarks.report import latency_plot
from benchmarks.report import parts as report_parts
from benchmarks.report import plot as report_plot
from benchmarks.report.documents import Document, Environment, read_document
from benchmarks.report.latency_document import Latency
from benchmarks.report.parts_documents import AllUsers, Growth, Load, Peers, Stages
from benchmarks.report.text import NONE, Check, cell, code, figure, picture, table
from training.common.errors import DvibError
from training.common.folders import write_atomically

REPORT = "report.md"
Plot = Callable[[Any, Path], Sequence[Path]]


@dataclass(frozen=True)
class PartKind:
    """One of the documents that a report is made of.

    Attributes:
        name: What it is about.
        benchmark: The command that writes it.
        kind: What is read out of it.
        example: The command's arguments, before ``--json``.
        checks: What it says in the first table.
        sections: What it says in full.
        plots: Stem of the files → what draws them.
    """

    name: str
    benchmark: str
    kind: type[Document]
    example: str
    checks: Callable[[Any], Iterator[Check]]
    sections: Sequence[Callable[[Any], Iterator[str]]]
    plots: dict[str, Plot]

    @property
    def file(self) -> str:
        """The document's name in the folder."""
        return f"{self.benchmark}.json"


LATENCY = PartKind(
    "DVIB beside the plain model",
    "latency",
    Latency,
    "--baseline BUNDLE --dvib BUNDLE --dvib BUNDLE --other-seed BUNDLE --checkpoint RUN",
    report_latency.checks,
    (report_latency.levels, report_latency.loading),
    {report_latency.FOREST: latency_plot.plot_forest, report_latency.ECDF: latency_plot.plot_ecdf},
)
KINDS = (
    LATENCY,
    PartKind(
        "stages of a request and floors",
        "stages",
        Stages,
        "BUNDLE",
        report_parts.stages_checks,
        (report_parts.stages,),
        {report_parts.STAGES_PLOT: report_plot.plot_stages},
    ),
    PartKind(
        "HTTP",
        "load",
        Load,
        "BUNDLE",
        report_parts.load_checks,
        (report_parts.load,),
        {report_parts.LOAD_PLOT: report_plot.plot_load},
    ),
    PartKind(
        "growth of latency and memory",
        "growth",
        Growth,
        "",
        lambda _: iter(()),
        (report_parts.growth,),
        {report_parts.GROWTH_PLOT: lambda document, stem: growth_plot.plot(document.model_dump(), stem)},
    ),
    PartKind(
        "the same job by others",
        "peers",
        Peers,
        "BUNDLE",
        report_parts.peers_checks,
        (report_parts.peers,),
        {report_parts.PEERS_PLOT: report_plot.plot_peers},
    ),
    PartKind(
        "lists for all users",
        "all-users",
        AllUsers,
        "--shape sports",
        report_parts.all_users_checks,
        (report_parts.all_users,),
        {},
    ),
)
Found = Sequence[tuple[PartKind, Document]]


def write_report(folder: Path, out: Path, command: str) -> list[Path]:
    """Write ``report.md`` and its plots.

    Args:
        folder: Holds the documents, each named as its benchmark.
        out: Where the report goes; made if missing.
        command: The command that makes the report; the report names it.

    Returns:
        The files written, the report first.

    Raises:
        DvibError: The folder holds no document, or one that cannot be used.
        OSError: The report cannot be written.
    """
    found = read_folder(folder)
    plots = [
        path for kind, document in found for stem, plot in kind.plots.items() for path in plot(document, out / stem)
    ]
    write_atomically(out / REPORT, "\n".join(markdown(found, folder, out, command)))
    return [out / REPORT, *plots]


def read_folder(folder: Path) -> Found:
    """Read the documents that are there.

    Raises:
        DvibError: There is none, or one cannot be used.
    """
    if not folder.is_dir():
        raise DvibError(f"{folder} is no folder; name the one that holds {LATENCY.file} and its like")
    found = [
        (kind, read_document(folder / kind.file, kind.benchmark, kind.kind))
        for kind in KINDS
        if (folder / kind.file).is_file()
    ]
    if not found:
        names = ", ".join(kind.file for kind in KINDS)
        raise DvibError(
            f"{folder} holds none of {names}; make one with dvib-bench latency --json {folder}/latency.json"
        )
    return found


def markdown(found: Found, folder: Path, out: Path, command: str) -> Iterator[str]:
    """Yield the report line by line; see ``write_report``."""
    latency = next((document for _, document in found if isinstance(document, Latency)), None)
    if latency is None:
        yield f"# No verdict: {LATENCY.file} is missing"
    else:
        yield f"# {cell(report_latency.headline(latency))}"
    yield ""
    if latency is not None:
        yield from report_latency.reasons(latency)
    checks = [check for kind, document in found for check in kind.checks(document)]
    yield from table(("what", "found", "wanted", "outcome"), (check.row() for check in checks), left=4)
    if latency is not None:
        yield from picture("Ratio of each arm to the baseline against the margin", report_latency.FOREST)
    yield from _missing(found, folder)
    if latency is not None:
        yield "## What was compared"
        yield ""
        yield from report_latency.compared(latency, _dataset(found))
    for kind, document in found:
        for section in kind.sections:
            yield from section(document)
    yield from _provenance(found, folder, out, command)


def _dataset(found: Found) -> str:
    """Return the data set's name from the document that tells, about the same bundle."""
    latency = next(document for _, document in found if isinstance(document, Latency))
    versions = {arm.version: arm.dataset for arm in latency.arms.values()}
    own = next(iter(versions.values()))
    stages = next((document for _, document in found if isinstance(document, Stages)), None)
    return own or (stages.bundle.dataset if stages and stages.bundle.version in versions else "")


def _missing(found: Found, folder: Path) -> Iterator[str]:
    there = [kind for kind, _ in found]
    for kind in KINDS:
        if kind not in there:
            how = " ".join(["dvib-bench", kind.benchmark, *kind.example.split(), "--json", str(folder / kind.file)])
            yield f"- Left out, for {kind.file} is missing ({kind.name}): {code(how)}"
    if len(there) < len(KINDS):
        yield ""


def _provenance(found: Found, folder: Path, out: Path, command: str) -> Iterator[str]:
    yield "## Where the figures come from"
    yield ""
    way = Path(os.path.relpath(folder, out)).as_posix()
    rows = (
        (
            kind.name,
            f"[{kind.file}]({quote(f'{way}/{kind.file}')})",
            NONE if document.seed is None else f"{document.seed}",
            figure(document.environment.load_average_1min),
            code(document.command) if document.command else "not recorded",
        )
        for kind, document in found
    )
    yield from table(("part", "raw samples", "seed", "load before", "made by"), rows, left=5)
    yield f"This report: {code(command)}"
    yield ""
    machines: dict[Sequence[str], list[str]] = {}
    for kind, document in found:
        machines.setdefault(tuple(_machine(document.environment)), []).append(kind.benchmark)
    header = ("parts", "machine", "memory", "versions", "thread variables")
    yield from table(header, ((", ".join(parts), *machine) for machine, parts in machines.items()), left=5)


def _machine(environment: Environment) -> Iterator[str]:
    memory = environment.memory_bytes
    yield cell(f"{environment.cpu or 'unknown CPU'}, {environment.usable_cores} of {environment.cores} cores")
    yield NONE if memory is None else f"{figure(memory / 2**30)} GiB"
    versions = {"Python": environment.python, **environment.versions}
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    yield cell(f"{environment.system}; {installed}")
    values = environment.thread_variables.items()
    yield cell(", ".join(f"{name}={value}" for name, value in values if value is not None)) or "none set"
