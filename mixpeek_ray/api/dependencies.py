"""What routes take as parameters."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Path, Security
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.requests import Request

from mixpeek_ray.api.access import is_plausible_id
from mixpeek_ray.api.context import context_of
from mixpeek_ray.core.aliases import AliasRef, parse_reference
from mixpeek_ray.core.errors import (
    AuthenticationError,
    ModelNotFoundError,
    NamespaceNotFoundError,
    UploadNotFoundError,
)
from mixpeek_ray.core.records import Principal
from mixpeek_ray.core.uploads import UploadRef


class _ApiKey(SecurityBase):
    """Documents the scheme and hands over the principal; one dependency, for each costs a request some 20 us.

    The key was checked by the middleware, before any byte of a body was read.
    """

    def __init__(self) -> None:
        self.model = HTTPBearer(description="An API key, sk_...")
        self.scheme_name = "HTTPBearer"

    async def __call__(self, request: Request) -> Principal:
        return principal_of(request)


def principal_of(request: Request) -> Principal:
    """Return who sent a request that passed the middleware. Raises ``AuthenticationError`` for an anonymous one."""
    principal = context_of(request.scope).principal
    if principal is None:
        raise AuthenticationError("Send an API key with the request: Authorization: Bearer sk_...")
    return principal


NamespacePath = Annotated[str, Path(description="The namespace's id, ns_...")]
ReferencePath = Annotated[str, Path(description="A model's id, or `{name}@{alias}`, such as my-model@production.")]


def plausible_namespace(namespace_id: str) -> str:
    """Return ``namespace_id``. Raises ``NamespaceNotFoundError`` for what cannot be one."""
    # What cannot be an id is in no registry: no need to ask it, nor to carry the text any further.
    if not is_plausible_id(namespace_id):
        raise NamespaceNotFoundError("There is no such namespace in your organization.")
    return namespace_id


def plausible_model(model_id: str) -> str:
    """Return ``model_id``. Raises ``ModelNotFoundError`` for what cannot be one."""
    if not is_plausible_id(model_id):
        raise ModelNotFoundError("There is no such model in the namespace.")
    return model_id


def model_reference(namespace_id: str, reference: str) -> str | AliasRef:
    """Return which model or alias is meant. Raises ``ModelNotFoundError`` for what cannot name one."""
    return parse_reference(namespace_id, reference) or plausible_model(reference)


async def _namespace_id(namespace_id: NamespacePath) -> str:
    return plausible_namespace(namespace_id)


async def _upload_ref(request: Request, upload_id: Annotated[str, Path(description="The upload's id.")]) -> UploadRef:
    principal = context_of(request.scope).principal
    if principal is None or not is_plausible_id(upload_id):
        raise UploadNotFoundError("There is no such upload: create one.")
    return UploadRef(
        upload_id=upload_id,
        organization_id=principal.organization.organization_id,
        namespace_id=await _named_namespace(request),
    )


async def _named_namespace(request: Request) -> str | None:
    named = request.path_params.get("namespace_id") or request.headers.get("x-namespace")
    if named is not None and not is_plausible_id(named):
        raise NamespaceNotFoundError("There is no such namespace in your organization.")
    return named


async def document_namespace_path(namespace_id: NamespacePath) -> None:
    """Show in the API's documentation that a router's prefix has a namespace."""


async def document_namespace_header(
    x_namespace: Annotated[str | None, Header(description="A namespace's id.")] = None,
) -> None:
    """Show in the API's documentation that a router's routes heed ``X-Namespace``."""


async def _model_id(model_id: Annotated[str, Path(description="The model's id, such as my-model_1_0_0.")]) -> str:
    return plausible_model(model_id)


async def _model_reference(
    namespace_id: Annotated[str, Depends(_namespace_id)], model_id: ReferencePath
) -> str | AliasRef:
    return model_reference(namespace_id, model_id)


CurrentPrincipal = Annotated[Principal, Security(_ApiKey())]
NamespaceId = Annotated[str, Depends(_namespace_id)]
ModelId = Annotated[str, Depends(_model_id)]
# A model's id, or an alias.
ModelReference = Annotated[str | AliasRef, Depends(_model_reference)]
# The namespace in the path or in X-Namespace, None where neither names one.
NamedNamespace = Annotated[str | None, Depends(_named_namespace)]
UploadReference = Annotated[UploadRef, Depends(_upload_ref)]
