"""A file being written for the store on a folder, and what its disk's errors are to a caller."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mixpeek_ray.core.errors import DiskFullError, MixpeekError, StorageUnavailableError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.store.write_back import WriteBack

_logger = get_logger(__name__)

# EFBIG: the process's file size limit, which to a caller is one more way of "no room for this".
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class LocalWriter:
    """Appends to a private, locked file, then hands its path to ``place``."""

    def __init__(self, path: Path, file: io.FileIO, place: Callable[[Path], None]) -> None:
        self._path = path
        self._file = file
        self._place = place
        self._write_back = WriteBack(file.fileno())

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append ``chunk``. Raises ``DiskFullError`` or ``StorageUnavailableError``."""
        with answerable_errors():
            rest = memoryview(chunk).cast("B")
            while rest:
                written = self._file.write(rest)
                self._write_back.appended(written)
                rest = rest[written:]

    def commit(self) -> None:
        """Sync the file, then make it visible, then sync its folder."""
        with answerable_errors():
            os.fsync(self._file.fileno())
            self._place(self._path)
        self.abort()

    def abort(self) -> None:
        """Remove the partial file; safe to call at any time, also twice or after ``commit``."""
        try:
            # Before closing: a closed file is unlocked, and a concurrent `discard_abandoned` would count it.
            self._path.unlink(missing_ok=True)
        except OSError as error:
            _logger.warning("a partial file could not be removed (%s)", _name_of(error))
        self._file.close()


@contextmanager
def answerable_errors() -> Iterator[None]:
    """Turn the operating system's errors, whose messages hold paths, into answerable ones."""
    try:
        yield
    except (MixpeekError, FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise DiskFullError(
                f"The store's disk is full ({_name_of(error)}); free some space, then try again."
            ) from error
        raise StorageUnavailableError(
            f"The store's disk failed ({_name_of(error)}); try again, or check what MIXPEEK_STORE_URL names."
        ) from error


def _name_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown error")
