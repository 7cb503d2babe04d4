"""Removing what belongs to nobody: uploads that died or expired, archives whose manifest was never written."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from mixpeek_ray.core.errors import StorageUnavailableError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.registry.state import ModelCatalog, now
from mixpeek_ray.registry.uploads import Uploads
from mixpeek_ray.store.records import RecordStore

_log = get_logger(__name__)

_PERIOD_S = 60.0
# Longer than the slowest upload: S3 does not tell a live writer from a dead one (a local store does, by its lock).
_UPLOAD_LIFETIME = timedelta(days=1)


class Housekeeper:
    """Keeps the store free of left-overs. Methods that are not coroutines block on the store."""

    def __init__(self, catalog: ModelCatalog, records: RecordStore, uploads: Uploads) -> None:
        self._catalog = catalog
        self._records = records
        self._uploads = uploads

    def store_answers(self) -> bool:
        """Tell whether the store answers a question now."""
        try:
            next(iter(self._records.list_uploads()), None)
        except StorageUnavailableError:
            return False
        return True

    def sweep(self, *, archives: bool) -> None:
        """Remove every left-over; only when no upload can be under way.

        ``archives``: also those that no manifest names. Wrong while a manifest cannot be read: it may name one.
        """
        self._records.discard_abandoned(timedelta(0))
        for upload in self._records.list_uploads():
            self._records.delete_upload(upload.key)
        if not archives:
            return
        for archive_sha256 in self._records.list_archives():
            if not self._catalog.references(archive_sha256) and not self._uploads.needs(archive_sha256):
                self._records.delete_archive(archive_sha256)

    async def keep(self) -> None:
        """Remove what died uploads left, again and again, until cancelled."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            try:
                await self._uploads.sweep()
                await asyncio.to_thread(self._discard_old_uploads)
            except StorageUnavailableError:
                _log.warning("uploads not cleaned up: the store does not answer")

    def _discard_old_uploads(self) -> None:
        self._records.discard_abandoned(_UPLOAD_LIFETIME)
        for upload in self._records.list_uploads():
            if upload.modified_at < now() - _UPLOAD_LIFETIME:
                self._records.delete_upload(upload.key)
