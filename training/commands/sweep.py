"""``dvib-train sweep``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from training.checkpoint import CheckpointInfo
from training.commands.compare import Csv, Json, Markdown, watched_compare
from training.commands.shared import DataDir, Device, configure, messages, output, show
from training.common.console import EXIT_DIFFERENT
from training.common.folders import write_atomically
from training.device import memory_reported, resolve_device
from training.reporting import ConsoleReporter, Reporter
from training.runs.lock import exclusive
from training.runs.paired import CONFIDENCE
from training.runs.sweep import Planned, read_sweep, run_sweep
from training.runs.tables import as_json, comma_separated, markdown, terminal

app = typer.Typer()


class _Lines:
    """Implements ``Watcher`` with a line before and after each run."""

    def __init__(self, total: int) -> None:
        self._total = total

    def begin(self, number: int, planned: Planned) -> AbstractContextManager[Reporter]:
        """Say which run begins."""
        self._say(number, f"{planned.label}: training in {planned.folder}")
        return ConsoleReporter(messages, planned.config)

    def end(self, number: int, planned: Planned, info: CheckpointInfo | None, *, known: bool, error: str) -> None:
        """Say how it ended."""
        if info is None:
            self._say(number, f"{planned.label}: failed: {error}")
            return
        monitor = planned.config.training.monitor
        verb = "is there already" if known else "done"
        self._say(number, f"{planned.label}: {verb}, validation {monitor} {info.metrics['valid'][monitor]:.4f}")

    def _say(self, number: int, text: str) -> None:
        messages.print(f"[{number}/{self._total}] {text}", highlight=False, soft_wrap=True, markup=False)


@app.command(
    epilog="Examples: `dvib-train sweep table4.yaml --data-dir DATA --out runs/table4` "
    "(after a kill, the same command goes on); "
    "`dvib-train sweep table4.yaml --out runs/table4 --markdown reports/table4.md`. The file: "
    "`base: {dataset: tiktok, seeds: [0, 1, 2], set: {training.epochs: 50}}` and "
    "`runs: {plain: {model: vbpr}, dvib_a: {model: vbpr, dvib: adaptive, set: {dvib.gamma_d: 0.5}}}`, and as you like "
    "`compare: {baseline: plain, metrics: [recall@20]}`. A run takes model, dvib, preset, dataset, seeds, set and "
    "transforms; what it does not say is as in `base`"
)
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The runs, in YAML or JSON.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs: OUT/NAME/seed-N.")],
    data_dir: DataDir = None,
    markdown_file: Markdown = None,
    csv_file: Csv = None,
    json_file: Json = None,
    device: Device = "auto",
) -> None:
    """Make all runs of a file, those that are missing, and compare them. Exit code 1: a run failed."""
    plan = read_sweep(file, out)
    configure()
    where = resolve_device(device)
    with exclusive(out), memory_reported():
        outcome = run_sweep(plan, data_dir, where, _Lines(len(plan.planned)))
    if outcome.runs:
        # By its folder: a line's label may say more than the run's name.
        baseline = next((str(run.folder) for run in outcome.runs if run.name == plan.baseline), None)
        comparison = watched_compare(list(outcome.runs), baseline, plan.metrics, "test", CONFIDENCE, device)
        for table in terminal(comparison):
            show(output, table)
        for path, text in ((markdown_file, markdown), (csv_file, comma_separated), (json_file, as_json)):
            if path is not None:
                write_atomically(path, text(comparison))
    for label, reason in outcome.failed.items():
        output.print(f"{label}: not in the table, failed: {reason}", highlight=False, soft_wrap=True, markup=False)
    if outcome.failed:
        raise typer.Exit(EXIT_DIFFERENT)
