"""A rollout on the session's platform: a canary from nothing to everything and back, under load."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tiny_models import tiny_model

from tests.integration.conftest import Platform, eventually
from tests.integration.models import deploy, deployed, upload
from tests.integration.processes import kill
from tests.integration.test_faults import load_sum
from tests.integration.test_text_models import archive

__all__ = ["tiny_model"]

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = "ray::ModelRegistry"
STABLE, CANARY = "texts_1_9_0", "texts_1_10_0"
CALLERS = 4
PERFORMANCE = "/v1/analytics/inference/performance"
# A moved alias is in effect everywhere.
SETTLED_S = 2.0


@pytest.fixture
def versions(http: httpx.Client, namespace: str, tiny_model: Callable[..., Path]) -> str:
    """Two deployed versions of an embedding model; returns the alias' route."""
    for version, architecture in (("1.9.0", "bert"), ("1.10.0", "xlm-roberta")):
        packed = archive(tiny_model(architecture))
        made = upload(http, namespace, packed, name="texts", version=version, model_format="huggingface")
        assert made.status_code == 200, made.text
        deploy(http, namespace, made.json()["model_id"])
        # Each is loaded before there is traffic.
        model = f"{namespace}/{made.json()['model_id']}"
        assert http.post("/v1/embeddings", json={"model": model, "input": "warm"}).status_code == 200
        assert http.post(f"/models/{model}", json={"inputs": "warm"}).status_code == 200
    return f"/v1/namespaces/{namespace}/aliases/texts/production"


def point(http: httpx.Client, alias: str, **targets: int) -> dict[str, Any]:
    """Point the alias to these versions and return it."""
    answer = http.put(alias, json={"targets": targets})
    assert answer.status_code == 200, answer.text
    moved: dict[str, Any] = answer.json()["alias"]
    return moved


class Traffic:
    """Callers who embed by the alias, and what each answer said: when it was asked, its status, its version."""

    def __init__(self) -> None:
        self.answers: list[tuple[float, int, str]] = []
        self.ended = threading.Event()

    def call(self, platform: Platform, path: str, body: dict[str, str]) -> None:
        """Embed until the end."""
        with platform.client() as client:
            while not self.ended.is_set():
                asked_at = time.monotonic()
                answer = client.post(path, json=body)
                self.answers.append((asked_at, answer.status_code, answer.headers.get("X-Mixpeek-Model", answer.text)))

    def met_after(self, moment: float, count: int) -> Counter[str]:
        """Return the versions of the first ``count`` requests that were sent after ``moment``."""

        def enough() -> list[str]:
            met = [version for asked_at, _, version in self.answers if asked_at > moment]
            return met if len(met) >= count else []

        return Counter(eventually(enough, timeout_s=60, what=f"{count} answers")[:count])


@contextmanager
def traffic(platform: Platform, namespace: str) -> Iterator[Traffic]:
    """Run callers meanwhile, half of them of each route; none of their requests may fail."""
    running = Traffic()
    model = f"{namespace}/texts@production"
    routes = (("/v1/embeddings", {"model": model, "input": "fox"}), (f"/models/{model}", {"inputs": "fox"}))
    threads = [threading.Thread(target=running.call, args=(platform, *route)) for route in routes * (CALLERS // 2)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.ended.set()
        for thread in threads:
            thread.join()
    assert {status for _, status, _ in running.answers} == {200}, running.answers[-5:]


def test_a_canary_goes_from_nothing_to_everything_and_back_and_no_request_fails(
    platform: Platform, http: httpx.Client, namespace: str, versions: str
) -> None:
    point(http, versions, **{STABLE: 100, CANARY: 0})
    with traffic(platform, namespace) as running:
        for weight in (0, 10, 50, 100):
            moved = point(http, versions, **{STABLE: 100 - weight, CANARY: weight})
            met = running.met_after(time.monotonic() + SETTLED_S, 300)
            assert set(met) <= {STABLE, CANARY}
            # Six standard deviations of 300 draws; none at both ends.
            allowed = 6 * (300 * weight / 100 * (1 - weight / 100)) ** 0.5
            assert abs(met[CANARY] - 300 * weight / 100) <= allowed, (weight, met)
        back = http.post(f"{versions}/rollback")
        assert back.status_code == 200, back.text
        assert back.json()["alias"]["targets"] == {CANARY: 50, STABLE: 50}
        assert back.json()["alias"]["revision"] == moved["revision"] + 1
        half = running.met_after(time.monotonic() + SETTLED_S, 200)
        assert 100 - 43 <= half[CANARY] <= 100 + 43
        for expected in (10, 0):
            assert http.post(f"{versions}/rollback").json()["alias"]["targets"][CANARY] == expected
        assert running.met_after(time.monotonic() + SETTLED_S, 100) == {STABLE: 100}
    entries = http.get(versions).json()["alias"]["history"]
    assert [entry["targets"][CANARY] for entry in entries] == [10, 50, 100, 50, 10, 0]


def test_sticky_callers_stay_where_they_are(http: httpx.Client, namespace: str, versions: str) -> None:
    point(http, versions, **{STABLE: 70, CANARY: 30})
    body = {"model": f"{namespace}/texts@production", "input": "fox"}
    met: dict[str, set[str]] = {}
    for user in [f"user-{number}" for number in range(30)] * 3:
        answer = http.post("/v1/embeddings", json=body, headers={"X-Mixpeek-Sticky": user})
        assert answer.json()["model"] == f"{namespace}/{answer.headers['X-Mixpeek-Model']}"
        met.setdefault(user, set()).add(answer.headers["X-Mixpeek-Model"])
    assert all(len(versions_met) == 1 for versions_met in met.values())
    assert set.union(*met.values()) == {STABLE, CANARY}
    # The gateway and the pool, processes of other applications, choose the same.
    raw = {"inference_name": f"{namespace}/texts@production", "inputs": {"text": "fox"}}
    for user, versions_met in list(met.items())[:10]:
        for path, named in (("/v1/inference", raw), (f"/models/{namespace}/texts@production", {"inputs": "fox"})):
            answer = http.post(path, json=named, headers={"X-Mixpeek-Sticky": user})
            assert {answer.headers["X-Mixpeek-Model"]} == versions_met


def test_versions_in_use_stay(http: httpx.Client, namespace: str, versions: str) -> None:
    point(http, versions, **{STABLE: 1, CANARY: 0})
    models = f"/v1/namespaces/{namespace}/models"
    for model_id in (STABLE, CANARY):
        refused = http.delete(f"{models}/{model_id}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_in_use")
        assert refused.json()["error"]["details"]["aliases"] == ["texts@production"]
    assert http.post(f"{models}/{STABLE}/undeploy").status_code == 409
    latest = http.get(f"{models}/texts@latest")
    assert latest.json()["model"]["model_id"] == latest.headers["X-Mixpeek-Model"] == CANARY
    assert http.post(f"{models}/{CANARY}/undeploy").status_code == 200
    eventually(lambda: http.get(f"{models}/texts@latest").headers.get("X-Mixpeek-Model") == STABLE, what="the next one")
    unserved = http.put(versions, json={"targets": {CANARY: 1}})
    assert (unserved.status_code, unserved.json()["error"]["code"]) == (409, "model_not_deployed")
    point(http, versions, **{STABLE: 1})
    assert http.delete(f"{models}/{CANARY}").status_code == 200


def test_a_shadow_computes_what_another_version_answers(http: httpx.Client, namespace: str, versions: str) -> None:
    made = http.put(versions, json={"targets": {STABLE: 1}, "shadow": {"model_id": CANARY, "percent": 100}})
    assert made.status_code == 200, made.text
    model = f"{namespace}/texts@production"
    routes = (("/v1/embeddings", {"model": model, "input": "fox"}), (f"/models/{model}", {"inputs": "fox"}))
    for path, body in routes * 10:
        answer = http.post(path, json=body)
        assert (answer.status_code, answer.headers["X-Mixpeek-Model"]) == (200, STABLE), answer.text

    def mirrored() -> bool:
        found = http.get(PERFORMANCE, params={"model_name": f"{namespace}/{CANARY}"}).json()
        # Exact where nothing is dropped, which a busy machine may make happen.
        return any(row["shadow"] and 10 <= row["requests"] <= 20 for row in found)

    eventually(mirrored, what="the shadow's figures")
    for action in (http.delete, lambda path: http.post(f"{path}/undeploy")):
        refused = action(f"/v1/namespaces/{namespace}/models/{CANARY}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_in_use")


def test_a_bad_canary_is_rolled_back_by_itself(
    http: httpx.Client, namespace: str, versions: str, tiny_model: Callable[..., Path]
) -> None:
    # A reranker does not take what callers of an embedding model send.
    bad = upload(http, namespace, archive(tiny_model("bert", "classifier")), name="texts", version="2.0.0",
                 model_format="huggingface").json()["model_id"]  # fmt: skip
    deploy(http, namespace, bad)
    point(http, versions, **{STABLE: 100})
    guard = {"max_error_rate": 0.2, "min_requests": 20}
    moved = http.put(versions, json={"targets": {STABLE: 50, bad: 50}, "guard": guard})
    assert moved.status_code == 200, moved.text

    def rolled_back() -> dict[str, Any]:
        for _ in range(20):
            http.post(f"/models/{namespace}/texts@production", json={"inputs": "fox"})
        alias: dict[str, Any] = http.get(versions).json()["alias"]
        return alias if alias["revision"] > moved.json()["alias"]["revision"] else {}

    alias = eventually(rolled_back, timeout_s=60, what="the guard's rollback")
    assert (alias["targets"], alias["key_id"]) == ({STABLE: 100}, "guard")
    assert alias["reason"].startswith(f"{bad}: 100.0% of its ")
    assert alias["history"][0]["undone"]


@pytest.mark.usefixtures("whole_afterwards")
def test_an_alias_survives_the_registry_and_loads_in_a_task(
    platform: Platform, http: httpx.Client, driver: Any, namespace: str
) -> None:
    for version, value in (("1.0.0", 1.0), ("2.0.0", 2.0)):
        deployed(http, namespace, {"w": torch.full((8, 8), value)}, name="weights", version=version)
    alias = f"/v1/namespaces/{namespace}/aliases/weights/production"
    point(http, alias, weights_1_0_0=1)
    point(http, alias, weights_1_0_0=0, weights_2_0_0=1)
    before = http.get(alias).json()
    task = driver.remote(load_sum).options(num_cpus=0)
    assert driver.get(task.remote("weights@production", namespace), timeout=60) == 128.0
    kill(platform, REGISTRY)
    # Asked at once: a load waits until the registry and the weights are back.
    loads = [task.remote(f"weights@{name}", namespace) for name in ("production", "latest", "production")]
    assert driver.get(loads, timeout=60) == [128.0] * 3
    assert http.get(alias).json() == before
    assert http.post(f"{alias}/rollback").json()["alias"]["targets"] == {"weights_1_0_0": 1}
    assert driver.get(task.remote("weights@production", namespace), timeout=60) == 64.0


def test_the_example_rolls_out(
    platform: Platform, namespace: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    archives = []
    for architecture in ("bert", "xlm-roberta"):
        (tmp_path / f"{architecture}.tar.gz").write_bytes(archive(tiny_model(architecture)))
        archives.append(str(tmp_path / f"{architecture}.tar.gz"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "rollout" / "rollout.py"), *archives],
        env=platform.environment
        | {"MIXPEEK_API_URL": platform.url, "MIXPEEK_API_KEY": platform.api_key, "NAMESPACE_ID": namespace},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^\d", done.stdout, re.MULTILINE) == list("123456")
    assert json.loads(done.stdout.splitlines()[-1]) == {"my-model_1_0_0": 100}
