"""Streams an upload's body to the store: parsed, hashed, limited and written as it arrives, with bounded memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mixpeek_ray.api.form import UploadFormBuilder
from mixpeek_ray.api.multipart import MultipartReader
from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import ArchiveTooLargeError, EmptyArchiveError, MixpeekError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import UploadedArchive, UploadForm
from mixpeek_ray.store.base import BlobStore, BlobWriter

_log = get_logger("api.upload")

# Big enough that the hop to the thread (0.05 ms) is lost in parsing, hashing and writing it (1.2 ms).
BATCH_BYTES = 1 * limits.MIB
# A bytes object and its place in a list: a body of 1-byte chunks is bounded by the memory it takes, not by its size.
CHUNK_OVERHEAD_BYTES = 64
# One being written, one ready: with the one being filled, an upload holds 3 batches at most.
MAX_BATCHES_IN_FLIGHT = 2
# A slow client's bad field should be answered long before it has sent a whole batch.
MAX_BATCH_AGE_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A whole upload: its checked fields, and where its archive lies in the store."""

    form: UploadForm
    archive: UploadedArchive


@asynccontextmanager
async def received_upload(
    chunks: AsyncIterator[bytes], content_type: str, *, store: BlobStore, key: str, max_archive_bytes: int
) -> AsyncIterator[Upload]:
    """Read the body ``chunks`` to its end, then yield the upload, its archive committed under ``key``.

    When anything fails, here or in the body of the ``async with``, cancellation and a client that left included,
    nothing stays under ``key``. Parsing and writing run in one thread of the upload's own, hashing beside it: the
    event loop only counts bytes, so neither a slow store nor a form made to be slow to parse (64 KiB of
    near-boundaries takes 12 ms) delays other requests. A slow store stops the reading of the body.
    """
    intake = _Intake(content_type, store=store, key=key, max_archive_bytes=max_archive_bytes)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
    loop = asyncio.get_running_loop()
    try:
        await _pump(chunks, lambda batch: loop.run_in_executor(thread, intake.feed, batch))
        yield await loop.run_in_executor(thread, intake.finish)
    except BaseException:
        # The thread works in order: this runs after whatever it is writing, also when this task is cancelled again.
        await asyncio.shield(loop.run_in_executor(thread, intake.discard))
        raise
    finally:
        thread.shutdown(wait=False)


async def _pump(chunks: AsyncIterator[bytes], submit: Callable[[list[bytes]], asyncio.Future[None]]) -> None:
    clock = asyncio.get_running_loop().time
    in_flight: deque[asyncio.Future[None]] = deque()
    batch: list[bytes] = []
    held_bytes, begun_s = 0, clock()
    try:
        async for chunk in chunks:
            while in_flight and in_flight[0].done():
                in_flight.popleft().result()
            batch.append(chunk)
            held_bytes += len(chunk) + CHUNK_OVERHEAD_BYTES
            if held_bytes < BATCH_BYTES and clock() - begun_s < MAX_BATCH_AGE_S:
                continue
            if len(in_flight) == MAX_BATCHES_IN_FLIGHT:
                await in_flight.popleft()
            in_flight.append(submit(batch))
            batch, held_bytes, begun_s = [], 0, clock()
        in_flight.append(submit(batch))
        while in_flight:
            await in_flight.popleft()
    except BaseException:
        for future in in_flight:
            # Also marks a failure as seen: one is answered, that the batches behind it failed too is no news.
            future.cancel()
        raise


class _Intake:
    """The thread's side of an upload; only ever called from that one thread."""

    def __init__(self, content_type: str, *, store: BlobStore, key: str, max_archive_bytes: int) -> None:
        self._store = store
        self._key = key
        self._fields = UploadFormBuilder()
        self._file = _ArchiveSink(store, key, max_archive_bytes)
        self._reader = MultipartReader(content_type, on_field=self._fields.add, file=self._file)

    def feed(self, batch: list[bytes]) -> None:
        for chunk in batch:
            self._reader.feed(chunk)
        self._file.flush()

    def finish(self) -> Upload:
        self._reader.finish()
        if self._file.size_bytes == 0:
            raise EmptyArchiveError("The file is empty: send the .tar.gz that holds the weights.")
        return Upload(form=self._fields.build(), archive=self._file.commit())

    def discard(self) -> None:
        try:
            self._file.abort()
            self._store.delete(self._key)
        except MixpeekError:
            # The failure that led here is the answer; the store's next start sweeps temporary keys.
            _log.warning("an abandoned upload could not be removed", exc_info=True)


class _ArchiveSink:
    """Counts, hashes and writes the bytes of the file part, a batch at a time."""

    def __init__(self, store: BlobStore, key: str, max_bytes: int) -> None:
        self._store = store
        self._key = key
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload-hash")
        self._pending: list[memoryview] = []
        self._writer: BlobWriter | None = None
        self.size_bytes = 0

    def write(self, data: memoryview) -> None:
        """Take the next bytes of a batch; ``flush`` hashes and stores them."""
        self.size_bytes += len(data)
        if self.size_bytes > self._max_bytes:
            raise ArchiveTooLargeError(
                f"The archive is larger than the {self._max_bytes} bytes that one upload may have.",
                limit_bytes=self._max_bytes,
            )
        self._pending.append(data)

    def flush(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        if self._writer is None:
            self._writer = self._store.open_write(self._key)
        # Side by side: each takes about as long as the other, and neither holds the interpreter.
        hashed = self._hasher.submit(self._update_hash, pending)
        for data in pending:
            self._writer.write(data)
        hashed.result()

    def _update_hash(self, pending: list[memoryview]) -> None:
        for data in pending:
            self._hash.update(data)

    def commit(self) -> UploadedArchive:
        self._hasher.shutdown()
        if self._writer is not None:
            self._writer.commit()
        return UploadedArchive(temporary_key=self._key, sha256=self._hash.hexdigest(), size_bytes=self.size_bytes)

    def abort(self) -> None:
        self._hasher.shutdown()
        if self._writer is not None:
            self._writer.abort()
