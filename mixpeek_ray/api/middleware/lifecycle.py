"""The outermost layer: request id, guarded body, access log, and an answer whatever happens."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixpeek_ray.api.access import access_for, is_plausible_id
from mixpeek_ray.api.context import RequestContext, attach_context, context_of
from mixpeek_ray.api.envelope import CLIENT_CLOSED_REQUEST, error_response, internal_error
from mixpeek_ray.api.middleware.body_guard import GuardedBody
from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import ArchiveTooLargeError, BodyTooLargeError, MixpeekError
from mixpeek_ray.core.ids import new_id
from mixpeek_ray.core.logs import get_logger, request_id_var

_log = get_logger("api.access")
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")


class RequestLifecycle:
    """Gives every request an id, a bounded body, one line in the log and an answer in the error envelope."""

    def __init__(self, app: ASGIApp, *, max_upload_bytes: int, idle_timeout_s: float) -> None:
        self._app = app
        self._max_upload_bytes = max_upload_bytes
        self._idle_timeout_s = idle_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext(request_id=_request_id(scope))
        attach_context(scope, context)
        token = request_id_var.set(context.request_id)
        started_s = time.perf_counter()
        answer = _Answer(send, context.request_id)
        scope, answer.without_body = _head_as_get(scope)
        try:
            await self._answer(scope, receive, answer)
        finally:
            _log_access(scope, context, answer.status, time.perf_counter() - started_s)
            request_id_var.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            body = self._guarded_body(scope, receive)
            answer.is_body_unread = lambda: body.unread
            context_of(scope).body = body
            await self._app(scope, body.receive, answer.send)
        except MixpeekError as error:
            await answer.send_error(scope, receive, error)
        except Exception:  # noqa: BLE001 -- the last resort: logged whole, answered without internals
            _log.exception("unhandled error")
            await answer.send_error(scope, receive, internal_error())

    def _guarded_body(self, scope: Scope, receive: Receive) -> GuardedBody:
        access = access_for(scope["method"], scope["path"])
        return GuardedBody(
            scope,
            receive,
            limit_bytes=self._max_upload_bytes + limits.MAX_FORM_OVERHEAD_BYTES
            if access.is_upload
            else access.max_body_bytes,
            too_large=self._archive_too_large if access.is_upload else _body_too_large,
            idle_timeout_s=self._idle_timeout_s,
        )

    def _archive_too_large(self, _: int) -> MixpeekError:
        return ArchiveTooLargeError(
            f"The archive is larger than the {self._max_upload_bytes} bytes that one upload may have. "
            "Leave out what is no weight, or store the weights in a smaller type.",
            limit_bytes=self._max_upload_bytes,
        )


class _Answer:
    """The response as it leaves: adds the headers every answer carries, and remembers that it began."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None
        self.without_body = False
        self.is_body_unread: Callable[[], bool] = lambda: True

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._request_id
            if self.is_body_unread():
                # The rest of the body would be taken for the next request.
                headers["Connection"] = "close"
        elif self.without_body and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)

    async def send_error(self, scope: Scope, receive: Receive, error: MixpeekError) -> None:
        if self.status is None:
            await error_response(scope, error)(scope, receive, self.send)


def _body_too_large(limit_bytes: int) -> MixpeekError:
    return BodyTooLargeError(
        f"The body is larger than the {limit_bytes} bytes that this path takes.", limit_bytes=limit_bytes
    )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_REQUEST_ID.fullmatch(value):
            return bytes(value).decode("ascii")
    return new_id("req")


def _head_as_get(scope: Scope) -> tuple[Scope, bool]:
    # HEAD answers what GET would, without the body: so load balancers may probe any GET route with it.
    if scope["method"] != "HEAD":
        return scope, False
    return {**scope, "method": "GET"}, True


def _log_access(scope: Scope, context: RequestContext, status: int | None, duration_s: float) -> None:
    # The route's template, not the path: a path is the caller's text.
    route = getattr(scope.get("route"), "path", None)
    fields: dict[str, object] = {
        "method": scope["method"],
        "route": route or "-",
        "status": status or CLIENT_CLOSED_REQUEST,
        "duration_ms": round(duration_s * 1000, 2),
    }
    if context.error_code is not None:
        fields["error_code"] = context.error_code
    if context.principal is not None:
        fields["key_id"] = context.principal.key_id
        fields["organization_id"] = context.principal.organization.organization_id
    for name in ("namespace_id", "model_id"):
        value = scope.get("path_params", {}).get(name)
        if value is not None and is_plausible_id(value):
            fields[name] = value
    _log.info("request", extra=fields)
