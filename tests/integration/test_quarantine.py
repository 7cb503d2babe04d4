"""A model whose native code crashes what computes it: others go on, and the second time it is taken out of service."""

from __future__ import annotations

import io
import platform as machine
from typing import Any

import httpx
import pytest
import torch

from tests.integration.conftest import Platform, eventually
from tests.integration.graphs import divider
from tests.integration.models import deploy, tar_gz, upload
from tests.integration.processes import kill, pids

POOL = "ray::ServeReplica:models:"
REGISTRY = "ray::ModelRegistry"
LOWEST = -(2**63)

pytestmark = [
    pytest.mark.usefixtures("whole_afterwards"),
    pytest.mark.timeout(180),
    pytest.mark.skipif(machine.machine() != "x86_64", reason="other processors divide the lowest number by -1"),
]


class Division(torch.nn.Module):
    """What the graph of ``divider`` does, as a program; it has a weight because every model must."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False)

    def forward(self, number: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
        return torch.div(number, divisor * self.one, rounding_mode="trunc")


def program() -> bytes:
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(Division()), content)
    return tar_gz({"model.pt": content.getvalue()})


def endpoint_of(http: httpx.Client, namespace: str, archive: bytes, model_format: str, name: str) -> str:
    answer = upload(http, namespace, archive, name=name, model_format=model_format)
    assert answer.status_code == 200, answer.text
    deploy(http, namespace, answer.json()["model_id"])
    endpoint: str = answer.json()["endpoint"]
    return endpoint


def ask(http: httpx.Client, endpoint: str, number: int, divisor: int) -> httpx.Response:
    return http.post(endpoint, json={"inputs": {"number": [number], "divisor": [divisor]}})


def crash(http: httpx.Client, endpoint: str) -> None:
    """Send what ends the process that computes it."""
    try:
        assert ask(http, endpoint, LOWEST, -1).status_code >= 500
    except httpx.TransportError:
        return


def model_at(http: httpx.Client, endpoint: str) -> Any:
    """Return what the API says of a model; None while the registry is away."""
    namespace, model_id = endpoint.split("/")[2:]
    answer = http.get(f"/v1/namespaces/{namespace}/models/{model_id}")
    return answer.json()["model"] if answer.status_code == 200 else None


def is_quarantined(http: httpx.Client, endpoint: str) -> bool:
    model = model_at(http, endpoint)
    return bool(model and (model["failure"] or {}).get("code") == "model_quarantined")


def check_refused(http: httpx.Client, endpoint: str) -> None:
    answer = ask(http, endpoint, 6, 2)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_quarantined"), answer.text
    assert "Floating point exception" in answer.json()["error"]["message"]


def test_a_model_that_crashes_its_replica_twice_is_taken_out_of_service(
    platform: Platform, http: httpx.Client, namespace: str
) -> None:
    guilty = endpoint_of(http, namespace, divider(), "onnx", "guilty")
    innocent = endpoint_of(http, namespace, divider(), "onnx", "innocent")
    for endpoint in (guilty, innocent):
        assert ask(http, endpoint, 6, 2).json()["outputs"] == {"result": [3]}
    for crashes in (1, 2):
        (replica,) = pids(platform, POOL)
        crash(http, guilty)
        # The others are answered by the next replica, which then has told the registry.
        eventually(lambda: ask(http, innocent, 6, 2).status_code == 200, timeout_s=60, what="the next replica")
        assert replica not in pids(platform, POOL)
        assert is_quarantined(http, guilty) == (crashes == 2)
    check_refused(http, guilty)
    assert model_at(http, guilty)["deployment_status"] == "failed"
    kill(platform, REGISTRY)
    eventually(lambda: is_quarantined(http, guilty), what="the quarantine, remembered")
    eventually(lambda: ask(http, innocent, 6, 2).status_code == 200, what="the other model")
    check_refused(http, guilty)
    deploy(http, namespace, model_at(http, guilty)["model_id"])
    eventually(lambda: ask(http, guilty, 6, 2).status_code == 200, what="another chance")
    assert model_at(http, guilty)["failure"] is None


def test_a_program_that_crashes_its_process_twice_is_taken_out_of_service(
    platform: Platform, http: httpx.Client, namespace: str
) -> None:
    guilty = endpoint_of(http, namespace, program(), "pytorch", "guilty")
    innocent = endpoint_of(http, namespace, divider(), "onnx", "innocent")
    assert ask(http, innocent, 6, 2).status_code == 200
    before = pids(platform, POOL)
    for _ in range(2):
        assert ask(http, guilty, 6, 2).json()["outputs"] == {"output_0": [3]}
        answer = ask(http, guilty, LOWEST, -1)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable"), answer.text
    eventually(lambda: is_quarantined(http, guilty), what="the quarantine")
    eventually(lambda: ask(http, guilty, 6, 2).status_code == 409, what="the end of its answers")
    check_refused(http, guilty)
    assert ask(http, innocent, 6, 2).status_code == 200
    assert pids(platform, POOL) == before
