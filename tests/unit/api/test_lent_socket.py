"""Uploads read from the server's own socket: uvicorn, Serve's receive channel as hardened, and our application."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn

from mixpeek_ray.serving import body_socket
from mixpeek_ray.serving.ingress import BoundedReceiveProxy
from mixpeek_ray.store.local_store import LocalStore
from mixpeek_ray.store.memory_store import MemoryStore

MIB = 1024**2
PATH = "/v1/namespaces/ns_acme/models"
TYPE = "Content-Type: multipart/form-data; boundary=edge"
KEY = "Authorization: Bearer sk_writer"
# What the kernel's socket buffers, on both sides, and an upload's batches may hold.
BUFFERS_BYTES = 48 * MIB


def part(name: str, value: bytes, more: str = "") -> bytes:
    """Return one part of a form."""
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


FIELDS = part("name", b"m") + part("version", b"1.0.0") + part("model_format", b"pytorch")
FILE_HEAD = part("file", b"", '; filename="m.tar.gz"')[:-2]
END = b"--edge--\r\n"


def form(archive: bytes) -> bytes:
    """Return the whole body of an upload."""
    return FIELDS + FILE_HEAD + archive + b"\r\n" + END


def head(size_bytes: int, *lines: str) -> bytes:
    """Return a request's head that announces so many bytes."""
    return "\r\n".join(
        [f"POST {PATH} HTTP/1.1", "Host: platform", TYPE, KEY, f"Content-Length: {size_bytes}", *lines, "", ""]
    ).encode()


@dataclass
class Serving:
    """What Serve's direct ingress does with a request, as far as its body goes."""

    app: object
    port: int = 0
    messages_bytes: int = 0
    requests: list[asyncio.Task] = field(default_factory=list)
    channels: list[BoundedReceiveProxy] = field(default_factory=list)
    # The application is called when it is set.
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope, receive, send) -> None:
        self.loop = asyncio.get_running_loop()
        channel = BoundedReceiveProxy(scope, receive, self.loop)

        self.channels.append(channel)

        async def counted():
            message = await channel()
            self.messages_bytes += len(message.get("body", b""))
            return message

        fetching = channel.fetch_until_disconnect_task()
        await self.gate.wait()
        request = asyncio.create_task(self.app(scope, counted, send))
        self.requests.append(request)
        await asyncio.wait({fetching, request}, return_when=asyncio.FIRST_COMPLETED)
        fetching.cancel()
        request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await request


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_name(request) -> str:
    """The event loop that the server runs on: Ray uses uvloop where it is installed."""
    return request.param


@contextlib.contextmanager
def served(app, loop_name: str = "uvloop", *, gated: bool = False) -> Iterator[Serving]:
    """Serve ``app`` on a port of its own."""
    serving = Serving(app)
    if not gated:
        serving.gate.set()
    config = uvicorn.Config(serving, host="127.0.0.1", port=0, log_config=None, lifespan="off", loop=loop_name)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        serving.port = server.servers[0].sockets[0].getsockname()[1]
        yield serving
    finally:
        server.should_exit = True
        thread.join(30)


def wait_for(condition) -> None:
    """Return when the condition holds."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never came true"
        time.sleep(0.005)


def connect(serving: Serving, *pieces: bytes) -> socket.socket:
    """Return a connection over which the pieces were sent."""
    connection = socket.create_connection(("127.0.0.1", serving.port), timeout=20)
    for piece in pieces:
        connection.sendall(piece)
    return connection


def answer(connection: socket.socket) -> tuple[int, dict]:
    """Return status and body of the answer, after which the server closes."""
    with connection, connection.makefile("rb") as stream:
        raw = stream.read()
    first, _, body = raw.partition(b"\r\n\r\n")
    assert b"connection: close" in first.lower()
    return int(first.split()[1]), json.loads(body)


@pytest.fixture
def local_api(make_api, tmp_path):
    """The application over a folder."""
    return make_api(store=LocalStore(tmp_path / "store"), max_upload_bytes=256 * MIB, idle_timeout_s=0.5)


def files(folder: Path) -> list[Path]:
    """Return all files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


class GatedStore(MemoryStore):
    """A store whose writes wait for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def open_write(self, key):
        writer, store = super().open_write(key), self

        class Writer:
            commit = writer.commit
            abort = writer.abort

            def write(self, chunk):
                assert store.go.wait(30)
                writer.write(chunk)

        return Writer()


def test_an_upload_arrives_whole_past_the_event_loop(local_api, loop_name):
    archive = os.urandom(40 * MIB + 17)
    body = form(archive)
    with served(local_api.app, loop_name) as serving:
        status, found = answer(connect(serving, head(len(body)), body))
    assert status == 200, found
    assert local_api.store.read(f"archives/{hashlib.sha256(archive).hexdigest()}") == archive
    assert serving.messages_bytes < 4 * MIB, "the event loop carried the body"


@pytest.mark.parametrize("cut", [0, 1, 60, 500])
def test_what_came_with_the_head_is_part_of_the_body(local_api, loop_name, cut):
    archive = os.urandom(300_000)
    body = form(archive)
    with served(local_api.app, loop_name) as serving:
        connection = connect(serving, head(len(body)) + body[:cut])
        wait_for(lambda: serving.requests)
        connection.sendall(body[cut:])
        status, found = answer(connection)
    assert status == 200, found
    assert local_api.store.read(f"archives/{hashlib.sha256(archive).hexdigest()}") == archive


def test_what_the_server_had_read_before_comes_first(local_api, loop_name):
    archive = os.urandom(20 * MIB)
    body = form(archive)
    with served(local_api.app, loop_name, gated=True) as serving:
        connection = connect(serving, head(len(body)))
        sending = threading.Thread(target=connection.sendall, args=(body,))
        sending.start()
        wait_for(lambda: serving.channels and serving.channels[0].queue.full())
        serving.loop.call_soon_threadsafe(serving.gate.set)
        sending.join()
        status, found = answer(connection)
    assert status == 200, found
    assert local_api.store.read(f"archives/{hashlib.sha256(archive).hexdigest()}") == archive
    assert 0 < serving.messages_bytes < 4 * MIB


def test_a_client_that_waits_to_be_asked(local_api, loop_name):
    body = form(bytes(MIB))
    with served(local_api.app, loop_name) as serving:
        connection = connect(serving, head(len(body), "Expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert answer(connection)[0] == 200


def test_a_client_that_hangs_up_leaves_nothing(local_api, loop_name, tmp_path):
    with served(local_api.app, loop_name) as serving:
        connection = connect(serving, head(90 * MIB), FIELDS + FILE_HEAD + bytes(3 * MIB))
        wait_for(lambda: files(tmp_path))
        connection.close()
        wait_for(lambda: not files(tmp_path))
    assert "commit_upload" not in local_api.platform.calls


def test_a_silent_client_is_told_and_let_go(local_api, loop_name):
    with served(local_api.app, loop_name) as serving:
        status, body = answer(connect(serving, head(9 * MIB), FIELDS + FILE_HEAD + bytes(MIB)))
    assert (status, body["error"]["code"]) == (408, "request_timeout")
    assert local_api.kept() == set()


def test_a_bad_field_is_told_while_the_body_still_comes(make_api, loop_name):
    api = make_api(max_upload_bytes=256 * MIB)
    with served(api.app, loop_name) as serving:
        status, body = answer(connect(serving, head(90 * MIB), part("name", b"../x") + FILE_HEAD + bytes(100)))
    assert (status, body["error"]["code"]) == (422, "invalid_name")


def test_an_archive_over_the_limit_is_stopped(make_api, loop_name):
    api = make_api(max_upload_bytes=3 * MIB)
    body = form(bytes(3 * MIB + 1))
    with served(api.app, loop_name) as serving:
        status, found = answer(connect(serving, head(len(body)), body))
        over = answer(connect(serving, head(9 * MIB)))
    assert (status, found["error"]["code"]) == (413, "archive_too_large")
    assert (over[0], over[1]["error"]["code"]) == (413, "archive_too_large")
    assert api.kept() == set()


def test_a_body_that_ends_early_in_the_form_is_none(local_api, loop_name):
    body = form(bytes(2 * MIB))[:-4]
    with served(local_api.app, loop_name) as serving:
        status, found = answer(connect(serving, head(len(body)), body))
    assert (status, found["error"]["code"]) == (400, "invalid_multipart")


def test_a_slow_store_holds_the_client_back(make_api, loop_name):
    store = GatedStore()
    api = make_api(store=store, max_upload_bytes=512 * MIB)
    body = form(bytes(300 * MIB))
    with served(api.app, loop_name) as serving:
        connection = connect(serving, head(len(body)))
        connection.settimeout(1)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(body):
                sent += connection.send(body[sent : sent + MIB])
        assert sent < BUFFERS_BYTES
        store.go.set()
        connection.settimeout(20)
        connection.sendall(body[sent:])
        assert answer(connection)[0] == 200


def test_a_client_that_leaves_while_its_upload_is_committed(local_api, loop_name, tmp_path):
    local_api.platform.commit_gate = asyncio.Event()
    body = form(bytes(2 * MIB))
    with served(local_api.app, loop_name) as serving:
        connection = connect(serving, head(len(body)), body)
        wait_for(lambda: "commit_upload" in local_api.platform.calls)
        assert files(tmp_path)
        connection.close()
        wait_for(lambda: not files(tmp_path))


def test_a_request_that_the_server_ends_leaves_nothing(make_api, loop_name, tmp_path):
    api = make_api(store=LocalStore(tmp_path / "store"), max_upload_bytes=256 * MIB)
    sent = FIELDS + FILE_HEAD + bytes(3 * MIB)
    with served(api.app, loop_name) as serving:
        connection = connect(serving, head(90 * MIB), sent)
        # All is written, and the thread waits for more.
        wait_for(lambda: sum(path.stat().st_size for path in files(tmp_path)) >= 2 * MIB)
        assert serving.loop is not None
        serving.loop.call_soon_threadsafe(serving.requests[0].cancel)
        wait_for(lambda: not files(tmp_path))
        # The upload's own descriptor of the connection is closed too: the client hears of the end.
        with connection, contextlib.suppress(ConnectionResetError):
            while connection.recv(MIB):
                pass
        wait_for(lambda: not any(thread.name.startswith("upload") for thread in threading.enumerate()))


def test_other_bodies_come_as_messages(local_api, monkeypatch):
    body = form(bytes(MIB))
    chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    chunked = head(0, "Connection: close", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    with served(local_api.app) as serving:
        assert answer(connect(serving, chunked, chunk))[0] == 200
        assert serving.messages_bytes == len(body)
        monkeypatch.setattr(body_socket, "TESTED_UVICORN_VERSIONS", frozenset({"0.53.0"}))
        connect_again = connect(serving, head(len(body), "Connection: close"), body)
        assert answer(connect_again)[0] == 200
        assert serving.messages_bytes == 2 * len(body)
