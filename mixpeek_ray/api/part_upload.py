"""Streams one part of a resumable upload to the store: hashed, limited and written as it arrives."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import ArchiveTooLargeError, BadRequestError, DigestMismatchError, MixpeekError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import UploadedArchive
from mixpeek_ray.store.base import BlobStore, BlobWriter

_log = get_logger("api.part_upload")

# Big enough that the hop to a thread is lost in hashing and writing it (1.2 ms a MiB).
_BATCH_BYTES = 2 * limits.MIB
# RFC 9530 writes a digest as a structured-field byte sequence: base64 between colons.
_DIGEST = re.compile(r"\s*([a-z0-9-]+)\s*=\s*:([A-Za-z0-9+/=]*):\s*", re.ASCII)


def expected_digest(headers: Sequence[str]) -> str | None:
    """Return the SHA-256 (lower-case hex) that ``Content-Digest`` announces, None without such a header.

    Raises ``BadRequestError`` for a header that names no SHA-256: whoever sends a digest counts on its being checked.
    """
    if not headers:
        return None
    matches = (_DIGEST.fullmatch(item) for item in ",".join(headers).split(","))
    digests = {match[1]: match[2] for match in matches if match is not None}
    try:
        digest = base64.b64decode(digests.get("sha-256", ""), validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise BadRequestError(
            "The Content-Digest header has no SHA-256: send sha-256=:<base64 of the part's hash>:, or no such header.",
            header="Content-Digest",
        )
    return digest.hex()


@asynccontextmanager
async def received_part(
    chunks: AsyncIterator[bytes], *, store: BlobStore, key: str, max_bytes: int, expected_sha256: str | None
) -> AsyncIterator[UploadedArchive]:
    """Read the body ``chunks`` to their end, then yield the part, committed under ``key``.

    When anything fails, here or in the body of the ``async with``, cancellation and a client that left included,
    nothing stays under ``key``. Holds two batches at most; a slow store stops the reading of the body.
    """
    intake = _PartIntake(store, key, max_bytes)
    writing: asyncio.Future[None] | None = None
    try:
        async for batch in _batches(chunks):
            if writing is not None:
                await writing
            writing = asyncio.ensure_future(asyncio.to_thread(intake.feed, batch))
        if writing is not None:
            await writing
        yield await asyncio.to_thread(intake.finish, expected_sha256)
    except BaseException:
        await asyncio.shield(_discard(intake, writing))
        raise


async def _discard(intake: _PartIntake, writing: asyncio.Future[None] | None) -> None:
    if writing is not None:
        # A thread cannot be stopped: the writer is its own until it returns.
        await asyncio.wait({writing})
    await asyncio.to_thread(intake.discard)


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    batch = bytearray()
    async for chunk in chunks:
        batch += chunk
        if len(batch) >= _BATCH_BYTES:
            yield bytes(batch)
            batch.clear()
    if batch:
        yield bytes(batch)


class _PartIntake:
    """The threads' side of a part; used by one thread at a time."""

    def __init__(self, store: BlobStore, key: str, max_bytes: int) -> None:
        self._store = store
        self._key = key
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._writer: BlobWriter | None = None

    def feed(self, batch: bytes) -> None:
        self._size_bytes += len(batch)
        if self._size_bytes > self._max_bytes:
            raise ArchiveTooLargeError(
                f"The part is larger than the {self._max_bytes} bytes that it may have: send smaller parts, and no "
                "more than was announced.",
                limit_bytes=self._max_bytes,
            )
        if self._writer is None:
            self._writer = self._store.open_write(self._key)
        self._hash.update(batch)
        self._writer.write(batch)

    def finish(self, expected_sha256: str | None) -> UploadedArchive:
        if self._writer is None:
            raise BadRequestError("The part is empty: send its bytes as the body.")
        sha256 = self._hash.hexdigest()
        if expected_sha256 is not None and expected_sha256 != sha256:
            raise DigestMismatchError(
                f"The part hashes to {sha256}, and its Content-Digest announced {expected_sha256}: send it again.",
                expected_sha256=expected_sha256,
                found_sha256=sha256,
            )
        self._writer.commit()
        return UploadedArchive(temporary_key=self._key, sha256=sha256, size_bytes=self._size_bytes)

    def discard(self) -> None:
        try:
            if self._writer is not None:
                self._writer.abort()
                self._store.delete(self._key)
        except MixpeekError:
            # The failure that led here is the answer; the registry sweeps temporary keys.
            _log.warning("an abandoned part could not be removed", exc_info=True)
