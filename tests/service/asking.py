"""Asking a batcher."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from service.http.batching import Batcher
    from service.values import Recommendation, Request

TIMEOUT_S = 10


def run(test: Coroutine[object, object, None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test, TIMEOUT_S)

    asyncio.run(limited())


async def recommend(batcher: Batcher, request: Request) -> Recommendation:
    """Ask as the desk does."""
    answer: asyncio.Future[Recommendation] = asyncio.get_running_loop().create_future()
    batcher.take(request, answer)
    try:
        return await answer
    except asyncio.CancelledError:
        batcher.sweep_soon()
        raise
