"""Resumable uploads: which are open, what has arrived of each, and their way to one whole archive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from mixpeek_ray.core.errors import NotFoundError, StorageUnavailableError, UploadClosedError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import UploadedArchive
from mixpeek_ray.core.uploads import (
    SealedUpload,
    UploadAnnouncement,
    UploadOutcome,
    UploadPart,
    UploadProgress,
    UploadRef,
    UploadSession,
    ValidationStatus,
)
from mixpeek_ray.registry.assembly import check_announced, hash_parts, ordered_parts
from mixpeek_ray.registry.locks import KeyedLocks
from mixpeek_ray.registry.state import ModelCatalog, ModelKey, now
from mixpeek_ray.registry.upload_book import OpenedUpload, UploadBook
from mixpeek_ray.store.uploads import UploadStore

_log = get_logger(__name__)

# Archives being hashed and joined at a time: each keeps a core and the disk busy.
_ASSEMBLIES = 2
# An upload whose parts are whole is not swept while its archive is checked and committed.
_CONFIRMATION_TIME = timedelta(hours=1)

T = TypeVar("T")


class Uploads:
    """Every resumable upload. Nothing is only here: a restart finds each in the store, as far as it had come.

    Methods that take an ``UploadRef`` raise ``UploadNotFoundError`` for one that is unknown, expired or not the
    caller's.
    """

    def __init__(self, catalog: ModelCatalog, store: UploadStore, *, lifetime: timedelta) -> None:
        """Blocks on the store, to find the uploads that are there."""
        self._catalog = catalog
        self._store = store
        self._lifetime = lifetime
        self._locks = KeyedLocks()
        self._assemblers = ThreadPoolExecutor(_ASSEMBLIES, thread_name_prefix="assemble")
        self._book = UploadBook()
        for stored in store.load():
            self._book.add(OpenedUpload(session=stored.session, parts=dict(stored.parts)))

    # Questions

    def find(self, ref: UploadRef) -> UploadProgress:
        """Return an upload with what has arrived of it."""
        return self._book.get(ref).progress()

    def unconfirmed(self, organization_id: str, namespace_id: str | None) -> tuple[UploadProgress, ...]:
        """Return the uploads without an outcome of a namespace, or of a whole organisation; newest first."""
        return self._book.unconfirmed(organization_id, namespace_id)

    def needs(self, archive_sha256: str) -> bool:
        """Tell whether a confirmation under way has moved, or may move, its archive to this content's address."""
        return self._book.needs(archive_sha256)

    # Steps of an upload

    async def create(
        self, upload_id: str, organization_id: str, namespace_id: str, announcement: UploadAnnouncement
    ) -> UploadSession:
        """Open an upload; opening the same id again returns it as it is.

        Raises ``QuotaExceededError``, and ``VersionExistsError`` when the announced hash is not the version's.
        """
        if self._book.knows(upload_id):
            # Ray repeats a call whose answer was lost with the registry.
            ref = UploadRef(upload_id=upload_id, organization_id=organization_id, namespace_id=namespace_id)
            return self._book.get(ref).session
        self._catalog.admit(namespace_id)
        self._book.check_room(organization_id, namespace_id)
        created_at = now()
        session = UploadSession(
            upload_id=upload_id,
            organization_id=organization_id,
            namespace_id=namespace_id,
            announcement=announcement,
            created_at=created_at,
            expires_at=created_at + self._lifetime,
        )
        if announcement.sha256 is not None:
            self._catalog.existing(_model_key(session), announcement.sha256)
        # Counted before it is durable, so that many at once cannot pass the limit together.
        self._book.add(OpenedUpload(session=session))
        try:
            await asyncio.to_thread(self._store.create, session)
        except BaseException:
            self._book.forget(upload_id)
            raise
        return session

    def admit_part(self, ref: UploadRef, number: int) -> int:
        """Return how many bytes this part may have. Raises ``UploadClosedError``, ``ArchiveTooLargeError``."""
        upload = self._book.get(ref)
        upload.check_open()
        return upload.check_room(number)

    async def add_part(self, ref: UploadRef, number: int, archive: UploadedArchive) -> UploadPart:
        """Make the blob under ``archive.temporary_key`` a part, in place of an earlier one with its number.

        Raises ``UploadClosedError``, ``ArchiveTooLargeError``; the temporary blob is the caller's to remove then.
        """
        # Asked before and after waiting: a confirmation may hold the lock for minutes.
        self._book.get(ref).check_open()
        async with self._locks.hold(ref.upload_id):
            upload = self._book.get(ref)
            upload.check_open()
            upload.check_room(number, archive.size_bytes)
            earlier = upload.parts.get(number)
            revision = earlier.revision + 1 if earlier else 1
            part = UploadPart(number=number, revision=revision, size_bytes=archive.size_bytes, sha256=archive.sha256)
            try:
                await asyncio.to_thread(self._store.keep_part, ref.upload_id, part, archive.temporary_key)
            except FileNotFoundError:
                if earlier is not None and earlier.sha256 == archive.sha256:
                    return earlier  # Ray repeats a call whose answer was lost with the registry.
                raise NotFoundError("The part's bytes are no longer stored: send it again.") from None
            upload.parts[number] = part
            if earlier is not None:
                await self._discard(ref.upload_id, earlier)
            return part

    async def _discard(self, upload_id: str, part: UploadPart) -> None:
        try:
            await asyncio.to_thread(self._store.delete_part, upload_id, part)
        except StorageUnavailableError:
            # The later revision counts; this one goes with the upload.
            _log.warning("a part that was sent again could not be removed")

    async def assemble(
        self, ref: UploadRef, size_bytes: int | None, sha256: str | None
    ) -> tuple[UploadProgress, UploadedArchive | None]:
        """Join the parts to the archive that is to be committed; None when the upload has its outcome already.

        ``size_bytes`` and ``sha256``: what the caller says of the whole, if anything. Raises
        ``UploadIncompleteError``, ``DigestMismatchError``, ``QuotaExceededError``, ``VersionExistsError``; then
        nothing has changed, and the upload takes parts as before.
        """
        async with self._locks.hold(ref.upload_id):
            upload = self._book.get(ref)
            upload.confirming = True
            try:
                archive = await self._assemble(upload, size_bytes, sha256)
            finally:
                upload.confirming = False
            return upload.progress(), archive

    async def _assemble(
        self, upload: OpenedUpload, size_bytes: int | None, sha256: str | None
    ) -> UploadedArchive | None:
        session = upload.session
        if session.outcome is not None:
            return None
        sealed = session.sealed or await self._whole(upload, size_bytes, sha256)
        check_announced(sealed.sha256, session.announcement.sha256, sha256)
        existing = self._catalog.existing(_model_key(session), sealed.sha256)
        if existing is not None:
            checked = existing.manifest.contents is not None
            validation = ValidationStatus.PASSED if checked else ValidationStatus.PENDING
            await self._finish(upload, UploadOutcome(validation=validation, archive_sha256=sealed.sha256))
            return None
        if session.sealed is None:
            self._catalog.admit(session.namespace_id)
            expires_at = max(session.expires_at, now() + _CONFIRMATION_TIME)
            await self._save(upload, replace(session, sealed=sealed, expires_at=expires_at))
        try:
            key = await self._run(lambda: self._store.join(session.upload_id, sealed))
        except FileNotFoundError:
            raise NotFoundError("The uploaded bytes are no longer stored: upload the archive again.") from None
        return UploadedArchive(temporary_key=key, sha256=sealed.sha256, size_bytes=sealed.size_bytes)

    async def _whole(self, upload: OpenedUpload, size_bytes: int | None, sha256: str | None) -> SealedUpload:
        session = upload.session
        parts = ordered_parts(upload.parts, session.announcement.size_bytes, size_bytes)
        found = await self._run(lambda: hash_parts(self._store, session.upload_id, parts))
        check_announced(found, session.announcement.sha256, sha256)
        return SealedUpload(parts=parts, sha256=found)

    async def finish(self, ref: UploadRef, outcome: UploadOutcome) -> UploadProgress:
        """Record how an upload ended and remove its bytes; the first outcome stays."""
        async with self._locks.hold(ref.upload_id):
            upload = self._book.get(ref)
            await self._finish(upload, outcome)
            return upload.progress()

    async def _finish(self, upload: OpenedUpload, outcome: UploadOutcome) -> None:
        if upload.session.outcome is None:
            await self._save(upload, replace(upload.session, outcome=outcome))
        upload.parts.clear()
        await asyncio.to_thread(self._store.delete_contents, upload.session.upload_id)

    async def abort(self, ref: UploadRef) -> None:
        """Forget an upload and remove its bytes; a model that it made stays. Raises ``UploadClosedError``."""
        upload = self._book.get(ref)
        if upload.confirming:
            raise UploadClosedError("The upload is being confirmed: try again when that is done.")
        async with self._locks.hold(ref.upload_id):
            self._book.get(ref)
            await self._remove(ref.upload_id)

    async def sweep(self) -> None:
        """Remove every upload whose time is up."""
        for upload_id in self._book.all_expired():
            async with self._locks.hold(upload_id):
                if self._book.expired(upload_id):
                    await self._remove(upload_id)

    async def _remove(self, upload_id: str) -> None:
        await asyncio.to_thread(self._store.delete, upload_id)
        self._book.forget(upload_id)

    async def _save(self, upload: OpenedUpload, session: UploadSession) -> None:
        await asyncio.to_thread(self._store.put, session)
        upload.session = session

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._assemblers, work)


def _model_key(session: UploadSession) -> ModelKey:
    return ModelKey(namespace_id=session.namespace_id, model_id=session.model_id)
