"""What the service measures: names, meanings, labels, buckets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SECONDS = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Bounds of durations: 50 µs to 10 s."""
SIZES = tuple(2.0**power for power in range(13))
"""Bounds of batch sizes: as many as ``max_batch`` may be."""


@dataclass(frozen=True, eq=False)
class Family:
    """One metric: its name without a kind's suffix, its meaning, its labels, and the bounds of a histogram's buckets.

    Gauges hold for living processes only, and add up over them; those of kind ``info`` are 1 where anybody says so.
    """

    kind: Literal["counter", "gauge", "histogram", "info"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """Numbers of one child: of a histogram each bucket's count, that of larger values, and the sum."""
        return len(self.bounds) + 2 if self.bounds else 1


QUEUE = Family(
    "histogram",
    "dvib_serve_queue_seconds",
    "Time from a recommendation's arrival to its model call",
    ("model",),
    SECONDS,
)
ENGINE = Family(
    "histogram", "dvib_serve_engine_seconds", "Time of one model call, for a whole batch", ("model",), SECONDS
)
BATCH = Family("histogram", "dvib_serve_batch_size", "Recommendations answered by one model call", ("model",), SIZES)
DEPTH = Family("gauge", "dvib_serve_queue_depth", "Recommendations that wait for a model call", ("model",))
RECOMMENDATIONS = Family(
    "counter",
    "dvib_serve_recommendations",
    "Recommendations made, by where their order comes from",
    ("model", "source"),
)
REQUEST = Family(
    "histogram",
    "dvib_serve_request_seconds",
    "Time from a request's head to its reply, of successful ones",
    ("route", "model"),
    SECONDS,
)
REPLIES = Family("counter", "dvib_serve_replies", "Replies by HTTP status", ("route", "model", "status"))
REFUSED = Family("counter", "dvib_serve_refused", "Error replies by the code in their body", ("reason",))
IN_FLIGHT = Family("gauge", "dvib_serve_requests_in_flight", "HTTP requests in work")
WORKERS = Family("gauge", "dvib_serve_workers", "Worker processes that live, those that drain among them")
STARTS = Family("counter", "dvib_serve_worker_starts", "Worker processes started")
MODEL = Family(
    "info",
    "dvib_serve_model_info",
    "Served bundles; during a reload the old version and the new one",
    ("model", "version", "architecture", "variant", "dataset"),
)
SESSION = Family(
    "info",
    "dvib_serve_session_info",
    "ONNX Runtime sessions by the execution provider that each really got",
    ("model", "session", "provider"),
)
BUILD = Family("info", "dvib_serve_build_info", "Version of the service", ("version",))
RELOADS = Family("counter", "dvib_serve_reloads", "Reloads by outcome", ("outcome",))
GENERATION = Family("gauge", "dvib_serve_generation", "Number of the set of versions that serves")
RELOADED = Family("gauge", "dvib_serve_last_reload_success_timestamp_seconds", "When a load last succeeded, Unix time")
NOT_RELOADED = Family(
    "gauge", "dvib_serve_last_reload_failure_timestamp_seconds", "When a load last failed; 0 for never"
)
RELOAD_OK = Family(
    "gauge", "dvib_serve_last_reload_successful", "0 where what was published last could not be loaded, else 1"
)

FAMILIES = {
    family.name: family
    for family in (
        *(QUEUE, ENGINE, BATCH, DEPTH, RECOMMENDATIONS, REQUEST, REPLIES, REFUSED, IN_FLIGHT, WORKERS, STARTS),
        *(MODEL, SESSION, BUILD, RELOADS, GENERATION, RELOADED, NOT_RELOADED, RELOAD_OK),
    )
}
