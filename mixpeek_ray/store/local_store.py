"""The store on a POSIX folder: written aside, synced, then linked or renamed into place."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from mixpeek_ray.core.errors import StorageUnavailableError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.store.base import BlobInfo, BlobPiece, BlobWriter
from mixpeek_ray.store.join import append_in_place, delete_pieces
from mixpeek_ray.store.keys import check_key, check_prefix
from mixpeek_ray.store.local_writer import LocalWriter, answerable_errors

_logger = get_logger(__name__)

# No key part begins with a dot, so no key can reach into it; inside the root, so that a rename never crosses devices.
_PARTIAL_FOLDER = ".partial"
# A concurrent delete may prune the folder that was just made for a blob: each further try needs one more such delete
# in a window of microseconds, so running out of tries means the root itself is gone.
_PLACE_ATTEMPTS = 100


class LocalStore:
    """Blobs as files (0600, folders 0700) below ``root``, which is made when missing.

    Safe for many threads and processes of one machine. Raises ``StorageUnavailableError`` when ``root`` cannot be
    made; its later disappearance (an unmounted disk) is an outage, never an empty store.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._partial = self._root / _PARTIAL_FOLDER
        with answerable_errors():
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._partial.mkdir(mode=0o700, exist_ok=True)

    def open_write(self, key: str) -> BlobWriter:
        """Return a writer for a new blob at ``key``."""
        check_key(key)
        return self._open_writer(lambda partial: self._replace(partial, key))

    def open_read(self, key: str) -> BinaryIO:
        """Return a reader over the blob, from its start. Raises ``FileNotFoundError``."""
        with answerable_errors():
            try:
                return self._path(key).open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise self._not_found(key) from None

    def read(self, key: str) -> bytes:
        """Return the whole blob. Raises ``FileNotFoundError``."""
        with self.open_read(key) as reader, answerable_errors():
            return reader.read()

    def create(self, key: str, data: bytes) -> None:
        """Write a small blob where none is. Raises ``FileExistsError``: of many racing callers one succeeds."""
        check_key(key)
        self._write_whole(data, lambda partial: self._link(partial, key))

    def put(self, key: str, data: bytes) -> None:
        """Write a small blob, replacing any, atomically."""
        check_key(key)
        self._write_whole(data, lambda partial: self._replace(partial, key))

    def promote(self, source: str, target: str) -> None:
        """Move a blob by renaming it; ``target`` is replaced. Raises ``FileNotFoundError``."""
        source_path = self._path(source)
        check_key(target)
        with answerable_errors():
            if not source_path.is_file():
                raise self._not_found(source)
            self._replace(source_path, target)
            self._prune(source_path.parent)

    def join(self, pieces: Sequence[BlobPiece], target: str) -> None:
        """Append every piece to the first and move that to ``target``: never more than one piece lies there twice."""
        if not self.exists(target):
            with answerable_errors():
                append_in_place([(self._path(piece.key), piece.size_bytes) for piece in pieces])
            self.promote(pieces[0].key, target)
        delete_pieces(self, pieces)

    def delete(self, key: str) -> None:
        """Remove a blob, and the folders it leaves empty; removing one that is not there is no error."""
        path = self._path(key)
        with answerable_errors(), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            _sync_folder(path.parent)
            self._prune(path.parent)

    def exists(self, key: str) -> bool:
        """Tell whether a blob is there."""
        path = self._path(key)
        if path.is_file():
            return True
        self._check_root()
        return False

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield every blob whose key begins with ``prefix``, in no order."""
        self._check_root()
        folder = check_prefix(prefix).rpartition("/")[0]
        with answerable_errors():
            for path in _walk(self._root / folder):
                key = path.relative_to(self._root).as_posix()
                if not key.startswith(prefix):
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
                yield BlobInfo(key=key, size_bytes=status.st_size, modified_at=modified_at)

    def discard_abandoned(self, older_than: timedelta) -> int:  # noqa: ARG002 (the lock tells what age only suggests)
        """Remove the partial files of dead writers, whatever their age; return how many.

        A live writer holds a lock on its file, which its death releases.
        """
        self._check_root()
        discarded = 0
        with answerable_errors():
            for path in self._partial.iterdir():
                with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                    discarded += 1
        return discarded

    def local_path(self, key: str) -> Path | None:
        """Return the blob's file, or None when no blob is there."""
        path = self._path(key)
        return path if path.is_file() else None

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _not_found(self, key: str) -> FileNotFoundError:
        self._check_root()
        return FileNotFoundError(f"no blob {key}")

    def _check_root(self) -> None:
        if not self._partial.is_dir():
            raise StorageUnavailableError(
                "The store's folder is not there; mount or restore what MIXPEEK_STORE_URL names, then try again."
            )

    def _open_writer(self, place: Callable[[Path], None]) -> LocalWriter:
        with answerable_errors():
            while True:
                path = self._partial / secrets.token_hex(16)
                try:
                    file = open(path, "xb", buffering=0, opener=_open_private)  # noqa: SIM115 (the writer closes it)
                except FileNotFoundError:
                    self._check_root()
                    raise
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(file.fileno()).st_nlink:
                        return LocalWriter(path, file, place)
                except BlockingIOError:
                    pass
                # `discard_abandoned` took the file in the moment before it was locked: begin another.
                file.close()

    def _write_whole(self, data: bytes, place: Callable[[Path], None]) -> None:
        writer = self._open_writer(place)
        try:
            writer.write(data)
            writer.commit()
        finally:
            writer.abort()

    def _replace(self, source: Path, key: str) -> None:
        self._place(key, source.replace)

    def _link(self, source: Path, key: str) -> None:
        # Linking, unlike renaming, fails when the target exists: the file system decides who is first.
        self._place(key, lambda target: target.hardlink_to(source))

    def _place(self, key: str, put_at: Callable[[Path], object]) -> None:
        """Bring a finished file to ``key`` durably, in spite of deletes that prune its folders meanwhile."""
        target = self._root / key
        for _ in range(_PLACE_ATTEMPTS):
            try:
                self._make_folders(target.parent)
                put_at(target)
                break
            except FileExistsError:
                raise FileExistsError(f"blob {key} exists") from None
            except FileNotFoundError:
                self._check_root()
        else:
            raise StorageUnavailableError("The store could not place an object; try again.")
        # No folder any more: the blob was deleted as soon as it was visible.
        with suppress(FileNotFoundError):
            _sync_folder(target.parent)

    def _make_folders(self, folder: Path) -> None:
        if folder == self._root or folder.is_dir():
            return
        self._make_folders(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            _sync_folder(folder.parent)

    def _prune(self, folder: Path) -> None:
        # rmdir refuses a folder that is not empty, so whatever is written meanwhile is safe.
        with suppress(OSError):
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file below ``folder`` except hidden ones; folders that vanish meanwhile are skipped."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
