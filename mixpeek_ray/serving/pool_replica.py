"""What a replica of the pool is made of: any of them serves any deployed model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from starlette.types import ASGIApp

from mixpeek_ray.api.alias_resolver import AliasResolver, Chosen
from mixpeek_ray.api.predict_app import create_predict_app
from mixpeek_ray.api.predict_ports import DescribedModel, NamedModel, ServedModel
from mixpeek_ray.batching.observer import Observed, observed
from mixpeek_ray.core.aliases import AliasRef
from mixpeek_ray.core.errors import RegistryUnavailableError, UnavailableError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import Principal
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.aliases_client import AliasesClient
from mixpeek_ray.registry.bootstrap import ensure_registry
from mixpeek_ray.registry.key_checker import KeyChecker
from mixpeek_ray.servables.base import NamedArrays, Parameters, ServableRef, ServableSpec
from mixpeek_ray.servables.pool import ServablePool
from mixpeek_ray.serving.counting import ReplicaCounts
from mixpeek_ray.serving.crash_reports import CrashReporter
from mixpeek_ray.serving.dedicated_models import RemoteModels
from mixpeek_ray.serving.opening import ServableOpener, import_libraries
from mixpeek_ray.serving.pool_models import PoolModels
from mixpeek_ray.serving.shadows import ShadowTraffic

_log = get_logger(__name__)

# An undeployed model holds its weights in the object store until the replicas that opened it let go.
_CHECK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class PoolBounds:
    """How many models one replica keeps open, and the bytes of its own memory that they may take."""

    max_models: int
    max_private_bytes: int


class PoolReplica:
    """Keys and models of one replica; used from its event loop. Implements ``api.predict_ports.ModelServing``."""

    def __init__(
        self, settings: Settings, registry: Any, keys: KeyChecker, counts: ReplicaCounts, bounds: PoolBounds
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._counts = counts
        aliases = AliasesClient(registry, timeout_s=settings.registry_timeout_s)
        self._versions = AliasResolver(aliases.route)
        self._shadows = ShadowTraffic(dropped=counts.observer.shadow_dropped)
        self._crashes = CrashReporter(registry, settings)
        self._models = PoolModels(registry, limit=settings.pool_limit, timeout_s=settings.registry_timeout_s)
        self._remote = RemoteModels(wait_s=settings.replica_wait_s)
        self._pool = ServablePool(
            ServableOpener(self._crashes.watch).open,
            max_models=bounds.max_models,
            max_private_bytes=bounds.max_private_bytes,
            max_wait_s=settings.max_queue_s,
            observer=counts.observer,
        )
        self._letting_go = asyncio.create_task(self._let_go())
        self._reporting = asyncio.create_task(self._crashes.keep_reporting())

    @classmethod
    async def connect(cls, settings: Settings, bounds: PoolBounds, *, application: str) -> Self:
        """Return a replica with its keys read and no model open."""
        await asyncio.to_thread(import_libraries)
        registry = await asyncio.to_thread(ensure_registry, settings)
        keys = await KeyChecker.connect(registry, timeout_s=settings.registry_timeout_s)
        counts = await ReplicaCounts.connect(settings, application=application)
        replica = cls(settings, registry, keys, counts, bounds)
        # What ended the replica before this one: the registry should know when the next request for that model comes.
        await replica._crashes.report()
        return replica

    def create_app(self) -> ASGIApp:
        """Return the HTTP application of the models' endpoints."""
        return create_predict_app(self._keys, self, self._settings)

    @asynccontextmanager
    async def use(self, principal: Principal, named: NamedModel) -> AsyncIterator[ServedModel]:
        """Provide a deployed model for one request, which is counted; see ``ModelServing``."""
        async with self._counted(principal, named, is_shadow=False) as model:
            yield model

    async def describe(self, principal: Principal, named: NamedModel) -> DescribedModel:
        """Return a deployed model once it is open; see ``ModelServing``."""
        async with self._opened(principal, named, Observed()) as (model, _):
            return model

    async def close(self) -> None:
        """Report what was counted since the last report; the replica has answered its last request."""
        await self._shadows.close()
        await self._counts.close()

    @asynccontextmanager
    async def _counted(self, principal: Principal, named: NamedModel, *, is_shadow: bool) -> AsyncIterator[ServedModel]:
        with observed(self._counts.observer, principal, is_shadow=is_shadow) as under_way:
            async with self._opened(principal, named, under_way) as (model, shadow):
                mirror = partial(self._mirror, principal, shadow) if shadow is not None else None
                yield _CountedModel(model=model, under_way=under_way, mirror=mirror)

    @asynccontextmanager
    async def _opened(
        self, principal: Principal, named: NamedModel, under_way: Observed
    ) -> AsyncIterator[tuple[ServedModel, NamedModel | None]]:
        """Provide the model that answers, and the one that computes in the shadow."""
        async with AsyncExitStack() as stack:

            async def opened(chosen: Chosen) -> tuple[ServedModel, NamedModel | None]:
                ref = await self._models.find(principal, named.namespace_id, chosen.model_id)
                under_way.model = ref.name
                model = await stack.enter_async_context(self._provided(principal, ref))
                if chosen.shadow_id is None:
                    return model, None
                return model, NamedModel(namespace_id=named.namespace_id, reference=chosen.shadow_id)

            reference = named.reference
            if isinstance(reference, AliasRef):
                yield await self._versions.answered(principal, reference, named.sticky, opened, version=named.version)
            else:
                yield await opened(Chosen(model_id=reference, shadow_id=None))

    @asynccontextmanager
    async def _provided(self, principal: Principal, ref: ServableRef) -> AsyncIterator[ServedModel]:
        if ref.own is None:
            async with self._pool.use(ref) as model:
                yield model
            return
        try:
            async with self._remote.use(ref, ref.own) as remote:
                yield remote
        except UnavailableError:
            # Where it is not deployed any more, that is the answer.
            await self._models.find(principal, ref.namespace_id, ref.model_id, afresh=True)
            raise

    def _mirror(self, principal: Principal, shadow: NamedModel, inputs: NamedArrays, parameters: Parameters) -> None:
        async def compute() -> None:
            async with self._counted(principal, shadow, is_shadow=True) as model:
                await model.compute(inputs, parameters)

        self._shadows.offer(f"{shadow.namespace_id}/{shadow.reference}", compute)

    async def _let_go(self) -> None:
        """Close, for ever, what is no longer deployed."""
        while True:
            await asyncio.sleep(_CHECK_S)
            try:
                for ref in await self._models.gone([*self._pool.open(), *self._remote.known()]):
                    self._pool.retire(ref)
                    self._remote.forget(ref)
            except RegistryUnavailableError:
                _log.warning("the registry was not asked which models are still deployed: it does not answer")


@dataclass(frozen=True, kw_only=True)
class _CountedModel:
    """A model that answers one request, and says how many rows it computed."""

    model: ServedModel
    under_way: Observed
    # Hands the inputs to the version in the shadow, once they were answered.
    mirror: Callable[[NamedArrays, Parameters], None] | None

    @property
    def ref(self) -> ServableRef:
        """Which model it is."""
        return self.model.ref

    @property
    def spec(self) -> ServableSpec:
        """What it takes and returns."""
        return self.model.spec

    async def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return the outputs; see ``ServedModel``."""
        outputs = await self.model.compute(inputs, parameters)
        self.under_way.items += self.spec.rows_of(inputs)
        if self.mirror is not None:
            self.mirror(inputs, parameters)
        return outputs
