"""What a replica of the pool is made of: any of them serves any deployed model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from starlette.types import ASGIApp

from mixpeek_ray.api.predict_app import create_predict_app
from mixpeek_ray.core.errors import RegistryUnavailableError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import Principal
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.bootstrap import ensure_registry
from mixpeek_ray.registry.key_checker import KeyChecker
from mixpeek_ray.servables.pool import OpenModel, ServablePool
from mixpeek_ray.serving.pool_models import PoolModels

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

    def __init__(self, settings: Settings, registry: Any, keys: KeyChecker, bounds: PoolBounds) -> None:
        self._settings = settings
        self._keys = keys
        self._models = PoolModels(registry, timeout_s=settings.registry_timeout_s)
        self._pool = ServablePool(
            self._models.load,
            max_models=bounds.max_models,
            max_private_bytes=bounds.max_private_bytes,
            max_wait_s=settings.max_queue_s,
        )
        self._letting_go = asyncio.create_task(self._let_go())

    @classmethod
    async def connect(cls, settings: Settings, bounds: PoolBounds) -> Self:
        """Return a replica with its keys read and no model open."""
        registry = await asyncio.to_thread(ensure_registry, settings)
        keys = await KeyChecker.connect(registry, timeout_s=settings.registry_timeout_s)
        return cls(settings, registry, keys, bounds)

    def create_app(self) -> ASGIApp:
        """Return the HTTP application of the models' endpoints."""
        return create_predict_app(self._keys, self, self._settings)

    @asynccontextmanager
    async def use(self, principal: Principal, namespace_id: str, model_id: str) -> AsyncIterator[OpenModel]:
        """Provide a deployed model; see ``ModelServing``."""
        ref = await self._models.find(principal, namespace_id, model_id)
        async with self._pool.use(ref) as model:
            yield model

    async def _let_go(self) -> None:
        """Close, for ever, what is no longer deployed."""
        while True:
            await asyncio.sleep(_CHECK_S)
            try:
                for ref in await self._models.gone(self._pool.open()):
                    self._pool.retire(ref)
            except RegistryUnavailableError:
                _log.warning("the registry was not asked which models are still deployed: it does not answer")
