"""The socket behind a request that Serve's direct ingress hands over, for a body too large for the event loop.

A body that comes as messages costs the gateway's loop 1.2 s of CPU a GiB, in 64 KiB messages through uvicorn and
Serve's receive channel; read by a thread in large pieces it costs 0.2 s.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import Receive
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

# What follows knows how uvicorn reads a connection, so it is done only on versions that its tests ran against.
TESTED_UVICORN_VERSIONS = frozenset({"0.54.0"})


class UvicornBodySocket:
    """Implements ``api.body_socket.BodySocket``; works on the loop that uvicorn and the application share."""

    def __init__(self, cycle: RequestResponseCycle, is_channel_empty: Callable[[], bool]) -> None:
        self._cycle = cycle
        self._is_channel_empty = is_channel_empty

    def hold(self) -> bool:
        """Stop uvicorn from reading the connection, which ends with this response; False when that cannot be done."""
        cycle = self._cycle
        transport = cycle.transport
        if not cycle.more_body or cycle.waiting_for_100_continue or transport.is_closing() or _is_encrypted(cycle):
            return False
        # Behind the back of uvicorn's flow control, whose next `receive` would only resume the reading.
        cycle.flow.resume_reading()
        transport.pause_reading()
        # uvicorn's parser will never see the end of this body.
        cycle.keep_alive = False
        return True

    @property
    def is_drained(self) -> bool:
        """Tell whether no part of the body is held here any more."""
        return not self._cycle.body and self._is_channel_empty()

    def duplicate(self) -> socket.socket:
        """Return the connection as a descriptor of its own; uvicorn's stays open."""
        return socket.socket(fileno=os.dup(self._cycle.transport.get_extra_info("socket").fileno()))

    def give_back(self) -> None:
        """Let uvicorn read again: nothing comes but the end of the connection."""
        if not self._cycle.transport.is_closing():
            self._cycle.transport.resume_reading()


def body_socket_of(receive: Receive, is_channel_empty: Callable[[], bool]) -> UvicornBodySocket | None:
    """Return the socket behind uvicorn's ``receive``; None when it is another server's, or an untested uvicorn's."""
    cycle = getattr(receive, "__self__", None)
    if uvicorn.__version__ not in TESTED_UVICORN_VERSIONS or type(cycle) is not RequestResponseCycle:
        return None
    return UvicornBodySocket(cycle, is_channel_empty)


def _is_encrypted(cycle: RequestResponseCycle) -> bool:
    return cycle.transport.get_extra_info("sslcontext") is not None
