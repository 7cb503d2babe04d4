"""What a replica of a text application is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Self

from starlette.types import ASGIApp

from mixpeek_ray.api.alias_resolver import AliasResolver
from mixpeek_ray.api.inference_app import create_inference_app
from mixpeek_ray.api.inference_ports import TextInference
from mixpeek_ray.batching.engine import TextEngine
from mixpeek_ray.batching.pool import ModelPool
from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.catalog.catalog import get_catalog
from mixpeek_ray.core.errors import MixpeekError, RegistryUnavailableError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.aliases_client import AliasesClient
from mixpeek_ray.registry.bootstrap import ensure_registry
from mixpeek_ray.registry.calls import call
from mixpeek_ray.registry.key_checker import KeyChecker
from mixpeek_ray.serving.aliased_inference import AliasedInference
from mixpeek_ray.serving.counting import ReplicaCounts
from mixpeek_ray.serving.shadows import ShadowTraffic
from mixpeek_ray.serving.text_models import ReplicaModels, builtin_names, builtin_ref

_log = get_logger(__name__)

# The registry lets weights go that nobody named for the idle time: four chances to be heard.
_KEEPS_PER_IDLE_TIME = 4


class TextReplica:
    """Keys, models and the engine of one replica; used from its event loop."""

    def __init__(self, settings: Settings, registry: Any, keys: KeyChecker, counts: ReplicaCounts) -> None:
        self._settings = settings
        self._registry = registry
        self._keys = keys
        self._counts = counts
        observer = counts.observer
        models = ReplicaModels(registry, get_catalog(), timeout_s=settings.registry_timeout_s)
        self._pool = ModelPool(models, max_wait_s=settings.max_queue_s, idle_s=settings.model_idle_s, observer=observer)
        aliases = AliasesClient(registry, timeout_s=settings.registry_timeout_s)
        self._shadows = ShadowTraffic(dropped=observer.shadow_dropped)
        self.engine: TextInference = AliasedInference(
            TextEngine(self._pool, observer), AliasResolver(aliases.route), self._shadows
        )
        self._keeping = asyncio.create_task(self._keep_weights())

    @classmethod
    async def connect(cls, settings: Settings, *, application: str, warm: Iterable[ModelCard]) -> Self:
        """Return a replica with its keys read and the models ``warm`` loaded."""
        registry = await asyncio.to_thread(ensure_registry, settings)
        keys = await KeyChecker.connect(registry, timeout_s=settings.registry_timeout_s)
        counts = await ReplicaCounts.connect(settings, application=application)
        replica = cls(settings, registry, keys, counts)
        for card in warm:
            await replica._warm_up(card)
        return replica

    def create_app(self) -> ASGIApp:
        """Return the HTTP application of all text routes."""
        return create_inference_app(self._keys, self.engine, self._settings)

    async def close(self) -> None:
        """Report what was counted since the last report; the replica has answered its last request."""
        await self._shadows.close()
        await self._counts.close()

    async def _warm_up(self, card: ModelCard) -> None:
        try:
            await self._pool.keep(builtin_ref(card))
        except MixpeekError as error:
            # The replica serves its other models; the next request for this one tries again.
            _log.warning("warm model not loaded: %s", error.message, extra={"model_id": card.name})

    async def _keep_weights(self) -> None:
        """Tell the registry, for ever, which built-in models this replica works with, so that their weights stay."""
        while True:
            await asyncio.sleep(self._settings.model_idle_s / _KEEPS_PER_IDLE_TIME)
            names = builtin_names(self._pool.loaded())
            try:
                await call(self._registry.keep_builtin.remote(names), self._settings.registry_timeout_s)
            except RegistryUnavailableError:
                # Restarted, it holds no weights anyway; this replica keeps its own views.
                _log.warning("the registry was not told which models are in use: it does not answer")
