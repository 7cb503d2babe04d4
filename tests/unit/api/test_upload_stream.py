"""Uploads as streams: bounded memory, limits as they pass, and nothing left of what failed."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import threading
import time
import tracemalloc

import pytest

from mixpeek_ray.api.upload import BATCH_BYTES, MAX_BATCHES
from mixpeek_ray.core.errors import DiskFullError, RegistryUnavailableError, StorageUnavailableError
from mixpeek_ray.store.memory_store import MemoryStore

pytestmark = pytest.mark.anyio

PATH = "/v1/namespaces/ns_acme/models"
BOUNDARY = "----WebKitFormBoundary7MA4YWxk"
HEADERS = {
    "Authorization": "Bearer sk_writer",
    "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
    "Transfer-Encoding": "chunked",
}
MIB = 1024**2
FILE_HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="m.tar.gz"\r\n\r\n'.encode()
# Serve reads these from callers; no limit of ours may depend on them.
TUNING_HEADERS = {"x-request-timeout-seconds": "1e9", "x-request-disconnect-disabled": "?1"}


def _field(name: str, value: str) -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


FIELDS = _field("name", "m") + _field("version", "1.0.0") + _field("model_format", "pytorch")
END = f"--{BOUNDARY}--\r\n".encode()


def _form(archive: bytes) -> bytes:
    return FILE_HEAD + archive + b"\r\n" + FIELDS + END


async def _stream(*pieces: bytes):
    for piece in pieces:
        yield piece


async def _file_of_64_mib():
    yield FIELDS + FILE_HEAD
    block = bytes(65536)
    for _ in range(1024):
        yield block


class SlowStore(MemoryStore):
    """A store whose writes wait for the test, and that tells who writes."""

    def __init__(self, failure: Exception | None = None, *, stalled: bool = False) -> None:
        super().__init__()
        self.go = threading.Event()
        if not stalled:
            self.go.set()
        self.failure = failure
        self.failed = threading.Semaphore(0)
        self.aborted = 0
        self.writers: set[str] = set()

    def open_write(self, key):
        writer, store = super().open_write(key), self

        class Writer:
            def write(self, chunk):
                store.writers.add(threading.current_thread().name)
                assert store.go.wait(30)
                if store.failure is not None:
                    store.failed.release()
                    raise type(store.failure)(*store.failure.args)
                writer.write(chunk)

            def commit(self):
                writer.commit()

            def abort(self):
                store.aborted += 1
                writer.abort()

        return Writer()


async def _turn_the_loop(times: int = 5000) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


def _error(request) -> tuple[int, str]:
    return request.status, json.loads(request.body)["error"]["code"]


async def test_one_byte_chunks(api, exchange):
    archive = b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n-- weights"
    body = _form(archive)
    request = exchange(api.app, "POST", PATH, HEADERS, _stream(*(body[i : i + 1] for i in range(len(body)))))
    await request.run()
    assert request.status == 200
    assert api.store.read(f"archives/{hashlib.sha256(archive).hexdigest()}") == archive


async def test_a_slow_store_stops_the_reading(make_api, exchange):
    store = SlowStore(stalled=True)
    api = make_api(store=store, max_upload_bytes=32 * MIB)
    request = exchange(api.app, "POST", PATH, HEADERS, _file_of_64_mib())
    serving = asyncio.create_task(request.run())
    await _turn_the_loop()
    # Two batches under way and one ready to follow.
    assert 0 < request.read_bytes <= MAX_BATCHES * BATCH_BYTES + 65536
    assert not serving.done()
    store.go.set()
    await serving
    assert _error(request) == (413, "archive_too_large")
    assert api.kept() == set()


async def test_chunks_of_one_byte_take_no_more_memory_than_large_ones(make_api, exchange):
    store = SlowStore(stalled=True)
    api = make_api(store=store)

    async def crumbs():
        yield FIELDS + FILE_HEAD + bytes(BATCH_BYTES)
        for _ in range(200_000):
            yield b"%c" % 120

    request = exchange(api.app, "POST", PATH, HEADERS, crumbs())
    tracemalloc.start()
    serving = asyncio.create_task(request.run())
    await _turn_the_loop()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # As objects in a list the crumbs would take 8 MB more.
    assert peak_bytes < MAX_BATCHES * BATCH_BYTES + 2 * MIB
    store.go.set()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_the_time_a_slow_store_takes_is_not_the_clients(make_api, exchange):
    store = SlowStore(stalled=True)
    api = make_api(store=store, idle_timeout_s=0.05, max_upload_bytes=64 * MIB)
    request = exchange(api.app, "POST", PATH, HEADERS, _stream(FILE_HEAD, *[bytes(MIB)] * 8, b"\r\n" + FIELDS + END))
    asyncio.get_running_loop().call_later(0.2, store.go.set)
    await request.run()
    assert request.status == 200


async def test_the_event_loop_neither_parses_nor_writes(make_api, exchange):
    store = SlowStore()
    api = make_api(store=store)
    await exchange(api.app, "POST", PATH, HEADERS, _stream(_form(b"weights"))).run()
    assert store.writers
    assert threading.current_thread().name not in store.writers


async def test_a_body_that_passes_the_limit_is_stopped_there(api, exchange):
    request = exchange(api.app, "POST", PATH, HEADERS, _file_of_64_mib())
    await request.run()
    assert _error(request) == (413, "archive_too_large")
    assert request.headers["connection"] == "close"
    assert request.read_bytes <= api.max_upload_bytes + 4 * MIB
    assert api.kept() == set()
    assert "commit_upload" not in api.platform.calls


async def test_an_archive_of_exactly_the_limit_passes_and_one_byte_more_does_not(make_api, exchange):
    api = make_api(max_upload_bytes=1000)
    for size, status in ((1000, 200), (1001, 413)):
        request = exchange(api.app, "POST", PATH, HEADERS, _stream(_form(bytes(size))))
        await request.run()
        assert request.status == status


@pytest.mark.parametrize("tuning", [{}, TUNING_HEADERS])
async def test_a_declared_length_over_the_limit_is_refused_unread(api, exchange, tuning):
    length = {"Content-Length": str(api.max_upload_bytes + MIB + 1)}
    headers = {name: value for name, value in HEADERS.items() if name != "Transfer-Encoding"} | length | tuning
    request = exchange(api.app, "POST", PATH, headers, _file_of_64_mib())
    await request.run()
    assert _error(request) == (413, "archive_too_large")
    assert request.read_bytes == 0


async def test_a_full_namespace_is_told_before_the_body(api, exchange):
    api.platform.quota = 0
    request = exchange(api.app, "POST", PATH, HEADERS, _file_of_64_mib())
    await request.run()
    assert _error(request) == (409, "quota_exceeded")
    assert (request.read_bytes, request.headers["connection"]) == (0, "close")


async def test_a_bad_field_is_told_while_the_file_still_comes(make_api, exchange):
    api = make_api(max_upload_bytes=1024 * MIB)

    async def body():
        yield _field("name", "../x") + FILE_HEAD
        for _ in range(1024):
            yield bytes(65536)

    request = exchange(api.app, "POST", PATH, HEADERS, body())
    await request.run()
    assert _error(request) == (422, "invalid_name")
    assert request.read_bytes <= MAX_BATCHES * BATCH_BYTES
    assert api.kept() == set()


async def test_a_slow_clients_bad_field_is_told_before_a_batch_is_full(api, exchange):
    told = asyncio.Event()

    async def body():
        yield _field("name", "../x") + FILE_HEAD
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
            yield b"x" * 100
        told.set()

    request = exchange(api.app, "POST", PATH, HEADERS, body())
    await request.run()
    assert _error(request) == (422, "invalid_name")
    assert not told.is_set()


@pytest.mark.parametrize("after", [0, 10, 3 * BATCH_BYTES // 2])
async def test_a_client_that_leaves_leaves_nothing(make_api, exchange, after):
    async def body():
        yield FIELDS + FILE_HEAD + bytes(after)
        if after > BATCH_BYTES:
            await _until(lambda: store.writers)
        yield b"more"
        raise ConnectionError

    store = SlowStore()
    api = make_api(store=store, max_upload_bytes=32 * MIB)
    request = exchange(api.app, "POST", PATH, HEADERS, body())
    await request.run()
    assert "commit_upload" not in api.platform.calls
    assert api.kept() == set()
    assert store.aborted >= (1 if after > BATCH_BYTES else 0)


async def test_cancelled_while_receiving(make_api, exchange):
    reached = asyncio.Event()

    async def body():
        yield FIELDS + FILE_HEAD + bytes(3 * BATCH_BYTES // 2)
        await _until(lambda: store.writers)
        reached.set()
        await asyncio.Event().wait()

    store = SlowStore(stalled=True)
    api = make_api(store=store, max_upload_bytes=32 * MIB)
    serving = asyncio.create_task(exchange(api.app, "POST", PATH, HEADERS, body()).run())
    await reached.wait()
    serving.cancel()
    await _turn_the_loop(10)
    # Cancelled again while it cleans up: what is under way ends, then the clean-up runs all the same.
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    store.go.set()
    await _until(lambda: store.aborted > 0)
    assert api.kept() == set()


async def test_cancelled_while_committing(api, exchange):
    api.platform.commit_gate = asyncio.Event()
    request = exchange(api.app, "POST", PATH, HEADERS, _stream(_form(b"weights")))
    serving = asyncio.create_task(request.run())
    await _until(lambda: "commit_upload" in api.platform.calls)
    assert api.kept() == {"uploads/0"}
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert api.kept() == set()


@pytest.mark.parametrize("failure", [RegistryUnavailableError("Down."), RuntimeError("bug")])
async def test_a_commit_that_fails_leaves_nothing(api, exchange, failure):
    api.platform.failures["commit_upload"] = failure
    request = exchange(api.app, "POST", PATH, HEADERS, _stream(_form(b"weights")))
    await request.run()
    assert request.status in (500, 503)
    assert api.kept() == set()


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (StorageUnavailableError("The store does not answer."), (503, "storage_unavailable")),
        (DiskFullError("The disk is full."), (507, "disk_full")),
        (RuntimeError("bug"), (500, "internal_error")),
    ],
)
async def test_a_store_that_fails_is_answered_at_once(make_api, exchange, failure, answer):
    store = SlowStore(failure)
    api = make_api(store=store, max_upload_bytes=1024 * MIB)
    request = exchange(api.app, "POST", PATH, HEADERS, _file_of_64_mib())
    await request.run()
    assert _error(request) == answer
    assert request.read_bytes <= 5 * MIB
    assert store.aborted >= 1
    assert api.kept() == set()


async def test_two_batches_that_fail_are_one_failure(make_api, exchange, caplog):
    store = SlowStore(StorageUnavailableError("The store does not answer."))

    async def body():
        yield FILE_HEAD
        yield bytes(BATCH_BYTES)
        yield bytes(BATCH_BYTES)
        # Holds the loop on purpose, so that it learns of both failures in one turn.
        assert store.failed.acquire(timeout=10)
        assert store.failed.acquire(timeout=10)
        yield bytes(BATCH_BYTES)

    request = exchange(make_api(store=store, max_upload_bytes=64 * MIB).app, "POST", PATH, HEADERS, body())
    await request.run()
    assert _error(request) == (503, "storage_unavailable")
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"], "an exception nobody looked at"


@pytest.mark.parametrize("body", [_form(b"weights")[:-4], _form(b"weights")[:-200], FIELDS + END, b"", b"garbage"])
async def test_half_a_form_is_none(api, exchange, body):
    request = exchange(api.app, "POST", PATH, HEADERS, _stream(body))
    await request.run()
    assert _error(request) == (400, "invalid_multipart")
    assert api.kept() == set()
    assert "commit_upload" not in api.platform.calls


@pytest.mark.parametrize("tuning", [{}, TUNING_HEADERS])
async def test_silence_ends_in_408(make_api, exchange, tuning):
    async def body():
        yield FIELDS + FILE_HEAD + b"some"
        await asyncio.Event().wait()

    api = make_api(idle_timeout_s=0.05)
    request = exchange(api.app, "POST", PATH, HEADERS | tuning, body())
    await asyncio.wait_for(request.run(), 10)
    assert _error(request) == (408, "request_timeout")
    assert request.headers["connection"] == "close"
    assert api.kept() == set()


async def test_silence_in_a_json_body_ends_in_408(make_api, exchange):
    async def body():
        yield b'{"namespace_name": '
        await asyncio.Event().wait()

    api = make_api(idle_timeout_s=0.05)
    headers = HEADERS | {"Content-Type": "application/json"}
    request = exchange(api.app, "POST", "/v1/namespaces", headers, body())
    await asyncio.wait_for(request.run(), 10)
    assert _error(request) == (408, "request_timeout")


async def _trickle(piece: bytes, pause_s: float, times: int):
    yield FILE_HEAD
    for _ in range(times):
        await asyncio.sleep(pause_s)
        yield piece
    yield b"\r\n" + FIELDS + END


async def test_a_byte_now_and_then_is_no_progress(make_api, exchange):
    api = make_api(idle_timeout_s=0.2)
    request = exchange(api.app, "POST", PATH, HEADERS, _trickle(b"x", 0.01, 100_000))
    await asyncio.wait_for(request.run(), 10)
    assert _error(request) == (408, "request_timeout")
    assert api.kept() == set()


async def test_a_slow_but_steady_client_may_take_its_time(make_api, exchange):
    api = make_api(idle_timeout_s=0.5)
    request = exchange(api.app, "POST", PATH, HEADERS, _trickle(b"x" * 4096, 0.02, 60))
    await request.run()
    assert request.status == 200


async def test_no_thread_outlives_its_upload(api, exchange):
    for archive in (b"weights", b""):
        await exchange(api.app, "POST", PATH, HEADERS, _stream(_form(archive))).run()
    await _until(lambda: not any(thread.name.startswith("upload") for thread in threading.enumerate()))


async def _until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- what a thread does sets no event of this loop
            await asyncio.sleep(0.001)
