"""Puts the HTTP application together."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp

from mixpeek_ray.api.assembly import behind_middleware, build_framework_app
from mixpeek_ray.api.inference_app import build_inference_routers
from mixpeek_ray.api.inference_ports import TextInference
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.predict_app import ServedElsewhere, build_predict_routers
from mixpeek_ray.api.routes.aliases import build_aliases_router
from mixpeek_ray.api.routes.analytics import build_analytics_router
from mixpeek_ray.api.routes.discovery import build_discovery_router, build_open_discovery_router
from mixpeek_ray.api.routes.health import build_health_router
from mixpeek_ray.api.routes.inference import build_inference_router
from mixpeek_ray.api.routes.models import build_models_router
from mixpeek_ray.api.routes.namespaces import build_namespaces_router
from mixpeek_ray.api.routes.oip import build_oip_server_router
from mixpeek_ray.api.routes.org_models import build_org_models_router
from mixpeek_ray.api.routes.rerank import build_rerank_router
from mixpeek_ray.api.routes.uploads import build_upload_routers
from mixpeek_ray.catalog.catalog import Catalog
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.store.base import BlobStore


def create_app(
    platform: Platform,
    store: BlobStore,
    settings: Settings,
    new_upload_key: Callable[[], str],
    max_upload_bytes: int,
    *,
    catalog: Catalog,
    inference: TextInference,
) -> ASGIApp:
    """Return the HTTP application over ``platform``; uploads stream to ``store`` under keys of ``new_upload_key``.

    ``catalog`` says what the built-in models are called, and ``inference`` computes them and the custom ones.
    ``max_upload_bytes`` limits one archive: less than the product's 10 GiB where the ingress holds bodies in memory.
    """
    routers = [
        build_health_router(platform),
        build_namespaces_router(platform),
        # Before the models, here and below: `uploads` is the name of none.
        *build_upload_routers(platform, store, new_upload_key=new_upload_key, max_part_bytes=max_upload_bytes),
        build_models_router(
            platform,
            store,
            new_upload_key=new_upload_key,
            max_upload_bytes=max_upload_bytes,
            pool_limit=settings.pool_limit,
        ),
        build_aliases_router(platform),
        build_analytics_router(platform),
        build_org_models_router(platform),
        build_open_discovery_router(platform),
        build_discovery_router(platform),
        build_inference_router(platform, inference, catalog),
        # The families' own applications serve these; here they are described, and `/v2/rerank` answered.
        *build_inference_routers(inference),
        build_rerank_router(inference, version="v2"),
        # As the families', these have an application of their own.
        *build_predict_routers(ServedElsewhere()),
        build_oip_server_router(),
    ]
    app = build_framework_app(routers)
    return behind_middleware(app, platform, settings, max_upload_bytes=max_upload_bytes)
