"""Making and removing model versions: the order of durable steps that leaves nothing half done."""

from __future__ import annotations

import asyncio

from mixpeek_ray.core.errors import MixpeekError, StorageUnavailableError
from mixpeek_ray.core.ids import model_id as make_model_id
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import ArchiveContents, ModelManifest, ModelState, UploadedArchive, UploadForm
from mixpeek_ray.registry.deployer import Deployer
from mixpeek_ray.registry.locks import KeyedLocks
from mixpeek_ray.registry.state import ModelCatalog, ModelKey, now
from mixpeek_ray.store.records import RecordStore

_log = get_logger(__name__)


class Versions:
    """Creates and deletes model versions, each as one all-or-nothing step."""

    def __init__(self, catalog: ModelCatalog, records: RecordStore, locks: KeyedLocks, deployer: Deployer) -> None:
        self._catalog = catalog
        self._records = records
        self._model_locks = locks
        self._deployer = deployer
        # Two versions may be made of one archive: nobody may delete it while another takes it over.
        self._archive_locks = KeyedLocks()

    async def create(
        self, namespace_id: str, form: UploadForm, archive: UploadedArchive, contents: ArchiveContents | None
    ) -> tuple[ModelState, bool]:
        """Turn an uploaded archive into a version; the flag is False when the same bytes were there already.

        Raises ``VersionExistsError``, ``QuotaExceededError``, ``ModelBusyError``; the temporary blob is the caller's
        to remove then.
        """
        key = ModelKey(namespace_id=namespace_id, model_id=make_model_id(form.name, form.version))
        async with self._model_locks.hold(key):
            existing = self._catalog.existing(key, archive.sha256)
            if existing is not None:
                await asyncio.to_thread(self._records.delete_upload, archive.temporary_key)
                return existing, False
            self._catalog.reserve(key)
            try:
                manifest = _manifest(key, form, archive, contents)
                async with self._archive_locks.hold(archive.sha256):
                    await asyncio.to_thread(self._store_version, archive, manifest)
                    return self._catalog.created(manifest), True
            finally:
                self._catalog.release(key)

    def _store_version(self, archive: UploadedArchive, manifest: ModelManifest) -> None:
        # The manifest comes last: until it is there the version does not exist, and a sweep removes the archive.
        self._records.promote_archive(archive.temporary_key, archive.sha256)
        self._records.create_manifest(manifest)

    async def delete(self, key: ModelKey) -> None:
        """Remove a version, its weights and, unless another version shares it, its archive."""
        self._catalog.check_open(key)
        async with self._model_locks.hold(key):
            manifest = self._catalog.begin_delete(key).manifest
            self._deployer.stop(key)
            try:
                await asyncio.to_thread(self._records.delete_model, key.namespace_id, key.model_id)
            except MixpeekError:
                self._catalog.abandon_delete(key)
                raise
            async with self._archive_locks.hold(manifest.archive_sha256):
                self._catalog.deleted(key)
                if not self._catalog.references(manifest.archive_sha256):
                    await self._delete_archive(manifest.archive_sha256)

    async def _delete_archive(self, archive_sha256: str) -> None:
        try:
            await asyncio.to_thread(self._records.delete_archive, archive_sha256)
        except StorageUnavailableError:
            # The version is gone either way; the next start sweeps archives that no manifest names.
            _log.warning("archive of a deleted model left for the next sweep")


def _manifest(
    key: ModelKey, form: UploadForm, archive: UploadedArchive, contents: ArchiveContents | None
) -> ModelManifest:
    return ModelManifest(
        namespace_id=key.namespace_id,
        model_id=key.model_id,
        name=form.name,
        version=form.version,
        model_format=form.model_format,
        framework=form.framework,
        task_type=form.task_type,
        resources=form.resources,
        archive_sha256=archive.sha256,
        archive_bytes=archive.size_bytes,
        created_at=now(),
        contents=contents,
    )
