"""Namespaces and the caller's own identity."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from mixpeek_ray.api.dependencies import CurrentPrincipal
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.presenters import present_namespace
from mixpeek_ray.api.schemas import (
    ErrorResponse,
    NamespaceCreateRequest,
    NamespaceDocument,
    NamespaceListResponse,
    WhoAmIResponse,
)
from mixpeek_ray.core.errors import InvalidNameError
from mixpeek_ray.core.ids import is_valid_name

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 409, 413, 422, 503)
}


def build_namespaces_router(platform: Platform) -> APIRouter:
    """Return ``/v1/namespaces`` and ``/v1/whoami``."""
    router = APIRouter(prefix="/v1", tags=["Namespaces"], responses=_ERRORS)

    @router.post("/namespaces")
    async def create_namespace(principal: CurrentPrincipal, body: NamespaceCreateRequest) -> NamespaceDocument:
        """Make a namespace in the caller's organisation."""
        if not is_valid_name(body.namespace_name):
            raise InvalidNameError(
                f"{body.namespace_name[:80]!a} is not a namespace name: use 1 to 64 letters, digits, '-' or '_', "
                "beginning with a letter or digit.",
                field="namespace_name",
            )
        return present_namespace(await platform.create_namespace(principal, body.namespace_name))

    @router.get("/namespaces")
    async def list_namespaces(principal: CurrentPrincipal) -> NamespaceListResponse:
        """List the organisation's namespaces, by id."""
        namespaces = [present_namespace(namespace) for namespace in await platform.list_namespaces(principal)]
        return NamespaceListResponse(namespaces=namespaces, total=len(namespaces))

    @router.get("/whoami")
    async def whoami(principal: CurrentPrincipal) -> WhoAmIResponse:
        """Tell whom the key speaks for."""
        return WhoAmIResponse(
            key_id=principal.key_id,
            organization_id=principal.organization.organization_id,
            organization_name=principal.organization.name,
            role=principal.role,
            tier=principal.organization.tier,
        )

    return router
