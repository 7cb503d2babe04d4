"""The gateway application: the management routes, served by a replica that does the work itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from deployments.building import build_dedicated
from mixpeek_ray.api.app import create_app
from mixpeek_ray.catalog.catalog import get_catalog
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.registry.client import RegistryClient
from mixpeek_ray.serving.applications import TextApplications
from mixpeek_ray.serving.dedicated_control import ensure_control
from mixpeek_ray.serving.ingress import (
    IngressMode,
    harden_replica,
    ingress_mode,
    leave_request_id_to_serve,
    max_upload_bytes,
)
from mixpeek_ray.store.factory import open_store
from mixpeek_ray.store.layout import new_upload_key

_log = get_logger(__name__)


class GatewayArgs(BaseModel):
    """The `args` of the gateway in `serve_config.yaml`: none yet, and a misspelt one is refused."""

    model_config = ConfigDict(extra="forbid")


@serve.deployment(
    name="gateway",
    # Waiting deploys and slow uploads hold a place each and need nothing else; the application sheds load itself.
    max_ongoing_requests=1_000,
    # A dead replica is noticed within three periods.
    health_check_period_s=1,
    health_check_timeout_s=5,
    # Idle most of the time: CPUs are for the models that ask for them.
    ray_actor_options={"num_cpus": 0},
    # The application logs every request itself, with its ids.
    logging_config={"enable_access_log": False},
)
@serve.ingress()
class Gateway:
    """One replica of the HTTP application, connected to the registry and the store."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
        harden_replica()
        self._settings = get_settings()
        self._mode = ingress_mode()
        self._platform = await RegistryClient.connect(self._settings, ingress=self._mode)
        # The one application that always runs sees to it that somebody starts the others.
        await asyncio.to_thread(ensure_control, build_dedicated)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        limit = max_upload_bytes(self._settings, self._mode)
        if self._mode is IngressMode.PYTHON_PROXY:
            _log.warning(
                "Serve runs without HAProxy and holds whole request bodies in memory: uploads are limited to %d bytes. "
                "Start the platform with `mixpeek-ray up` to stream them.",
                limit,
            )
        app = create_app(
            platform=self._platform,
            store=open_store(self._settings.resolved_store_url),
            settings=self._settings,
            new_upload_key=new_upload_key,
            max_upload_bytes=limit,
            catalog=get_catalog(),
            inference=TextApplications(),
        )
        return leave_request_id_to_serve(app)


def build(args: Mapping[str, Any]) -> Application:
    """Return the gateway, ready to deploy. Raises pydantic's ``ValidationError`` for misspelt ``args``."""
    GatewayArgs.model_validate(args)
    return Gateway.bind()  # type: ignore[attr-defined]  # `serve.ingress` hides what `serve.deployment` adds
