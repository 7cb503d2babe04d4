"""What the analytics routes need, without knowing how it is done."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from mixpeek_ray.analytics.records import EnginePerformance, ModelPerformance
from mixpeek_ray.analytics.report import Grouping
from mixpeek_ray.core.records import Principal


class Analytics(Protocol):
    """What became of the requests of the principal's organisation; those of the last seconds may be missing.

    Both raise ``UnavailableError`` and ``StorageUnavailableError``.
    """

    async def by_model(
        self, principal: Principal, model_name: str | None, start: datetime, end: datetime
    ) -> Sequence[ModelPerformance]:
        """Return how each model and version did, the busiest first; see ``performance_by_model`` for names."""

    async def over_time(
        self, principal: Principal, start: datetime, end: datetime, grouping: Grouping
    ) -> EnginePerformance:
        """Return the latencies of all answered requests, by bucket of time and in sum."""
