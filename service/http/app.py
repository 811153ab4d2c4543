"""The FastAPI application over a set of loaded engines."""

from __future__ import annotations

import gc
import importlib.metadata
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from service.http.batching import Batcher
from service.http.errors import Errors
from service.http.routes import add_routes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from service.engine import Engine
    from service.settings import Settings

_DESCRIPTION = """Recommendations from exported bundles, on ONNX Runtime and FAISS.

Training items of the user are left out, items come by descending score, equal scores in row order. Scores are exact;
items too, unless the bundle's index is approximate: then as many of the best as its manifest's recall says.
Every error reply is `{"error": {"code": ..., "message": ...}}` with a fixed code.
"""


def create_app(engines: Mapping[str, Engine], settings: Settings) -> FastAPI:
    """Return the application. It is ready between its lifespan's startup and shutdown.

    Args:
        engines: Model name to loaded engine; the first is the default model.
        settings: Limits of requests and queues.
    """
    batchers: dict[str, Batcher] = {}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for name, engine in engines.items():
            batchers[name] = Batcher(engine, name=name, max_batch=settings.max_batch, max_queue=settings.max_queue)
        # What is loaded stays: looking through it for garbage again and again would hold requests up.
        gc.collect()
        gc.freeze()
        yield
        gc.unfreeze()
        closing = list(batchers.values())
        batchers.clear()
        for batcher in closing:
            batcher.close()

    app = FastAPI(
        title="dvib-serve",
        version=importlib.metadata.version("dvib"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
    )
    errors = Errors(settings)
    errors.install(app)
    manifests = {name: engine.manifest for name, engine in engines.items()}
    add_routes(app.router, manifests, batchers, errors, settings)
    return app
