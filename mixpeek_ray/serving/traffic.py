"""From what a replica counted to the analytics actor, every few seconds and at the end."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

from mixpeek_ray.analytics.recorder import TrafficRecorder
from mixpeek_ray.analytics.records import TrafficBatch
from mixpeek_ray.core.errors import MixpeekError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.registry.calls import call

_log = get_logger(__name__)

_TIMEOUT_S = 10.0


class TrafficFlusher:
    """Sends what a recorder counted. A replica that is killed loses what it counted since the last flush."""

    def __init__(
        self, recorder: TrafficRecorder, analytics: Any, *, period_s: float, before: Callable[[], None]
    ) -> None:
        """``before``: called before every flush."""
        self._recorder = recorder
        self._before = before
        self._analytics = analytics
        self._period_s = period_s
        self._source = uuid.uuid4().hex
        self._sequence = 0
        self._drained_s = time.time()
        self._unsent: TrafficBatch | None = None
        self._lock = asyncio.Lock()

    async def keep_flushing(self) -> None:
        """Flush every period, until cancelled."""
        while True:
            await asyncio.sleep(self._period_s)
            await self.flush()

    async def flush(self) -> None:
        """Send what was counted so far. What could not be sent is sent first, as the same batch, the next time."""
        self._before()
        async with self._lock:
            while True:
                if self._unsent is None:
                    since_s, self._drained_s = self._drained_s, time.time()
                    rows = self._recorder.drain()
                    if not rows:
                        return
                    self._sequence += 1
                    self._unsent = TrafficBatch(
                        source=self._source, sequence=self._sequence, rows=rows, since_s=since_s
                    )
                try:
                    await call(self._analytics.add.remote(self._unsent), _TIMEOUT_S)
                except MixpeekError as error:
                    _log.warning("traffic not flushed yet: %s", error.code)
                    return
                self._unsent = None
