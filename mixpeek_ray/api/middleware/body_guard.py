"""A request body that cannot be larger, nor slower, than allowed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from starlette.types import Message, Receive, Scope

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import BadRequestError, MixpeekError, RequestTimeoutError

# The slowest link anyone uploads over is a thousand times faster; a client below it only holds a connection.
MIN_BYTES_PER_S = 1 * limits.KIB
# 19 digits hold every 63-bit length; int() of an endless number would be work for free.
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,19}")


class GuardedBody:
    """Wraps a request's ``receive``: every body byte passes the size limit and the pace limit.

    The pace is a credit of ``idle_timeout_s`` seconds of waiting, refilled by what arrives: silence uses it up after
    that time, and so does a trickle below ``MIN_BYTES_PER_S``. Only time spent waiting for the client counts, never
    the time a slow store takes. No header of the request changes either limit.
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
        self._has_body = self._declared_bytes > 0 or any(name == b"transfer-encoding" for name, _ in scope["headers"])
        self._limit_bytes = limit_bytes
        self._too_large = too_large
        self._idle_timeout_s = idle_timeout_s
        self._credit_s = idle_timeout_s
        self._received_bytes = 0
        self._complete = False
        # None: no message is being waited for.
        self._waiting_since_s: float | None = None
        self._waiting_task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False

    @property
    def unread(self) -> bool:
        """Tell whether body bytes may still be on their way."""
        return self._has_body and not self._complete

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
        self._credit_s = min(self._idle_timeout_s, self._credit_s + arrived / MIN_BYTES_PER_S)
        self._complete = not message.get("more_body", False)
        if self._complete and self._timer is not None:
            self._timer.cancel()
        return message

    async def _next_message(self) -> Message:
        loop = asyncio.get_running_loop()
        started_s = self._waiting_since_s = loop.time()
        self._waiting_task = asyncio.current_task()
        if self._timer is None:
            self._timer = loop.call_at(started_s + self._credit_s, self._on_timer)
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if not self._expired or self._waiting_task is None or self._waiting_task.uncancel() > 0:
                raise
            raise RequestTimeoutError(
                f"The request's body came too slowly: nothing for {self._idle_timeout_s:g} s, or less than "
                f"{MIN_BYTES_PER_S} bytes a second. Send it again over a steady connection.",
            ) from None
        finally:
            self._credit_s -= loop.time() - started_s
            self._waiting_since_s = None

    def _on_timer(self) -> None:
        """End a wait that used its credit up.

        One timer serves many messages: arming one for each would cost a fast upload more than parsing it.
        """
        self._timer = None
        if self._waiting_since_s is None or self._waiting_task is None:
            return
        loop = asyncio.get_running_loop()
        deadline_s = self._waiting_since_s + self._credit_s
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
