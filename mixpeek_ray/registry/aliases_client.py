"""What is done with aliases, carried out through the registry actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixpeek_ray.core.aliases import AliasChange, AliasPlan, AliasRef, AliasRoute, ModelAlias
from mixpeek_ray.core.ids import new_id
from mixpeek_ray.core.records import Principal
from mixpeek_ray.registry.calls import call
from mixpeek_ray.registry.state import now


class AliasesClient:
    """Implements ``api.ports.ModelAliases`` over the registry actor."""

    def __init__(self, registry: Any, *, timeout_s: float) -> None:
        self._registry = registry
        self._timeout_s = timeout_s

    async def list(self, principal: Principal, namespace_id: str, name: str | None) -> Sequence[ModelAlias]:
        """Return a namespace's aliases, or those under one model name, by name and alias."""
        aliases: Sequence[ModelAlias] = await self._call("list_aliases", principal, namespace_id, name)
        return aliases

    async def get(self, principal: Principal, ref: AliasRef) -> ModelAlias:
        """Return one alias with its history."""
        alias: ModelAlias = await self._call("get_alias", principal, ref)
        return alias

    async def put(
        self, principal: Principal, ref: AliasRef, plan: AliasPlan, expected_revision: int | None
    ) -> ModelAlias:
        """Let an alias do as planned, making it if need be."""
        moved: ModelAlias = await self._call("put_alias", principal, ref, plan, _change(principal), expected_revision)
        return moved

    async def roll_back(self, principal: Principal, ref: AliasRef, expected_revision: int | None) -> ModelAlias:
        """Point an alias to what it pointed to before."""
        moved: ModelAlias = await self._call("roll_back_alias", principal, ref, _change(principal), expected_revision)
        return moved

    async def delete(self, principal: Principal, ref: AliasRef, expected_revision: int | None) -> None:
        """Remove an alias."""
        await self._call("delete_alias", principal, ref, expected_revision)

    async def route(self, principal: Principal, ref: AliasRef) -> AliasRoute:
        """Return where the requests of an alias, or of ``latest``, go now."""
        route: AliasRoute = await self._call("alias_route", principal, ref)
        return route

    async def _call(self, method: str, principal: Principal, *arguments: Any) -> Any:
        organization_id = principal.organization.organization_id
        return await call(getattr(self._registry, method).remote(organization_id, *arguments), self._timeout_s)


def _change(principal: Principal) -> AliasChange:
    # The id is made here, so that a call that is repeated moves the alias once.
    return AliasChange(change_id=new_id("chg"), key_id=principal.key_id, made_at=now())
