"""Authentication and authorisation, before anything else looks at a request."""

from __future__ import annotations

import re
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from mixpeek_ray.api.access import Access, access_for, check_access
from mixpeek_ray.api.context import context_of
from mixpeek_ray.api.envelope import error_response
from mixpeek_ray.core.errors import AuthenticationError, InvalidApiKeyError, MixpeekError
from mixpeek_ray.core.records import Principal

# Printable ASCII of any plausible length: what is no such thing is refused without asking the registry.
_BEARER = re.compile(rb"bearer +([!-~]{1,256})", re.IGNORECASE)


class Authenticator(Protocol):
    """Knows who a key speaks for. Both raise ``InvalidApiKeyError`` and ``RegistryUnavailableError``."""

    async def authenticate(self, api_key: str) -> Principal:
        """Return who the key speaks for."""

    async def authenticate_url(self, path: str, query: str) -> Principal:
        """Return who signed this URL."""


class Authentication:
    """Lets a request pass when its path is open, or when its key is valid and may do what the path asks for."""

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 403 without reading the body, or pass the request on with its principal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Decided on the path that the router will see; a URL rebuilt from the Host header could say something else.
        access = access_for(scope["method"], scope["path"])
        if access.needs_key:
            try:
                principal = await self._principal(access, scope)
                context_of(scope).principal = principal
                check_access(access, principal)
            except MixpeekError as error:
                await error_response(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _principal(self, access: Access, scope: Scope) -> Principal:
        has_key = any(name == b"authorization" for name, _ in scope["headers"])
        if access.takes_signed_url and not has_key and b"signature=" in scope["query_string"]:
            return await self._authenticator.authenticate_url(scope["path"], scope["query_string"].decode("latin-1"))
        return await self._authenticator.authenticate(_api_key(scope))


def _api_key(scope: Scope) -> str:
    values = [value for name, value in scope["headers"] if name == b"authorization" and value.strip()]
    if not values:
        raise AuthenticationError("Send an API key with the request: Authorization: Bearer sk_...")
    match = _BEARER.fullmatch(values[0].strip())
    if len(values) > 1 or match is None:
        raise InvalidApiKeyError("The Authorization header is not 'Bearer' followed by one API key.")
    return bytes(match[1]).decode("ascii")
