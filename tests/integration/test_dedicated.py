"""A model that asks for more than the pool has is served by an application of its own, with what it asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from tritonclient.http import InferenceServerClient, InferInput

from tests.integration.conftest import Platform, eventually
from tests.integration.models import tar_gz
from tests.integration.processes import kill, pids
from tests.integration.test_formats import GIVEN, onnx_files, small_module
from tests.integration.test_pool import outputs, served

# Of every model's application.
REPLICA = "ray::ServeReplica:model-"
# What starts and deletes those.
CONTROL = "ray::DedicatedApplications"
# More than the pool takes, and less than what two cores have left beside the families that are awake.
CPUS = 1.2

pytestmark = [pytest.mark.usefixtures("whole_afterwards"), pytest.mark.timeout(240)]


@pytest.fixture
def source() -> torch.nn.Module:
    torch.manual_seed(6)
    return small_module()


@pytest.fixture
def expected(source: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = source(torch.from_numpy(GIVEN)).numpy()
    return found


@pytest.fixture
def serve_large(platform: Platform, http: httpx.Client, namespace: str, source: torch.nn.Module) -> Iterator[Any]:
    """Return a function that deploys a model which does not fit the pool, and returns its endpoint."""

    def serve(name: str = "model") -> str:
        archive = tar_gz(onnx_files(source, external=False))
        return served(http, namespace, archive, "onnx", name, num_cpus=str(CPUS), memory_gb="0.25")

    yield serve
    for model in http.get(f"/v1/namespaces/{namespace}/models").json()["models"]:
        http.post(f"/v1/namespaces/{namespace}/models/{model['model_id']}/undeploy")
    # Others need the CPUs.
    eventually(lambda: not pids(platform, REPLICA), what="the end of the replicas")


def management_path(endpoint: str) -> str:
    _, _, namespace_id, model_id = endpoint.split("/")
    return f"/v1/namespaces/{namespace_id}/models/{model_id}"


def is_deployed(http: httpx.Client, endpoint: str) -> bool:
    answer = http.get(management_path(endpoint))
    return answer.status_code == 200 and answer.json()["model"]["deployment_status"] == "deployed"


def own_applications() -> set[str]:
    """Return the names of Serve's applications that were made for models."""
    from ray import serve

    return {name for name in serve.status().applications if name.startswith("model-")}


def test_it_is_served_with_what_it_asked_for_and_gives_it_back(
    platform: Platform, http: httpx.Client, driver: Any, namespace: str, expected: np.ndarray, serve_large: Any
) -> None:
    from ray.util.state import list_actors

    free = driver.available_resources()["CPU"]
    # Whoever comes after it goes on.
    kill(platform, CONTROL)
    endpoint = serve_large()
    document = http.get(management_path(endpoint)).json()["model"]
    assert document["deployment_info"]["served_by"] == "dedicated"
    # Nobody wakes it without a key.
    with httpx.Client(base_url=platform.url, timeout=120) as stranger:
        assert stranger.post(endpoint, json={"inputs": GIVEN.tolist()}).status_code == 401
    assert not pids(platform, REPLICA)

    np.testing.assert_allclose(outputs(http, endpoint, GIVEN.tolist())["result"], expected, atol=1e-5)
    (replica,) = [
        actor
        for actor in list_actors(detail=True, limit=1_000)
        if actor.state == "ALIVE" and (actor.name or "").startswith("SERVE_REPLICA::model-")
    ]
    assert replica.required_resources["CPU"] == CPUS
    assert replica.required_resources["memory"] == 2**28

    wrong = http.post(endpoint, json={"inputs": {"given": [[0.5] * 63]}})
    assert (wrong.status_code, wrong.json()["error"]["details"]["field"]) == (422, "inputs.given"), wrong.text
    given = InferInput("given", list(GIVEN.shape), "FP32")
    given.set_data_from_numpy(GIVEN)
    headers = {"Authorization": f"Bearer {platform.api_key}"}
    with InferenceServerClient(f"127.0.0.1:{platform.port}") as triton:
        answer = triton.infer(endpoint.removeprefix("/models/"), [given], headers=headers)
    np.testing.assert_allclose(answer.as_numpy("result"), expected, atol=1e-5)

    # The registry's silence is no reason to take anything away.
    running = pids(platform, REPLICA)
    kill(platform, "ray::ModelRegistry")
    np.testing.assert_allclose(outputs(http, endpoint, GIVEN.tolist())["result"], expected, atol=1e-5)
    eventually(lambda: is_deployed(http, endpoint), what="the registry")
    kill(platform, CONTROL)

    # The second one of this size finds no room beside it, and says so.
    second = serve_large("second")
    refused = http.post(second, json={"inputs": GIVEN.tolist()})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable"), refused.text
    assert f"CPU: {CPUS:g} needed" in refused.json()["error"]["message"]
    assert int(refused.headers["Retry-After"]) > 0
    assert pids(platform, REPLICA) == running

    for each in (second, endpoint):
        assert http.post(f"{management_path(each)}/undeploy").status_code == 200
    eventually(lambda: not own_applications(), what="the end of the applications")
    # But for the pool's own replicas, which are awake now.
    eventually(lambda: driver.available_resources()["CPU"] > free - CPUS / 2, what="the CPUs")


def test_a_crash_costs_only_what_was_being_computed_and_swaps_cost_nothing(
    platform: Platform, http: httpx.Client, driver: Any, expected: np.ndarray, serve_large: Any
) -> None:
    endpoint = serve_large()
    outputs(http, endpoint, GIVEN.tolist())
    finished = threading.Event()
    answers: list[list[httpx.Response]] = [[], []]

    def load(found: list[httpx.Response]) -> None:
        with platform.client() as client:
            while not finished.is_set():
                found.append(client.post(endpoint, json={"inputs": GIVEN.tolist()}))

    def has_ended(status: int, more_than: int = 0) -> bool:
        return all(len(found) > more_than and found[-1].status_code == status for found in answers)

    threads = [threading.Thread(target=load, args=(found,)) for found in answers]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: has_ended(200), what="answers")
        killed = kill(platform, REPLICA)
        eventually(lambda: set(pids(platform, REPLICA)) - {killed}, what="another replica")
        longest = max(map(len, answers))
        eventually(lambda: has_ended(200, longest), timeout_s=60, what="answers of another replica")
        lost = [answer for found in answers for answer in found if answer.status_code != 200]
        assert len(lost) <= len(answers), [answer.text for answer in lost]
        assert all(answer.status_code == 503 for answer in lost), [answer.text for answer in lost]
        before = [len(found) for found in answers]

        path = management_path(endpoint)
        for action, status in (("undeploy", 409), ("deploy", 200), ("undeploy", 409)):
            assert http.post(f"{path}/{action}").status_code == 200
            eventually(lambda status=status: has_ended(status), timeout_s=60, what=f"status {status}")
        eventually(lambda: not own_applications(), what="the end of the application")
        assert http.post(f"{path}/deploy").status_code == 200
        eventually(lambda: has_ended(200), timeout_s=60, what="answers of a new application")
        assert http.delete(path).status_code == 200
        eventually(lambda: has_ended(404), what="the end of its answers")
    finally:
        finished.set()
        for thread in threads:
            thread.join()
    for found, start in zip(answers, before, strict=True):
        for answer in found[start:]:
            assert answer.status_code in (200, 404, 409), answer.text
            if answer.status_code == 200:
                np.testing.assert_allclose(answer.json()["outputs"]["result"], expected, atol=1e-5)
