"""How the platform's HTTP application meets Ray Serve: which ingress is on, and what is made safe about it.

Serve hands a replica its requests in one of two ways. Behind HAProxy the replica runs an HTTP server of its own
("direct ingress") and the body streams; behind Serve's Python proxy the proxy and the replica each hold the whole body.

Direct ingress as Ray 2.60 ships it reads a body as fast as the client sends it, into an unbounded queue, and lets the
caller switch off timeouts and disconnect handling by header. ``harden_replica`` takes both away.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
from typing import Any

import ray
from ray.serve._private import constants as serve_constants
from ray.serve._private import replica as serve_replica
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixpeek_ray.api.body_socket import BODY_SOCKET
from mixpeek_ray.core import limits
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.serving.body_socket import body_socket_of

_log = get_logger(__name__)

# The patch reaches into private code, so it is applied only to versions that its tests ran against.
TESTED_RAY_VERSIONS = frozenset({"2.60.0"})

_REQUEST_ID = b"x-request-id"

# Two messages wait while the application works on another: what arrives meanwhile uvicorn joins, up to 64 KiB, into the
# next message, and a thousand clients hold 256 MiB at most.
RECEIVE_QUEUE_MESSAGES = 2


class IngressMode(enum.StrEnum):
    """What stands between the network and a replica."""

    HAPROXY = "haproxy"
    PYTHON_PROXY = "python-proxy"


def ingress_mode() -> IngressMode:
    """Return the ingress of the cluster that this process belongs to."""
    return IngressMode.HAPROXY if serve_constants.RAY_SERVE_ENABLE_HA_PROXY else IngressMode.PYTHON_PROXY


def max_upload_bytes(settings: Settings, mode: IngressMode) -> int:
    """Return the largest archive that ``mode`` can take without holding it in memory."""
    if mode is IngressMode.HAPROXY:
        return limits.MAX_ARCHIVE_BYTES
    return min(limits.MAX_ARCHIVE_BYTES, settings.buffered_ingress_max_upload_bytes)


class BoundedReceiveProxy(ASGIDIReceiveProxy):  # type: ignore[misc]  # Ray publishes no types
    """A receive channel that reads from the client only as fast as the application does.

    Works on the replica's own loop and, when Serve runs user code in a separate thread, across the two loops.
    """

    _queue: asyncio.Queue[Any] | None

    def __init__(self, scope: Scope, receive: Receive, user_event_loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(scope, receive, user_event_loop)
        self._is_putting = False
        # Only where both ends of this channel are on one loop may the application touch the server's socket.
        if asyncio.get_running_loop() is user_event_loop:
            body_socket = body_socket_of(receive, lambda: not self._is_putting and self.queue.empty())
            if body_socket is not None:
                scope[BODY_SOCKET] = body_socket

    @property
    def queue(self) -> asyncio.Queue[Any]:
        if self._queue is None:
            self._queue = asyncio.Queue(maxsize=RECEIVE_QUEUE_MESSAGES)
        return self._queue

    async def _fetch_until_disconnect(self) -> int | None:
        while True:
            message = await self._receive()
            if message["type"] in ("http.disconnect", "websocket.disconnect"):
                self._disconnect_message = message
                self._user_event_loop.call_soon_threadsafe(self._wake_reader, message)
                code: int | None = message.get("code")
                return code
            await self._put(message)

    async def _put(self, message: Any) -> None:
        if asyncio.get_running_loop() is self._user_event_loop:
            self._is_putting = True
            await self.queue.put(message)
            self._is_putting = False
        else:
            put = asyncio.run_coroutine_threadsafe(self._put(message), self._user_event_loop)
            await asyncio.wrap_future(put)

    def _wake_reader(self, disconnect: Any) -> None:
        # Never waits for room: an application that does not read its body must still hear that the client left. Who
        # finds the queue empty later is given the disconnect message anyway.
        if not self.queue.full():
            self.queue.put_nowait(disconnect)


def leave_request_id_to_serve(app: ASGIApp) -> ASGIApp:
    """Return ``app`` without its X-Request-Id header where Serve's own HTTP server adds the same one.

    Serve appends the request's id to every response, so that clients would see it twice.
    """

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        requested = dict(scope.get("headers", ())).get(_REQUEST_ID)

        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [header for header in message["headers"] if header != (_REQUEST_ID, requested)]
                message = {**message, "headers": kept}
            await send(message)

        await app(scope, receive, send_once)

    return served


def at_root(app: ASGIApp) -> ASGIApp:
    """Return ``app`` seeing whole paths: Serve mounts it at its application's route prefix, its routes name theirs."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": ""}, receive, send)

    return served


def harden_replica() -> bool:
    """Bound this replica's receive queue and ignore the caller's Serve headers; return whether that was possible.

    ``x-request-disconnect-disabled`` hangs a replica whose user code runs in a separate thread;
    ``x-request-timeout-seconds`` overrides the operator's limit. Call in the replica, before it serves.
    """
    mismatch = _shape_mismatch()
    if mismatch is not None:
        _log.warning(
            "Uploads may be held in memory and callers may set Serve's own headers: %s. Install the pinned Ray "
            "(%s), or keep clients behind a proxy that limits bodies and strips x-request-* headers.",
            mismatch,
            ", ".join(sorted(TESTED_RAY_VERSIONS)),
        )
        return False
    serve_replica.ASGIDIReceiveProxy = BoundedReceiveProxy
    serve_replica.parse_disconnect_disabled_header = _never_disabled
    serve_replica.parse_request_timeout_header = _operators_timeout
    return True


def _never_disabled(headers: dict[bytes, bytes]) -> bool:
    del headers
    return False


def _operators_timeout(headers: dict[bytes, bytes], default_timeout_s: float | None) -> float | None:
    del headers
    return default_timeout_s


def _shape_mismatch() -> str | None:
    if ray.__version__ not in TESTED_RAY_VERSIONS:
        return f"Ray {ray.__version__} is not a version whose ingress was tested"
    for name, parameters in (
        ("ASGIDIReceiveProxy", ("scope", "receive", "user_event_loop")),
        ("parse_disconnect_disabled_header", ("headers",)),
        ("parse_request_timeout_header", ("headers", "default_timeout_s")),
    ):
        target = getattr(serve_replica, name, None)
        if target is None or tuple(inspect.signature(target).parameters) != parameters:
            return f"Ray's {name} has another shape than the tested one"
    return None
