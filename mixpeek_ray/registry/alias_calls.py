"""The part of the registry actor that deals with aliases. Loaders import it with the actor's class: keep it light."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixpeek_ray.core.aliases import AliasChange, AliasPlan, AliasRef, AliasRoute, ModelAlias, WeightedTarget
    from mixpeek_ray.registry.accounts import Accounts
    from mixpeek_ray.registry.aliases import Aliases


class AliasCalls:
    """Aliases as callers reach them; see ``registry.aliases`` for what each method raises beside what is said here.

    ``organization_id`` is whose namespace it must be: ``NamespaceNotFoundError`` otherwise.
    """

    _accounts: Accounts
    _aliases: Aliases

    async def list_aliases(self, organization_id: str, namespace_id: str, name: str | None) -> tuple[ModelAlias, ...]:
        """Return a namespace's aliases, or those under one model name."""
        self._check_namespace(organization_id, namespace_id)
        return self._aliases.list(namespace_id, name)

    async def get_alias(self, organization_id: str, ref: AliasRef) -> ModelAlias:
        """Return one alias with its history."""
        self._check_namespace(organization_id, ref.namespace_id)
        return self._aliases.get(ref)

    async def put_alias(
        self,
        organization_id: str,
        ref: AliasRef,
        plan: AliasPlan,
        change: AliasChange,
        expected_revision: int | None,
    ) -> ModelAlias:
        """Let an alias do as planned, making it if need be."""
        self._check_namespace(organization_id, ref.namespace_id)
        return await self._aliases.put(ref, plan, change, expected_revision)

    async def roll_back_alias(
        self, organization_id: str, ref: AliasRef, change: AliasChange, expected_revision: int | None
    ) -> ModelAlias:
        """Point an alias to what it pointed to before."""
        self._check_namespace(organization_id, ref.namespace_id)
        return await self._aliases.roll_back(ref, change, expected_revision)

    async def delete_alias(self, organization_id: str, ref: AliasRef, expected_revision: int | None) -> None:
        """Remove an alias."""
        self._check_namespace(organization_id, ref.namespace_id)
        await self._aliases.delete(ref, expected_revision)

    async def alias_route(self, organization_id: str, ref: AliasRef) -> AliasRoute:
        """Return where the requests of an alias, or of ``latest``, go now."""
        self._check_namespace(organization_id, ref.namespace_id)
        return self._aliases.route(ref)

    async def resolve_alias(self, ref: AliasRef) -> tuple[WeightedTarget, ...]:
        """Return, for a loader, which versions an alias, or ``latest``, means now.

        Raises ``NamespaceNotFoundError`` for a namespace that nobody has.
        """
        self._accounts.check_namespace_exists(ref.namespace_id)
        return self._aliases.route(ref).targets

    def _check_namespace(self, organization_id: str, namespace_id: str) -> None:
        # A development namespace that was never written to is as good as empty: it is made by its first upload.
        self._accounts.owned_namespace(organization_id, namespace_id)
