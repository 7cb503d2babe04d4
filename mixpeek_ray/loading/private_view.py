"""Private, copy-on-write views of an object in Ray's shared-memory store.

A NumPy array that ``ray.get`` returns lies in memory that every worker of the node shares. A tensor made of it by
pointer ignores NumPy's read-only flag, so an in-place write would reach every other worker at once. Here the same
pages are mapped a second time, ``MAP_PRIVATE``: reads are shared with everybody, a write makes a page that only this
process sees.

The object store's files are unlinked, so the mapping needs a descriptor. The raylet keeps one open for every such file,
and a process may open its user's other processes' descriptors through ``/proc/<pid>/fd/N``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mixpeek_ray.core.logs import get_logger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = get_logger(__name__)

_MREMAP_MAYMOVE = 1  # linux/mman.h
_PROT_READ = 1  # bits/mman-linux.h


@dataclass(frozen=True, kw_only=True)
class _SharedFile:
    """The file behind an address range: which file, and where in it the address lies."""

    device: int
    inode: int
    offset: int


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
    found = _file_behind(address)
    if found is None:
        # Small objects come inline with the reply, in this process's own memory: private already.
        return memoryview(bytearray(shared))
    descriptor = _open_shared(found)
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
    libc.mprotect(ctypes.c_void_p(duplicate), length, _PROT_READ)
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


# Lines of /proc/self/maps are "start-end permissions offset major:minor inode path" (proc(5)), and Ray's store names
# its files plasmaXXXXXX, in /dev/shm or, once that is full, in a folder on disk.
_STORE_FILE = b"/plasma"


def _file_behind(address: int) -> _SharedFile | None:
    """Return the object-store file that ``address`` lies in; None for memory of another kind."""
    maps = Path("/proc/self/maps").read_bytes()
    # A process with torch in it has hundreds of mappings: finding the few that matter beats reading line by line.
    found = maps.find(_STORE_FILE)
    while found >= 0:
        line = maps[maps.rfind(b"\n", 0, found) + 1 : found]
        span, _, file_offset, device, inode = line.split()[:5]
        start, end = (int(bound, 16) for bound in span.split(b"-"))
        if start <= address < end:
            major, minor = (int(part, 16) for part in device.split(b":"))
            offset = int(file_offset, 16) + address - start
            return _SharedFile(device=os.makedev(major, minor), inode=int(inode), offset=offset)
        found = maps.find(_STORE_FILE, found + 1)
    return None


# Where each store file was found, so that later loads of a process skip the search.
_known_descriptors: dict[tuple[int, int], str] = {}


def _open_shared(wanted: _SharedFile) -> int | None:
    """Return a descriptor of the wanted file, opened through a process that holds it; None when there is none."""
    identity = (wanted.device, wanted.inode)
    known = _known_descriptors.get(identity)
    candidates = [known] if known is not None else []
    for path in chain(candidates, _descriptor_paths()):
        try:
            # Looked at before it is opened: opening one of the raylet's pipes could block.
            if _identity(os.stat(path)) != identity:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # closed meanwhile, or another user's
        if _identity(os.fstat(descriptor)) == identity:
            _known_descriptors[identity] = path
            return descriptor
        os.close(descriptor)  # the number was reused between the two calls
    return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _descriptor_paths() -> Iterator[str]:
    """Yield the descriptors of the raylets of this user: a worker's parent first, then any other."""
    parent = os.getppid()
    yield from _descriptors_of(parent)
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != parent and _is_raylet(name):
            yield from _descriptors_of(int(name))


def _descriptors_of(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        yield f"{folder}/{name}"


def _is_raylet(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return comm.read().strip() == b"raylet"
    except OSError:
        return False


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)
