"""What only a disk can do: fill up, vanish, be killed half-way, have folders."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from mixpeek_ray.core.errors import DiskFullError, MixpeekError, StorageUnavailableError
from mixpeek_ray.store import local_store
from mixpeek_ray.store.local_store import LocalStore

_KILLED_WRITER = """
import sys
from pathlib import Path
from mixpeek_ray.store.local_store import LocalStore
writer = LocalStore(Path(sys.argv[1])).open_write("uploads/one")
writer.write(bytes(4 * 1024**2))
print("written", flush=True)
sys.stdin.read()
"""

_LIMITED_WRITER = """
import resource, sys
from pathlib import Path
from mixpeek_ray.core.errors import DiskFullError
from mixpeek_ray.store.local_store import LocalStore
store = LocalStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1024**2, 1024**2))
writer = store.open_write("uploads/one")
try:
    writer.write(bytes(1024**2 + 1))
except DiskFullError:
    writer.abort()
    print("disk full")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(root)


def partial_files(root: Path) -> list[Path]:
    return list((root / ".partial").iterdir())


def test_a_killed_writer_leaves_nothing_visible_and_is_cleaned_up_after(store: LocalStore, root: Path) -> None:
    command = [sys.executable, "-c", _KILLED_WRITER, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        assert store.discard_abandoned(timedelta(0)) == 0, "the writer is alive"
        process.send_signal(signal.SIGKILL)

    assert list(store.list("")) == []
    assert len(partial_files(root)) == 1
    assert store.discard_abandoned(timedelta(days=1)) == 1
    assert partial_files(root) == []


def test_a_disk_that_takes_no_more_is_disk_full(store: LocalStore, root: Path) -> None:
    command = [sys.executable, "-c", _LIMITED_WRITER, str(root)]
    result = subprocess.run(command, capture_output=True, timeout=60, check=False)

    assert result.stdout == b"disk full\n", result.stderr
    assert list(store.list("")) == []
    assert partial_files(root) == []


def test_no_space_left_is_disk_full_and_leaves_nothing(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_full_device(path: str, flags: int) -> int:
        return os.open("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(local_store, "_open_private", open_full_device)
    with pytest.raises(DiskFullError) as raised:
        store.put("records/one.json", b"{}")

    assert raised.value.status == 507
    assert str(root) not in str(raised.value)
    assert list(root.rglob("*")) == [root / ".partial"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, StorageUnavailableError)],
)
def test_a_sync_that_fails_makes_nothing_visible(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[MixpeekError]
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, "failed", str(root))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(expected) as raised:
        store.create("records/one.json", b"{}")

    assert str(root) not in str(raised.value)
    assert not store.exists("records/one.json")
    assert partial_files(root) == []


def test_file_and_folders_are_synced_before_commit_returns(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    store.put("a/b/one", b"1")

    # The file, then what holds `a`, what holds `b`, what holds `one`.
    assert synced == [False, True, True, True]


def test_only_the_owner_may_look(store: LocalStore, root: Path) -> None:
    old = os.umask(0)
    try:
        store.put("a/b/one", b"secret")
    finally:
        os.umask(old)

    modes = {path.relative_to(root).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}
    assert modes == {".partial": 0o700, "a": 0o700, "a/b": 0o700, "a/b/one": 0o600}
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_emptied_folders_go_and_others_stay(store: LocalStore, root: Path) -> None:
    store.put("a/b/c/one", b"")
    store.put("a/two", b"")
    store.delete("a/b/c/one")
    store.promote("a/two", "d/two")

    assert {path.name for path in root.iterdir()} == {".partial", "d"}


def test_writers_survive_the_pruning_of_their_folders(store: LocalStore) -> None:
    def churn(name: str) -> int:
        for _ in range(60):
            store.put(f"a/b/{name}", b"")
            store.create(f"a/c/{name}", b"")
            store.promote(f"a/c/{name}", f"a/d/{name}")
            store.delete(f"a/b/{name}")
            store.delete(f"a/d/{name}")
        store.put(f"a/b/{name}", b"")
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(churn, "wxyz")) == 4
    assert {blob.key for blob in store.list("")} == {"a/b/w", "a/b/x", "a/b/y", "a/b/z"}


def test_a_writer_survives_a_discarding_in_the_moment_it_begins(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = local_store._open_private
    discarded: list[int] = []

    def open_and_lose(path: str, flags: int) -> int:
        descriptor = real(path, flags)
        if not discarded:
            discarded.append(store.discard_abandoned(timedelta(0)))
        return descriptor

    monkeypatch.setattr(local_store, "_open_private", open_and_lose)
    store.put("one", b"1")

    assert discarded == [1]
    assert store.read("one") == b"1"


def test_a_root_that_vanished_is_an_outage_not_an_empty_store(store: LocalStore, root: Path) -> None:
    store.put("one", b"1")
    shutil.rmtree(root)

    for call in (store.read, store.open_read, store.exists, store.open_write):
        with pytest.raises(StorageUnavailableError):
            call("one")
    with pytest.raises(StorageUnavailableError):
        list(store.list(""))
    with pytest.raises(StorageUnavailableError):
        store.discard_abandoned(timedelta(0))
    assert not root.exists()


def test_a_root_that_cannot_be_made_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(StorageUnavailableError) as raised:
        LocalStore(tmp_path / "file" / "store")
    assert str(tmp_path) not in str(raised.value)


def test_another_store_object_on_the_folder_sees_everything(store: LocalStore, root: Path) -> None:
    store.put("one", b"1")

    assert LocalStore(root).read("one") == b"1"
