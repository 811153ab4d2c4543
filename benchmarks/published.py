"""The paper's Table 5 beside our own figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import yaml

from training.common.errors import ConfigError, nearest

METRICS = ("recall@5", "ndcg@5", "precision@5", "map@5")
"""What the table holds."""


def published() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return data set → model → variant → metric → value."""
    document: dict[str, dict[str, dict[str, dict[str, float]]]] = yaml.safe_load(
        (files("benchmarks") / "published.yaml").read_text("utf-8")
    )
    return document


def check_published(dataset: str) -> None:
    """Make sure that there is something to compare with.

    Raises:
        ConfigError: The table has no such data set.
    """
    known = published()
    if dataset not in known:
        raise ConfigError(f"--paper: the paper's Table 5 has no data set '{dataset}'{nearest(dataset, known)}")


def beside_paper(dataset: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield one line per row of ``benchmarks.quality_report.make_rows`` that the paper has too, and one for the rest.

    Args:
        dataset: Name of the data set.
        rows: Their ``metrics`` hold the mean of every metric at 5.
    """
    table = published()[dataset]
    yield ""
    yield f"{dataset}: ours / the paper's Table 5 = ratio (a random split of the same interactions need not be theirs)"
    width = max(len(row["label"]) for row in rows) + 2
    yield " " * width + "".join(f"{name:>25}" for name in METRICS)
    for row in rows:
        theirs = table.get(row.get("model", ""), {}).get(row.get("variant", ""))
        if theirs is None or not row["metrics"]:
            continue
        cells = []
        for name in METRICS:
            ours = row["metrics"][name]["mean"]
            cells.append(f"{ours:.4f} / {theirs[name]:.4f} = {ours / theirs[name]:.2f}")
        yield f"{row['label']:<{width}}" + "".join(f"{cell:>25}" for cell in cells)
    missing = [row["label"] for row in rows if row.get("model", next(iter(table))) not in table]
    if missing:
        yield f"not in Table 5: {', '.join(missing)}"
