"""What every blob store promises, held by each backend."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fsspec.implementations.local import LocalFileSystem

from mixpeek_ray.core.errors import ValidationError
from mixpeek_ray.store.base import BlobPiece, BlobStore
from mixpeek_ray.store.factory import open_store
from mixpeek_ray.store.fsspec_store import FsspecStore

if TYPE_CHECKING:
    from conftest import Bucket, S3Server

MIB = 1024**2
# Crosses several parts of a multipart upload (8 MiB) and ends inside one; no two MiB alike.
BIG = b"".join(bytes([number]) * MIB for number in range(30)) + b"end"


class BlobStoreConformance:
    """The suite; a subclass provides ``store``: an empty store."""

    # How late a backend's clock may round a time down: S3 keeps whole seconds.
    clock_step = timedelta(seconds=2)
    # An age that no live writer has.
    no_live_writer = timedelta(hours=1)

    def test_commit_makes_a_blob_visible_and_nothing_before_does(self, store: BlobStore) -> None:
        writer = store.open_write("uploads/one")
        writer.write(b"first ")
        writer.write(memoryview(bytearray(b"second")))

        assert not store.exists("uploads/one")
        assert list(store.list("")) == []
        writer.commit()

        assert store.read("uploads/one") == b"first second"
        assert [blob.key for blob in store.list("")] == ["uploads/one"]

    def test_a_big_blob_is_read_back_as_written_whole_and_in_chunks(self, store: BlobStore) -> None:
        write(store, "uploads/big", BIG)

        with store.open_read("uploads/big") as reader:
            assert b"".join(iter(lambda: reader.read(MIB), b"")) == BIG
        assert store.read("uploads/big") == BIG

    @pytest.mark.parametrize("size", [0, 1, 8 * MIB, 8 * MIB + 1])
    def test_sizes_at_the_edges_of_a_part(self, store: BlobStore, size: int) -> None:
        write(store, "blob", b"x" * size)

        assert store.read("blob") == b"x" * size
        assert next(store.list("blob")).size_bytes == size

    @pytest.mark.parametrize("size", [0, 1, len(BIG)])
    def test_abort_leaves_nothing(self, store: BlobStore, size: int) -> None:
        writer = store.open_write("uploads/one")
        writer.write(BIG[:size])
        writer.abort()
        writer.abort()

        assert not store.exists("uploads/one")
        assert self.leftovers(store) == 0

    def test_a_writer_that_is_forgotten_publishes_nothing(self, store: BlobStore) -> None:
        writer = store.open_write("uploads/one")
        writer.write(BIG)
        del writer
        gc.collect()

        assert list(store.list("")) == []

    def test_abort_after_commit_changes_nothing(self, store: BlobStore) -> None:
        writer = store.open_write("uploads/one")
        writer.write(b"kept")
        writer.commit()
        writer.abort()

        assert store.read("uploads/one") == b"kept"
        assert self.leftovers(store) == 0

    def test_a_live_writer_survives_the_discarding_of_abandoned_ones(self, store: BlobStore) -> None:
        writer = store.open_write("uploads/one")
        writer.write(BIG)

        assert store.discard_abandoned(self.no_live_writer) == 0
        writer.commit()

        assert store.read("uploads/one") == BIG

    def test_of_many_racing_creators_one_wins(self, store: BlobStore) -> None:
        start = threading.Barrier(20)

        def create(number: int) -> int | None:
            start.wait(timeout=30)
            try:
                store.create("records/one.json", b"%d" % number)
            except FileExistsError:
                return None
            return number

        with ThreadPoolExecutor(20) as pool:
            winners = [number for number in pool.map(create, range(20)) if number is not None]

        assert len(winners) == 1
        assert store.read("records/one.json") == b"%d" % winners[0]
        assert self.leftovers(store) == 0

    def test_put_replaces(self, store: BlobStore) -> None:
        store.put("records/one.json", b"long before")
        store.put("records/one.json", b"after")

        assert store.read("records/one.json") == b"after"

    def test_committing_replaces(self, store: BlobStore) -> None:
        store.put("uploads/one", b"long before")
        write(store, "uploads/one", b"after")

        assert store.read("uploads/one") == b"after"

    def test_promote_moves_and_replaces(self, store: BlobStore) -> None:
        store.put("archives/a/b/target", b"before")
        write(store, "uploads/one", BIG)
        store.promote("uploads/one", "archives/a/b/target")

        assert store.read("archives/a/b/target") == BIG
        assert [blob.key for blob in store.list("")] == ["archives/a/b/target"]

    @pytest.mark.parametrize("sizes_mib", [(1,), (5, 6, 1), (6, 1, 6)])
    def test_join_makes_one_blob_and_leaves_no_piece(self, store: BlobStore, sizes_mib: tuple[int, ...]) -> None:
        whole, pieces = put_pieces(store, sizes_mib)
        store.join(pieces, "archives/whole")

        assert store.read("archives/whole") == whole
        assert [blob.key for blob in store.list("")] == ["archives/whole"]
        assert self.leftovers(store) == 0
        store.join(pieces, "archives/whole")
        assert store.read("archives/whole") == whole

    def test_join_finishes_what_died_before_the_pieces_were_gone(self, store: BlobStore) -> None:
        whole, pieces = put_pieces(store, (1, 1))
        store.put("archives/whole", whole)
        store.delete(pieces[0].key)
        store.join(pieces, "archives/whole")

        assert store.read("archives/whole") == whole
        assert [blob.key for blob in store.list("")] == ["archives/whole"]

    @pytest.mark.parametrize("lost", [0, 1, 2])
    def test_join_of_a_lost_piece_makes_nothing(self, store: BlobStore, lost: int) -> None:
        _, pieces = put_pieces(store, (5, 5, 5))
        store.delete(pieces[lost].key)

        with pytest.raises(FileNotFoundError):
            store.join(pieces, "archives/whole")
        assert not store.exists("archives/whole")
        assert self.leftovers(store) == 0

    def test_what_is_missing_is_file_not_found(self, store: BlobStore) -> None:
        store.put("folder/blob", b"")

        for missing in ("none", "folder/none", "folder"):
            assert not store.exists(missing)
            assert store.local_path(missing) is None
            with pytest.raises(FileNotFoundError):
                store.read(missing)
            with pytest.raises(FileNotFoundError):
                store.open_read(missing)
            with pytest.raises(FileNotFoundError):
                store.promote(missing, "elsewhere")
        assert [blob.key for blob in store.list("")] == ["folder/blob"]

    def test_delete_is_idempotent_and_takes_one_blob_only(self, store: BlobStore) -> None:
        store.put("a/b/one", b"")
        store.put("a/two", b"")
        for _ in range(2):
            store.delete("a/b/one")

        assert [blob.key for blob in store.list("")] == ["a/two"]

    def test_list_goes_by_prefix_not_by_folder(self, store: BlobStore) -> None:
        keys = {"ns/a/x", "ns/ab/x", "ns/b/x", "other"}
        for key in keys:
            store.put(key, key.encode())

        assert {blob.key for blob in store.list("")} == keys
        assert {blob.key for blob in store.list("ns/")} == {"ns/a/x", "ns/ab/x", "ns/b/x"}
        assert {blob.key for blob in store.list("ns/a")} == {"ns/a/x", "ns/ab/x"}
        assert {blob.key for blob in store.list("ns/a/")} == {"ns/a/x"}
        assert {blob.key for blob in store.list("none/")} == set()

    def test_list_tells_size_and_time(self, store: BlobStore) -> None:
        before = datetime.now(UTC)
        store.put("one", b"12345")
        blob = next(store.list("one"))

        assert blob.size_bytes == 5
        assert before - self.clock_step <= blob.modified_at <= datetime.now(UTC) + self.clock_step

    def test_writers_do_not_mix(self, store: BlobStore) -> None:
        chunks = {f"uploads/{number}": bytes([number]) * (3 * MIB) for number in range(4)}
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda key: write(store, key, chunks[key] * 4), chunks))

        assert {key: store.read(key) == chunk * 4 for key, chunk in chunks.items()} == dict.fromkeys(chunks, True)

    @pytest.mark.parametrize(
        "key",
        [
            *("", "/a", "a/", "a//b", ".", "..", "a/../b", ".hidden", "a/.b", "-a"),
            *("a b", "a\\b", "a\nb", "a\0", "é", "a?b", "x" * 256, "/".join(["x" * 200] * 5)),
        ],
    )
    def test_keys_that_could_mean_something_else_are_refused(self, store: BlobStore, key: str) -> None:
        for call in (store.open_write, store.open_read, store.read, store.delete, store.exists, store.local_path):
            with pytest.raises(ValidationError):
                call(key)
        for call in (store.create, store.put):
            with pytest.raises(ValidationError):
                call(key, b"")
        with pytest.raises(ValidationError):
            store.promote(key, "a")
        with pytest.raises(ValidationError):
            store.promote("a", key)

    def leftovers(self, store: BlobStore) -> int:
        """Return how much invisible rubbish there is; a backend that can leave some looks for it."""
        return 0


class TestLocalStore(BlobStoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        self.root = tmp_path / "store"
        return open_store(self.root.as_uri())

    def leftovers(self, store: BlobStore) -> int:
        return len(list((self.root / ".partial").iterdir()))

    def test_a_blob_has_a_local_path(self, store: BlobStore) -> None:
        store.put("a/one", b"bytes")
        path = store.local_path("a/one")

        assert path is not None
        assert path.read_bytes() == b"bytes"

    @pytest.mark.parametrize("copied_bytes", [0, 1, MIB - 1, MIB])
    def test_join_carries_on_where_it_died(self, store: BlobStore, copied_bytes: int) -> None:
        """As `kill -9` leaves it: a piece taken over and gone, the next one copied in part, the last untouched."""
        whole, pieces = put_pieces(store, (1, 1, 1, 1))
        first, second, third = (store.local_path(piece.key) for piece in pieces[:3])
        first.write_bytes(first.read_bytes() + second.read_bytes() + third.read_bytes()[:copied_bytes])
        second.unlink()
        store.join(pieces, "archives/whole")

        assert store.read("archives/whole") == whole
        assert [blob.key for blob in store.list("")] == ["archives/whole"]

    def test_join_keeps_one_piece_twice_at_most(self, store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, pieces = put_pieces(store, (2, 2, 2, 2))
        held = []
        unlink = Path.unlink

        def watched(path: Path, missing_ok: bool = False) -> None:
            held.append(sum(blob.size_bytes for blob in store.list("")))
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", watched)
        store.join(pieces, "archives/whole")

        assert max(held) == len(whole) + 2 * MIB


class TestMemoryStore(BlobStoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        return open_store(f"memory://{tmp_path}")


class TestFsspecStore(BlobStoreConformance):
    """fsspec's own local file system stands for every backend that has no file of its own here."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        return FsspecStore(LocalFileSystem(auto_mkdir=True, skip_instance_cache=True), str(tmp_path))


class TestS3Store(BlobStoreConformance):
    # moto says that every upload began in 2010.
    no_live_writer = timedelta(days=36_500)

    @pytest.fixture
    def store(self, bucket: Bucket) -> BlobStore:
        self.bucket = bucket
        return open_store(f"s3://{bucket.name}/some/prefix")

    def leftovers(self, store: BlobStore) -> int:
        return self.bucket.unfinished_uploads

    def test_join_moves_nothing_through_this_process(
        self, store: BlobStore, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, pieces = put_pieces(store, (5, 5, 1))
        monkeypatch.setattr(store, "open_read", None)
        monkeypatch.setattr(store, "open_write", None)
        store.join(pieces, "archives/whole")

        assert store.read("archives/whole") == whole

    def test_join_that_fails_within_s3_leaves_the_pieces_and_no_upload(
        self, store: BlobStore, s3_server: S3Server
    ) -> None:
        whole, pieces = put_pieces(store, (5, 5, 1))
        store.delete(pieces[1].key)
        with pytest.raises(FileNotFoundError):
            store.join(pieces, "archives/whole")

        assert self.leftovers(store) == 0
        write(store, pieces[1].key, whole[5 * MIB : 10 * MIB])
        store.join(pieces, "archives/whole")
        assert store.read("archives/whole") == whole

    def test_a_bucket_without_prefix(self, store: BlobStore) -> None:
        whole = open_store(f"s3://{self.bucket.name}")
        whole.put("one", b"1")
        store.put("two", b"2")

        assert {blob.key for blob in whole.list("")} == {"one", "some/prefix/two"}

    def test_another_process_writes_are_seen(self, store: BlobStore) -> None:
        other = open_store(f"s3://{self.bucket.name}/some/prefix")
        assert list(store.list("")) == []
        assert not store.exists("one")
        other.put("one", b"1")

        assert store.exists("one")
        assert [blob.key for blob in store.list("")] == ["one"]


def put_pieces(store: BlobStore, sizes_mib: tuple[int, ...]) -> tuple[bytes, list[BlobPiece]]:
    """Write pieces of these sizes, no two alike; return what they make together, and them."""
    contents = [bytes([number]) * (size * MIB) for number, size in enumerate(sizes_mib)]
    pieces = [BlobPiece(key=f"pieces/{number:05}", size_bytes=len(content)) for number, content in enumerate(contents)]
    for piece, content in zip(pieces, contents, strict=True):
        write(store, piece.key, content)
    return b"".join(contents), pieces


def write(store: BlobStore, key: str, data: bytes) -> None:
    """Write a blob in chunks of 1 MiB."""
    writer = store.open_write(key)
    for start in range(0, len(data), MIB):
        writer.write(data[start : start + MIB])
    writer.commit()
