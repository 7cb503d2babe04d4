"""Analytics: what became of an organisation's inference requests."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query

from mixpeek_ray.analytics.records import BUILTIN
from mixpeek_ray.analytics.report import Grouping
from mixpeek_ray.api.analytics_schemas import (
    EnginePerformanceResponse,
    ModelPerformanceDocument,
    present_engine_performance,
    present_model_performance,
)
from mixpeek_ray.api.dependencies import CurrentPrincipal
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.schemas import ErrorResponse
from mixpeek_ray.core.errors import ValidationError

_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (401, 403, 422, 503)}
# The contract's range: a month, which is as long as traffic is kept by default.
_MAX_HOURS = 720
_DEFAULT_HOURS = 24

_OptionalHours = Annotated[int | None, Query(ge=1, le=_MAX_HOURS, description="The last hours; default: 24.")]


def build_analytics_router(platform: Platform, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> APIRouter:
    """Return the routes under ``/v1/analytics``."""
    router = APIRouter(prefix="/v1/analytics", tags=["Analytics"], responses=_ERRORS)

    @router.get("/inference/performance")
    async def inference_performance(
        principal: CurrentPrincipal,
        model_name: Annotated[
            str | None, Query(max_length=256, description="A model's name, its id, or `{namespace}/{model_id}`.")
        ] = None,
        hours: Annotated[int, Query(ge=1, le=_MAX_HOURS)] = _DEFAULT_HOURS,
    ) -> list[ModelPerformanceDocument]:
        """Tell how each model and version did for your organization: requests, errors, latencies, throughput."""
        end = now()
        models = await platform.analytics.by_model(principal, model_name, end - timedelta(hours=hours), end)
        return [present_model_performance(model, builtin=BUILTIN) for model in models]

    @router.get("/performance/engine")
    async def engine_performance(
        principal: CurrentPrincipal,
        hours: _OptionalHours = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        group_by: Grouping = Grouping.HOUR,
    ) -> EnginePerformanceResponse:
        """Tell how all models together did for your organization over time; older than yesterday by the hour."""
        start, end = _range(hours, start_date, end_date, now())
        return present_engine_performance(await platform.analytics.over_time(principal, start, end, group_by))

    return router


def _range(
    hours: int | None, start_date: datetime | None, end_date: datetime | None, now: datetime
) -> tuple[datetime, datetime]:
    end = _utc(end_date) if end_date is not None else now
    if start_date is None:
        return end - timedelta(hours=hours or _DEFAULT_HOURS), end
    if hours is not None:
        raise _refused("hours and start_date both say where to begin: send one of them.", "hours")
    start = _utc(start_date)
    if start >= end:
        raise _refused("start_date is not before end_date: exchange them.", "start_date")
    return start, end


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _refused(message: str, field: str) -> ValidationError:
    found = {"loc": ["query", field], "msg": message, "type": "value_error"}
    return ValidationError(message, validation_errors=[found])
