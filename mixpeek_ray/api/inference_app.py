"""Puts the inference application together: what a replica that computes models serves itself."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.types import ASGIApp

from mixpeek_ray.api.assembly import behind_middleware, build_direct_app
from mixpeek_ray.api.inference_ports import TextInference
from mixpeek_ray.api.middleware.authentication import Authenticator
from mixpeek_ray.api.routes.embeddings import build_embeddings_router
from mixpeek_ray.api.routes.rerank import build_rerank_router
from mixpeek_ray.core.settings import Settings


def build_inference_routers(inference: TextInference) -> tuple[APIRouter, ...]:
    """Return the routers of everything that a replica computes, with their full paths."""
    return build_embeddings_router(inference), build_rerank_router(inference)


def create_inference_app(authenticator: Authenticator, inference: TextInference, settings: Settings) -> ASGIApp:
    """Return the HTTP application over ``inference``; the gateway describes its routes in ``/openapi.json``."""
    app = build_direct_app(build_inference_routers(inference))
    # None of its routes takes an archive.
    return behind_middleware(app, authenticator, settings, max_upload_bytes=0)
