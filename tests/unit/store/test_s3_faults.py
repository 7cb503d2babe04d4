"""An S3 that stops, throttles or refuses: nothing half-written becomes visible, and the error says no secret."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from mixpeek_ray.core.errors import StorageUnavailableError
from mixpeek_ray.store.factory import open_store

if TYPE_CHECKING:
    from conftest import Bucket, S3Server

MIB = 1024**2
# One part (8 MiB) and a bit: written, it leaves a multipart upload under way.
ONE_PART = bytes(9 * MIB)


@pytest.fixture(autouse=True)
def _retries_without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    real = asyncio.sleep

    async def sleep(_: float, result: object = None) -> object:
        return await real(0, result)

    monkeypatch.setattr(asyncio, "sleep", sleep)


def test_a_server_that_stops_in_mid_upload_leaves_nothing_visible(s3_server: S3Server, bucket: Bucket) -> None:
    store = open_store(f"s3://{bucket.name}/store")
    writer = store.open_write("uploads/one")
    writer.write(ONE_PART)

    s3_server.stop()
    try:
        with pytest.raises(StorageUnavailableError):
            writer.write(ONE_PART)
        writer.abort()
    finally:
        s3_server.start()

    assert bucket.keys == set()
    assert store.discard_abandoned(timedelta(0)) == 1
    assert bucket.unfinished_uploads == 0
    store.put("uploads/one", b"the retry")
    assert store.read("uploads/one") == b"the retry"


def test_a_server_that_stops_before_commit_leaves_nothing_visible(s3_server: S3Server, bucket: Bucket) -> None:
    store = open_store(f"s3://{bucket.name}/store")
    writer = store.open_write("uploads/one")
    writer.write(ONE_PART)

    s3_server.stop()
    try:
        with pytest.raises(StorageUnavailableError) as raised:
            writer.commit()
    finally:
        s3_server.start()
    writer.abort()

    assert bucket.keys == set()
    assert bucket.unfinished_uploads == 0
    for secret in (s3_server.url.removeprefix("http://"), "test-access-key", "test-secret-key", bucket.name):
        assert secret not in str(raised.value)


def test_reads_tell_an_outage_from_absence(s3_server: S3Server, bucket: Bucket) -> None:
    store = open_store(f"s3://{bucket.name}/store")
    store.put("one", b"1")
    s3_server.stop()
    try:
        with pytest.raises(StorageUnavailableError):
            store.exists("one")
        with pytest.raises(StorageUnavailableError):
            list(store.list(""))
    finally:
        s3_server.start()


def test_a_server_that_stops_in_mid_read_fails_the_read(s3_server: S3Server, bucket: Bucket) -> None:
    store = open_store(f"s3://{bucket.name}/store")
    store.put("one", bytes(20 * MIB))
    with store.open_read("one") as reader:
        reader.read(MIB)
        s3_server.stop()
        try:
            with pytest.raises(StorageUnavailableError):
                reader.read()
        finally:
            s3_server.start()


@pytest.mark.parametrize(
    "fault",
    [("503 Slow Down", "SlowDown"), ("503 Service Unavailable", "ServiceUnavailable"), ("500 Error", "InternalError")],
)
def test_passing_faults_are_waited_out(s3_server: S3Server, bucket: Bucket, fault: tuple[str, str]) -> None:
    store = open_store(f"s3://{bucket.name}/store")
    writer = store.open_write("uploads/one")
    s3_server.faults.extend([fault] * 2)
    writer.write(ONE_PART)
    s3_server.faults.extend([fault] * 2)
    writer.commit()
    s3_server.faults.extend([fault] * 2)

    assert store.read("uploads/one") == ONE_PART
    assert not s3_server.faults


def test_endless_throttling_is_an_outage(s3_server: S3Server, bucket: Bucket) -> None:
    store = open_store(f"s3://{bucket.name}/store")
    s3_server.faults.extend([("503 Slow Down", "SlowDown")] * 1_000)

    with pytest.raises(StorageUnavailableError):
        store.put("one", b"1")


def test_creators_of_many_store_objects_race_and_one_wins(bucket: Bucket) -> None:
    """Only the server can decide: nothing is shared between these, as between processes."""
    start = threading.Barrier(8)

    def create(number: int) -> int | None:
        store = open_store(f"s3://{bucket.name}/store")
        start.wait(timeout=30)
        try:
            store.create("one", b"%d" % number)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]

    assert len(winners) == 1
    assert open_store(f"s3://{bucket.name}/store").read("one") == b"%d" % winners[0]


def test_a_create_that_meets_another_is_tried_again(s3_server: S3Server, bucket: Bucket) -> None:
    store = open_store(f"s3://{bucket.name}/store")
    conflict = ("409 Conflict", "ConditionalRequestConflict")
    s3_server.faults.extend([conflict] * 2)
    store.create("one", b"1")
    s3_server.faults.append(conflict)
    with pytest.raises(FileExistsError):
        store.create("one", b"2")

    assert store.read("one") == b"1"
    s3_server.faults.extend([conflict] * 100)
    with pytest.raises(StorageUnavailableError):
        store.create("two", b"2")


def test_refused_credentials_are_an_outage_that_shows_no_secret(s3_server: S3Server, bucket: Bucket) -> None:
    store = open_store(f"s3://{bucket.name}/store")
    s3_server.faults.extend([("403 Forbidden", "InvalidAccessKeyId")] * 100)
    for call in (store.read, store.exists):
        with pytest.raises(StorageUnavailableError) as raised:
            call("one")
        assert "test-access-key" not in str(raised.value)


def test_a_bucket_that_does_not_exist_is_an_outage_not_an_empty_store(s3_server: S3Server) -> None:
    store = open_store("s3://no-such-bucket/store")

    with pytest.raises(StorageUnavailableError):
        list(store.list(""))
    with pytest.raises(StorageUnavailableError):
        store.read("one")
    with pytest.raises(StorageUnavailableError):
        store.put("one", b"1")


def test_discarding_spares_uploads_outside_the_prefix(s3_server: S3Server, bucket: Bucket) -> None:
    inside = open_store(f"s3://{bucket.name}/store")
    outside = open_store(f"s3://{bucket.name}/store2")
    for store in (inside, outside):
        # Dropped, as by a process that died: no abort reaches the server.
        store.open_write("uploads/one").write(ONE_PART)

    assert inside.discard_abandoned(timedelta(0)) == 1
    assert bucket.unfinished_uploads == 1
