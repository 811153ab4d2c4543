"""The numbers of all processes on one page, in Prometheus' text format."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson
from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from service.observe.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from service.observe.cells import Cells
    from service.observe.families import Family

_Children = dict[tuple[str, ...], Sequence[float]]


class _Page:
    """A collector of what all processes have measured."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells

    def collect(self) -> Iterable[Metric]:
        """Return one metric per family."""
        return [_metric(family, children) for family, children in _sums(self._cells).items()]


def page(cells: Cells) -> tuple[bytes, str]:
    """Return what all processes have measured in Prometheus' text format, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Page(cells))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _sums(cells: Cells) -> dict[Family, _Children]:
    sums: dict[Family, _Children] = {family: {} for family in FAMILIES.values()}
    for alive, entries in cells.read():
        for entry in entries:
            name, *labels = orjson.loads(entry.name)
            family = FAMILIES.get(name)
            # A folder that is kept may hold what another version of the service has measured.
            if not (alive or entry.lasting) or family is None:
                continue
            if len(labels) != len(family.labels) or len(entry.values) != family.count:
                continue
            children, key = sums[family], tuple(labels)
            if key not in children or family.kind == "info":
                children[key] = entry.values
            else:
                children[key] = tuple(map(sum, zip(children[key], entry.values, strict=True)))
    return sums


def _metric(family: Family, children: _Children) -> Metric:
    if family.kind == "histogram":
        return _histogram(family, children)
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, values in sorted(children.items()):
        metric.add_metric(labels, values[0])
    return metric


def _histogram(family: Family, children: _Children) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    bounds = [*map(repr, family.bounds), "+Inf"]
    for labels, values in sorted(children.items()):
        reached = itertools.accumulate(values[:-1])
        metric.add_metric(labels, list(zip(bounds, reached, strict=True)), values[-1])
    return metric
