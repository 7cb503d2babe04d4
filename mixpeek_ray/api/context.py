"""What is known about the request in hand, carried in its ASGI scope."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Receive, Scope

from mixpeek_ray.api.middleware.body_guard import GuardedBody
from mixpeek_ray.core.records import Principal

_SCOPE_KEY = "mixpeek_ray.context"


@dataclass(kw_only=True)
class RequestContext:
    """Filled in as a request passes the middleware; read by the routes and by the access log."""

    request_id: str
    principal: Principal | None = None
    # The code of the error it was answered with, if any.
    error_code: str | None = None
    # None until the lifecycle middleware has looked at its declared length.
    body: GuardedBody | None = None

    @property
    def receive(self) -> Receive | None:
        """The guarded body's messages: each of the framework's wrappers costs a route that streams 5% of its speed."""
        return None if self.body is None else self.body.receive


def attach_context(scope: Scope, context: RequestContext) -> None:
    """Put ``context`` into ``scope``."""
    scope[_SCOPE_KEY] = context


def context_of(scope: Scope) -> RequestContext:
    """Return the context of a request that passed the lifecycle middleware."""
    context = scope[_SCOPE_KEY]
    if not isinstance(context, RequestContext):
        raise TypeError("the request did not pass the lifecycle middleware")
    return context


def body_of(scope: Scope) -> GuardedBody:
    """Return the guarded body of a request that passed the lifecycle middleware."""
    body = context_of(scope).body
    if body is None:
        raise TypeError("the request's body was not looked at yet")
    return body
