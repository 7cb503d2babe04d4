"""The analytics routes: whose traffic, of when, and in the contract's shape."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import jsonschema
import pytest

from mixpeek_ray.analytics.recorder import TrafficRecorder
from mixpeek_ray.analytics.records import TrafficKey
from mixpeek_ray.analytics.report import performance_by_model, performance_over_time
from mixpeek_ray.core.errors import UnavailableError

pytestmark = pytest.mark.anyio

MODELS, ENGINE = "/v1/analytics/inference/performance", "/v1/analytics/performance/engine"
AT = datetime(2026, 4, 15, 12, 30, tzinfo=UTC)
# Of the contract: PerformanceMetric, PerformanceSummary and TimeRange.
LATENCIES = {name: {"type": "number"} for name in ("p50_latency_ms", "p95_latency_ms", "p99_latency_ms")}
ENGINE_SCHEMA = {
    "type": "object",
    "required": ["time_range", "metrics"],
    "properties": {
        "time_range": {
            "required": ["start", "end"],
            "properties": {name: {"type": "string", "format": "date-time"} for name in ("start", "end")},
        },
        "metrics": {
            "type": "array",
            "items": {
                "required": ["time_bucket", "execution_count", "avg_latency_ms", "max_latency_ms", *LATENCIES],
                "properties": {
                    "time_bucket": {"type": "string", "format": "date-time"},
                    "execution_count": {"type": "integer"},
                    **LATENCIES,
                },
            },
        },
        "summary": {"properties": {"total_executions": {"type": "integer"}, **LATENCIES}},
    },
}


class Traffic:
    """Analytics over one organisation's requests, which remember when they were asked for."""

    def __init__(self) -> None:
        recorder = TrafficRecorder(clock=AT.timestamp)
        for model, status, code in (
            ("ns_acme/m_1_0_0", 200, ""),
            ("ns_acme/m_1_0_0", 200, ""),
            ("ns_acme/m_1_0_0", 429, "overloaded"),
            ("bge-m3", 200, ""),
        ):
            recorder.record(TrafficKey.of("org_acme", model, status, code), latency_s=0.25, items=2, tokens=8)
        self.rows = recorder.drain()
        self.asked: list[tuple[datetime, datetime]] = []
        self.failure: Exception | None = None

    def _of(self, principal, start, end):
        self.asked.append((start, end))
        if self.failure is not None:
            raise self.failure
        return [row for row in self.rows if row.key.organization_id == principal.organization.organization_id]

    async def by_model(self, principal, model_name, start, end):
        rows = self._of(principal, start, end)
        return performance_by_model(rows, window_s=(end - start).total_seconds(), model_name=model_name)

    async def over_time(self, principal, start, end, grouping):
        return performance_over_time(self._of(principal, start, end), start=start, end=end, grouping=grouping)


@pytest.fixture
def traffic(api) -> Traffic:
    api.platform.analytics = Traffic()
    return api.platform.analytics


async def test_each_model_and_version_is_told(api, traffic):
    async with api.client("sk_reader") as client:
        custom, builtin = (await client.get(MODELS, params={"hours": 2})).json()
    assert {name: custom[name] for name in ("model_name", "model_id", "namespace_id", "version")} == {
        "model_name": "m", "model_id": "m_1_0_0", "namespace_id": "ns_acme", "version": "1.0.0"
    }  # fmt: skip
    assert (custom["requests"], custom["errors"], custom["server_errors"]) == (3, 1, 0)
    assert custom["error_rate"] == pytest.approx(1 / 3)
    assert custom["error_codes"] == {"overloaded": 1}
    assert (custom["items"], custom["tokens"]) == (4, 16)
    assert custom["p50_latency_ms"] == pytest.approx(250, rel=0.02)
    assert custom["mean_latency_ms"] == custom["max_latency_ms"] == 250
    assert custom["requests_per_second"] == pytest.approx(3 / 7_200)
    assert (builtin["namespace_id"], builtin["version"], builtin["requests"]) == (None, None, 1)
    ((start, end),) = traffic.asked
    assert end - start == timedelta(hours=2)


async def test_one_model_only(api, traffic):
    async with api.client() as client:
        for name in ("m", "m_1_0_0", "ns_acme/m_1_0_0"):
            found = (await client.get(MODELS, params={"model_name": name})).json()
            assert [model["model_id"] for model in found] == ["m_1_0_0"]
        assert (await client.get(MODELS, params={"model_name": "nobody"})).json() == []
    assert traffic.asked[0][1] - traffic.asked[0][0] == timedelta(hours=24)


async def test_others_traffic_is_not_told(api, traffic):
    async with api.client("sk_other") as client:
        assert (await client.get(MODELS)).json() == []
        engine = (await client.get(ENGINE)).json()
    assert engine["metrics"] == []
    assert engine["summary"]["total_executions"] == 0


async def test_engine_performance_is_the_contracts(api, traffic):
    async with api.client() as client:
        query = {"start_date": "2026-04-15T12:00:00", "end_date": "2026-04-15T15:00:00+02:00", "group_by": "day"}
        answer = (await client.get(ENGINE, params=query)).json()
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(ENGINE_SCHEMA, format_checker=checker).validate(answer)
    assert answer["time_range"] == {"start": "2026-04-15T12:00:00Z", "end": "2026-04-15T13:00:00Z"}
    (bucket,) = answer["metrics"]
    assert (bucket["time_bucket"], bucket["execution_count"]) == ("2026-04-15T00:00:00Z", 3)
    assert answer["summary"]["total_time_seconds"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        (MODELS, {"hours": 0}, "hours"),
        (MODELS, {"hours": 721}, "hours"),
        (MODELS, {"hours": "many"}, "hours"),
        (MODELS, {"model_name": "m" * 257}, "model_name"),
        (ENGINE, {"hours": 721}, "hours"),
        (ENGINE, {"group_by": "year"}, "group_by"),
        (ENGINE, {"start_date": "yesterday"}, "start_date"),
        (ENGINE, {"start_date": "2026-04-15T12:00:00Z", "end_date": "2026-04-15T12:00:00Z"}, "start_date"),
        (ENGINE, {"start_date": "2026-04-15T12:00:00Z", "hours": 3}, "hours"),
    ],
)
async def test_bad_parameters_are_named(api, traffic, path, query, field):
    async with api.client() as client:
        answer = await client.get(path, params=query)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["validation_errors"][0]["loc"] == ["query", field]
    assert traffic.asked == []


async def test_it_needs_a_key_and_says_when_it_is_down(api, traffic):
    traffic.failure = UnavailableError("Analytics do not answer: try again in a few seconds.")
    for path in (MODELS, ENGINE):
        async with api.client(None) as client:
            assert (await client.get(path)).status_code == 401
        async with api.client() as client:
            assert (await client.get(path)).status_code == 503
