"""The store on any fsspec file system that writes transactionally (``autocommit=False``)."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from mixpeek_ray.core.errors import MixpeekError, StorageUnavailableError, ValidationError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.store.base import BlobInfo, BlobPiece, BlobWriter
from mixpeek_ray.store.join import join_by_copying
from mixpeek_ray.store.keys import check_key, check_prefix

_logger = get_logger(__name__)

_UPLOAD = "(unfinished)"
# What file systems say of a blob that is not there, also when its key is a folder's or leads through another blob.
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

# The size of one part of an upload and of one ranged read. S3 takes at most 10,000 parts, so 8 MiB serves blobs up to
# 78 GiB; fsspec holds up to three of them, 24 MiB for each transfer under way.
BLOCK_BYTES = 8 * MIB
# Where file systems keep a blob's time of last write in what `info` and `find` return, best first.
_TIME_FIELDS = ("LastModified", "last_modified", "updated", "mtime", "created")


class FsspecStore:
    """Blobs below ``root`` (``bucket/prefix``) of an fsspec file system.

    ``create`` is exclusive among the threads of one store object; between processes only as far as the file system's
    ``pipe_file(mode="create")`` is: a conditional put on object stores, often a mere look before the write elsewhere.
    """

    # What the file system raises when its backend fails.
    backend_errors: ClassVar[tuple[type[Exception], ...]] = (OSError,)

    def __init__(self, filesystem: AbstractFileSystem, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._create_lock = threading.Lock()

    def open_write(self, key: str) -> BlobWriter:
        """Return a writer for a new blob at ``key``; it buffers up to ``BLOCK_BYTES`` before it sends."""
        path = self._path(key)
        with self._answerable_errors():
            # Committed only by `commit`: otherwise a writer that is merely closed, or collected as garbage, would
            # publish what it holds.
            return _FsspecWriter(self, self._fs.open(path, "wb", block_size=BLOCK_BYTES, autocommit=False))

    def open_read(self, key: str) -> BinaryIO:
        """Return a reader over the blob, from its start. Raises ``FileNotFoundError``."""
        path = self._path(key)
        with self._answerable_errors(key):
            # Asked first because a folder opens like an empty file.
            if not self.exists(key):
                raise FileNotFoundError(f"no blob {key}")
            file = self._fs.open(path, "rb", block_size=BLOCK_BYTES)
        return io.BufferedReader(_RawReader(self, file), MIB)

    def read(self, key: str) -> bytes:
        """Return the whole blob. Raises ``FileNotFoundError``."""
        path = self._path(key)
        with self._answerable_errors(key):
            data: bytes = self._fs.cat_file(path)
            return data

    def create(self, key: str, data: bytes) -> None:
        """Write a small blob where none is. Raises ``FileExistsError``: of many racing callers one succeeds."""
        path = self._path(key)
        with self._create_lock, self._answerable_errors():
            if self.exists(key):
                raise FileExistsError(f"blob {key} exists")
            try:
                self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                raise FileExistsError(f"blob {key} exists") from None

    def put(self, key: str, data: bytes) -> None:
        """Write a small blob, replacing any, atomically."""
        writer = self.open_write(key)
        try:
            writer.write(data)
            writer.commit()
        finally:
            writer.abort()

    def promote(self, source: str, target: str) -> None:
        """Copy a blob on the server's side, then delete it. Raises ``FileNotFoundError``."""
        source_path, target_path = self._path(source), self._path(target)
        with self._answerable_errors(source):
            # Asked first because some file systems copy a folder without a word.
            if not self.exists(source):
                raise FileNotFoundError(f"no blob {source}")
            self._fs.cp_file(source_path, target_path)
        self.delete(source)

    def join(self, pieces: Sequence[BlobPiece], target: str) -> None:
        """Make one blob of several, in order, by reading and writing; the pieces are gone afterwards."""
        join_by_copying(self, pieces, target)

    def delete(self, key: str) -> None:
        """Remove a blob; removing one that is not there is no error."""
        path = self._path(key)
        with suppress(FileNotFoundError), self._answerable_errors(key):
            self._fs.rm_file(path)

    def exists(self, key: str) -> bool:
        """Tell whether a blob is there."""
        path = self._path(key)
        try:
            with self._answerable_errors(key):
                # `fs.exists` is true for folders, and `fs.isfile` is false when the backend fails.
                return bool(self._fs.info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield every blob whose key begins with ``prefix``, as they were at the first step."""
        folder = check_prefix(prefix).rpartition("/")[0]
        try:
            with self._answerable_errors(prefix):
                found: dict[str, dict[str, Any]] = self._fs.find(f"{self._root}/{folder}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return
        for path, info in found.items():
            key = path.removeprefix(f"{self._root}/")
            if key.startswith(prefix) and _is_blob(key, info):
                yield BlobInfo(key=key, size_bytes=int(info["size"]), modified_at=_modified_at(info))

    def discard_abandoned(self, older_than: timedelta) -> int:  # noqa: ARG002 (an override may need it)
        """Return 0: fsspec has no way to ask a backend for unfinished writes in general."""
        return 0

    def local_path(self, key: str) -> Path | None:
        """Return None: the blobs lie elsewhere."""
        check_key(key)
        return None

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    @contextmanager
    def _answerable_errors(self, missing_key: str | None = None) -> Iterator[None]:
        """Turn the backend's errors, whose messages may hold addresses and credentials, into answerable ones.

        ``FileNotFoundError`` stays one only where ``missing_key`` says that it can mean that blob.
        """
        try:
            yield
        except (MixpeekError, FileExistsError):
            raise
        except self.backend_errors as error:
            if isinstance(error, _MISSING) and missing_key is not None and not self._is_outage(error):
                raise FileNotFoundError(f"no blob {missing_key}") from None
            raise StorageUnavailableError(
                f"The store did not answer ({type(error).__name__}); try again, or check what "
                "MIXPEEK_STORE_URL names and the credentials for it."
            ) from error

    def _is_outage(self, error: OSError) -> bool:  # noqa: ARG002 (an override may need it)
        """Tell whether what is missing is more than a blob."""
        return False


class _FsspecWriter:
    """Sends what it is given in blocks; only ``commit`` completes the upload."""

    def __init__(self, store: FsspecStore, file: Any) -> None:
        self._store = store
        self._file = file

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append ``chunk``. Raises ``StorageUnavailableError``."""
        with self._store._answerable_errors():
            self._file.write(chunk)

    def commit(self) -> None:
        """Send the last block and complete the upload."""
        with self._store._answerable_errors():
            self._file.close()
            self._file.commit()
        self._file = None

    def abort(self) -> None:
        """Discard the upload; safe to call at any time, also twice or after ``commit``."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            # Not found: already discarded, by `discard_abandoned`.
            with suppress(FileNotFoundError), self._store._answerable_errors(_UPLOAD):
                file.discard()
        except StorageUnavailableError as error:
            _logger.warning("an unfinished upload could not be discarded (%s)", error)
        _silence(file)

    def __del__(self) -> None:
        _silence(self._file)


def _silence(file: Any) -> None:
    """Keep an uncommitted file's finalizer from sending what it still buffers, from whatever thread collects it."""
    if isinstance(file, AbstractBufferedFile):
        file.closed = True


class _RawReader(io.RawIOBase):
    """An fsspec file whose failures are answerable errors."""

    def __init__(self, store: FsspecStore, file: Any) -> None:
        self._store = store
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._store._answerable_errors():
            return int(self._file.readinto(buffer))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _is_blob(key: str, info: dict[str, Any]) -> bool:
    """Tell a blob from a folder, and from an object that someone else put below the root."""
    if info["type"] != "file":
        return False
    try:
        check_key(key)
    except ValidationError:
        return False
    return True


def _modified_at(info: dict[str, Any]) -> datetime:
    for name in _TIME_FIELDS:
        value = info.get(name)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
    # A file system that keeps no times: never old enough to be taken for abandoned.
    return datetime.now(UTC)
