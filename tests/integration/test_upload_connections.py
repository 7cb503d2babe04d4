"""What an upload's body, read past the HTTP server, leaves of the connections around it."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch

from tests.integration.conftest import Platform, eventually
from tests.integration.models import archive_of, upload
from tests.integration.processes import pids

GATEWAY = "ray::ServeReplica:gateway"
MIB = 2**20


def lent_sockets(platform: Platform) -> list[str]:
    """Return the sockets that the gateway's replica holds twice: the server's, and an upload's own."""
    (pid,) = pids(platform, GATEWAY)
    links = Counter(_link(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir())
    return [link for link, times in links.items() if link.startswith("socket:") and times > 1]


def _link(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:
        return ""


def test_an_uploads_body_is_read_past_the_event_loop(platform: Platform, http: httpx.Client, namespace: str) -> None:
    before = set(lent_sockets(platform))
    seen: list[str] = []

    def body() -> Any:
        yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="m.tar.gz"\r\n\r\n' + bytes(4 * MIB)
        seen.extend(eventually(lambda: set(lent_sockets(platform)) - before, what="a socket that an upload reads"))
        assert http.get("/v1/health").status_code == 200
        yield bytes(4 * MIB)

    size = 8 * MIB + 73
    headers = {"Content-Type": "multipart/form-data; boundary=B", "Content-Length": str(size)}
    with platform.client() as uploading:
        answer = uploading.post(f"/v1/namespaces/{namespace}/models", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_multipart")
    assert len(seen) == 1
    eventually(lambda: set(lent_sockets(platform)) <= before, what="the socket's return")


def test_a_clients_connection_outlives_its_uploads(platform: Platform, namespace: str) -> None:
    archive = archive_of({"w": torch.rand(1024, 2048)})
    with platform.client() as client:
        answers = []
        for number in range(5):
            answers.append(upload(client, namespace, archive, version=f"1.0.{number}"))
            answers.append(client.get(f"/v1/namespaces/{namespace}/models"))
        streams = {answer.extensions["network_stream"] for answer in answers}
    assert [answer.status_code for answer in answers] == [200] * 10
    assert answers[-1].json()["total"] == 5
    assert len(streams) == 1, "an upload ended the client's connection"


def test_closed_backends_fail_no_other_request(platform: Platform, namespace: str) -> None:
    archive = archive_of({"w": torch.rand(512, 2048)})

    def work(number: int) -> list[int]:
        with platform.client() as client:
            upload_status = upload(client, namespace, archive, version=f"1.0.{number}").status_code
            return [upload_status, *(client.get("/v1/whoami").status_code for _ in range(20))]

    with ThreadPoolExecutor(4) as pool:
        statuses = [status for found in pool.map(work, range(24)) for status in found]
    assert set(statuses) == {200}
