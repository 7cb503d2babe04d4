"""Streams an upload's body to the store: parsed, hashed, limited and written as it arrives, with bounded memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from mixpeek_ray.api.body_socket import MAX_FILL_S, SocketBody
from mixpeek_ray.api.form import UploadFormBuilder
from mixpeek_ray.api.middleware.body_guard import GuardedBody
from mixpeek_ray.api.multipart import MultipartReader
from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import ArchiveTooLargeError, EmptyArchiveError, MixpeekError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import UploadedArchive, UploadForm
from mixpeek_ray.store.base import BlobStore, BlobWriter

_log = get_logger("api.upload")

# Big enough that the hops to the threads are lost in hashing and writing it (1.2 ms); written as one piece, so no
# bigger: the kernel takes twice as long to find page-cache memory for writes of 2 MiB as for writes of 1 MiB.
BATCH_BYTES = 1 * limits.MIB
# One being filled, one being parsed and written, one being hashed or ready: what an upload holds at most.
MAX_BATCHES = 3


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A whole upload: its checked fields, and where its archive lies in the store."""

    form: UploadForm
    archive: UploadedArchive


@asynccontextmanager
async def received_upload(
    body: GuardedBody, content_type: str, *, store: BlobStore, key: str, max_archive_bytes: int
) -> AsyncIterator[Upload]:
    """Read the body to its end, then yield the upload, its archive committed under ``key``.

    When anything fails, here or in the body of the ``async with``, cancellation and a client that left included,
    nothing stays under ``key``. Parsing and writing run in one thread of the upload's own, hashing beside it: the
    event loop only counts bytes, so neither a slow store nor a form made to be slow to parse (64 KiB of
    near-boundaries takes 12 ms) delays other requests. Where the server lends its socket, that thread reads it too.
    A slow store stops the reading of the body.
    """
    intake = _Intake(content_type, store=store, key=key, max_archive_bytes=max_archive_bytes)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
    loop = asyncio.get_running_loop()
    try:
        body.hold_socket()
        chunks = body_chunks(body.receive, until=body.is_drained)
        await _pump(chunks, lambda batch: loop.run_in_executor(thread, intake.feed, batch))
        if (rest := body.open_rest()) is not None:
            await _read(rest, intake, thread)
            body.release_socket()
        yield await loop.run_in_executor(thread, intake.finish)
    except BaseException:
        # The thread works in order: this runs after whatever it is writing, also when this task is cancelled again.
        await asyncio.shield(loop.run_in_executor(thread, intake.discard))
        raise
    finally:
        thread.shutdown(wait=False)


async def body_chunks(receive: Receive, until: Callable[[], bool] = lambda: False) -> AsyncIterator[bytes]:
    """Yield a request's body as it arrives, to its end or ``until`` says so.

    Raises ``ClientDisconnect`` when the client leaves before.
    """
    more = True
    while more and not until():
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        if chunk:
            yield chunk
        more = message.get("more_body", False)


class _Batch:
    """A buffer that is filled, handed to the upload's thread, and filled again.

    Used again and again: a fresh buffer for every batch costs the kernel more than the copy into it.
    """

    def __init__(self) -> None:
        self._buffer = bytearray(BATCH_BYTES)
        self._length = 0

    def take(self, data: memoryview) -> memoryview:
        """Copy what fits; return what does not."""
        taken = min(len(data), BATCH_BYTES - self._length)
        self._buffer[self._length : self._length + taken] = data[:taken]
        self._length += taken
        return data[taken:]

    def fill(self, rest: SocketBody) -> None:
        """Read from a connection what fits."""
        self._length = rest.fill(memoryview(self._buffer))

    @property
    def is_full(self) -> bool:
        return self._length == BATCH_BYTES

    def content(self) -> bytes | bytearray:
        return self._buffer if self.is_full else bytes(memoryview(self._buffer)[: self._length])

    def clear(self) -> _Batch:
        self._length = 0
        return self


async def _read(rest: SocketBody, intake: _Intake, thread: ThreadPoolExecutor) -> None:
    try:
        await asyncio.get_running_loop().run_in_executor(thread, intake.read, rest)
    except asyncio.CancelledError:
        rest.stop()
        raise
    finally:
        # In the thread's order, so never under its reading.
        thread.submit(rest.close)


async def _pump(chunks: AsyncIterator[bytes], submit: Callable[[_Batch], asyncio.Future[None]]) -> None:
    clock = asyncio.get_running_loop().time
    in_flight: deque[tuple[asyncio.Future[None], _Batch]] = deque()
    batch, begun_s = _Batch(), clock()
    try:
        async for chunk in chunks:
            # A bad field that the thread has met by now is answered now, not at the end of the body.
            if in_flight and in_flight[0][0].done():
                in_flight[0][0].result()
            rest = memoryview(chunk)
            while rest:
                rest = batch.take(rest)
                if batch.is_full or clock() - begun_s >= MAX_FILL_S:
                    in_flight.append((submit(batch), batch))
                    batch, begun_s = await _next_batch(in_flight), clock()
        in_flight.append((submit(batch), batch))
        while in_flight:
            await in_flight.popleft()[0]
    except BaseException:
        for future, _ in in_flight:
            # Also marks a failure as seen: one is answered, that the batches behind it failed too is no news.
            future.cancel()
        raise


async def _next_batch(in_flight: deque[tuple[asyncio.Future[None], _Batch]]) -> _Batch:
    # Made as they are needed: a small upload holds one buffer.
    if len(in_flight) < MAX_BATCHES - 1 and not in_flight[0][0].done():
        return _Batch()
    future, batch = in_flight.popleft()
    await future
    return batch.clear()


class _Intake:
    """The thread's side of an upload; only ever called from that one thread."""

    def __init__(self, content_type: str, *, store: BlobStore, key: str, max_archive_bytes: int) -> None:
        self._store = store
        self._key = key
        self._fields = UploadFormBuilder()
        self._file = _ArchiveSink(store, key, max_archive_bytes)
        self._reader = MultipartReader(content_type, on_field=self._fields.add, file=self._file)

    def feed(self, batch: _Batch) -> None:
        """Parse, hash and write a batch; its buffer may be used again then."""
        self._take(batch).result()

    def read(self, rest: SocketBody) -> None:
        """Parse, hash and write what is still in the connection, hashing a batch while the next ones are read."""
        in_use: deque[tuple[Future[None], _Batch]] = deque()
        while rest.remaining_bytes:
            if len(in_use) < MAX_BATCHES:
                batch = _Batch()
            else:
                hashed, batch = in_use.popleft()
                hashed.result()
            batch.fill(rest)
            in_use.append((self._take(batch), batch))

    def _take(self, batch: _Batch) -> Future[None]:
        # As one piece: each write and each hash of a small chunk would hand the interpreter back and forth.
        self._reader.feed(batch.content())
        return self._file.flush()

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

    def flush(self) -> Future[None]:
        """Store what was taken; the future is done when it is hashed too."""
        pending, self._pending = self._pending, []
        # Side by side: each takes about as long as the other, and neither holds the interpreter.
        hashed = self._hasher.submit(self._update_hash, pending)
        if not pending:
            return hashed
        if self._writer is None:
            self._writer = self._store.open_write(self._key)
        for data in pending:
            self._writer.write(data)
        return hashed

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
