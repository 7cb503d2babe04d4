"""Errors as clients of the Open Inference Protocol read them: a message where our envelope has an object."""

from __future__ import annotations

import orjson
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_FIRST_ERROR = 400


class OipErrors:
    """Writes the answers from status 400 up below ``prefix`` as ``{"error": message, "code": …, "details": …}``."""

    def __init__(self, app: ASGIApp, *, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith(self._prefix):
            await self._app(scope, receive, send)
            return
        await self._app(scope, receive, _Rewriting(send).send)


class _Rewriting:
    """Holds an error's head until its body, which the envelope sends whole, was rewritten."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= _FIRST_ERROR:
            self._head = message
            return
        if self._head is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            body = _rewritten(self._body)
            headers = MutableHeaders(raw=list(self._head["headers"]))
            headers["content-length"] = str(len(body))
            await self._send({**self._head, "headers": headers.raw})
            await self._send({"type": "http.response.body", "body": body})


def _rewritten(body: bytes) -> bytes:
    try:
        error = orjson.loads(body)["error"]
        return orjson.dumps({"error": error["message"], "code": error["code"], "details": error["details"]})
    except (orjson.JSONDecodeError, KeyError, TypeError):
        # The answer to a HEAD has no body.
        return body
