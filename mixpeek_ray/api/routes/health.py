"""Health: always an answer, whatever is broken."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter

from mixpeek_ray.api.ports import Platform, PlatformHealth
from mixpeek_ray.api.schemas import ErrorResponse, HealthData, HealthErrors, HealthResponse, LivenessResponse
from mixpeek_ray.core.logs import get_logger

_log = get_logger("api.health")

# The platform promises an answer within 5 s (see `Platform.health`); past it, that is the finding.
HEALTH_TIMEOUT_S = 5.0
_NOTHING_ANSWERS = PlatformHealth(
    registry=False, object_storage=False, task_queue=False, object_store_memory=False, ingress="unknown"
)


def build_health_router(platform: Platform) -> APIRouter:
    """Return ``/v1/health`` and ``/v1/health/liveness``, which need no key."""
    router = APIRouter(prefix="/v1/health", tags=["Health"], responses={422: {"model": ErrorResponse}})
    started_s = time.monotonic()
    platform_version = version("mixpeek-ray")

    @router.get("")
    async def health(deep: bool = False, metrics: bool = False) -> HealthResponse:  # noqa: ARG001
        """Tell what works. Every check is a deep one; `metrics` adds figures to `meta`."""
        began_s = time.monotonic()
        found = await _checked(platform)
        meta: dict[str, Any] = {"ingress": found.ingress, "version": platform_version}
        if metrics:
            now_s = time.monotonic()
            meta["metrics"] = {"check_duration_ms": (now_s - began_s) * 1000, "uptime_s": now_s - started_s}
        return _present(found, meta)

    @router.get("/liveness")
    async def liveness() -> LivenessResponse:
        """Tell that this replica answers, without asking anything else."""
        return LivenessResponse()

    return router


async def _checked(platform: Platform) -> PlatformHealth:
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            return await platform.health()
    except Exception:  # noqa: BLE001 -- health answers whatever is broken, and the log says what
        _log.exception("the health check itself failed")
        return _NOTHING_ANSWERS


def _present(found: PlatformHealth, meta: dict[str, Any]) -> HealthResponse:
    inference = found.registry and found.object_store_memory
    errors = HealthErrors(
        cache=None if found.object_store_memory else "The cluster's memory for weights does not answer or is full.",
        metadata=None if found.registry else "The model registry does not answer.",
        object_storage=None if found.object_storage else "The store of archives does not answer.",
        task_queue=None if found.task_queue else "The cluster takes no tasks.",
        inference=None if inference else "Models that are not loaded yet cannot be loaded now.",
    )
    data = HealthData(
        cache=found.object_store_memory,
        metadata=found.registry,
        object_storage=found.object_storage,
        task_queue=found.task_queue,
        inference=inference,
    )
    is_ok = errors == HealthErrors()
    return HealthResponse(status="OK" if is_ok else "DEGRADED", data=data, errors=None if is_ok else errors, meta=meta)
