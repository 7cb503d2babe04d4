"""The blob store's interface: named bytes, atomically visible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True, kw_only=True)
class BlobInfo:
    """A stored blob: its key, its size, when it was last written."""

    key: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, kw_only=True)
class BlobPiece:
    """A blob that is to become a piece of a larger one, and the size it was stored with."""

    key: str
    size_bytes: int


class BlobWriter(Protocol):
    """A blob being written; nothing is visible under its key until ``commit``.

    Any thread may use it, one at a time. A writer that is not committed must be aborted.
    """

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append ``chunk``. Raises ``StorageUnavailableError`` or ``DiskFullError``."""

    def commit(self) -> None:
        """Make everything written visible under the key, durably, replacing any blob there.

        Raises ``StorageUnavailableError`` or ``DiskFullError``; then nothing is visible and ``abort`` is due.
        """

    def abort(self) -> None:
        """Forget everything written; safe to call at any time, also twice or after ``commit``.

        Never raises: what a backend that is down cannot be told to forget, ``discard_abandoned`` removes later.
        """


class BlobStore(Protocol):
    """Named bytes. Keys are ``/``-separated; all calls block; every method may be called from any thread.

    Every method raises ``StorageUnavailableError`` when the backend does not answer, and ``ValidationError`` for a key
    that ``keys.check_key`` refuses. No key may be a folder of another (``a`` beside ``a/b``).
    """

    def open_write(self, key: str) -> BlobWriter:
        """Return a writer for a new blob at ``key``."""

    def open_read(self, key: str) -> BinaryIO:
        """Return a reader over the blob, from its start. Raises ``FileNotFoundError``."""

    def read(self, key: str) -> bytes:
        """Return the whole blob. Raises ``FileNotFoundError``."""

    def create(self, key: str, data: bytes) -> None:
        """Write a small blob where none is. Raises ``FileExistsError``: of many racing callers one succeeds."""

    def put(self, key: str, data: bytes) -> None:
        """Write a small blob, replacing any, atomically."""

    def promote(self, source: str, target: str) -> None:
        """Move a blob; ``target`` is replaced, and visible only when whole. Raises ``FileNotFoundError``."""

    def join(self, pieces: Sequence[BlobPiece], target: str) -> None:
        """Make one blob of several, in order, visible only when whole; the pieces are gone afterwards.

        A call that failed or died may be made again with the same arguments, and carries on. The pieces belong to it
        from the first call on: nobody else may use them. Raises ``FileNotFoundError`` when bytes of one are missing.
        """

    def delete(self, key: str) -> None:
        """Remove a blob; removing one that is not there is no error."""

    def exists(self, key: str) -> bool:
        """Tell whether a blob is there."""

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield every blob whose key begins with ``prefix``, in no order."""

    def discard_abandoned(self, older_than: timedelta) -> int:
        """Remove what writers that died before ``commit`` or ``abort`` left behind; return how many.

        Never visible as blobs, these still take space. ``older_than`` protects live writers on backends that cannot
        tell them from dead ones.
        """

    def local_path(self, key: str) -> Path | None:
        """Return the blob's file when it lies on this machine's disk, else None."""
