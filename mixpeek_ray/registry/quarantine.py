"""Keeping models that crash what computes them away from it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from mixpeek_ray.core.crashes import MAX_CRASHES, ModelCrash, quarantined
from mixpeek_ray.core.errors import ModelNotFoundError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import DeploymentMarker, DeploymentStatus
from mixpeek_ray.registry.deployer import Deployer
from mixpeek_ray.registry.locks import KeyedLocks
from mixpeek_ray.registry.state import ModelCatalog, ModelKey
from mixpeek_ray.store.records import RecordStore

_log = get_logger(__name__)


class Quarantine:
    """Counts the crashes of deployed models; with ``MAX_CRASHES`` of them a model is let go until deployed anew.

    The count lies in the deployment's marker: a restart keeps it, an undeploy or a new deploy begins another.
    """

    def __init__(self, catalog: ModelCatalog, records: RecordStore, locks: KeyedLocks, deployer: Deployer) -> None:
        self._catalog = catalog
        self._records = records
        self._locks = locks
        self._deployer = deployer

    async def report(self, key: ModelKey, content: str, crash: ModelCrash) -> None:
        """Count a crash, unless it is counted already or the model is no longer what crashed.

        ``content``: the archive's hash. Raises ``StorageUnavailableError``, ``CorruptStoreError``: nothing is counted.
        """
        async with self._locks.hold(key):
            if not self._is_served(key, content):
                return
            marker = await asyncio.to_thread(self._count, key, crash)
            if marker is None:
                return
            _log.warning(
                "a model ended the process that computed it (%s)",
                crash.reason,
                extra={"namespace_id": key.namespace_id, "model_id": key.model_id, "attempt": len(marker.crashes)},
            )
            if is_quarantined(marker):
                self._deployer.stop(key)
                self.restore(marker)

    def restore(self, marker: DeploymentMarker) -> None:
        """Put a model into quarantine. Raises ``ModelNotFoundError``."""
        key = ModelKey(namespace_id=marker.namespace_id, model_id=marker.model_id)
        self._catalog.quarantined(key, quarantined(key.model_id, marker.crashes))

    def _is_served(self, key: ModelKey, content: str) -> bool:
        try:
            state = self._catalog.get(key)
        except ModelNotFoundError:
            return False
        wanted = state.status in (DeploymentStatus.DEPLOYED, DeploymentStatus.PENDING)
        return wanted and state.manifest.archive_sha256 == content

    def _count(self, key: ModelKey, crash: ModelCrash) -> DeploymentMarker | None:
        """Return the marker with the crash in it, once that is durable; None where it does not count."""
        marker = self._records.find_deployment(key.namespace_id, key.model_id)
        if marker is None or crash.at < marker.requested_at:
            return None
        if any(known.crash_id == crash.crash_id for known in marker.crashes):
            return None
        counted = replace(marker, crashes=(*marker.crashes, crash))
        self._records.put_deployment(counted)
        return counted


def is_quarantined(marker: DeploymentMarker) -> bool:
    """Tell whether a model that should be deployed is kept from it."""
    return len(marker.crashes) >= MAX_CRASHES
