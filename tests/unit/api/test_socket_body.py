"""A body read from a socket by a thread: never more than its bytes, never slower than its pace."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from starlette.requests import ClientDisconnect

from mixpeek_ray.api import body_socket
from mixpeek_ray.api.body_socket import SocketBody
from mixpeek_ray.api.pace import MIN_BYTES_PER_S, Pace
from mixpeek_ray.core.errors import RequestTimeoutError

IDLE_S = 30.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: the client's end, and the server's, which does not block."""
    client, server = socket.socketpair()
    server.setblocking(False)
    with client, server:
        yield client, server


def body_of(server: socket.socket, size_bytes: int, idle_s: float = IDLE_S) -> SocketBody:
    """Return a body of which nothing was read yet."""
    # Its own descriptor, and one that Python takes for blocking, as the duplicate of a server's is.
    return SocketBody(socket.socket(fileno=os.dup(server.fileno())), remaining_bytes=size_bytes, pace=Pace(idle_s))


def test_a_buffer_is_filled_whole_and_what_follows_the_body_is_left(pair):
    client, server = pair
    data = os.urandom(300_000)
    sending = threading.Thread(target=client.sendall, args=(data + b"next request",))
    sending.start()
    body, buffer, received = body_of(server, len(data)), bytearray(65_536), b""
    while body.remaining_bytes:
        filled = body.fill(memoryview(buffer))
        assert filled == len(buffer) or body.remaining_bytes == 0
        received += buffer[:filled]
    body.close()
    sending.join()
    assert received == data
    assert server.recv(100) == b"next request"


def test_a_slow_clients_bytes_are_not_kept_back(pair, monkeypatch):
    monkeypatch.setattr(body_socket, "MAX_FILL_S", 0.05)
    client, server = pair
    body = body_of(server, 1_000)
    client.sendall(b"some")
    assert body.fill(memoryview(bytearray(100))) == 4
    assert body.remaining_bytes == 996
    body.close()


def test_bytes_that_come_one_by_one_end_a_fill_too(pair, monkeypatch):
    monkeypatch.setattr(body_socket, "MAX_FILL_S", 0.05)
    client, server = pair
    body = body_of(server, 1_000_000)
    over = threading.Event()

    def trickle() -> None:
        while not over.is_set():
            client.sendall(b"x")
            over.wait(0.002)

    sending = threading.Thread(target=trickle)
    sending.start()
    try:
        assert 0 < body.fill(memoryview(bytearray(1_000_000))) < 1_000
    finally:
        over.set()
        sending.join()
    body.close()


@pytest.mark.parametrize("sent", [b"", b"half"])
def test_a_client_that_leaves(pair, sent):
    client, server = pair
    client.sendall(sent)
    client.close()
    body = body_of(server, 8)
    with pytest.raises(ClientDisconnect):
        body.fill(memoryview(bytearray(8)))
    body.close()


def test_a_connection_that_is_reset():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with server:
        server.setblocking(False)
        # Unread bytes make the kernel reset the connection instead of closing it.
        server.sendall(b"unread")
        client.recv(1)
        client.close()
        body = body_of(server, 8)
        with pytest.raises(ClientDisconnect):
            body.fill(memoryview(bytearray(8)))
        body.close()


def test_silence_is_too_slow(pair):
    _, server = pair
    body = body_of(server, 8, idle_s=0.05)
    started_s = time.monotonic()
    with pytest.raises(RequestTimeoutError):
        body.fill(memoryview(bytearray(8)))
    assert time.monotonic() - started_s >= 0.05
    body.close()


def test_stopping_ends_a_wait(pair):
    _, server = pair
    body = body_of(server, 8)
    threading.Timer(0.05, body.stop).start()
    started_s = time.monotonic()
    with pytest.raises(ClientDisconnect):
        body.fill(memoryview(bytearray(8)))
    assert time.monotonic() - started_s < body_socket.MAX_FILL_S
    body.close()


def test_a_pace_forgives_waiting_for_what_then_comes():
    pace = Pace(2.0)
    pace.waited(1.5)
    pace.arrived(MIN_BYTES_PER_S)
    pace.waited(1.4)
    assert not pace.is_used_up
    pace.arrived(1_000 * MIN_BYTES_PER_S)
    pace.waited(1.9)
    assert not pace.is_used_up, "the credit was not refilled"
    pace.arrived(1)
    pace.waited(0.2)
    assert pace.is_used_up
