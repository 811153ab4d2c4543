"""``dvib-train tune``."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from training.commands.shared import (
    ConfigFile,
    DataDir,
    Device,
    MaybeDataset,
    MaybeModel,
    MaybePreset,
    Overrides,
    configure,
    messages,
    output,
    show,
)
from training.common.choices import Variant
from training.common.errors import ConfigError, MissingGroupError
from training.common.folders import make_folder, write_atomically
from training.device import memory_reported, resolve_device
from training.runs.config_file import Choices, config_from
from training.runs.space import read_space

if TYPE_CHECKING:
    from training.runs.tune import Winner

app = typer.Typer()
_SHOWN = ("recall@20", "ndcg@20")


class _Lines:
    """Implements ``TuneWatcher``: a line for each trial, and a bar where somebody is watching."""

    def __init__(self, bar: Progress, trials: int, variants: int) -> None:
        self._bar, self._trials = bar, trials
        self._task = bar.add_task("", total=trials * variants, status="")
        self._what = ""

    def begin(self, variant: Variant, slot: int, settings: Mapping[str, Any]) -> None:
        """Keep what is tried for the line at its end."""
        self._what = " ".join(f"{key}={_value(value)}" for key, value in settings.items())
        self._bar.update(self._task, description=f"{variant} {slot + 1}/{self._trials}")

    def epoch(self, epoch: int, value: float) -> None:
        """Show that something moves."""
        self._bar.update(self._task, status=f"epoch {epoch}, validation {value:.4f}")

    def end(self, variant: Variant, slot: int, result: str, *, known: bool) -> None:
        """Write the trial's line."""
        self._bar.advance(self._task)
        what = "is there already" if known else self._what
        line = f"{variant} {slot + 1}/{self._trials}: {what}: {result}"
        self._bar.console.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command(
    epilog="Examples: `dvib-train tune --study studies/vbpr.sqlite --trials 10` (plain and DVIB_a, 10 trials each; "
    "after a kill, the same command goes on); "
    "`dvib-train tune --study studies/t.sqlite --dataset tiktok --data-dir DATA --dvib constant --dvib adaptive "
    "--trials 30 --epochs 100 --space space.yaml`. The file: "
    "`shared: {training.learning_rate: {low: 0.001, high: 0.02, log: true}}`, `dvib: {dvib.gamma_d: {choices: [0.1, "
    "0.5]}}`, `constant:` and `adaptive:` likewise"
)
def tune(
    study: Annotated[Path, typer.Option("--study", metavar="FILE", help="SQLite file; made, or gone on with.")],
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials of each variant, the plain model's too.")],
    config_file: ConfigFile = None,
    model: MaybeModel = None,
    dvib: Annotated[
        list[str] | None,
        typer.Option(
            "--dvib",
            metavar="constant|adaptive",
            help="What to search beside the plain model; repeat.",
            show_default="adaptive",
        ),
    ] = None,
    preset: MaybePreset = None,
    dataset: MaybeDataset = None,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Most epochs of a trial.")] = None,
    space: Annotated[
        Path | None,
        typer.Option("--space", metavar="FILE", help="What to vary, in YAML or JSON; instead of the built-in ranges."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the samplers, the same for every variant.")] = 0,
    prune: Annotated[
        bool, typer.Option("--prune", help="Stop trials below the median of the others at the same epoch.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the winners to this file.")] = None,
    device: Device = "auto",
    overrides: Overrides = None,
) -> None:
    """Search settings on validation, with equally many trials for the plain model and DVIB; then test each winner."""
    if importlib.util.find_spec("optuna") is None:
        raise MissingGroupError("this command needs optuna; run: pip install 'dvib[training]'")
    from training.runs import tune as work

    said = [*(overrides or []), *([f"training.epochs={epochs}"] if epochs is not None else [])]
    variants = work.variants_of(dvib or ["adaptive"])
    configs = {
        variant: config_from(Choices(model, variant, preset, dataset), config_file, said) for variant in variants
    }
    if study.is_dir():
        raise ConfigError(f"--study {study} is a folder; a file is wanted")
    spaces = {variant: read_space(space, config.model_name, variant) for variant, config in configs.items()}
    configure()
    search = work.Search(study, configs, spaces, trials, seed, prune, data_dir, resolve_device(device))
    work.check_search(search)
    make_folder(study.absolute().parent)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
    with (
        memory_reported(),
        Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as bar,
    ):
        winners = work.tune(search, _Lines(bar, trials, len(variants)))
    show(output, _table(search.monitor, winners))
    for winner in winners:
        settings = " ".join(f"{key}={_value(value)}" for key, value in winner.settings.items())
        _say(f"{winner.variant}, trial {winner.slot + 1}: {settings}")
    folders = " ".join(str(winner.folder) for winner in winners)
    _say(f"compare them: dvib-train compare {folders}")
    if json_file is not None:
        write_atomically(json_file, json.dumps(_document(search.monitor, winners), indent=2) + "\n")


def _say(text: str) -> None:
    output.print(text, highlight=False, soft_wrap=True, markup=False)


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def _table(monitor: str, winners: list[Winner]) -> Table:
    shown = tuple(name for name in dict.fromkeys((monitor, *_SHOWN)) if name in winners[0].test)
    table = Table(
        title="chosen on validation; the test split was read once, after that",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("variant", "trials", "pruned", "failed", f"valid {monitor}", *(f"test {name}" for name in shown)):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for winner in winners:
        counts = winner.counts
        numbers = (counts.total, counts.pruned, counts.failed)
        metrics = (winner.valid, *(winner.test[name] for name in shown))
        table.add_row(winner.variant, *map(str, numbers), *(f"{value:.4f}" for value in metrics))
    return table


def _document(monitor: str, winners: list[Winner]) -> dict[str, Any]:
    return {
        "monitor": monitor,
        "winners": [
            {
                "variant": winner.variant,
                "trials": winner.counts.total,
                "complete": winner.counts.complete,
                "pruned": winner.counts.pruned,
                "failed": winner.counts.failed,
                "trial": winner.slot + 1,
                "settings": dict(winner.settings),
                "epoch": winner.epoch,
                "valid": winner.valid,
                "test": dict(winner.test),
                "run": str(winner.folder),
            }
            for winner in winners
        ],
    }
