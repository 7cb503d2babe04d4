"""An S3 that stops, throttles or refuses: nothing half-written becomes visible, and the error says no secret."""

from __future__ import annotations

import asyncio
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


def test_throttling_is_waited_out(s3_server: S3Server, bucket: Bucket) -> None:
    store = open_store(f"s3://{bucket.name}/store")
    writer = store.open_write("uploads/one")
    s3_server.throttle = 2
    writer.write(ONE_PART)
    s3_server.throttle += 2
    writer.commit()
    s3_server.throttle += 2

    assert store.read("uploads/one") == ONE_PART
    assert s3_server.throttle == 0


def test_endless_throttling_is_an_outage(s3_server: S3Server, bucket: Bucket) -> None:
    store = open_store(f"s3://{bucket.name}/store")
    s3_server.throttle = 1_000

    with pytest.raises(StorageUnavailableError):
        store.put("one", b"1")


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
