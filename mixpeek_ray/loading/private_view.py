"""Private, copy-on-write views of an object in Ray's shared-memory store.

A NumPy array that ``ray.get`` returns lies in memory that every worker of the node shares. A tensor made of it by
pointer ignores NumPy's read-only flag, so an in-place write would reach every other worker at once. Here the same
pages are mapped a second time, ``MAP_PRIVATE``: reads are shared with everybody, a write makes a page that only this
process sees.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from functools import cache
from typing import TYPE_CHECKING

from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.loading.shared_files import file_behind, open_shared

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = get_logger(__name__)

_MREMAP_MAYMOVE = 1  # linux/mman.h
_PROT_READ = 1  # bits/mman-linux.h


class _PinnedMapping(mmap.mmap):
    """A private mapping that keeps the shared object it shows from being evicted."""

    pin: NDArray[np.uint8]


def private_view(shared: NDArray[np.uint8]) -> memoryview:
    """Return a writable view of ``shared`` whose writes nobody else sees.

    The view keeps ``shared`` (and with it the object in the store) alive. On Linux it costs no memory until it is
    written to, then 4 KiB a touched page. Where the store's file cannot be opened the view is read-only memory shared
    with the other workers, so that a stray write kills the writer and nobody else; elsewhere it is a full private copy.

    shared: uint8, one-dimensional, contiguous, as ``ray.get`` returned it.
    """
    if shared.nbytes == 0:
        return memoryview(bytearray())
    if not sys.platform.startswith("linux"):
        _warn_once("This system offers no copy-on-write view of the object store: weights are copied.")
        return memoryview(bytearray(shared))
    address = shared.__array_interface__["data"][0]
    found = file_behind(address)
    if found is None:
        # Small objects come inline with the reply, in this process's own memory: private already.
        return memoryview(bytearray(shared))
    descriptor = open_shared(found)
    if descriptor is None:
        _warn_once(
            "The object store's memory cannot be mapped privately here: weights are read-only, and writing to them "
            "ends the process."
        )
        return _read_only_view(shared, address)
    try:
        return _map_private(shared, found.offset, descriptor)
    finally:
        os.close(descriptor)


def _map_private(shared: NDArray[np.uint8], offset: int, descriptor: int) -> memoryview:
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    skipped = offset - start
    mapping = _PinnedMapping(
        descriptor,
        skipped + shared.nbytes,
        flags=mmap.MAP_PRIVATE,
        prot=mmap.PROT_READ | mmap.PROT_WRITE,
        offset=start,
    )
    mapping.pin = shared
    return memoryview(mapping)[skipped:]


def _read_only_view(shared: NDArray[np.uint8], address: int) -> memoryview:
    libc = _libc()
    start = address - address % mmap.PAGESIZE
    length = address + shared.nbytes - start
    # An old size of 0 makes mremap duplicate a shared mapping instead of moving it (mremap(2)).
    duplicate = libc.mremap(ctypes.c_void_p(start), 0, length, _MREMAP_MAYMOVE)
    if duplicate in (None, ctypes.c_void_p(-1).value):
        _warn_once("The object store's memory cannot be mapped a second time here: weights are copied.")
        return memoryview(bytearray(shared))
    if libc.mprotect(ctypes.c_void_p(duplicate), length, _PROT_READ) != 0:
        libc.munmap(ctypes.c_void_p(duplicate), length)
        _warn_once("The object store's memory cannot be protected here: weights are copied.")
        return memoryview(bytearray(shared))
    buffer = (ctypes.c_ubyte * shared.nbytes).from_address(duplicate + address - start)
    # Arguments of a finalizer live as long as its object: this pins the shared object too.
    weakref.finalize(buffer, _unmap, duplicate, length, shared)
    return memoryview(buffer).cast("B")


def _unmap(address: int, length: int, _pin: NDArray[np.uint8]) -> None:
    _libc().munmap(ctypes.c_void_p(address), length)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mremap.restype = ctypes.c_void_p
    libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)
