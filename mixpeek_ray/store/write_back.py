"""Has the disk begin on a large file while it still grows, so that the sync at its end is short."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from mixpeek_ray.core import limits

# Often enough that little is left for the end (7 ms of sync instead of 330 for 1 GiB at 3 GB/s), rarely enough that
# the disk gets large requests.
STEP_BYTES = 16 * limits.MIB

# From linux/fs.h: start writing the dirty pages of the range, and wait for none.
_SYNC_FILE_RANGE_WRITE = 2


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    # Linux only, and not in `os`.
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_sync_file_range = _find_sync_file_range()


class WriteBack:
    """Follows a file that is appended to. Its failures are no one's: the sync that must follow reports them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._begun_bytes = 0
        self._size_bytes = 0

    def appended(self, size_bytes: int) -> None:
        """Begin to write what was appended, when it is enough by now."""
        self._size_bytes += size_bytes
        pending_bytes = self._size_bytes - self._begun_bytes
        if pending_bytes >= STEP_BYTES and _sync_file_range is not None:
            _sync_file_range(self._descriptor, self._begun_bytes, pending_bytes, _SYNC_FILE_RANGE_WRITE)
            self._begun_bytes = self._size_bytes
