"""Puts the application of the custom models' endpoints together: what a replica of the pool serves itself."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter
from starlette.types import ASGIApp

from mixpeek_ray.api.assembly import behind_middleware, build_direct_app
from mixpeek_ray.api.middleware.authentication import Authenticator
from mixpeek_ray.api.oip_errors import OipErrors
from mixpeek_ray.api.predict_ports import DescribedModel, ModelServing, NamedModel, ServedModel
from mixpeek_ray.api.routes.oip import OIP_MODELS, build_oip_models_router
from mixpeek_ray.api.routes.predict import build_predict_router
from mixpeek_ray.core.errors import UnavailableError
from mixpeek_ray.core.records import Principal
from mixpeek_ray.core.settings import Settings


def build_predict_routers(serving: ModelServing) -> tuple[APIRouter, ...]:
    """Return the routers of everything that the pool computes, with their full paths."""
    return build_predict_router(serving), build_oip_models_router(serving)


def create_predict_app(authenticator: Authenticator, serving: ModelServing, settings: Settings) -> ASGIApp:
    """Return the HTTP application over ``serving``; the gateway describes its routes in ``/openapi.json``."""
    app = build_direct_app(build_predict_routers(serving))
    # None of its routes takes an archive.
    return OipErrors(behind_middleware(app, authenticator, settings, max_upload_bytes=0), prefix=OIP_MODELS)


class ServedElsewhere:
    """Stands in the gateway for the pool, whose own applications take these routes where they are deployed."""

    def use(self, principal: Principal, named: NamedModel) -> AbstractAsyncContextManager[ServedModel]:
        """Raise ``UnavailableError``."""
        del principal, named
        raise _not_deployed()

    async def describe(self, principal: Principal, named: NamedModel) -> DescribedModel:
        """Raise ``UnavailableError``."""
        del principal, named
        raise _not_deployed()


def _not_deployed() -> UnavailableError:
    return UnavailableError(
        "The application that computes custom models is not deployed: add `models` of serve_config.yaml to the "
        "platform's configuration, or try again in a few seconds while it starts."
    )
