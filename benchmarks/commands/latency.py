"""``dvib-bench latency``: is a DVIB export as fast as the plain model's?"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from benchmarks.commands.shared import JsonFile, begin
from benchmarks.output import progress_bar, write_document
from training.common.console import require_groups
from training.common.errors import ConfigError, nearest

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-bench latency --baseline bundles/none --dvib bundles/constant --dvib bundles/adaptive "
    "--other-seed bundles/none-7 --checkpoint runs/adaptive --json reports/latency.json`; "
    "`dvib-bench latency --baseline bundles/none --dvib bundles/adaptive --inject-delay-pct 5` (must end with exit "
    "code 1)"
)
def latency(
    baseline: Annotated[Path, typer.Option("--baseline", help="The plain model's bundle.")],
    dvib: Annotated[list[Path], typer.Option("--dvib", help="A DVIB model's bundle; repeat for several.")],
    other_seed: Annotated[
        Path | None, typer.Option("--other-seed", help="A plain bundle of another seed: what other weights alone do.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="A DVIB run: its un-stripped graph joins as a control. Needs torch."),
    ] = None,
    level: Annotated[
        list[str] | None,
        typer.Option("--level", help="graph, unfolded, engine or http; repeat for several. Default: all."),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=4, help="Rounds before the first look; others follow after 2 and 4 times.")
    ] = 20,
    calls: Annotated[int, typer.Option("--calls", min=20, help="Timed calls of each arm in a round.")] = 200,
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="Items per answer.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws users, orders and resamples.")] = 0,
    inject_delay_pct: Annotated[
        float,
        typer.Option("--inject-delay-pct", min=0, max=1000, help="Slow the DVIB arms down by so much of their median."),
    ] = 0.0,
    device: Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="Where the graph levels run.")] = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Compare bundles at the graph, at what a request runs, and over HTTP, and say whether DVIB costs anything.

    Judged are the medians; p99 is shown. Exit code 0: every DVIB arm is equivalent to the baseline within the margin.
    1: one is different. 3: the run is void, for two equal arms differ or a control was not detected. 4: inconclusive.
    """
    require_groups("service", "cpu")
    from benchmarks.latency import cold
    from benchmarks.latency.arms import BASELINE, describe, make_arms
    from benchmarks.latency.lines import report
    from benchmarks.latency.measure import KINDS, Kind, Options, measure
    from export.runtime import CPU, CUDA

    kinds: list[Kind] = [kind for kind in KINDS if not level or kind in level]
    for name in level or ():
        if name not in get_args(Kind):
            raise ConfigError(f"--level: no level '{name}'{nearest(name, KINDS)}")
    environment = begin(json_file)
    options = Options(
        looks=(rounds, 2 * rounds, 4 * rounds),
        calls=calls,
        k=k,
        seed=seed,
        kinds=kinds,
        provider=CUDA if device == "cuda" else CPU,
    )
    with ExitStack() as stack:
        unstripped = None
        if checkpoint is not None:
            unstripped = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "unstripped.onnx"
            _write_unstripped(checkpoint, unstripped, baseline)
        arms = make_arms(baseline, dvib, other_seed=other_seed, unstripped=unstripped, inject=inject_delay_pct / 100)
        described = {arm.name: describe(arm) for arm in arms}
        first = described[BASELINE]
        bar = stack.enter_context(progress_bar(len(kinds) * rounds, "rounds"))

        def show(kind: str) -> None:
            bar.describe(kind)
            bar.advance()

        levels, verdict = measure(arms, first["n_items"], options, show)
        loading = cold.measure(arms, k, seed)
    document = {
        "benchmark": "latency",
        "arms": described,
        "options": {**vars(options), "inject": inject_delay_pct / 100, "confidence": options.confidence},
        "verdict": verdict.document(),
        "levels": {entry.name: entry.document(arms) for entry in levels},
        "loading": loading,
        "environment": environment,
    }
    for line in report(document):
        typer.echo(line)
    write_document(json_file, document)
    raise typer.Exit(verdict.code)


def _write_unstripped(run: Path, place: Path, baseline: Path) -> None:
    """Write the graph of a run, unless it is a run of another model or other data: as a control it would prove nothing.

    Raises:
        BundleError: The baseline's bundle cannot be read.
        ConfigError: The run does not go with the baseline.
        DvibError: The run cannot be read, or has nothing to strip.
    """
    require_groups("export")
    from export.bundle import BundleReader
    from export.publish import resolve
    from export.removed import unstripped_onnx
    from training.checkpoint import load_checkpoint

    read = load_checkpoint(run)
    with BundleReader(resolve(baseline)) as reader:
        wanted = reader.manifest
    ours, theirs = (
        (wanted.model, wanted.dataset.fingerprint),
        (read.info.config.model_name, read.info.dataset.fingerprint),
    )
    if ours != theirs:
        raise ConfigError(
            f"--checkpoint {run} is a run of {theirs[0]} on data {theirs[1][:12]}; wanted {ours[0]} on {ours[1][:12]}"
        )
    place.write_bytes(unstripped_onnx(read))
