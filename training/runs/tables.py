"""A comparison on the terminal, in Markdown, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from training.runs.compare import Comparison, Line
from training.runs.paired import Paired

_COLUMNS = (
    "line", "metric", "seeds", "mean", "sd", "baseline", "effect", "low", "high", "confidence", "t_p", "wilcoxon_p",
    "users", "better", "worse",
)  # fmt: skip
_EFFECT_HEAD = ("line", "against", "metric", "effect", "interval", "relative", "p (t)", "p (Wilcoxon)", "better/worse")


def terminal(comparison: Comparison) -> Iterator[Table]:
    """Yield the table of the lines, and that of their effects where there is more than one line."""
    for title, head, rows in _tables(comparison):
        table = Table(title=Text(title), title_justify="left", pad_edge=False, box=box.SIMPLE_HEAD)
        for number, name in enumerate(head):
            table.add_column(name, justify="left" if number == 0 or name == "against" else "right", overflow="fold")
        for row in rows:
            # As text: what stands in brackets would be taken for markup.
            table.add_row(*map(Text, row))
        yield table


def markdown(comparison: Comparison) -> str:
    """Return the same tables in Markdown."""
    parts = []
    for title, head, rows in _tables(comparison):
        lines = [title, ""]
        lines += [_markdown_row(head), "|" + " --- |" + " ---: |" * (len(head) - 1)]
        lines += [_markdown_row(row) for row in rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def comma_separated(comparison: Comparison) -> str:
    """Return one row for each line and metric, in full precision; what does not apply is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in comparison.lines:
        for metric in comparison.metrics:
            effect = line.versus.get(metric)
            row: dict[str, Any] = {
                "line": line.label,
                "metric": metric,
                "seeds": " ".join(map(str, line.seeds)),
                "mean": line.mean(metric),
                "sd": line.deviation(metric),
                "users": comparison.users,
            }
            if effect is not None:
                row |= {"baseline": line.baseline, **asdict(effect)}
            writer.writerow(row)
    return stream.getvalue()


def document(comparison: Comparison) -> dict[str, Any]:
    """Return everything as a JSON value; what is not a number is null."""
    lines = [
        {
            "line": line.label,
            "runs": [str(run.folder) for run in line.runs],
            "seeds": line.seeds,
            "epochs": [run.info.epoch for run in line.runs],
            "metrics": {
                metric: {
                    "mean": line.mean(metric),
                    "sd": line.deviation(metric),
                    "by_seed": line.per_user[metric].mean(axis=1).tolist(),
                }
                for metric in comparison.metrics
            },
            "baseline": line.baseline,
            "versus_baseline": {metric: _finite(asdict(effect)) for metric, effect in line.versus.items()},
        }
        for line in comparison.lines
    ]
    return {
        "dataset": comparison.dataset,
        "split": comparison.split,
        "users": comparison.users,
        "lines": lines,
    }


def as_json(comparison: Comparison) -> str:
    """Return ``document`` as text."""
    return json.dumps(document(comparison), indent=2, allow_nan=False) + "\n"


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def _tables(comparison: Comparison) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    seeds = max(len(line.runs) for line in comparison.lines)
    how = "mean ± standard deviation over seeds" if seeds > 1 else "one seed"
    title = f"{comparison.dataset}, {comparison.split} split, {comparison.users} users, {how}"
    yield (
        title,
        ("line", "seeds", *comparison.metrics),
        [
            (line.label, str(len(line.runs)), *(_spread(line, metric) for metric in comparison.metrics))
            for line in comparison.lines
        ],
    )
    rows = list(_effects(comparison))
    if rows:
        confidence = next(effect.confidence for line in comparison.lines for effect in line.versus.values())
        yield (
            "Effect per user: the difference in each user's metric averaged over seeds, "
            f"{100 * confidence:g}% interval, paired tests over {comparison.users} users (not over seeds)",
            _EFFECT_HEAD,
            rows,
        )


def _effects(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for line in comparison.lines:
        for metric, effect in line.versus.items():
            yield line.label, line.baseline or "", metric, *_effect_cells(effect, line.base_means[metric])


def _effect_cells(effect: Paired, base: float) -> tuple[str, ...]:
    relative = f"{effect.effect / base:+.1%}" if base else "—"
    return (
        f"{effect.effect:+.4f}",
        "—" if math.isnan(effect.low) else f"[{effect.low:+.4f}, {effect.high:+.4f}]",
        relative,
        _probability(effect.t_p),
        _probability(effect.wilcoxon_p),
        f"{effect.better}/{effect.worse}",
    )


def _probability(value: float) -> str:
    if math.isnan(value):
        return "—"
    return f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def _spread(line: Line, metric: str) -> str:
    deviation = line.deviation(metric)
    return f"{line.mean(metric):.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
