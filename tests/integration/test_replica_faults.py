"""hardening.md's faults 3 and 4 where requests are answered: a killed controller, a killed model server."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Platform, eventually
from tests.integration.graphs import repeater
from tests.integration.models import deploy, upload
from tests.integration.processes import kill, pids

POOL = "ray::ServeReplica:models:"
CONTROLLER = "ray::ServeController"
MATRIX = [[0.5] * 64] * 64
# Far more than any test waits for.
ENDLESS = 10**9

pytestmark = pytest.mark.usefixtures("whole_afterwards")


@pytest.fixture
def endpoint(http: httpx.Client, namespace: str) -> str:
    """The endpoint of a model that computes for as long as it is asked to, open in a replica."""
    answer = upload(http, namespace, repeater(), model_format="onnx")
    assert answer.status_code == 200, answer.text
    deploy(http, namespace, answer.json()["model_id"])
    path: str = answer.json()["endpoint"]
    assert ask(http, path).status_code == 200
    return path


def ask(http: httpx.Client, path: str, times: int = 1) -> httpx.Response:
    return http.post(path, json={"inputs": {"times": times, "matrix": MATRIX}})


@contextmanager
def callers(platform: Platform, path: str) -> Iterator[list[Any]]:
    """Call the endpoint without a pause; provides the statuses, or what broke."""
    met: list[Any] = []
    ended = threading.Event()

    def call() -> None:
        with platform.client() as client:
            while not ended.is_set():
                try:
                    met.append(ask(client, path).status_code)
                except httpx.TransportError as error:
                    met.append(repr(error))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield met
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def cpu_ticks(pid: int) -> int:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_killed_controller_fails_no_inference(platform: Platform, http: httpx.Client, endpoint: str) -> None:
    with callers(platform, endpoint) as met:
        eventually(lambda: len(met) > 10, what="answers")
        killed = kill(platform, CONTROLLER)
        eventually(lambda: any(pid != killed for pid in pids(platform, CONTROLLER)), what="another controller")
        after = len(met)
        eventually(lambda: len(met) > after + 100, what="answers under the new controller")
    assert set(met) == {200}


def test_a_killed_model_server_fails_only_what_it_had_begun(
    platform: Platform, http: httpx.Client, endpoint: str
) -> None:
    (server,) = pids(platform, POOL)
    with ThreadPoolExecutor(2) as pool, platform.client() as first, platform.client() as second:
        idle = cpu_ticks(server)
        begun = [pool.submit(ask, client, endpoint, ENDLESS) for client in (first, second)]
        half_a_second = os.sysconf("SC_CLK_TCK") // 2
        eventually(lambda: cpu_ticks(server) > idle + half_a_second, what="the server at work")
        assert kill(platform, POOL) == server
        # Until the kernel has closed its sockets, it takes requests that nobody will answer.
        eventually(lambda: not Path(f"/proc/{server}").exists(), what="its end")
        # Asked while nobody is there who could answer.
        with platform.client() as caller:
            assert ask(caller, endpoint).status_code == 200
        for answer in begun:
            try:
                assert answer.result().status_code >= 500
            except httpx.TransportError:
                continue
    with callers(platform, endpoint) as met:
        eventually(lambda: len(met) > 50, what="answers of the new server")
    assert set(met) == {200}
