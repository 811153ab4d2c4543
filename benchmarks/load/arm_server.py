"""A server to measure beside ``dvib-serve``: the same framework and settings, other content.

Run as ``python -m benchmarks.load.arm_server DOCUMENT`` with JSON: ``{"constant": 700}`` replies to ``POST /constant``
with that many bytes; ``{"arms": [{"name": ..., "folder": ..., "delay_us": 0.0}, ...]}`` is the service over some
bundles, of which some are made slower on purpose.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response

from benchmarks.load.questions import CONSTANT, constant_body
from export.publish import resolve
from service.engine import Engine
from service.http.app import create_app
from service.http.gate import Gate
from service.http.protocol import Protocol
from service.http.reply import JSON
from service.process.server import listen, run_app
from service.process.signals import end_at_sigterm
from service.settings import Settings
from service.values import Recommendation, Request
from training.common.console import EXIT_BAD_INPUT
from training.common.errors import DvibError


class DelayedEngine(Engine):
    """An engine that takes longer than it needs.

    It waits busily and keeps Python's lock, so that the delay adds to the work of the process whatever else that does:
    every answer costs so much more, at every concurrency.

    Attributes:
        delay_us: Microseconds for every answer.
    """

    delay_us = 0.0

    def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        """See ``Engine``."""
        answers = super().recommend_many(requests)
        end = time.perf_counter_ns() + int(self.delay_us * 1e3 * len(requests))
        while time.perf_counter_ns() < end:
            pass
        return answers


def constant_app(length: int) -> FastAPI:
    """Return an application that does nothing but reply: what the framework costs."""
    app = FastAPI(openapi_url=None)
    body = constant_body(length)

    @app.post(CONSTANT)
    async def constant() -> Response:
        return Response(body, media_type=JSON, headers={"x-request-id": "0123abcd-1"})

    return app


def load_arm(folder: str, delay_us: float, settings: Settings) -> Engine:
    """Load a bundle; one without a delay is served by nothing but the real engine.

    Raises:
        BundleError: The bundle is unusable.
    """
    if not delay_us:
        return Engine.load(resolve(Path(folder)), index_threads=settings.index_threads)
    engine = DelayedEngine.load(resolve(Path(folder)), index_threads=settings.index_threads)
    engine.delay_us = delay_us
    return engine


def serve(document: dict[str, Any]) -> None:
    """Serve on a free port of the loopback address until SIGTERM.

    Raises:
        BundleError: A bundle is unusable.
        ConfigError: Nothing can listen on the loopback address.
    """
    end_at_sigterm()
    settings = Settings()
    with listen("127.0.0.1", 0) as listener:
        if "constant" in document:
            run_app(constant_app(document["constant"]), listener, "arm-server", "for a benchmark")
            return
        arms = {arm["name"]: load_arm(arm["folder"], arm["delay_us"], settings) for arm in document["arms"]}
        gate = Gate(create_app(arms, settings), settings)
        run_app(gate, listener, "arm-server", "for a benchmark", http=Protocol.to(gate, settings))


def main() -> None:
    """Read the document from the command line."""
    try:
        serve(json.loads(sys.argv[1]))
    except DvibError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EXIT_BAD_INPUT) from error


if __name__ == "__main__":
    main()
