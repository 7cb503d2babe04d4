"""hardening.md's faults 10 and 11 (memory) on a platform of their own, which they bring down."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from mixpeek_ray.cli.processes import descendants
from tests.integration.conftest import Platform, eventually
from tests.integration.graphs import repeater
from tests.integration.models import archive_of, deploy, deployed, upload
from tests.integration.processes import is_gone

LOAD = """
import sys
from engine.models.loader import load_namespace_model
print(float(load_namespace_model(sys.argv[1], namespace_id=sys.argv[2])["w"].sum()))
"""

# A model that does not fit the pool has an application of its own, which nobody but the registry asks for.
LOAD_BESIDE_APPLICATION = (
    LOAD
    + """
import time
from ray import serve
deadline = time.monotonic() + 60
while not any(name.startswith("model-") for name in serve.status().applications):
    assert time.monotonic() < deadline, "the application of the large model is not back"
    time.sleep(0.1)
"""
)

# A plugin that takes memory until somebody stops it, beside one that only loads.
HOG = """
import sys
import ray
from engine.models.loader import load_namespace_model

ray.init(log_to_driver=False)

@ray.remote(num_cpus=0, max_retries=0)
def hog(model_id, namespace):
    load_namespace_model(model_id, namespace_id=namespace)
    taken = []
    while True:
        taken.append(b"x" * (64 << 20))

try:
    ray.get(hog.remote(*sys.argv[1:]))
except ray.exceptions.OutOfMemoryError:
    print("stopped for memory")
print(float(load_namespace_model(sys.argv[1], namespace_id=sys.argv[2])["w"].sum()))
"""

# What the hog may take before Ray's memory monitor stops it, beyond what the machine uses when the platform starts.
HOG_ROOM_BYTES = 4 * 1024**3


def memory_threshold() -> str:
    """Return the share of this machine's memory at which Ray shall stop workers."""
    fields = {}
    with open("/proc/meminfo") as info:
        for line in info:
            name, _, value = line.partition(":")
            fields[name] = int(value.split()[0]) * 1024
    used = fields["MemTotal"] - fields["MemAvailable"] + HOG_ROOM_BYTES
    return f"{min(used / fields['MemTotal'], 0.95):.3f}"


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform that tests may kill."""
    prepared = Platform.prepare(
        tmp_path_factory.mktemp("frail") / "home", RAY_memory_usage_threshold=memory_threshold()
    )
    prepared.start()
    yield prepared
    prepared.command("down")


def test_a_plugin_that_takes_all_memory_is_stopped_alone(frail: Platform) -> None:
    with frail.client() as http:
        model_id = deployed(http, "ns_hog", {"w": torch.ones(256, 256)})
        printed = frail.python(HOG, model_id, "ns_hog").split("\n")
        assert printed[:2] == ["stopped for memory", "65536.0"]
        assert http.get("/v1/health").json()["status"] == "OK"


@pytest.mark.timeout(240)
def test_a_killed_platform_deploys_everything_again_when_it_is_started(frail: Platform) -> None:
    with frail.client() as http:
        kept = deployed(http, "ns_restart", {"w": torch.ones(256, 256)}, name="kept")
        upload(http, "ns_restart", archive_of({"w": torch.ones(2)}), name="uploaded")
        large = upload(http, "ns_restart", repeater(), name="large", model_format="onnx", num_cpus="1.2")
        deploy(http, "ns_restart", large.json()["model_id"])
        before = _models(http)
    supervisor = frail.state["pid"]
    family = [supervisor, *(process.pid for process in descendants(supervisor))]
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # went with its parent
    eventually(lambda: all(is_gone(pid) for pid in family), what="the end of every process")
    frail.start()
    with frail.client() as http:

        def back() -> Any:
            answer = http.get(f"/v1/namespaces/ns_restart/models/{kept}")
            return answer.status_code == httpx.codes.OK and answer.json()["model"]["deployed"]

        eventually(back, what="the model deployed again")
        eventually(lambda: _models(http) == before, what="the others as they were")
    assert float(frail.python(LOAD_BESIDE_APPLICATION, kept, "ns_restart")) == 256 * 256


def _models(http: Any) -> list[tuple[str, str]]:
    found = http.get("/v1/namespaces/ns_restart/models").json()["models"]
    return [(model["model_id"], model["deployment_status"]) for model in found]
