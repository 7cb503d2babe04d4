"""Copy-on-write views, over shared memory made here the way Ray's store makes its own."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mixpeek_ray.loading import private_view as views
from mixpeek_ray.loading import shared_files
from mixpeek_ray.loading.private_view import private_view

PAGE = mmap.PAGESIZE
# Objects begin anywhere in the store's file, aligned to 64 bytes, not to pages.
OFFSET = 3 * PAGE + 320
SIZE = 5 * PAGE + 100


@pytest.fixture
def store_file() -> Iterator[mmap.mmap]:
    """An unlinked shared-memory file, as the raylet holds it."""
    descriptor = os.memfd_create("plasma-test")
    os.ftruncate(descriptor, 16 * PAGE)
    shared = mmap.mmap(descriptor, 16 * PAGE)
    shared[:] = bytes(range(256)) * (16 * PAGE // 256)
    yield shared
    os.close(descriptor)


@pytest.fixture
def stored(store_file: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> Iterator[NDArray[np.uint8]]:
    """An object in that file, as ``ray.get`` returns it; this process is its own raylet."""
    monkeypatch.setattr(shared_files, "descriptor_paths", lambda: shared_files._descriptors_of(os.getpid()))
    shared_files._known_descriptors.clear()
    array: NDArray[np.uint8] = np.frombuffer(store_file, np.uint8, count=SIZE, offset=OFFSET)
    array.flags.writeable = False
    yield array
    del array
    gc.collect()


def test_a_view_shows_the_object_and_follows_the_store_until_it_is_written(
    store_file: mmap.mmap, stored: NDArray[np.uint8]
) -> None:
    view = private_view(stored)
    assert bytes(view) == bytes(stored)
    store_file[OFFSET] = 200
    assert view[0] == 200


def test_a_write_reaches_neither_the_store_nor_another_view(store_file: mmap.mmap, stored: NDArray[np.uint8]) -> None:
    before = bytes(stored)
    writer, reader = private_view(stored), private_view(stored)
    for position in (0, PAGE, SIZE - 1):
        writer[position] ^= 0xFF
    assert bytes(reader) == before == bytes(store_file[OFFSET : OFFSET + SIZE])
    assert bytes(writer) != before


def test_a_view_pins_the_object_and_lets_go(store_file: mmap.mmap, stored: NDArray[np.uint8]) -> None:
    pin = np.frombuffer(store_file, np.uint8, count=SIZE, offset=OFFSET)
    alive = weakref.ref(pin)
    view = private_view(pin)
    del pin
    gc.collect()
    assert alive() is not None
    del view
    gc.collect()
    assert alive() is None


def test_views_leave_no_descriptor_open(stored: NDArray[np.uint8]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        private_view(stored)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_object_in_the_processs_own_memory_is_copied() -> None:
    inline = np.arange(100, dtype=np.uint8)
    view = private_view(inline)
    view[0] = 9
    assert inline[0] == 0


def test_an_empty_object_has_an_empty_view() -> None:
    assert len(private_view(np.empty(0, np.uint8))) == 0


def test_where_the_file_cannot_be_opened_the_view_is_shared_and_right(
    stored: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "open_shared", lambda _: None)
    view = private_view(stored)
    assert bytes(view) == bytes(stored)
    again = private_view(stored)
    del view
    gc.collect()
    assert bytes(again) == bytes(stored)


STRAY_WRITE = """
import mmap, os
import numpy as np
from mixpeek_ray.loading import private_view as views
descriptor = os.memfd_create("plasma-test")
os.ftruncate(descriptor, mmap.PAGESIZE)
shared = mmap.mmap(descriptor, mmap.PAGESIZE)
views.open_shared = lambda wanted: None
views.private_view(np.frombuffer(shared, np.uint8))[0] = 1
"""


def test_a_stray_write_to_a_read_only_view_kills_its_writer() -> None:
    done = subprocess.run([sys.executable, "-c", STRAY_WRITE], capture_output=True, check=False)
    assert done.returncode == -11, done.stderr.decode()


def test_the_text_of_the_mappings_says_what_the_kernel_says(stored: NDArray[np.uint8]) -> None:
    address = stored.__array_interface__["data"][0]
    from_text = shared_files._search_maps(Path("/proc/self/maps").read_bytes(), address)
    assert from_text is not None
    assert from_text.offset == OFFSET
    assert from_text == shared_files.file_behind(address)
    heap = np.ones(10).__array_interface__["data"][0]
    assert shared_files._search_maps(Path("/proc/self/maps").read_bytes(), heap) is None
    assert shared_files.file_behind(heap) is None


def test_a_kernel_that_cannot_be_asked_is_read(stored: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: int) -> None:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(shared_files, "_ask_kernel", refuse)
    view = private_view(stored)
    view[0] ^= 0xFF
    assert view[0] != stored[0]
    assert bytes(view[1:]) == bytes(stored[1:])
