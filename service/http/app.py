"""The FastAPI application over a set of loaded engines."""

from __future__ import annotations

import gc
import importlib.metadata
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from service.http.desk import Desk
from service.http.documentation import add_routes
from service.http.errors import Errors
from service.http.routes import Routes
from service.page.route import add_page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from service.engine import Engine
    from service.settings import Settings

_MANY_OBJECTS = 20_000
"""More of them than before are there when garbage is looked for: those of some hundred requests at once, a few MB."""
_DESCRIPTION = """Recommendations from exported bundles, on ONNX Runtime and FAISS.

Training items of the user are left out unless asked for; items come by descending score, equal scores in row order.
Scores are exact; items too, unless the bundle's index is approximate: then as many of the best as its manifest's recall
says.
Every error reply is `{"error": {"code": ..., "message": ...}}` with a fixed code.
"""


def create_app(engines: Mapping[str, Engine], settings: Settings) -> FastAPI:
    """Return the application. It is ready between its lifespan's startup and shutdown.

    `service.http.gate.Gate` belongs around it: bounds, key and request ids are there. Its desk is ``app.state.desk``.

    Args:
        engines: Model name to loaded engine; the first is the default model.
        settings: Limits of requests and queues.

    Raises:
        ConfigError: ``split`` names what is not served, or no share.
    """
    errors = Errors(settings)
    desk = Desk(engines, settings, errors)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        desk.open()
        # What is loaded stays: looking through it for garbage again and again would hold requests up.
        gc.collect()
        gc.freeze()
        # Requests come and go without cycles: looking for some after every few of them finds none.
        often = gc.get_threshold()
        gc.set_threshold(_MANY_OBJECTS, *often[1:])
        yield
        gc.set_threshold(*often)
        gc.unfreeze()
        desk.close()

    app = FastAPI(
        title="dvib-serve",
        version=importlib.metadata.version("dvib"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.desk = desk
    errors.install(app)
    add_routes(app.router, Routes(desk, errors, settings), errors, settings)
    add_page(app.router)
    return app
