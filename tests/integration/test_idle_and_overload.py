"""Families that nobody uses cost nothing and come back; too many requests are told so; requests are traced.

A platform of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tiny_models import tiny_model

from tests.integration.conftest import Platform, eventually
from tests.integration.processes import pids
from tests.integration.text_models import CATALOG, provide
from tests.support.trace_collector import TraceCollector

__all__ = ["tiny_model"]

REPLICA = "ray::ServeReplica:embeddings"


@pytest.fixture(scope="module")
def collector() -> Iterator[TraceCollector]:
    """Where the platform sends its traces."""
    collector = TraceCollector()
    yield collector
    collector.stop()


@pytest.fixture(scope="module")
def hasty(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path], collector: TraceCollector
) -> Iterator[Platform]:
    """A platform that lets go of what is idle within seconds, and lets nobody wait for long."""
    folder = tmp_path_factory.mktemp("hasty")
    (folder / "models").mkdir()
    (folder / "models.yaml").write_text(CATALOG)
    provide(folder / "models", {"tiny-dense": tiny_model("bert")})
    platform = Platform.prepare(
        folder / "home",
        MIXPEEK_MODEL_CATALOG=str(folder / "models.yaml"),
        MIXPEEK_MODELS_DIR=str(folder / "models"),
        MIXPEEK_MODEL_IDLE_S="4",
        MIXPEEK_MAX_QUEUE_S="0.05",
        MIXPEEK_OTLP_ENDPOINT=collector.endpoint,
        MIXPEEK_TRACE_RATIO="0",
    )
    platform.start()
    yield platform
    platform.stop()


@pytest.mark.timeout(240)
def test_a_family_sleeps_when_nobody_uses_it_and_wakes_without_an_error(hasty: Platform) -> None:
    asked = {"model": "tiny-dense", "input": "the fox"}
    assert not pids(hasty, REPLICA)
    with hasty.client() as http:
        first = http.post("/v1/embeddings", json=asked)
        assert first.status_code == 200, first.text
        assert len(pids(hasty, REPLICA)) == 1
        eventually(lambda: not pids(hasty, REPLICA), timeout_s=90, what="the end of the idle replica")

        def let_go() -> bool:
            (listed,) = [model for model in http.get("/v1/models").json()["data"] if model["id"] == "tiny-dense"]
            return bool(listed["availability"] == "available")

        eventually(let_go, what="the weights let go")
        again = http.post("/v1/embeddings", json=asked)
    assert again.status_code == 200, again.text
    assert again.json()["data"] == first.json()["data"]


@pytest.mark.timeout(240)
def test_overload_is_a_429_that_says_when_to_come_back_and_nothing_else(hasty: Platform) -> None:
    asked = {"model": "tiny-dense", "input": ["the quick brown fox " * 12] * 256}
    with hasty.client() as http, ThreadPoolExecutor(40) as threads:
        assert http.post("/v1/embeddings", json=asked).status_code == 200
        answers: list[httpx.Response] = list(threads.map(lambda _: http.post("/v1/embeddings", json=asked), range(400)))
        counts = Counter(answer.status_code for answer in answers)
        assert set(counts) == {200, 429}, counts
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["Retry-After"]) >= 1
                assert answer.json()["error"]["code"] == "overloaded"
        assert http.post("/v1/embeddings", json=asked).status_code == 200


@pytest.mark.timeout(240)
def test_a_traced_request_is_one_trace_from_the_gateway_to_the_model(
    hasty: Platform, collector: TraceCollector
) -> None:
    trace_id, text = "0af7651916cd43dd8448eb211c80319c", "a text of its own"
    asked = {"inference_name": "tiny-dense", "inputs": {"text": text}}
    with hasty.client() as http:
        answer = http.post("/v1/inference", json=asked, headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})
        assert answer.status_code == 200, answer.text
        # Not traced: its caller does not ask for it, and none is chosen.
        assert http.post("/v1/inference", json=asked).status_code == 200

    def arrived() -> bool:
        spans = list(collector.spans)
        applications = {span.attributes.get("app") for span in spans}
        return {"gateway", "embeddings"} <= applications and any(
            span.attributes.get("mixpeek.model") == "tiny-dense" for span in spans
        )

    eventually(arrived, what="the spans of gateway and model")
    assert {span.trace_id for span in collector.spans} == {trace_id}
    assert {span.service for span in collector.spans} == {"mixpeek-ray"}
    assert text not in repr(collector.spans)
