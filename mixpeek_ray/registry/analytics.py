"""The actor that keeps what replicas count, and tells of it; apart from the registry, whose loop stays free."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from mixpeek_ray.core.errors import MixpeekError, RegistryUnavailableError, UnavailableError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import Principal
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.bootstrap import head_actor
from mixpeek_ray.registry.calls import call
from mixpeek_ray.store.factory import open_store

if TYPE_CHECKING:
    from mixpeek_ray.analytics.recent import RecentRequests
    from mixpeek_ray.analytics.records import EnginePerformance, ModelPerformance, TrafficBatch
    from mixpeek_ray.analytics.report import Grouping

ANALYTICS_NAME = "Analytics"

_log = get_logger(__name__)

# Calls queue here while the actor restarts; the caller's own time limit ends the wait.
_TASK_RETRIES = 5
_CONCURRENCY = 1_000
# Batches that arrive meanwhile are written as one file.
_GATHER_S = 0.5
_TIDY_PERIOD_S = 60.0
# A month of a busy organisation is read in seconds.
_QUERY_TIMEOUT_S = 30.0


class Analytics:
    """Writes batches of traffic to the store, and reads it back; the only writer of it."""

    async def __init__(self, *, store_url: str, retention_days: int) -> None:  # type: ignore[misc]  # Ray awaits it
        # Whoever finds the actor by its name imports this module: pyarrow is for the actor alone.
        from mixpeek_ray.analytics.journal import TrafficJournal
        from mixpeek_ray.analytics.recent import RecentTraffic

        self._journal = TrafficJournal(open_store(store_url), retention=timedelta(days=retention_days))
        self._recent = RecentTraffic()
        self._gathered: list[TrafficBatch] = []
        self._writing: asyncio.Task[None] | None = None
        self._tidying = asyncio.create_task(self._tidy())

    async def add(self, batch: TrafficBatch) -> None:
        """Return once a batch is on the store. Raises ``StorageUnavailableError``: then it may be sent again."""
        self._recent.add(batch)
        self._gathered.append(batch)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        await asyncio.shield(self._writing)

    async def by_model(
        self, organization_id: str, model_name: str | None, start: datetime, end: datetime
    ) -> tuple[ModelPerformance, ...]:
        """Return how an organisation's models did; see ``analytics.report`` for this and what follows."""
        from mixpeek_ray.analytics.report import performance_by_model

        def report() -> tuple[ModelPerformance, ...]:
            rows = self._journal.rows(organization_id, start_s=_seconds(start), end_s=_seconds(end))
            return performance_by_model(rows, window_s=(end - start).total_seconds(), model_name=model_name)

        return await asyncio.to_thread(report)

    async def over_time(
        self, organization_id: str, start: datetime, end: datetime, grouping: Grouping
    ) -> EnginePerformance:
        """Return how all of an organisation's models did, over time."""
        from mixpeek_ray.analytics.report import performance_over_time

        def report() -> EnginePerformance:
            rows = self._journal.rows(organization_id, start_s=_seconds(start), end_s=_seconds(end))
            return performance_over_time(rows, start=start, end=end, grouping=grouping)

        return await asyncio.to_thread(report)

    async def recent(
        self, namespace_id: str, groups: Sequence[Sequence[str]], since_s: float
    ) -> tuple[RecentRequests, ...]:
        """Return the requests to each group of versions, by their ids, that ended after ``since_s``.

        Of the last hour, and as far as this process has lived: what is decided on them waits for enough of them.
        """
        return tuple(self._recent.count(namespace_id, group, since_s=since_s) for group in groups)

    async def _write(self) -> None:
        await asyncio.sleep(_GATHER_S)
        # Whoever comes from now on waits for the next file.
        batches, self._gathered, self._writing = self._gathered, [], None
        await asyncio.to_thread(self._journal.append, batches)

    async def _tidy(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._journal.tidy)
            except MixpeekError as error:
                _log.warning("analytics not tidied: %s", error.message)
            await asyncio.sleep(_TIDY_PERIOD_S)


class AnalyticsClient:
    """Implements ``api.analytics_ports.Analytics`` over the actor; used from a replica's event loop."""

    def __init__(self, analytics: Any) -> None:
        self._analytics = analytics

    async def by_model(
        self, principal: Principal, model_name: str | None, start: datetime, end: datetime
    ) -> Sequence[ModelPerformance]:
        """Return how the models did that the principal's organisation called, the busiest first."""
        asked = self._analytics.by_model.remote(principal.organization.organization_id, model_name, start, end)
        models: Sequence[ModelPerformance] = await _answer(asked)
        return models

    async def over_time(
        self, principal: Principal, start: datetime, end: datetime, grouping: Grouping
    ) -> EnginePerformance:
        """Return how all models together did for the principal's organisation."""
        asked = self._analytics.over_time.remote(principal.organization.organization_id, start, end, grouping)
        performance: EnginePerformance = await _answer(asked)
        return performance


def ensure_analytics(settings: Settings) -> Any:
    """Return a handle of the analytics actor, creating the actor unless it is there."""
    actor = head_actor(Analytics, ANALYTICS_NAME, max_task_retries=_TASK_RETRIES, max_concurrency=_CONCURRENCY)
    return actor.remote(store_url=settings.resolved_store_url, retention_days=settings.analytics_days)


async def _answer(asked: Any) -> Any:
    try:
        return await call(asked, _QUERY_TIMEOUT_S)
    except RegistryUnavailableError:
        raise UnavailableError("Analytics do not answer: try again in a few seconds.") from None


def _seconds(moment: datetime) -> int:
    return int(moment.astimezone(UTC).timestamp())
