"""The receive channel between Serve's direct ingress and the application."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from ray.serve._private import replica as serve_replica
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy

from mixpeek_ray.serving import ingress
from mixpeek_ray.serving.ingress import RECEIVE_QUEUE_MESSAGES, BoundedReceiveProxy, harden_replica

Message = dict[str, Any]
SCOPE = {"type": "http"}
# The kernel's socket buffers on both sides plus uvicorn's own high-water mark.
NETWORK_BUFFERS_BYTES = 16 * 1024**2
CHUNK_BYTES = 65_536


class FakeClient:
    """Hands over numbered body messages as fast as they are asked for, then a disconnect."""

    def __init__(self, messages: int) -> None:
        self.handed_over = 0
        self._messages = messages

    async def __call__(self) -> Message:
        await asyncio.sleep(0)
        if self.handed_over == self._messages:
            return {"type": "http.disconnect"}
        self.handed_over += 1
        return {"type": "http.request", "body": str(self.handed_over).encode(), "more_body": True}


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(200):
        await asyncio.sleep(0)


def test_a_slow_application_holds_the_client_back() -> None:
    async def scenario() -> None:
        client = FakeClient(1_000)
        receive = BoundedReceiveProxy(SCOPE, client, asyncio.get_running_loop())
        task = receive.fetch_until_disconnect_task()
        await settle()
        # What the queue holds, and the one message that waits for a place in it.
        assert client.handed_over == RECEIVE_QUEUE_MESSAGES + 1
        for number in range(1, 1_001):
            assert (await receive())["body"] == str(number).encode()
        assert (await receive())["type"] == "http.disconnect"
        assert (await receive())["type"] == "http.disconnect"
        await task

    asyncio.run(scenario())


def test_rays_own_channel_does_not() -> None:
    # Should this fail, Ray has bounded its queue and ours can go.
    async def scenario() -> None:
        client = FakeClient(100)
        receive = ASGIDIReceiveProxy(SCOPE, client, asyncio.get_running_loop())
        task = receive.fetch_until_disconnect_task()
        await settle()
        assert client.handed_over == 100
        await task

    asyncio.run(scenario())


def test_a_disconnect_is_noticed_while_the_application_works() -> None:
    async def scenario() -> None:
        receive = BoundedReceiveProxy(SCOPE, FakeClient(2), asyncio.get_running_loop())
        task = receive.fetch_until_disconnect_task()
        # Serve cancels the application when this task ends.
        await asyncio.wait_for(task, timeout=5)

    asyncio.run(scenario())


def test_it_holds_back_across_threads_too() -> None:
    user_loop = asyncio.new_event_loop()
    thread = threading.Thread(target=user_loop.run_forever)
    thread.start()

    async def scenario() -> None:
        client = FakeClient(100)
        receive = BoundedReceiveProxy(SCOPE, client, user_loop)
        task = receive.fetch_until_disconnect_task()
        bodies = []
        for _ in range(100):
            message = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_call(receive), user_loop))
            bodies.append(int(message["body"]))
            assert client.handed_over <= len(bodies) + RECEIVE_QUEUE_MESSAGES + 1
        assert bodies == list(range(1, 101))
        await asyncio.wait_for(task, timeout=5)

    try:
        asyncio.run(scenario())
    finally:
        user_loop.call_soon_threadsafe(user_loop.stop)
        thread.join()
        user_loop.close()


async def _call(receive: Callable[[], Awaitable[Message]]) -> Message:
    return await receive()


def test_a_real_servers_socket_feels_the_application() -> None:
    asyncio.run(_push_against_a_stalled_application())


async def _push_against_a_stalled_application() -> None:
    stalled = asyncio.Event()
    proceed = asyncio.Event()
    received = 0

    async def application(scope: Message, receive: Any, send: Any) -> None:
        nonlocal received
        channel = BoundedReceiveProxy(scope, receive, asyncio.get_running_loop())
        task = channel.fetch_until_disconnect_task()
        stalled.set()
        await proceed.wait()
        while (message := await channel())["type"] == "http.request":
            received += len(message["body"])
        await task

    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_level="warning"))
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    client = socket.create_connection(listener.getsockname())
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
    await stalled.wait()
    sent = await _send_until_blocked(client)
    assert sent < NETWORK_BUFFERS_BYTES
    client.close()
    proceed.set()
    server.should_exit = True
    await serving
    # The last chunk may have been sent in part.
    assert received <= sent + CHUNK_BYTES


async def _send_until_blocked(client: socket.socket) -> int:
    sent = 0
    chunk = bytes(CHUNK_BYTES)
    while sent < 4 * NETWORK_BUFFERS_BYTES:
        try:
            async with asyncio.timeout(1):
                await asyncio.get_running_loop().sock_sendall(client, chunk)
        except TimeoutError:
            break
        sent += len(chunk)
    return sent


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray's replica module, restored afterwards."""
    for name in ("ASGIDIReceiveProxy", "parse_disconnect_disabled_header", "parse_request_timeout_header"):
        monkeypatch.setattr(serve_replica, name, getattr(serve_replica, name))
    return serve_replica


def test_callers_headers_decide_nothing(replica: Any) -> None:
    assert replica.parse_disconnect_disabled_header({b"x-request-disconnect-disabled": b"?1"})
    assert harden_replica()
    assert replica.ASGIDIReceiveProxy is BoundedReceiveProxy
    assert not replica.parse_disconnect_disabled_header({b"x-request-disconnect-disabled": b"?1"})
    for value in (b"-1", b"1e9", b"0.001"):
        assert replica.parse_request_timeout_header({b"x-request-timeout-seconds": value}, 30.0) == 30.0


def test_an_untested_ray_is_left_alone_and_said_so(replica: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(ingress._log, "warning", lambda text, *values: warnings.append(text % values))
    monkeypatch.setattr(ingress, "TESTED_RAY_VERSIONS", frozenset({"2.59.0"}))
    assert not harden_replica()
    assert replica.ASGIDIReceiveProxy is ASGIDIReceiveProxy
    assert len(warnings) == 1
    assert "2.60.0" in warnings[0]


def test_a_changed_shape_is_left_alone(replica: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed:
        def __init__(self, scope: object, receive: object) -> None: ...

    monkeypatch.setattr(replica, "ASGIDIReceiveProxy", Changed)
    assert not harden_replica()
    assert replica.ASGIDIReceiveProxy is Changed
