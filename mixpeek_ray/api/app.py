"""Puts the HTTP application together."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import ASGIApp

from mixpeek_ray.api.envelope import install_error_handlers
from mixpeek_ray.api.middleware.authentication import Authentication
from mixpeek_ray.api.middleware.lifecycle import RequestLifecycle
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.routes.health import build_health_router
from mixpeek_ray.api.routes.models import build_models_router
from mixpeek_ray.api.routes.namespaces import build_namespaces_router
from mixpeek_ray.api.routes.uploads import build_upload_routers
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.store.base import BlobStore


def create_app(
    platform: Platform,
    store: BlobStore,
    settings: Settings,
    new_upload_key: Callable[[], str],
    max_upload_bytes: int,
) -> ASGIApp:
    """Return the HTTP application over ``platform``; uploads stream to ``store`` under keys of ``new_upload_key``.

    ``max_upload_bytes`` limits one archive: less than the product's 10 GiB where the ingress holds bodies in memory.
    """
    app = FastAPI(
        title="Mixpeek on Ray",
        version=version("mixpeek-ray"),
        description="Upload custom models once, view their weights from every worker.",
        # A redirect would send an upload's body twice.
        redirect_slashes=False,
        redoc_url=None,
    )
    install_error_handlers(app)
    app.include_router(build_health_router(platform))
    app.include_router(build_namespaces_router(platform))
    # Before the models: `uploads` is the name of none.
    for router in build_upload_routers(platform, store, new_upload_key=new_upload_key, max_part_bytes=max_upload_bytes):
        app.include_router(router)
    app.include_router(
        build_models_router(platform, store, new_upload_key=new_upload_key, max_upload_bytes=max_upload_bytes)
    )
    # Around FastAPI rather than inside it: nothing of the framework may run before a request is authenticated.
    return RequestLifecycle(
        Authentication(app, platform=platform),
        max_upload_bytes=max_upload_bytes,
        idle_timeout_s=settings.idle_timeout_s,
    )
