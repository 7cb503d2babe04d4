"""Health answers, whatever is broken."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mixpeek_ray.api.routes import health as health_routes

pytestmark = pytest.mark.anyio


async def _health(api, query: str = "") -> dict:
    async with api.client(key=None) as client:
        answer = await client.get(f"/v1/health{query}")
    assert answer.status_code == 200
    return answer.json()


async def test_ok(api):
    body = await _health(api)
    assert (body["status"], body["errors"]) == ("OK", None)
    assert body["data"] == {
        "cache": True,
        "metadata": True,
        "vector_store": True,
        "object_storage": True,
        "task_queue": True,
        "inference": True,
        "analytics": None,
    }
    assert body["meta"]["ingress"] == "haproxy"
    assert body["meta"]["version"]


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ("registry", {"metadata", "inference"}),
        ("object_store_memory", {"cache", "inference"}),
        ("object_storage", {"object_storage"}),
        ("task_queue", {"task_queue"}),
    ],
)
async def test_what_is_down_is_named(api, part, shown):
    api.platform.health_now = replace(api.platform.health_now, **{part: False})
    body = await _health(api)
    assert body["status"] == "DEGRADED"
    assert {name for name, works in body["data"].items() if works is False} == shown
    assert {name for name, error in body["errors"].items() if error is not None} == shown


async def test_a_check_that_fails_is_an_answer(api):
    api.platform.failures["health"] = RuntimeError("/srv/ray exploded")
    body = await _health(api)
    assert (body["status"], body["data"]["metadata"]) == ("DEGRADED", False)
    assert "exploded" not in str(body)


async def test_a_check_that_hangs_is_an_answer(api, monkeypatch):
    async def hang():
        await asyncio.Event().wait()

    monkeypatch.setattr(health_routes, "HEALTH_TIMEOUT_S", 0.01)
    monkeypatch.setattr(api.platform, "health", hang)
    assert (await _health(api))["status"] == "DEGRADED"


async def test_metrics_are_added_on_request(api):
    assert "metrics" not in (await _health(api, "?deep=true"))["meta"]
    figures = (await _health(api, "?deep=true&metrics=true"))["meta"]["metrics"]
    assert figures["check_duration_ms"] >= 0
    assert figures["uptime_s"] >= 0


async def test_liveness_asks_nobody(api):
    async with api.client(key=None) as client:
        assert (await client.get("/v1/health/liveness")).json() == {"status": "OK"}
    assert api.platform.calls == []
