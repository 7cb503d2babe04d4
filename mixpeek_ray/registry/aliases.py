"""Every alias: what it points to, who may move it, and which versions it keeps from going away. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from mixpeek_ray.core import limits
from mixpeek_ray.core.alias_options import RollbackGuard, Shadow
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
from mixpeek_ray.core.errors import (
    AliasNotFoundError,
    ModelInUseError,
    ModelNotDeployedError,
    ModelNotFoundError,
    NoPreviousTargetsError,
    QuotaExceededError,
    ValidationError,
)
from mixpeek_ray.core.records import DeploymentStatus, ModelState
from mixpeek_ray.core.semver import newest_first
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
        self._catalog = catalog
        self._records = records
        self._is_coming_back = is_coming_back
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
        versions = self._versions(ref)
        if not versions:
            raise ModelNotFoundError(f"There is no model called {ref.name[:80]!a} in this namespace: upload one first.")
        serving = [state.manifest for state in versions.values() if self._serves(state)]
        if not serving:
            raise ModelNotDeployedError(f"No version of {ref.name!a} is deployed: deploy one first.")
        latest = WeightedTarget(model_id=newest_first(serving)[0].model_id, weight=1)
        return AliasRoute(targets=(latest,))

    def serves(self, ref: AliasRef, model_id: str) -> bool:
        """Tell whether a version of the alias' model may be sent requests."""
        state = self._versions(ref).get(model_id)
        return state is not None and self._serves(state)

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
                targets=self._checked(ref, plan.weights),
                change=change,
                shadow=self._checked_shadow(ref, plan.shadow),
                guard=plan.guard,
            )
            if known is not None and known.current.does_as(wanted):
                return known
            self._check_deployed(ref, wanted)
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
            current = self._without_lost_shadow(ref, rolled_back.current)
            self._check_there(ref, current.targets)
            self._check_deployed(ref, current)
            return await self._save(replace(rolled_back, current=current))

    async def withdraw(self, ref: AliasRef, model_id: str, change: AliasChange, expected_revision: int) -> ModelAlias:
        """Let an alias do what it did before it sent requests to a version, or else send that one none from now on.

        Raises ``RevisionMismatchError``, and ``ModelNotDeployedError`` when nobody else could answer.
        """
        async with self._locks.hold(ref.namespace_id):
            known = self.get(ref)
            check_revision(known, expected_revision)
            before = known.before(model_id)
            can_go_back = before is not None and self._can_answer(ref, before)
            withdrawn = known.withdrawn(model_id, change, to=before if can_go_back else None)
            current = self._without_lost_shadow(ref, withdrawn.current)
            self._check_deployed(ref, current)
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

    def _versions(self, ref: AliasRef) -> dict[str, ModelState]:
        states = self._catalog.models(ref.namespace_id)
        return {state.manifest.model_id: state for state in states if state.manifest.name == ref.name}

    def _serves(self, state: ModelState) -> bool:
        if state.status is DeploymentStatus.DEPLOYED:
            return True
        # After a restart a version that was deployed is as good as deployed: its loaders wait for it.
        manifest = state.manifest
        key = ModelKey(namespace_id=manifest.namespace_id, model_id=manifest.model_id)
        return state.status is DeploymentStatus.PENDING and self._is_coming_back(key)

    def _checked(self, ref: AliasRef, weights: Mapping[str, int]) -> tuple[WeightedTarget, ...]:
        """Return the targets, the highest version first."""
        versions = self._versions(ref)
        for model_id, weight in weights.items():
            if model_id not in versions:
                raise ValidationError(
                    f"There is no version {model_id[:128]!a} of {ref.name[:80]!a}: an alias points to versions of the "
                    "model that it is under.",
                    field="targets",
                )
            if not 0 <= weight <= limits.MAX_ALIAS_WEIGHT:
                raise ValidationError(
                    f"A weight is between 0 and {limits.MAX_ALIAS_WEIGHT}, not {weight}.", field="targets"
                )
        if not any(weights.values()):
            raise ValidationError("No target has a weight above 0: no request would be answered.", field="targets")
        ordered = newest_first(versions[model_id].manifest for model_id in weights)
        return tuple(
            WeightedTarget(model_id=manifest.model_id, weight=weights[manifest.model_id]) for manifest in ordered
        )

    def _check_there(self, ref: AliasRef, targets: Iterable[WeightedTarget]) -> None:
        versions = self._versions(ref)
        for target in targets:
            if target.model_id not in versions:
                raise NoPreviousTargetsError(
                    f"Version {target.model_id!a}, which {ref.reference!a} pointed to before, was deleted since: PUT "
                    "the targets it should have."
                )

    def _checked_shadow(self, ref: AliasRef, shadow: Shadow | None) -> Shadow | None:
        if shadow is not None and shadow.model_id not in self._versions(ref):
            raise ValidationError(
                f"There is no version {shadow.model_id[:128]!a} of {ref.name[:80]!a}: a version of the same model "
                "computes in the shadow.",
                field="shadow",
            )
        return shadow

    def _check_deployed(self, ref: AliasRef, wanted: TargetSet) -> None:
        versions = self._versions(ref)
        asked = [target.model_id for target in wanted.answering()]
        for model_id in (*asked, wanted.shadow.model_id) if wanted.shadow is not None else asked:
            if not self._serves(versions[model_id]):
                raise ModelNotDeployedError(
                    f"Model {model_id!a} is {versions[model_id].status}, and requests would be sent to it: POST "
                    f"/v1/namespaces/{ref.namespace_id}/models/{model_id}/deploy first.",
                    model_id=model_id,
                )

    def _can_answer(self, ref: AliasRef, wanted: TargetSet) -> bool:
        versions = self._versions(ref)
        return all(target.model_id in versions for target in wanted.targets) and all(
            self.serves(ref, target.model_id) for target in wanted.answering()
        )

    def _without_lost_shadow(self, ref: AliasRef, wanted: TargetSet) -> TargetSet:
        """Return what is wanted without a shadow that was undeployed since: nobody's answer depends on it."""
        if wanted.shadow is None or self.serves(ref, wanted.shadow.model_id):
            return wanted
        return replace(wanted, shadow=None)

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
