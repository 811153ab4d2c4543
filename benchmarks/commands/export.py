"""``dvib-bench export``."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.commands.shared import JsonFile, Models, PresetOption, Shape, Variants, begin, chosen_variants
from benchmarks.output import progress_bar, write_document
from training.common.console import EXIT_DIFFERENT, require_groups

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-bench export --shape baby --model vbpr --check`; "
    "`dvib-bench export --shape sports --model all --only-load --check --json reports/load.json`"
)
def export(
    shape: Shape = "baby",
    model: Models = None,
    dvib: Variants = None,
    preset: PresetOption = "tuned",
    only_load: Annotated[
        bool, typer.Option("--only-load", help="Write the un-frozen graph alone and load it: no export, no proofs.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 where a step takes longer or more memory than it may.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Time and peak memory of export, verification and loading, on synthetic data, each in a process of its own.

    Weights are initial values: what is measured does not depend on them. Without --dvib: adaptive.
    """
    require_groups("training", "export", "cpu")
    from benchmarks import export_cost
    from benchmarks.quality import chosen_models

    lines = [
        (name, variant)
        for name in chosen_models(model or ["vbpr"])
        for variant in chosen_variants(dvib or ["adaptive"])
    ]
    environment = begin(json_file)
    results = []
    with progress_bar(len(lines), "models") as bar:
        for name, variant in lines:
            results.append(export_cost.measure(shape, name, variant, preset, bar.describe, only_load=only_load))
            bar.advance()
            document = {"benchmark": "export", "shape": shape, "preset": preset, "results": results}
            write_document(json_file, {**document, "environment": environment})
    for text in export_cost.table(results):
        typer.echo(text)
    found = [f"{result['model']}: {text}" for result in results for text in export_cost.beyond(result)]
    for text in found:
        typer.echo(text)
    if not all(map(export_cost.passed, results)) or (check and found):
        raise typer.Exit(EXIT_DIFFERENT)
