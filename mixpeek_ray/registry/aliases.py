"""Every alias: what it points to, who may move it, and which versions it keeps from going away. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from mixpeek_ray.core import limits
from mixpeek_ray.core.alias_options import RollbackGuard
from mixpeek_ray.core.aliases import (
    LATEST,
    AliasChange,
    AliasPlan,
    AliasRef,
    AliasRoute,
    ModelAlias,
    TargetSet,
    WeightedTarget,
    check_alias,
    check_revision,
)
from mixpeek_ray.core.errors import AliasNotFoundError, ModelInUseError, QuotaExceededError
from mixpeek_ray.registry.alias_versions import AliasVersions
from mixpeek_ray.registry.locks import KeyedLocks
from mixpeek_ray.registry.state import ModelCatalog, ModelKey
from mixpeek_ray.store.records import RecordStore


class Aliases:
    """Moves aliases, each move one durable write; a version that has requests sent to it stays deployed.

    Methods that take an ``AliasRef`` of an alias raise ``AliasNotFoundError`` for one that is not there.
    """

    def __init__(
        self, catalog: ModelCatalog, records: RecordStore, *, is_coming_back: Callable[[ModelKey], bool]
    ) -> None:
        """``is_coming_back`` tells of a pending model whether it was deployed before a restart.

        Blocks on the store, to find the aliases that are there.
        """
        self._versions = AliasVersions(catalog, is_coming_back=is_coming_back)
        self._records = records
        self._aliases = {alias.ref: alias for alias in records.load_aliases().records}
        # One a namespace: while it is held, no alias moves and no version that one may point to goes away.
        self._locks = KeyedLocks()

    # Questions

    def list(self, namespace_id: str, name: str | None) -> tuple[ModelAlias, ...]:
        """Return a namespace's aliases, or those under one model name, by name and alias."""
        found = (
            alias
            for ref, alias in self._aliases.items()
            if ref.namespace_id == namespace_id and name in (None, ref.name)
        )
        return tuple(sorted(found, key=lambda alias: (alias.ref.name, alias.ref.alias)))

    def get(self, ref: AliasRef) -> ModelAlias:
        """Return one alias."""
        alias = self._aliases.get(ref)
        if alias is None:
            raise AliasNotFoundError(
                f"There is no alias {ref.reference[:160]!a} in this namespace: "
                f"GET /v1/namespaces/{ref.namespace_id}/aliases lists those there are.",
            )
        return alias

    def guarded(self) -> tuple[tuple[ModelAlias, RollbackGuard], ...]:
        """Return the aliases of all namespaces that divide their requests under a guard."""
        return tuple(
            (alias, alias.current.guard)
            for alias in self._aliases.values()
            if alias.current.guard is not None and len(alias.current.answering()) > 1
        )

    def route(self, ref: AliasRef) -> AliasRoute:
        """Return what an alias points to now; for ``latest``, the highest version that is deployed.

        Raises ``ModelNotFoundError`` and ``ModelNotDeployedError`` for a ``latest`` that there is none of.
        """
        if ref.alias != LATEST:
            current = self.get(ref).current
            return AliasRoute(targets=current.targets, shadow=current.shadow)
        return AliasRoute(targets=(WeightedTarget(model_id=self._versions.latest(ref), weight=1),))

    def serves(self, ref: AliasRef, model_id: str) -> bool:
        """Tell whether a version of the alias' model may be sent requests."""
        return self._versions.serves(ref, model_id)

    # Changes

    async def put(
        self, ref: AliasRef, plan: AliasPlan, change: AliasChange, expected_revision: int | None
    ) -> ModelAlias:
        """Let an alias do as planned, making it if need be; planning the same again changes nothing.

        Raises ``InvalidNameError``, ``ValidationError`` (no such version, no weight above 0),
        ``ModelNotDeployedError`` (a version with a weight above 0, or in the shadow), ``RevisionMismatchError``,
        ``QuotaExceededError``.
        """
        check_alias(ref.alias)
        async with self._locks.hold(ref.namespace_id):
            known = self._aliases.get(ref)
            if known is not None and known.current.change.change_id == change.change_id:
                return known  # Ray repeats a call whose answer was lost with the registry.
            check_revision(known, expected_revision)
            wanted = TargetSet(
                targets=self._versions.ordered(ref, plan.weights),
                change=change,
                shadow=self._versions.known_shadow(ref, plan.shadow),
                guard=plan.guard,
            )
            if known is not None and known.current.does_as(wanted):
                return known
            self._versions.check_deployed(ref, wanted)
            if known is not None:
                return await self._save(known.moved(wanted))
            self._check_room(ref.namespace_id)
            return await self._save(ModelAlias(ref=ref, revision=1, created_at=change.made_at, current=wanted))

    async def roll_back(self, ref: AliasRef, change: AliasChange, expected_revision: int | None) -> ModelAlias:
        """Point an alias to what it pointed to before; once more goes one step further back.

        Raises ``NoPreviousTargetsError``, ``ModelNotDeployedError``, ``RevisionMismatchError``.
        """
        async with self._locks.hold(ref.namespace_id):
            known = self.get(ref)
            if known.current.change.change_id == change.change_id:
                return known  # Ray repeats a call whose answer was lost with the registry.
            check_revision(known, expected_revision)
            rolled_back = known.rolled_back(change)
            current = self._versions.without_lost_shadow(ref, rolled_back.current)
            self._versions.check_there(ref, current.targets)
            self._versions.check_deployed(ref, current)
            return await self._save(replace(rolled_back, current=current))

    async def withdraw(self, ref: AliasRef, model_id: str, change: AliasChange, expected_revision: int) -> ModelAlias:
        """Let an alias do what it did before it sent requests to a version, or else send that one none from now on.

        Raises ``RevisionMismatchError``, and ``ModelNotDeployedError`` when nobody else could answer.
        """
        async with self._locks.hold(ref.namespace_id):
            known = self.get(ref)
            check_revision(known, expected_revision)
            before = known.before(model_id)
            can_go_back = before is not None and self._versions.can_answer(ref, before)
            withdrawn = known.withdrawn(model_id, change, to=before if can_go_back else None)
            current = self._versions.without_lost_shadow(ref, withdrawn.current)
            self._versions.check_deployed(ref, current)
            return await self._save(replace(withdrawn, current=current))

    async def delete(self, ref: AliasRef, expected_revision: int | None) -> None:
        """Remove an alias and its history. Raises ``RevisionMismatchError``."""
        async with self._locks.hold(ref.namespace_id):
            check_revision(self.get(ref), expected_revision)
            await asyncio.to_thread(self._records.delete_alias, ref)
            del self._aliases[ref]

    # What aliases keep

    @asynccontextmanager
    async def none_naming(self, key: ModelKey) -> AsyncIterator[None]:
        """Hold every alias still while a version goes away that none points to. Raises ``ModelInUseError``."""
        async with self._locks.hold(key.namespace_id):
            self._check_unused(key, at_least=0)
            yield

    @asynccontextmanager
    async def none_serving(self, key: ModelKey) -> AsyncIterator[None]:
        """Hold every alias still while a version ends that none sends requests to. Raises ``ModelInUseError``."""
        async with self._locks.hold(key.namespace_id):
            self._check_unused(key, at_least=1)
            yield

    def _check_unused(self, key: ModelKey, *, at_least: int) -> None:
        users = [
            alias.ref.reference
            for alias in self.list(key.namespace_id, None)
            if _uses(alias.current, key.model_id, at_least=at_least)
        ]
        if users:
            raise ModelInUseError(
                f"Model {key.model_id!a} is in use by {', '.join(users)}: point the alias elsewhere first.",
                aliases=users,
            )

    def _check_room(self, namespace_id: str) -> None:
        if len(self.list(namespace_id, None)) >= limits.MAX_ALIASES_PER_NAMESPACE:
            raise QuotaExceededError(
                f"The namespace has {limits.MAX_ALIASES_PER_NAMESPACE} aliases, as many as it may: DELETE one first.",
                limit=limits.MAX_ALIASES_PER_NAMESPACE,
            )

    async def _save(self, alias: ModelAlias) -> ModelAlias:
        # Durable before anyone hears of it.
        await asyncio.to_thread(self._records.put_alias, alias)
        self._aliases[alias.ref] = alias
        return alias


def _uses(current: TargetSet, model_id: str, *, at_least: int) -> bool:
    if current.shadow is not None and current.shadow.model_id == model_id:
        return True
    return any(target.model_id == model_id and target.weight >= at_least for target in current.targets)
