"""What a replica of a model's own application is made of: the model, alone, with what it asked for."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from mixpeek_ray.core.errors import MixpeekError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.bootstrap import ensure_registry
from mixpeek_ray.servables.base import NamedArrays, OwnApplication, Parameters, ServableRef, ServableSpec
from mixpeek_ray.servables.pool import ServablePool
from mixpeek_ray.serving.counting import ReplicaCounts
from mixpeek_ray.serving.crash_reports import CrashReporter
from mixpeek_ray.serving.opening import ServableOpener

_log = get_logger(__name__)

# In metrics, which tell models apart by a tag of their own.
_APPLICATION = "dedicated"


class DedicatedReplica:
    """One model; used from the replica's event loop."""

    def __init__(
        self, ref: ServableRef, own: OwnApplication, settings: Settings, registry: Any, counts: ReplicaCounts
    ) -> None:
        self._ref = ref
        # Of batches and loads; requests are counted by the pool, which they come through.
        self._counts = counts
        self._crashes = CrashReporter(registry, settings)
        self._pool = ServablePool(
            ServableOpener(self._crashes.watch, device=_device(own.resources.num_gpus)).open,
            max_models=1,
            max_private_bytes=own.resources.memory_bytes,
            max_wait_s=settings.max_queue_s,
            observer=counts.observer,
        )
        self._reporting = asyncio.create_task(self._crashes.keep_reporting())

    @classmethod
    async def open(cls, ref: ServableRef, own: OwnApplication, settings: Settings) -> Self:
        """Return a replica that has tried to open its model.

        What went wrong is the answer to each request, which tries again: a replica that fails to start would tell its
        callers nothing.
        """
        registry = await asyncio.to_thread(ensure_registry, settings)
        counts = await ReplicaCounts.connect(settings, application=_APPLICATION)
        replica = cls(ref, own, settings, registry, counts)
        # What ended the replica before this one: the registry may take the model out of service for it.
        await replica._crashes.report()
        try:
            await replica.describe()
        except MixpeekError as error:
            _log.warning("model not opened: %s", error.message, extra={"model_id": ref.name})
        return replica

    async def close(self) -> None:
        """Report what was counted since the last report; the replica has answered its last request."""
        await self._counts.close()

    async def describe(self) -> ServableSpec:
        """Return what the model takes and returns. Raises what opening it raises."""
        async with self._pool.use(self._ref) as model:
            return model.spec

    async def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return the outputs. Raises what opening the model raises, and as ``OpenModel.compute``."""
        async with self._pool.use(self._ref) as model:
            return await model.compute(inputs, parameters)


def _device(num_gpus: int) -> str | None:
    """Return where a replica with so many GPUs computes: on the first, where torch can use it."""
    if not num_gpus:
        return None
    from mixpeek_ray.loading.device import accelerator

    found = accelerator()
    if found is None:
        _log.warning("the model asked for a GPU, and torch finds none in its replica: it computes on the CPU")
    return found
