"""A request body that cannot be larger, nor slower, than allowed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from starlette.types import Message, Receive, Scope

from mixpeek_ray.api.body_socket import BODY_SOCKET, BodySocket, SocketBody
from mixpeek_ray.api.pace import Pace
from mixpeek_ray.core.errors import BadRequestError, MixpeekError

# 19 digits hold every 63-bit length; int() of an endless number would be work for free.
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,19}")


class GuardedBody:
    """Wraps a request's ``receive``: every body byte passes the size limit and the pace limit.

    Only time spent waiting for the client counts, never the time a slow store takes. No header of the request changes
    either limit.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        *,
        limit_bytes: int,
        too_large: Callable[[int], MixpeekError],
        idle_timeout_s: float,
    ) -> None:
        """Raises ``BadRequestError`` for a Content-Length that is no length."""
        self._receive = receive
        self._declared_bytes = _declared_bytes(scope)
        is_chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        self._has_body = self._declared_bytes > 0 or is_chunked
        self._limit_bytes = limit_bytes
        self._too_large = too_large
        self._pace = Pace(idle_timeout_s)
        self._received_bytes = 0
        # Where a body ends can be told outside the HTTP server only if its length was declared.
        self._offered: BodySocket | None = None if is_chunked else scope.get(BODY_SOCKET)
        self._held: BodySocket | None = None
        self._rest: SocketBody | None = None
        self._complete = False
        # None: no message is being waited for.
        self._waiting_since_s: float | None = None
        self._waiting_task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False

    @property
    def unread(self) -> bool:
        """Tell whether body bytes may still be on their way."""
        return self._has_body and not self._complete and (self._rest is None or self._rest.remaining_bytes > 0)

    async def receive(self) -> Message:
        """Return the next message. Raises ``RequestTimeoutError`` or the error of ``too_large``."""
        if self._complete:
            return await self._receive()
        self._check_size(self._declared_bytes)
        message = await self._next_message()
        if message["type"] != "http.request":
            self._complete = True
            return message
        arrived = len(message.get("body", b""))
        self._received_bytes += arrived
        self._check_size(self._received_bytes)
        self._pace.arrived(arrived)
        self._complete = not message.get("more_body", False)
        if self._complete and self._timer is not None:
            self._timer.cancel()
        return message

    def hold_socket(self) -> None:
        """Let the server read no further than it has, where it lends its socket and the length was declared.

        What it has read still comes as messages; once ``is_drained``, ``open_rest`` has what follows. Raises the error
        of ``too_large``.
        """
        self._check_size(self._declared_bytes)
        if self._offered is not None and self._declared_bytes and self._offered.hold():
            self._held = self._offered

    def is_drained(self) -> bool:
        """Tell whether only the rest, on a held socket, is still to be read."""
        return self._held is not None and not self._complete and self._held.is_drained

    def open_rest(self) -> SocketBody | None:
        """Return what is to be read from a held socket, which the caller closes; None when all came as messages."""
        if self._held is None or self._complete:
            return None
        remaining_bytes = self._declared_bytes - self._received_bytes
        self._rest = SocketBody(self._held.duplicate(), remaining_bytes=remaining_bytes, pace=self._pace)
        return self._rest

    def release_socket(self) -> None:
        """Let the server go on, once the rest was read to its end."""
        if self._held is not None:
            self._held.give_back()

    async def _next_message(self) -> Message:
        loop = asyncio.get_running_loop()
        started_s = self._waiting_since_s = loop.time()
        self._waiting_task = asyncio.current_task()
        if self._timer is None:
            self._timer = loop.call_at(started_s + self._pace.credit_s, self._on_timer)
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if not self._expired or self._waiting_task is None or self._waiting_task.uncancel() > 0:
                raise
            raise self._pace.error() from None
        finally:
            self._pace.waited(loop.time() - started_s)
            self._waiting_since_s = None

    def _on_timer(self) -> None:
        """End a wait that used its credit up.

        One timer serves many messages: arming one for each would cost a fast upload more than parsing it.
        """
        self._timer = None
        if self._waiting_since_s is None or self._waiting_task is None:
            return
        loop = asyncio.get_running_loop()
        deadline_s = self._waiting_since_s + self._pace.credit_s
        if loop.time() < deadline_s:
            self._timer = loop.call_at(deadline_s, self._on_timer)
            return
        self._expired = True
        self._waiting_task.cancel()

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise self._too_large(self._limit_bytes)


def _declared_bytes(scope: Scope) -> int:
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    if not values:
        return 0
    if len(set(values)) > 1 or _CONTENT_LENGTH.fullmatch(values[0]) is None:
        raise BadRequestError("The Content-Length header is not one whole number of bytes.", header="Content-Length")
    return int(values[0])
