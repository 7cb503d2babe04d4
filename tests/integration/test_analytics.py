"""Analytics on a real platform: figures that agree with the load."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tiny_models import tiny_model

from tests.integration.conftest import Platform, eventually
from tests.integration.text_models import CATALOG, provide

__all__ = ["tiny_model"]

MODELS, ENGINE = "/v1/analytics/inference/performance", "/v1/analytics/performance/engine"
REQUESTS, REFUSED = 60, 7


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_model) -> Iterator[Platform]:
    """A platform of this module's own: nobody else's requests are counted."""
    folder: Path = tmp_path_factory.mktemp("analytics")
    (folder / "models").mkdir()
    (folder / "models.yaml").write_text(CATALOG)
    provide(folder / "models", {"tiny-dense": tiny_model("bert")})
    running = Platform.prepare(
        folder / "home",
        MIXPEEK_MODEL_CATALOG=str(folder / "models.yaml"),
        MIXPEEK_MODELS_DIR=str(folder / "models"),
        MIXPEEK_ANALYTICS_FLUSH_S="1",
    )
    running.start()
    yield running
    running.stop()


def figures(http: httpx.Client, name: str = "tiny-dense") -> dict:
    (model,) = http.get(MODELS, params={"model_name": name}).raise_for_status().json() or [{"requests": 0}]
    return model


def embed(http: httpx.Client, count: int = 1, model: str = "tiny-dense") -> httpx.Response:
    return http.post("/v1/embeddings", json={"model": model, "input": ["the quick fox"] * count})


def test_figures_agree_with_the_load(measured):
    with measured.client() as http:
        assert http.get(MODELS).json() == []
        embed(http).raise_for_status()
        latencies_ms, tokens = [], 0
        for _ in range(REQUESTS):
            began_s = time.perf_counter()
            answer = embed(http, count=2).raise_for_status()
            latencies_ms.append((time.perf_counter() - began_s) * 1_000)
            tokens += answer.json()["usage"]["total_tokens"]
        for _ in range(REFUSED):
            assert http.post("/v1/embeddings/sparse", json={"model": "tiny-dense", "input": "a"}).status_code == 422
        # By way of the gateway it is counted where it is computed, once.
        raw = http.post("/v1/inference", json={"model": "tiny-dense", "inputs": {"text": "fox"}}).raise_for_status()
        tokens += raw.json()["tokens_used"]["total"]
        found = eventually(lambda: (f := figures(http))["requests"] >= REQUESTS + 2 + REFUSED and f, what="the figures")
        assert found["requests"] == REQUESTS + 2 + REFUSED
        assert (found["errors"], found["server_errors"]) == (REFUSED, 0)
        assert found["items"] == 2 * REQUESTS + 2
        assert found["tokens"] > tokens
        # The replica's part of what the client waited for.
        assert 0 < found["p50_latency_ms"] <= statistics.median(latencies_ms) * 1.02
        engine = http.get(ENGINE, params={"hours": 1, "group_by": "day"}).json()
        assert engine["summary"]["total_executions"] == REQUESTS + 2
