"""What every replica that computes counts, on its way to analytics and to Prometheus."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from mixpeek_ray.analytics.recorder import TrafficRecorder
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.analytics import ensure_analytics
from mixpeek_ray.serving.metrics import ReplicaObserver
from mixpeek_ray.serving.traffic import TrafficFlusher


class ReplicaCounts:
    """The observer of one replica, whose counts are reported every few seconds; used from its event loop."""

    def __init__(self, settings: Settings, analytics: Any, *, application: str) -> None:
        recorder = TrafficRecorder()
        self.observer = ReplicaObserver(recorder, application=application)
        self._flusher = TrafficFlusher(
            recorder, analytics, period_s=settings.analytics_flush_s, before=self.observer.export
        )
        self._flushing = asyncio.create_task(self._flusher.keep_flushing())

    @classmethod
    async def connect(cls, settings: Settings, *, application: str) -> Self:
        """Return the counts of a replica of ``application``, all of them zero."""
        return cls(settings, await asyncio.to_thread(ensure_analytics, settings), application=application)

    async def close(self) -> None:
        """Report what was counted since the last report; the replica has answered its last request."""
        await self._flusher.flush()
