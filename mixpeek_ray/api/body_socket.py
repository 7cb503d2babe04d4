"""A request's body read from its connection by a thread, past the HTTP server and the event loop."""

from __future__ import annotations

import select
import socket
import time
from typing import Protocol

from starlette.requests import ClientDisconnect

from mixpeek_ray.api.pace import Pace

# Where in a request's ASGI scope a server that can lend its socket puts a ``BodySocket``.
BODY_SOCKET = "mixpeek_ray.body_socket"
# A slow client's bad field should be answered long before it has sent a whole buffer.
MAX_FILL_S = 0.5


class BodySocket(Protocol):
    """A server's offer to let the application read a request's body itself. Used on the server's event loop."""

    def hold(self) -> bool:
        """Stop the server from reading the connection, which then ends with this response. False: it cannot be done."""

    @property
    def is_drained(self) -> bool:
        """Tell whether a held server has handed over all it had read: the rest of the body is in the connection."""

    def duplicate(self) -> socket.socket:
        """Return the connection, non-blocking, as a descriptor that the caller closes."""

    def give_back(self) -> None:
        """Let the server go on once the body was read to its end, so that it notices a client that leaves."""


class SocketBody:
    """The rest of a body, for one thread to read; only ``stop`` may be called from another."""

    def __init__(self, connection: socket.socket, *, remaining_bytes: int, pace: Pace) -> None:
        self._connection = connection
        self._pace = pace
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self.remaining_bytes = remaining_bytes

    def fill(self, buffer: memoryview) -> int:
        """Return how many bytes were read into ``buffer``: all it holds, unless the body ends or the client is slow.

        Raises ``ClientDisconnect``, or ``RequestTimeoutError`` when the client is slower than its pace allows.
        """
        wanted = min(len(buffer), self.remaining_bytes)
        deadline_s = time.monotonic() + MAX_FILL_S
        filled = 0
        while filled < wanted and (filled == 0 or time.monotonic() < deadline_s):
            filled += self._receive(buffer[filled:wanted])
        self.remaining_bytes -= filled
        return filled

    def stop(self) -> None:
        """Make a ``fill`` that is under way end, and later ones fail. Nothing more can be read from the connection."""
        self._connection.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Close this descriptor of the connection."""
        self._connection.close()

    def _receive(self, buffer: memoryview) -> int:
        try:
            received = self._connection.recv_into(buffer)
        except BlockingIOError:
            self._wait()
            return 0
        except OSError:
            raise ClientDisconnect from None
        if received == 0:
            raise ClientDisconnect
        self._pace.arrived(received)
        return received

    def _wait(self) -> None:
        started_s = time.monotonic()
        self._poll.poll(min(self._pace.credit_s, MAX_FILL_S) * 1000)
        self._pace.waited(time.monotonic() - started_s)
        if self._pace.is_used_up:
            raise self._pace.error()
