"""The store in this process's memory: for tests and trials; nothing outlives the process."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from mixpeek_ray.store.base import BlobInfo, BlobPiece, BlobWriter
from mixpeek_ray.store.join import join_by_copying
from mixpeek_ray.store.keys import check_key, check_prefix


@dataclass(frozen=True, kw_only=True)
class _Blob:
    data: bytes
    modified_at: datetime


class MemoryStore:
    """Blobs in a dictionary under one lock."""

    def __init__(self) -> None:
        self._blobs: dict[str, _Blob] = {}
        self._lock = threading.Lock()

    def open_write(self, key: str) -> BlobWriter:
        """Return a writer for a new blob at ``key``."""
        return _MemoryWriter(self, check_key(key))

    def open_read(self, key: str) -> BinaryIO:
        """Return a reader over the blob, from its start. Raises ``FileNotFoundError``."""
        return io.BytesIO(self.read(key))

    def read(self, key: str) -> bytes:
        """Return the whole blob. Raises ``FileNotFoundError``."""
        blob = self._blobs.get(check_key(key))
        if blob is None:
            raise FileNotFoundError(f"no blob {key}")
        return blob.data

    def create(self, key: str, data: bytes) -> None:
        """Write a small blob where none is. Raises ``FileExistsError``: of many racing callers one succeeds."""
        check_key(key)
        with self._lock:
            if key in self._blobs:
                raise FileExistsError(f"blob {key} exists")
            self._set(key, data)

    def put(self, key: str, data: bytes) -> None:
        """Write a small blob, replacing any, atomically."""
        check_key(key)
        with self._lock:
            self._set(key, data)

    def promote(self, source: str, target: str) -> None:
        """Move a blob; ``target`` is replaced. Raises ``FileNotFoundError``."""
        check_key(source), check_key(target)
        with self._lock:
            if source not in self._blobs:
                raise FileNotFoundError(f"no blob {source}")
            self._blobs[target] = self._blobs.pop(source)

    def join(self, pieces: Sequence[BlobPiece], target: str) -> None:
        """Make one blob of several, in order; the pieces are gone afterwards."""
        join_by_copying(self, pieces, target)

    def delete(self, key: str) -> None:
        """Remove a blob; removing one that is not there is no error."""
        check_key(key)
        with self._lock:
            self._blobs.pop(key, None)

    def exists(self, key: str) -> bool:
        """Tell whether a blob is there."""
        return check_key(key) in self._blobs

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield every blob whose key begins with ``prefix``, as they were at the first step."""
        check_prefix(prefix)
        with self._lock:
            blobs = list(self._blobs.items())
        for key, blob in blobs:
            if key.startswith(prefix):
                yield BlobInfo(key=key, size_bytes=len(blob.data), modified_at=blob.modified_at)

    def discard_abandoned(self, older_than: timedelta) -> int:  # noqa: ARG002 (there is never anything to discard)
        """Return 0: a dead writer's memory is gone with it."""
        return 0

    def local_path(self, key: str) -> Path | None:
        """Return None: nothing lies on disk."""
        check_key(key)
        return None

    def _set(self, key: str, data: bytes) -> None:
        self._blobs[key] = _Blob(data=bytes(data), modified_at=datetime.now(UTC))


class _MemoryWriter:
    """Collects chunks, then puts them into the store as one blob."""

    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._buffer = io.BytesIO()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append ``chunk``."""
        self._buffer.write(chunk)

    def commit(self) -> None:
        """Make the chunks visible as one blob."""
        self._store.put(self._key, self._buffer.getvalue())
        self.abort()

    def abort(self) -> None:
        """Forget the chunks."""
        self._buffer.close()
