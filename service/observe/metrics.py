"""What workers and the supervisor measure."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from bisect import bisect_left
from typing import TYPE_CHECKING

import orjson

from service.observe import families
from service.observe.cells import Cells, LostCells, SharedCells

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from export.manifest import Manifest
    from service.observe.families import Family

_LOG = logging.getLogger(__name__)
SUPERVISOR = "supervisor"
"""The supervisor's slot; workers' are numbers."""


class Histogram:
    """One child of a histogram family.

    Args:
        cells: float64 [bounds + 2].
        bounds: Ascending.
    """

    __slots__ = ("_bounds", "_cells")

    def __init__(self, cells: memoryview[float], bounds: tuple[float, ...]) -> None:
        self._cells = cells
        self._bounds = bounds

    def observe(self, value: float) -> None:
        """Count a value."""
        cells = self._cells
        cells[bisect_left(self._bounds, value)] += 1.0
        cells[-1] += value


def _view(cells: Cells, family: Family, *labels: str) -> memoryview[float]:
    name = orjson.dumps([family.name, *labels])
    return cells.view(name, family.count, lasting=family.kind in {"counter", "histogram"})


def _histogram(cells: Cells, family: Family, *labels: str) -> Histogram:
    return Histogram(_view(cells, family, *labels), family.bounds)


class ModelMetrics:
    """What one model's batcher measures, in one thread.

    Attributes:
        queue: Seconds that each recommendation waited.
        engine: Seconds of each model call.
        batch: Recommendations of each model call.
        depth: float64 [1], recommendations that wait.
        sources: Per source, float64 [1], recommendations made.
    """

    def __init__(self, cells: Cells, model: str) -> None:
        self.queue = _histogram(cells, families.QUEUE, model)
        self.engine = _histogram(cells, families.ENGINE, model)
        self.batch = _histogram(cells, families.BATCH, model)
        self.depth = _view(cells, families.DEPTH, model)
        self.sources = {
            source: _view(cells, families.RECOMMENDATIONS, model, source) for source in ("model", "popular", "history")
        }


class Metrics:
    """The metrics of one worker. All is measured in one thread.

    Args:
        manifests: Model name to manifest.
        folder: Where all workers of one service keep theirs; None for a worker that is alone.
        sessions: Model name to the execution providers of each ONNX Runtime session, the one asked first at the front.

    Attributes:
        cells: Where they are kept; `service.observe.page` shows them, together with those of other processes.
        models: Model name to what its batcher measures.
        in_flight: float64 [1], HTTP requests in work.
    """

    def __init__(
        self,
        manifests: Mapping[str, Manifest],
        folder: Path | None = None,
        sessions: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    ) -> None:
        self.cells = Cells() if folder is None else _shared(folder)
        self.models = {name: ModelMetrics(self.cells, name) for name in manifests}
        self.in_flight = _view(self.cells, families.IN_FLIGHT)
        self._replies: dict[tuple[str, str, int], tuple[memoryview[float], Histogram | None]] = {}
        _view(self.cells, families.STARTS)[0] += 1
        _view(self.cells, families.WORKERS)[0] = 1
        _view(self.cells, families.BUILD, importlib.metadata.version("dvib"))[0] = 1
        for name, manifest in manifests.items():
            labels = (name, manifest.version, manifest.model, manifest.variant, manifest.dataset.name)
            _view(self.cells, families.MODEL, *labels)[0] = 1
        for name, providers in (sessions or {}).items():
            for session, got in providers.items():
                _view(self.cells, families.SESSION, name, session, got[0])[0] = 1

    def reply(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count a reply.

        Args:
            route: The path of a route as the application declares it, never one that a client made up.
            model: A served model, or empty where none answered.
            status: HTTP status.
            seconds: Since the request came.
        """
        key = (route, model, status)
        known = self._replies.get(key)
        if known is None:
            known = self._replies[key] = (
                _view(self.cells, families.REPLIES, route, model, str(status)),
                # A refusal takes no time, and many would hide what the others took.
                _histogram(self.cells, families.REQUEST, route, model) if status < 400 else None,
            )
        known[0][0] += 1.0
        if known[1] is not None:
            known[1].observe(seconds)

    def refused(self, reason: str) -> None:
        """Count an error reply.

        Args:
            reason: One of the fixed error codes.
        """
        _view(self.cells, families.REFUSED, reason)[0] += 1

    def close(self) -> None:
        """Leave the slot to another worker; nothing may be measured afterwards."""
        self.cells.close()


def _shared(folder: Path) -> Cells:
    """Return a worker's cells. Where there is no room for them, it works without being counted."""
    try:
        return SharedCells(folder)
    except OSError as error:
        _LOG.error("what this worker does is not counted: %s", error)
        return LostCells(folder)


class ReloadMetrics:
    """The metrics of the supervisor, which begins them: what an earlier service has left in the folder is forgotten.

    Args:
        folder: Where the workers keep theirs.

    Attributes:
        cells: As those of `Metrics`.

    Raises:
        ConfigError: Another service uses the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.cells = SharedCells(folder, SUPERVISOR, fresh=True)
        self._outcomes = {outcome: _view(self.cells, families.RELOADS, outcome) for outcome in ("success", "failure")}
        self._gauges = {
            family: _view(self.cells, family)
            for family in (families.GENERATION, families.RELOADED, families.NOT_RELOADED, families.RELOAD_OK)
        }

    def serves(self, generation: int) -> None:
        """Note that a generation serves, by its number."""
        self._gauges[families.GENERATION][0] = generation
        self._loaded()

    def succeeded(self) -> None:
        """Note that a reload has succeeded, whether or not another generation was needed for it."""
        self._outcomes["success"][0] += 1
        self._loaded()

    def failed(self) -> None:
        """Note that what is published could not be loaded."""
        self._outcomes["failure"][0] += 1
        self._gauges[families.NOT_RELOADED][0] = time.time()
        self._gauges[families.RELOAD_OK][0] = 0

    def close(self) -> None:
        """Leave the folder to another service."""
        self.cells.close()

    def _loaded(self) -> None:
        self._gauges[families.RELOADED][0] = time.time()
        self._gauges[families.RELOAD_OK][0] = 1
