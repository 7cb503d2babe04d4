"""Bringing deployed models' weights into the cluster, and letting them go."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from mixpeek_ray.core.errors import (
    ArchiveRefusedError,
    InsufficientCapacityError,
    MixpeekError,
    StorageUnavailableError,
)
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.placement import PoolLimit
from mixpeek_ray.core.records import (
    ArchiveContents,
    DeploymentMarker,
    DeploymentStatus,
    ModelManifest,
    ModelState,
    ResourceRequest,
)
from mixpeek_ray.registry import materialize
from mixpeek_ray.registry.capacity import check_capacity
from mixpeek_ray.registry.locks import KeyedLocks
from mixpeek_ray.registry.materialize import MaterializedRefs, MaterializeJob
from mixpeek_ray.registry.state import ModelCatalog, ModelKey, now
from mixpeek_ray.store.records import RecordStore

_log = get_logger(__name__)

# Waits between attempts to bring back a model after a restart: the store or a node may need minutes to return.
_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 30.0
# A task that has not begun by then waits for what others hold, perhaps for ever: replicas give nothing back while they
# are in use. A new worker process starts in 1-3 s.
_ROOM_S = 5.0
# Tasks at work beyond what the cluster has room for: each reads an archive, and computes hashes on one core.
_MAX_UNRESERVED = 2


@dataclass(kw_only=True)
class _Attempt:
    """A materialization under way: what to cancel, and what to wait for."""

    number: int
    # Set for a model that was deployed before a restart: nobody is there to deploy it again, so it is tried for ever.
    resumed: bool
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    contents_ref: Any = None
    task: asyncio.Task[None] | None = None


class Deployer:
    """Owns the weights' ObjectRefs: holding one keeps the weights in the cluster, dropping it frees them."""

    def __init__(
        self,
        catalog: ModelCatalog,
        records: RecordStore,
        locks: KeyedLocks,
        *,
        store_url: str,
        spool_dir: str | None,
        pool_limit: PoolLimit,
    ) -> None:
        self._catalog = catalog
        self._records = records
        self._locks = locks
        self._store_url = store_url
        self._spool_dir = spool_dir
        self._pool_limit = pool_limit
        self._deployed: dict[ModelKey, MaterializedRefs] = {}
        self._attempts: dict[ModelKey, _Attempt] = {}
        self._unreserved = asyncio.Semaphore(_MAX_UNRESERVED)

    def refs(self, key: ModelKey) -> MaterializedRefs:
        """Return what holds a deployed model in the cluster."""
        return self._deployed[key]

    def is_coming_back(self, key: ModelKey) -> bool:
        """Tell whether a model that was deployed before a restart is on its way back."""
        attempt = self._attempts.get(key)
        return attempt is not None and attempt.resumed

    async def deploy(self, key: ModelKey) -> tuple[ModelState, bool]:
        """Start to deploy a model; the flag is True when it is deployed already.

        Raises ``ModelNotFoundError``, ``ModelBusyError``, ``InsufficientCapacityError``, ``StorageUnavailableError``.
        """
        self._catalog.check_open(key)
        async with self._locks.hold(key):
            state = self._catalog.check_open(key)
            if state.status in (DeploymentStatus.DEPLOYED, DeploymentStatus.PENDING):
                return state, state.status is DeploymentStatus.DEPLOYED
            # Weights hardly compress: what an unchecked archive unpacks to is at least about its own size.
            weights_bytes = state.contents.weights_bytes if state.contents else state.manifest.archive_bytes
            await asyncio.to_thread(check_capacity, state.manifest.resources, weights_bytes=weights_bytes)
            marker = DeploymentMarker(namespace_id=key.namespace_id, model_id=key.model_id, requested_at=now())
            await asyncio.to_thread(self._records.put_deployment, marker)
            self._start(state.manifest, resumed=False)
            return self._catalog.get(key), False

    def resume(self, marker: DeploymentMarker) -> None:
        """Bring back a model that was deployed before a restart."""
        key = ModelKey(namespace_id=marker.namespace_id, model_id=marker.model_id)
        self._start(self._catalog.get(key).manifest, resumed=True)

    async def undeploy(self, key: ModelKey) -> ModelState:
        """Let a model's weights go; one that is not deployed stays so."""
        self._catalog.check_open(key)
        async with self._locks.hold(key):
            self._catalog.check_open(key)
            await asyncio.to_thread(self._records.delete_deployment, key.namespace_id, key.model_id)
            self.stop(key)
            return self._catalog.undeployed(key)

    def stop(self, key: ModelKey) -> None:
        """Drop a model's weights and cancel what is bringing them; workers that view them keep their views."""
        self._deployed.pop(key, None)
        attempt = self._attempts.pop(key, None)
        if attempt is not None:
            if attempt.contents_ref is not None:
                ray.cancel(attempt.contents_ref)
            attempt.ended.set()

    def begun(self, key: ModelKey, number: int) -> None:
        """Take note that an attempt's task is at work."""
        attempt = self._attempts.get(key)
        if attempt is not None and attempt.number == number:
            attempt.begun.set()

    async def wait(self, key: ModelKey, timeout_s: float) -> None:
        """Return when the model's current attempt has ended, or after ``timeout_s``."""
        attempt = self._attempts.get(key)
        if attempt is None:
            return
        try:
            await asyncio.wait_for(attempt.ended.wait(), timeout_s)
        except TimeoutError:
            return

    def _start(self, manifest: ModelManifest, *, resumed: bool) -> None:
        key = ModelKey(namespace_id=manifest.namespace_id, model_id=manifest.model_id)
        attempt = _Attempt(number=self._catalog.begin_deploy(key), resumed=resumed)
        self._attempts[key] = attempt
        attempt.task = asyncio.get_running_loop().create_task(self._run(key, manifest, attempt))

    async def _run(self, key: ModelKey, manifest: ModelManifest, attempt: _Attempt) -> None:
        retry_s = _FIRST_RETRY_S
        while self._catalog.is_current(key, attempt.number):
            try:
                await self._materialize(key, manifest, attempt)
                return
            except (RayError, MixpeekError, ValueError) as error:
                cause = _as_mixpeek_error(error)
            if not attempt.resumed or isinstance(cause, ArchiveRefusedError | InsufficientCapacityError):
                await self._give_up(key, attempt, cause)
                return
            _log.warning(
                "deployed model not back yet",
                extra={"namespace_id": key.namespace_id, "model_id": key.model_id, "error_code": cause.code},
            )
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, _LAST_RETRY_S)

    async def _materialize(self, key: ModelKey, manifest: ModelManifest, attempt: _Attempt) -> None:
        job = MaterializeJob.of(manifest, attempt=attempt.number, store_url=self._store_url, spool_dir=self._spool_dir)
        if not self._pool_limit.takes(job.resources):
            # Its own replica reserves what it asks for: weights that are lost must not wait for what that holds.
            await self._materialize_unreserved(key, job, attempt)
            return
        refs = _submit(job, attempt, job.resources)
        try:
            await asyncio.wait_for(attempt.begun.wait(), _ROOM_S)
        except TimeoutError:
            ray.cancel(refs.contents)
            await self._materialize_unreserved(key, job, attempt)
        else:
            await self._hold(key, attempt, refs)

    async def _materialize_unreserved(self, key: ModelKey, job: MaterializeJob, attempt: _Attempt) -> None:
        async with self._unreserved:
            if self._catalog.is_current(key, attempt.number):
                await self._hold(key, attempt, _submit(job, attempt, None))

    async def _hold(self, key: ModelKey, attempt: _Attempt, refs: MaterializedRefs) -> None:
        contents: ArchiveContents = await refs.contents
        if not self._catalog.is_current(key, attempt.number):
            return
        self._deployed[key] = refs
        self._catalog.deployed(key, contents)
        self._end(key, attempt)
        _log.info(
            "model deployed",
            extra={"namespace_id": key.namespace_id, "model_id": key.model_id, "size_bytes": contents.weights_bytes},
        )

    async def _give_up(self, key: ModelKey, attempt: _Attempt, error: MixpeekError) -> None:
        async with self._locks.hold(key):
            if not self._catalog.is_current(key, attempt.number):
                return
            self._catalog.failed(key, error)
            try:
                # Without its marker a restart does not try what failed in front of its user.
                await asyncio.to_thread(self._records.delete_deployment, key.namespace_id, key.model_id)
            except StorageUnavailableError as store_error:
                _log.warning("deployment marker not removed", extra={"error_code": store_error.code})
            self._end(key, attempt)
        _log.warning(
            "model could not be deployed",
            extra={"namespace_id": key.namespace_id, "model_id": key.model_id, "error_code": error.code},
        )

    def _end(self, key: ModelKey, attempt: _Attempt) -> None:
        if self._attempts.get(key) is attempt:
            del self._attempts[key]
        attempt.ended.set()


def _submit(job: MaterializeJob, attempt: _Attempt, resources: ResourceRequest | None) -> MaterializedRefs:
    refs = materialize.submit(job, resources, name=f"materialize:{job.model.namespace_id}/{job.model.model_id}")
    attempt.contents_ref = refs.contents
    return refs


def _as_mixpeek_error(error: Exception) -> MixpeekError:
    if isinstance(error, RayTaskError) and isinstance(error.cause, MixpeekError):
        return error.cause
    if isinstance(error, MixpeekError):
        return error
    if isinstance(error, TaskCancelledError):
        return MixpeekError("The deploy was cancelled: deploy the model again.")
    _log.error("materialize task failed", exc_info=error)
    return MixpeekError(
        "The workers that loaded the model kept dying, most likely for want of memory: "
        "ask for more memory_gb, or deploy again."
    )
