"""The application behind a real server and a real socket: what a client on the network sees."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from mixpeek_ray.store.local_store import LocalStore

MIB = 1024**2
PATH = "/v1/namespaces/ns_acme/models"
FORM = {"name": "m", "version": "1.0.0", "model_format": "pytorch"}
KEY = {"Authorization": "Bearer sk_writer"}
KEY_LINE = f"Authorization: {KEY['Authorization']}"


@contextmanager
def _served(app) -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        _wait_for(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)


def _wait_for(condition) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never came true"
        time.sleep(0.005)


def _send(port: int, *pieces: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    for piece in pieces:
        connection.sendall(piece)
    return connection


def _head(*lines: str) -> bytes:
    return "\r\n".join([f"POST {PATH} HTTP/1.1", "Host: platform", *lines, "", ""]).encode()


def _answer(connection: socket.socket) -> tuple[int, dict]:
    with connection, connection.makefile("rb") as stream:
        raw = stream.read()
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.fixture
def local_api(make_api, tmp_path):
    return make_api(store=LocalStore(tmp_path / "store"), max_upload_bytes=64 * MIB, idle_timeout_s=0.5)


def test_an_upload_arrives_whole(local_api):
    archive = os.urandom(9 * MIB + 17)
    with _served(local_api.app) as port:
        answer = httpx.post(
            f"http://127.0.0.1:{port}{PATH}", headers=KEY, data=FORM, files={"file": ("m.tar.gz", archive)}
        )
    assert answer.status_code == 200, answer.text
    assert local_api.store.read(f"archives/{hashlib.sha256(archive).hexdigest()}") == archive


def test_a_client_that_hangs_up_leaves_nothing(local_api, tmp_path):
    head = _head(KEY_LINE, "Content-Type: multipart/form-data; boundary=x", "Content-Length: 9000000")
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n' + bytes(3 * MIB)

    def files() -> list[Path]:
        return [path for path in (tmp_path / "store").rglob("*") if path.is_file()]

    with _served(local_api.app) as port:
        connection = _send(port, head, part)
        _wait_for(files)
        connection.close()
        _wait_for(lambda: not files())
    assert "commit_upload" not in local_api.platform.calls


def test_without_a_key_the_answer_comes_before_the_body(local_api):
    with _served(local_api.app) as port:
        head = _head("Content-Type: multipart/form-data; boundary=x", "Content-Length: 1000000000")
        status, body = _answer(_send(port, head))
    assert (status, body["error"]["code"]) == (401, "unauthenticated")


def test_a_body_too_large_is_answered_before_it_comes(local_api):
    with _served(local_api.app) as port:
        head = _head(KEY_LINE, "Content-Type: multipart/form-data; boundary=x", "Content-Length: 99999999999")
        status, body = _answer(_send(port, head))
    assert (status, body["error"]["code"]) == (413, "archive_too_large")


@pytest.mark.parametrize("tuning", [[], ["x-request-timeout-seconds: -1", "x-request-disconnect-disabled: ?1"]])
def test_a_silent_client_is_told_and_let_go(local_api, tuning):
    head = _head(KEY_LINE, "Content-Type: multipart/form-data; boundary=x", "Content-Length: 1000", *tuning)
    with _served(local_api.app) as port:
        status, body = _answer(_send(port, head, b"--x\r\n"))
    assert (status, body["error"]["code"]) == (408, "request_timeout")
    assert local_api.kept() == set()


def test_a_connection_serves_many_requests(local_api):
    with _served(local_api.app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=KEY) as client:
        answers = [client.get("/v1/whoami") for _ in range(3)]
        answers.append(client.post("/v1/namespaces", json={"namespace_name": "search"}))
        streams = {answer.extensions["network_stream"] for answer in answers}
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len(streams) == 1, "each request opened a connection of its own"
