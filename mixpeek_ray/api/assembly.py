"""What every HTTP application of the platform has in common."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from mixpeek_ray.api.envelope import install_error_handlers
from mixpeek_ray.api.middleware.authentication import Authentication, Authenticator
from mixpeek_ray.api.middleware.lifecycle import RequestLifecycle
from mixpeek_ray.core.settings import Settings


def build_framework_app(routers: Iterable[APIRouter], *, is_documented: bool) -> FastAPI:
    """Return an application of ``routers``, the earlier ones first; a documented one serves its API's description."""
    app = FastAPI(
        title="Mixpeek on Ray",
        version=version("mixpeek-ray"),
        description="Custom models, uploaded once and viewed from every worker; text models over HTTP.",
        # A redirect would send a body twice.
        redirect_slashes=False,
        redoc_url=None,
        openapi_url="/openapi.json" if is_documented else None,
    )
    install_error_handlers(app)
    for router in routers:
        app.include_router(router)
    return app


def behind_middleware(
    app: ASGIApp, authenticator: Authenticator, settings: Settings, *, max_upload_bytes: int
) -> ASGIApp:
    """Return ``app`` behind all that must happen before a body is read.

    Around FastAPI rather than inside it: nothing of the framework may run before a request is authenticated.
    """
    return RequestLifecycle(
        Authentication(app, authenticator=authenticator),
        max_upload_bytes=max_upload_bytes,
        idle_timeout_s=settings.idle_timeout_s,
    )
