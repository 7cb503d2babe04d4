"""The error envelope: the one shape of every answer from 400 up."""

from __future__ import annotations

import json
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from mixpeek_ray.api.context import context_of
from mixpeek_ray.core.errors import (
    RETRY_AFTER_S,
    ArchiveRefusedError,
    AuthenticationError,
    BadRequestError,
    MethodNotAllowedError,
    MixpeekError,
    NotFoundError,
    PermissionDeniedError,
    ValidationError,
)

# A body of a thousand wrong fields should not be answered with a thousand lines.
MAX_REPORTED_FIELDS = 20
# A key in `loc` may be the caller's own text.
MAX_REPORTED_KEY_CHARS = 80

# What web servers have agreed to log when the client left before its answer.
CLIENT_CLOSED_REQUEST = 499
_RETRYABLE = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


def error_response(scope: Scope, error: MixpeekError, headers: dict[str, str] | None = None) -> Response:
    """Return the envelope that answers ``error``, and note its code for the access log."""
    context_of(scope).error_code = error.code
    details = _details(error)
    answer_headers = dict(headers or {})
    if error.status in _RETRYABLE:
        answer_headers["Retry-After"] = str(details["retry_after_seconds"])
    if isinstance(error, AuthenticationError):
        answer_headers["WWW-Authenticate"] = "Bearer"
    body = {
        "success": False,
        "status": error.status,
        "error": {"type": error.error_type, "code": error.code, "message": error.message, "details": details or None},
    }
    content = json.dumps(body, default=str).encode()
    return Response(content, error.status, answer_headers, media_type="application/json")


def install_error_handlers(app: Starlette) -> None:
    """Make ``app`` answer its own, the framework's and unforeseen errors with the envelope."""

    async def answer_platform_error(request: Request, error: Exception) -> Response:
        return error_response(request.scope, _as_platform_error(error))

    async def answer_http_error(request: Request, error: Exception) -> Response:
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else None
        return error_response(request.scope, _as_platform_error(error), headers)

    async def answer_nobody(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(ClientDisconnect, answer_nobody)
    app.add_exception_handler(MixpeekError, answer_platform_error)
    app.add_exception_handler(RequestValidationError, answer_platform_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    # The framework raises the exception again once this is sent; the lifecycle middleware logs it there.
    app.add_exception_handler(Exception, answer_platform_error)


def _as_platform_error(error: Exception) -> MixpeekError:
    if isinstance(error, MixpeekError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid_body(error)
    if isinstance(error, HTTPException):
        # FastAPI turns whatever fails while it reads a JSON body, our own limits included, into a 400.
        if isinstance(error.__cause__, MixpeekError):
            return error.__cause__
        return _framework_error(error)
    return internal_error()


def internal_error() -> MixpeekError:
    """Return the answer to a failure nobody foresaw: it tells the caller nothing but how to report it."""
    return MixpeekError("Something went wrong on our side. Retry; if it stays, report the X-Request-Id of this answer.")


def _framework_error(error: HTTPException) -> MixpeekError:
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return NotFoundError("There is nothing at this path. See /docs for the routes.")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return MethodNotAllowedError("This path does not take this method. See the Allow header, or /docs.")
        case HTTPStatus.UNAUTHORIZED:
            return AuthenticationError("Send an API key: Authorization: Bearer sk_...")
        case HTTPStatus.FORBIDDEN:
            return PermissionDeniedError("This key may not do that.")
        case status if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return BadRequestError("The request could not be understood. See /docs for what this path takes.")
    return internal_error()


def _invalid_body(error: RequestValidationError) -> ValidationError:
    found = [
        {"loc": [_shown(part) for part in item["loc"]], "msg": str(item["msg"]), "type": str(item["type"])}
        for item in error.errors()[:MAX_REPORTED_FIELDS]
    ]
    where = ", ".join(".".join(str(part) for part in item["loc"]) for item in found)
    return ValidationError(f"The request has fields that are not allowed: {where}.", validation_errors=found)


def _shown(part: str | int) -> str | int:
    return part if isinstance(part, int) else ascii(part)[1:-1][:MAX_REPORTED_KEY_CHARS]


def _details(error: MixpeekError) -> dict[str, object]:
    details: dict[str, object] = dict(error.details)
    if isinstance(error, ValidationError) and "validation_errors" not in details:
        default = "file" if isinstance(error, ArchiveRefusedError) else None
        field = details.get("field", default)
        loc = ["body", *(part for part in (field, details.get("index")) if part is not None)]
        details["validation_errors"] = [{"loc": loc, "msg": error.message, "type": error.code}]
    if error.status in _RETRYABLE:
        details.setdefault("retry_after_seconds", RETRY_AFTER_S)
    return details
