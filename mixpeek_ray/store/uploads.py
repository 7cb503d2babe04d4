"""Resumable uploads in the store.

::

    resumable/{upload_id}/upload.json                               UploadSession: create-only, then replaced
    resumable/{upload_id}/parts/{number}-{revision}-{sha256}        a part; sent again, the higher revision counts
    resumable/{upload_id}/archive                                   the parts joined, until a manifest takes it over

An upload exists exactly when its record does; its parts need none, for their names say everything.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from mixpeek_ray.core.errors import ConflictError, CorruptStoreError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.uploads import SealedUpload, UploadPart, UploadSession
from mixpeek_ray.store import layout
from mixpeek_ray.store.base import BlobPiece, BlobStore
from mixpeek_ray.store.codec import RecordCodec
from mixpeek_ray.store.join import copy_pieces

_log = get_logger(__name__)

_RESUMABLE = "resumable/"
_SESSION_FILE = "upload.json"
_ARCHIVE_FILE = "archive"
_PART_KEY = re.compile(r"parts/(\d+)-(\d+)-([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class StoredUpload:
    """An upload's record and its parts by number."""

    session: UploadSession
    parts: Mapping[int, UploadPart]


def archive_key(upload_id: str) -> str:
    """Return where an upload's archive lies once its parts are joined."""
    return f"{_RESUMABLE}{upload_id}/{_ARCHIVE_FILE}"


class UploadStore:
    """Typed access to what the module describes. All calls block; any thread may call.

    Every method raises ``StorageUnavailableError`` and, when writing, ``DiskFullError``.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._sessions = RecordCodec(UploadSession)

    def load(self) -> tuple[StoredUpload, ...]:
        """Return every upload with its parts, and remove what belongs to none.

        What lies beside a record that cannot be read stays, for whoever restores it.
        """
        recorded: set[str] = set()
        parts: dict[str, dict[int, UploadPart]] = defaultdict(dict)
        for blob in self._blobs.list(_RESUMABLE):
            upload_id, _, name = blob.key.removeprefix(_RESUMABLE).partition("/")
            found = parts[upload_id]
            if name == _SESSION_FILE:
                recorded.add(upload_id)
            elif (part := _part_named(name, blob.size_bytes)) is not None:
                known = found.get(part.number)
                found[part.number] = part if known is None else max(part, known, key=lambda one: one.revision)
        for upload_id in parts.keys() - recorded:
            self.delete_contents(upload_id)
        loaded = ((upload_id, self._load_session(upload_id)) for upload_id in sorted(recorded))
        return tuple(
            StoredUpload(session=session, parts=parts[upload_id])
            for upload_id, session in loaded
            if session is not None
        )

    def _load_session(self, upload_id: str) -> UploadSession | None:
        key = _session_key(upload_id)
        try:
            session = self._sessions.decode(self._blobs.read(key))
        except CorruptStoreError as error:
            _log.error("skipped the record %s: %s", key, error.message)
            return None
        return session if session.upload_id == upload_id else None

    def create(self, session: UploadSession) -> None:
        """Make an upload exist. Raises ``ConflictError`` when its id is taken."""
        try:
            self._blobs.create(_session_key(session.upload_id), self._sessions.encode(session))
        except FileExistsError:
            raise ConflictError("This upload exists already; choose another id.") from None

    def put(self, session: UploadSession) -> None:
        """Replace an upload's record."""
        self._blobs.put(_session_key(session.upload_id), self._sessions.encode(session))

    def delete(self, upload_id: str) -> None:
        """Remove an upload, its record first: what a call that died leaves belongs to none."""
        self._blobs.delete(_session_key(upload_id))
        self.delete_contents(upload_id)

    def delete_contents(self, upload_id: str) -> None:
        """Remove an upload's parts and archive, not its record."""
        for blob in list(self._blobs.list(f"{_RESUMABLE}{upload_id}/")):
            if blob.key != _session_key(upload_id):
                self._blobs.delete(blob.key)

    def keep_part(self, upload_id: str, part: UploadPart, temporary_key: str) -> None:
        """Make a blob a part of an upload. Raises ``FileNotFoundError`` when it is gone."""
        self._blobs.promote(temporary_key, _part_key(upload_id, part))

    def delete_part(self, upload_id: str, part: UploadPart) -> None:
        """Remove a part that was sent again."""
        self._blobs.delete(_part_key(upload_id, part))

    def open_part(self, upload_id: str, part: UploadPart) -> BinaryIO:
        """Return a reader over a part. Raises ``FileNotFoundError``."""
        return self._blobs.open_read(_part_key(upload_id, part))

    def join(self, upload_id: str, sealed: SealedUpload) -> str:
        """Join the parts of a sealed upload, or carry on with it; return the archive's key.

        Raises ``FileNotFoundError`` when neither the parts nor the archive are there.
        """
        key = archive_key(upload_id)
        pieces = [BlobPiece(key=_part_key(upload_id, part), size_bytes=part.size_bytes) for part in sealed.parts]
        promoted = BlobPiece(key=layout.archive_key(sealed.sha256), size_bytes=sealed.size_bytes)
        if not self._blobs.exists(pieces[0].key) and not self._blobs.exists(key) and self._blobs.exists(promoted.key):
            # A confirmation died between moving the archive and writing its manifest; others may share it by now.
            copy_pieces(self._blobs, [promoted], key)
        self._blobs.join(pieces, key)
        return key


def _session_key(upload_id: str) -> str:
    return f"{_RESUMABLE}{upload_id}/{_SESSION_FILE}"


def _part_key(upload_id: str, part: UploadPart) -> str:
    return f"{_RESUMABLE}{upload_id}/parts/{part.number:05}-{part.revision}-{part.sha256}"


def _part_named(name: str, size_bytes: int) -> UploadPart | None:
    match = _PART_KEY.fullmatch(name)
    if match is None:
        return None
    return UploadPart(number=int(match[1]), revision=int(match[2]), size_bytes=size_bytes, sha256=match[3])
