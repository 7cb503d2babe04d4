"""hardening.md's faults 1, 2, 4, 9 and 11 on the session's platform: what must hold while processes die."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch

from tests.integration.conftest import Platform, eventually
from tests.integration.models import archive_of, deploy, deployed, upload
from tests.integration.processes import kill, pids

REGISTRY = "ray::ModelRegistry"
GATEWAY = "ray::ServeReplica:gateway"

pytestmark = pytest.mark.usefixtures("whole_afterwards")


def load_sum(model_id: str, namespace: str) -> float:
    from engine.models.loader import load_namespace_model

    return float(load_namespace_model(model_id, namespace_id=namespace)["w"].sum())


def write_over_weights(model_id: str, namespace: str) -> float:
    from engine.models.loader import load_namespace_model

    weights = load_namespace_model(model_id, namespace_id=namespace)
    weights["w"].zero_()
    return float(weights["w"].sum())


def crash_natively(model_id: str, namespace: str) -> None:
    import ctypes

    load_sum(model_id, namespace)
    ctypes.string_at(0)


def stored_files(platform: Platform) -> set[str]:
    """Return what the store holds, records of the accounts aside."""
    store = platform.home / "store"
    return {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file() and "auth" not in path.parts}


@pytest.fixture
def weights() -> dict[str, Any]:
    return {"w": torch.ones(512, 512)}


@pytest.fixture
def load_task(driver: Any) -> Any:
    return driver.remote(load_sum).options(num_cpus=0)


def test_a_killed_registry_comes_back_with_the_same_list_and_deploys_again(
    platform: Platform, http: httpx.Client, driver: Any, namespace: str, weights: dict[str, Any], load_task: Any
) -> None:
    model_id = deployed(http, namespace, weights)
    upload(http, namespace, archive_of(weights), version="2.0.0")
    before = http.get(f"/v1/namespaces/{namespace}/models").json()
    killed = kill(platform, REGISTRY)

    def listed() -> Any:
        answer = http.get(f"/v1/namespaces/{namespace}/models")
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200 and answer.json()

    after = eventually(listed, timeout_s=10, what="the list")
    assert [model["model_id"] for model in after["models"]] == [model["model_id"] for model in before["models"]]
    assert pids(platform, REGISTRY) != [killed]
    path = f"/v1/namespaces/{namespace}/models/{model_id}"

    def deployed_again() -> bool:
        answer = http.get(path)
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200 and answer.json()["model"]["deployment_status"] == "deployed"

    eventually(deployed_again, what="deployed again")
    assert driver.get(load_task.remote(model_id, namespace), timeout=30) == 512 * 512


def test_loads_under_way_survive_the_registry(
    platform: Platform, http: httpx.Client, driver: Any, namespace: str, weights: dict[str, Any], load_task: Any
) -> None:
    model_id = deployed(http, namespace, weights)
    loads = [load_task.remote(model_id, namespace) for _ in range(8)]
    kill(platform, REGISTRY)
    assert driver.get(loads, timeout=60) == [512 * 512] * 8


def test_loaded_weights_stay_true_when_the_registry_dies(
    platform: Platform, http: httpx.Client, driver: Any, namespace: str, weights: dict[str, Any]
) -> None:
    from tests.integration.test_loading import Plugin

    model_id = deployed(http, namespace, weights)
    worker = driver.remote(Plugin).options(num_cpus=0).remote()
    driver.get(worker.load.remote(model_id, namespace))
    kill(platform, REGISTRY)
    eventually(lambda: http.get(f"/v1/namespaces/{namespace}/models").status_code == 200, what="the registry")
    assert torch.equal(driver.get(worker.read.remote("w")), weights["w"])
    driver.kill(worker)


def half_upload(platform: Platform, namespace: str, body_bytes: int) -> socket.socket:
    """Begin an upload, send half of what was announced, and return the open connection."""
    connection = socket.create_connection(("127.0.0.1", platform.port))
    head = (
        f"POST /v1/namespaces/{namespace}/models HTTP/1.1\r\nHost: test\r\n"
        f"Authorization: Bearer {platform.api_key}\r\n"
        f"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {body_bytes}\r\n\r\n"
        '--B\r\nContent-Disposition: form-data; name="file"; filename="m.tar.gz"\r\n\r\n'
    )
    connection.sendall(head.encode() + os.urandom(body_bytes // 2))
    return connection


def unfinished_uploads(platform: Platform) -> list[int]:
    """Return the sizes of the files that writers have open in the store and nobody sees yet."""
    known = ("manifest.json", "deployment.json", "namespace.json", ".tar.gz")
    store = platform.home / "store"
    paths = [path for path in store.rglob("*") if path.is_file() and "auth" not in path.parts]
    return [path.stat().st_size for path in paths if not path.name.endswith(known)]


def test_a_killed_ingress_replica_leaves_nothing_visible_and_a_retry_succeeds(
    platform: Platform, http: httpx.Client, namespace: str, weights: dict[str, Any]
) -> None:
    with half_upload(platform, namespace, 32 * 2**20) as connection:
        eventually(lambda: unfinished_uploads(platform), what="the upload's first bytes in the store")
        kill(platform, GATEWAY)
        connection.settimeout(30)
        try:
            answer = connection.recv(65536)
        except ConnectionError:
            answer = b""
        assert not answer.startswith(b"HTTP/1.1 2")

    def retried() -> Any:
        answer = upload(http, namespace, archive_of(weights))
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200 and answer.json()

    assert eventually(retried, timeout_s=60, what="the retry")["model_id"] == "model_1_0_0"
    assert http.get(f"/v1/namespaces/{namespace}/models").json()["total"] == 1


def test_a_client_that_disconnects_leaves_nothing(platform: Platform, namespace: str) -> None:
    before = stored_files(platform)
    connection = half_upload(platform, namespace, 16 * 2**20)
    eventually(lambda: stored_files(platform) - before, what="the upload's first bytes in the store")
    connection.close()
    leftover = {f"namespaces/{namespace}/namespace.json"}
    eventually(lambda: stored_files(platform) - before <= leftover, what="the upload's removal")


def test_a_killed_materialize_worker_is_replaced(
    platform: Platform, http: httpx.Client, driver: Any, namespace: str, load_task: Any
) -> None:
    weights = {"w": torch.rand(64, 1024, 1024)}
    answer = upload(http, namespace, archive_of(weights))
    model_id = answer.json()["model_id"]
    assert (
        http.post(f"/v1/namespaces/{namespace}/models/{model_id}/deploy?wait=false").json()["deployment_status"]
        == "pending"
    )
    kill(platform, f"ray::materialize:{namespace}")
    deploy(http, namespace, model_id)
    assert driver.get(load_task.remote(model_id, namespace), timeout=60) == pytest.approx(
        float(weights["w"].sum()), rel=1e-3
    )


def test_of_twenty_uploads_of_one_version_one_wins(platform: Platform, namespace: str) -> None:
    archives = [archive_of({"w": torch.full((8, 8), float(number))}) for number in range(20)]
    before = stored_files(platform)

    def attempt(archive: bytes) -> httpx.Response:
        with platform.client() as client:
            return upload(client, namespace, archive)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(attempt, archives))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] + [409] * 19
    assert {answer.json()["error"]["code"] for answer in answers if answer.status_code == 409} == {"version_exists"}
    with platform.client() as client:
        assert client.get(f"/v1/namespaces/{namespace}/models").json()["total"] == 1
    new = sorted(path.rsplit("/", 1)[-1] for path in stored_files(platform) - before)
    assert [name.endswith(".tar.gz") or name for name in new] == [True, "manifest.json", "namespace.json"]


def outcome(driver: Any, load: Any) -> float | str:
    """Return what a load gave, or the code of the error it ended with."""
    try:
        return float(driver.get(load, timeout=60))
    except driver.exceptions.RayTaskError as error:
        return str(error.cause.code)


def test_a_delete_during_loads_ends_in_one_defined_state(
    http: httpx.Client, driver: Any, namespace: str, weights: dict[str, Any], load_task: Any
) -> None:
    model_id = deployed(http, namespace, weights)
    loads = [load_task.remote(model_id, namespace) for _ in range(8)]
    assert http.delete(f"/v1/namespaces/{namespace}/models/{model_id}").status_code == 200
    for load in loads:
        assert outcome(driver, load) in {512 * 512, "model_not_found", "model_busy"}
    assert http.get(f"/v1/namespaces/{namespace}/models/{model_id}").status_code == 404


def test_a_deploy_and_a_delete_at_once_end_in_one_defined_state(
    platform: Platform, http: httpx.Client, namespace: str, weights: dict[str, Any]
) -> None:
    path = f"/v1/namespaces/{namespace}/models"
    for number in range(5):
        model_id = upload(http, namespace, archive_of(weights), version=f"1.0.{number}").json()["model_id"]

        def act(method: str, url: str) -> httpx.Response:
            with platform.client() as client:
                return client.request(method, url)

        with ThreadPoolExecutor(2) as pool:
            deploying = pool.submit(act, "POST", f"{path}/{model_id}/deploy")
            deleting = pool.submit(act, "DELETE", f"{path}/{model_id}")
        assert deleting.result().status_code == 200, deleting.result().text
        answer = deploying.result()
        code = answer.json().get("error", {}).get("code")
        assert answer.status_code == 200 or code in {"model_busy", "model_not_found"}, answer.text
        assert http.get(f"{path}/{model_id}").status_code == 404
    left = {name for name in stored_files(platform) if name.startswith(f"namespaces/{namespace}/models")}
    assert not left


def test_a_plugin_that_crashes_or_scribbles_harms_only_itself(
    http: httpx.Client, driver: Any, namespace: str, weights: dict[str, Any], load_task: Any
) -> None:
    model_id = deployed(http, namespace, weights)
    crash = driver.remote(crash_natively).options(num_cpus=0, max_retries=0).remote(model_id, namespace)
    scribble = driver.remote(write_over_weights).options(num_cpus=0).remote(model_id, namespace)
    assert driver.get(scribble, timeout=60) == 0
    with pytest.raises(driver.exceptions.WorkerCrashedError):
        driver.get(crash, timeout=60)
    assert driver.get(load_task.remote(model_id, namespace), timeout=60) == 512 * 512
    assert http.get("/v1/health").json()["status"] == "OK"
