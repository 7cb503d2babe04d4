"""Aliases: names such as ``production`` for weighted versions of a model, moved in one step and moved back in one."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Response

from mixpeek_ray.api.alias_schemas import (
    AliasDeleteResponse,
    AliasListResponse,
    AliasPutRequest,
    AliasResponse,
    present_alias,
    present_aliases,
)
from mixpeek_ray.api.dependencies import CurrentPrincipal, NamespaceId
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.schemas import ErrorResponse
from mixpeek_ray.core.aliases import AliasRef, ModelAlias, check_alias, parse_reference
from mixpeek_ray.core.errors import AliasNotFoundError, ValidationError
from mixpeek_ray.core.ids import check_name, is_valid_name

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (401, 403, 404, 409, 413, 422, 503)
}
# An ETag of ours, with or without the quotes that HTTP asks for.
_REVISION = re.compile(r'"?(\d{1,15})"?', re.ASCII)

_Name = Annotated[str, Path(description="The model's name, such as my-model.")]
_Alias = Annotated[str, Path(description="The alias, such as production.")]


async def _existing(namespace_id: NamespaceId, name: _Name, alias: _Alias) -> AliasRef:
    ref = parse_reference(namespace_id, f"{name}@{alias}")
    if ref is None:
        raise AliasNotFoundError("There is no such alias in the namespace.")
    return ref


async def _wanted(namespace_id: NamespaceId, name: _Name, alias: _Alias) -> AliasRef:
    return AliasRef(namespace_id=namespace_id, name=check_name(name), alias=check_alias(alias))


async def _expected_revision(
    if_match: Annotated[
        str | None,
        Header(description="The revision that the caller saw last, 0 for no alias yet; 409 when it is another one."),
    ] = None,
) -> int | None:
    if if_match is None:
        return None
    match = _REVISION.fullmatch(if_match.strip())
    if match is None:
        message = 'If-Match takes one revision, such as "3".'
        found = {"loc": ["header", "If-Match"], "msg": message, "type": "revision"}
        raise ValidationError(message, validation_errors=[found])
    return int(match[1])


_ExistingAlias = Annotated[AliasRef, Depends(_existing)]
_WantedAlias = Annotated[AliasRef, Depends(_wanted)]
_ExpectedRevision = Annotated[int | None, Depends(_expected_revision)]


def build_aliases_router(platform: Platform) -> APIRouter:
    """Return the routes under ``/v1/namespaces/{namespace_id}/aliases``."""
    router = APIRouter(prefix="/v1/namespaces/{namespace_id}/aliases", tags=["Aliases"], responses=_ERRORS)

    @router.get("")
    async def list_aliases(principal: CurrentPrincipal, namespace_id: NamespaceId) -> AliasListResponse:
        """List the namespace's aliases."""
        return present_aliases(await platform.aliases.list(principal, namespace_id, None), namespace_id)

    @router.get("/{name}")
    async def list_aliases_of_model(
        principal: CurrentPrincipal, namespace_id: NamespaceId, name: _Name
    ) -> AliasListResponse:
        """List the aliases under one model name."""
        # What cannot be a name is no model's.
        found = await platform.aliases.list(principal, namespace_id, name) if is_valid_name(name) else ()
        return present_aliases(found, namespace_id)

    @router.get("/{name}/{alias}")
    async def get_alias(principal: CurrentPrincipal, ref: _ExistingAlias, response: Response) -> AliasResponse:
        """Get an alias with what it pointed to before."""
        return _answer(await platform.aliases.get(principal, ref), response)

    @router.put("/{name}/{alias}")
    async def put_alias(
        body: AliasPutRequest,
        principal: CurrentPrincipal,
        ref: _WantedAlias,
        expected_revision: _ExpectedRevision,
        response: Response,
    ) -> AliasResponse:
        """Point an alias to versions of its model. It moves from one moment to the next, everywhere within 2 s."""
        return _answer(await platform.aliases.put(principal, ref, body.plan(), expected_revision), response)

    @router.post("/{name}/{alias}/rollback")
    async def roll_back_alias(
        principal: CurrentPrincipal, ref: _ExistingAlias, expected_revision: _ExpectedRevision, response: Response
    ) -> AliasResponse:
        """Point an alias to what it pointed to before; once more goes one step further back."""
        return _answer(await platform.aliases.roll_back(principal, ref, expected_revision), response)

    @router.delete("/{name}/{alias}")
    async def delete_alias(
        principal: CurrentPrincipal, ref: _ExistingAlias, expected_revision: _ExpectedRevision
    ) -> AliasDeleteResponse:
        """Delete an alias with its history; the versions stay."""
        await platform.aliases.delete(principal, ref, expected_revision)
        return AliasDeleteResponse(reference=ref.reference, message=f"Alias {ref.reference} was deleted.")

    return router


def _answer(alias: ModelAlias, response: Response) -> AliasResponse:
    response.headers["ETag"] = f'"{alias.revision}"'
    return present_alias(alias)
