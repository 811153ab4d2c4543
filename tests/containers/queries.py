"""The queries of the dashboard and of the alerts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "docker/prometheus/alerts.yml"
CONFIG = ROOT / "docker/prometheus/prometheus.yml"
DASHBOARD = ROOT / "docker/grafana/dashboards/dvib.json"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_COMPARISON = re.compile(r" (>|<|==) (?=[\d.]+$)")


class QuerySource(NamedTuple):
    """One query and where it stands."""

    place: str
    text: str


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return document


def shown() -> Iterator[QuerySource]:
    """Yield the queries of the dashboard's panels and annotations, as they stand there."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield QuerySource(f"{panel['title']} {target['refId']}", target["expr"])
    for annotation in dashboard()["annotations"]["list"]:
        yield QuerySource(f"annotation {annotation['name']}", annotation["expr"])


def alerts() -> Iterator[QuerySource]:
    """Yield the alerts' expressions."""
    for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            yield QuerySource(rule["alert"], rule["expr"])


def metrics_of(query: str) -> set[str]:
    """Return the names of the metrics in a query: what is no function, keyword, label or text."""
    bare = re.sub(r'"[^"]*"', "", query)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", "", bare)
    names = {found[0] for found in _NAME.finditer(bare) if not bare[found.end() :].lstrip().startswith("(")}
    return {name for name in names if name not in {"or", "and", "unless", "bool", "by", "on"}}


def answered(query: str, interval: str = "4s") -> str:
    """Return a query as Grafana sends it for all instances and models, its last comparison answering 0 or 1."""
    for name, value in {"$__rate_interval": interval, "$__range": interval, "$instance": ".*", "$model": ".*"}.items():
        query = query.replace(name, value)
    return _COMPARISON.sub(r" \1 bool ", query)
