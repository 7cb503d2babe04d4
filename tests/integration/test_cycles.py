"""Models that come and go leave nothing behind; `benchmarks.deploy_cycles` does it a thousand times."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx

from tests.integration.conftest import Platform, eventually
from tests.integration.graphs import multiplier
from tests.integration.models import deploy, upload
from tests.integration.processes import pids
from tests.integration.test_faults import stored_files

WARM_UP, CYCLES = 3, 20
# 4 MiB of weights: Ray sends what is small with its reply, and shares the rest.
WIDTH = 1024
WEIGHTS_BYTES = WIDTH * WIDTH * 4
# What lives on, and has to do with every model.
LASTING = ("ray::ModelRegistry", "ray::ServeReplica:gateway", "ray::ServeReplica:models:")


def cycle(http: httpx.Client, namespace: str, number: int) -> None:
    """Upload a version, deploy it, ask it, undeploy and delete it."""
    answer = upload(http, namespace, multiplier(WIDTH, number), version=f"1.0.{number}", model_format="onnx")
    assert answer.status_code == 200, answer.text
    deploy(http, namespace, answer.json()["model_id"])
    asked = http.post(answer.json()["endpoint"], json={"inputs": [[1.0] * WIDTH]})
    assert asked.status_code == 200, asked.text
    path = f"/v1/namespaces/{namespace}/models/{answer.json()['model_id']}"
    assert http.post(f"{path}/undeploy").status_code == 200
    assert http.delete(path).status_code == 200


def descriptors(platform: Platform) -> int:
    """Return how many files, pipes and sockets the lasting processes have open."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for title in LASTING for pid in pids(platform, title))


def private_bytes(platform: Platform) -> int:
    """Return the memory of their own that the lasting processes have."""
    statuses = [Path(f"/proc/{pid}/status").read_text() for title in LASTING for pid in pids(platform, title)]
    lines = [line for status in statuses for line in status.splitlines() if line.startswith("RssAnon")]
    return sum(int(line.split()[1]) * 1024 for line in lines)


def files_of_models(platform: Platform) -> set[str]:
    """Return what the store holds; what was counted of requests is not theirs."""
    return {name for name in stored_files(platform) if not name.startswith("analytics/")}


def test_models_that_come_and_go_leave_nothing(
    platform: Platform, http: httpx.Client, driver: Any, namespace: str
) -> None:
    def free_bytes() -> int:
        return int(driver.available_resources()["object_store_memory"])

    # What the first ones start stays: replicas, threads, arenas.
    for number in range(WARM_UP):
        cycle(http, namespace, number)
    # A replica holds an undeployed model until it asks again which are deployed.
    before_free, before_files = free_bytes(), files_of_models(platform)
    before_open, before_private = descriptors(platform), private_bytes(platform)
    for number in range(WARM_UP, WARM_UP + CYCLES):
        cycle(http, namespace, number)
    eventually(lambda: free_bytes() > before_free - WEIGHTS_BYTES, what="the object store as empty as before")
    assert files_of_models(platform) == before_files
    # One left by each would be twenty.
    eventually(lambda: descriptors(platform) < before_open + CYCLES // 2, what="the descriptors of before")
    grown = CYCLES // 2 * WEIGHTS_BYTES
    eventually(lambda: private_bytes(platform) < before_private + grown, what="the memory of before")
