"""Requests that are computed a second time, by another version and for no one: how it would do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mixpeek_ray.core.errors import MixpeekError
from mixpeek_ray.core.logs import get_logger

_log = get_logger(__name__)

# Each holds its whole request in memory, up to 64 MiB of tensors.
_MAX_UNDER_WAY = 4
# A version that takes longer has told enough: its place is for the next request.
_TIMEOUT_S = 60.0


class ShadowTraffic:
    """The shadow requests of one replica, a few at a time: one that finds no place is dropped. Use it from one loop."""

    def __init__(self, *, dropped: Callable[[str], None]) -> None:
        """``dropped`` is told the model of each request that found no place."""
        self._dropped = dropped
        self._under_way: set[asyncio.Task[None]] = set()

    def offer(self, model: str, compute: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Return at once; ``compute`` runs by itself, and whatever becomes of it nobody hears.

        ``model``: what it asks, ``{namespace}/{model_id}``.
        """
        if len(self._under_way) >= _MAX_UNDER_WAY:
            self._dropped(model)
            return
        task = asyncio.create_task(_computed(model, compute))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)


async def _computed(model: str, compute: Callable[[], Coroutine[Any, Any, object]]) -> None:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await compute()
    except (MixpeekError, TimeoutError):
        # Counted as every request is, apart from those that were answered.
        return
    except Exception as error:  # noqa: BLE001  # nobody waits for it, and no traffic may end the replica
        _log.warning("a shadow request failed (%s)", type(error).__name__, extra={"model_id": model})
