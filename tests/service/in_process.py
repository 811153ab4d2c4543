"""An application without a server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from service.http.gate import Gate


def in_process(
    app: FastAPI, test: Callable[[httpx.AsyncClient], Any], *, started: bool, gate: Gate | None = None
) -> None:
    """Run a test's requests against an application, within its lifespan or before it, and through its gate if any."""

    async def run() -> None:
        transport = httpx.ASGITransport(gate or app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            if started:
                async with app.router.lifespan_context(app):
                    await test(client)
            else:
                await test(client)

    asyncio.run(run())
