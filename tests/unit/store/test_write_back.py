"""Early write-back of growing files: every byte but the last few is on its way before the sync."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mixpeek_ray.store import write_back
from mixpeek_ray.store.local_store import LocalStore
from mixpeek_ray.store.write_back import STEP_BYTES, WriteBack


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges (offset, length) that the kernel was told to write."""
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(write_back, "_sync_file_range", lambda _, offset, size, __: ranges.append((offset, size)))
    return ranges


def test_ranges_follow_one_another(begun: list[tuple[int, int]]) -> None:
    follower = WriteBack(-1)
    for _ in range(5):
        follower.appended(STEP_BYTES // 2 + 1)
    assert begun == [(0, STEP_BYTES + 2), (STEP_BYTES + 2, STEP_BYTES + 2)]


def test_small_files_are_left_to_their_sync(begun: list[tuple[int, int]]) -> None:
    WriteBack(-1).appended(STEP_BYTES - 1)
    assert begun == []


def test_a_large_blob_is_told_of_as_it_is_written(begun: list[tuple[int, int]], tmp_path: Path) -> None:
    writer = LocalStore(tmp_path).open_write("a/blob")
    for _ in range(2 * STEP_BYTES // 2**20):
        writer.write(bytes(2**20))
    assert begun == [(0, STEP_BYTES), (STEP_BYTES, STEP_BYTES)]
    writer.abort()


def test_the_real_call_changes_no_byte(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    data = os.urandom(STEP_BYTES + 1)
    writer = store.open_write("a/blob")
    writer.write(data)
    writer.commit()
    assert hashlib.sha256(store.read("a/blob")).digest() == hashlib.sha256(data).digest()


def test_where_there_is_no_such_call_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_back, "_sync_file_range", None)
    WriteBack(-1).appended(STEP_BYTES)


def test_its_failure_is_no_ones() -> None:
    WriteBack(-1).appended(STEP_BYTES)
