"""gzip streams, whole and broken (hardening.md rows 10 and 11)."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import threading
import time
import tracemalloc
import zlib

import pytest

from mixpeek_ray.core.errors import (
    CorruptArchiveError,
    DecompressionLimitError,
    EmptyArchiveError,
    NotTarGzError,
    StorageUnavailableError,
)
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.gzip_reader import ArchiveLimits, GzipReader

CONTENT = random.Random(1).randbytes(300_000)
PACKED = gzip.compress(CONTENT)


def read_all(packed: bytes, **limits: float) -> bytes:
    with GzipReader(io.BytesIO(packed), ArchiveLimits(**limits)) as reader:  # type: ignore[arg-type]
        content = reader.read_exactly(len(CONTENT))
        reader.finish()
    return content


def test_returns_the_content_in_any_split() -> None:
    with GzipReader(io.BytesIO(PACKED), ArchiveLimits()) as reader:
        parts = [reader.read_exactly(1), reader.read_exactly(511), reader.read_exactly(len(CONTENT) - 512)]
        reader.finish()
    assert b"".join(parts) == CONTENT


class DribblingStream(io.BytesIO):
    """Returns one byte a read, as a socket may."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(1)


def test_short_reads_are_no_end() -> None:
    packed = gzip.compress(b"content")
    with GzipReader(DribblingStream(packed), ArchiveLimits()) as reader:
        assert reader.read_exactly(7) == b"content"
        reader.finish()


def test_feeds_every_compressed_byte_to_the_digest() -> None:
    digest = hashlib.sha256()
    packed = PACKED + bytes(3 * MIB)
    with GzipReader(io.BytesIO(packed), ArchiveLimits(), digest) as reader:
        reader.read_exactly(len(CONTENT))
        reader.finish()
    assert digest.hexdigest() == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize("read", [0, 1, 8 * MIB], ids=["at the start", "after a byte", "in the middle"])
def test_draining_feeds_the_rest_to_the_digest(read: int) -> None:
    packed = gzip.compress(random.Random(2).randbytes(20 * MIB), compresslevel=0)
    digest = hashlib.sha256()
    with GzipReader(io.BytesIO(packed), ArchiveLimits(), digest) as reader:
        reader.read_exactly(read)
        reader.drain()
    assert digest.hexdigest() == hashlib.sha256(packed).hexdigest()


def test_nothing_uses_the_stream_once_the_reader_is_left() -> None:
    stream = io.BytesIO(gzip.compress(random.Random(2).randbytes(20 * MIB), compresslevel=0))
    threads = threading.active_count()
    with GzipReader(stream, ArchiveLimits()) as reader:
        reader.read_exactly(1)
    assert threading.active_count() == threads
    assert stream.tell() < 16 * MIB


def test_what_the_stream_raises_passes_through() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if data := super().read(100_000):
                return data
            raise StorageUnavailableError("The store went away.")

    with GzipReader(Failing(PACKED[:-50_000]), ArchiveLimits()) as reader, pytest.raises(StorageUnavailableError):
        reader.read_exactly(len(CONTENT))


@pytest.mark.parametrize("kept", [3, 10, 11, 1_000, len(PACKED) - 9, len(PACKED) - 8, len(PACKED) - 1])
def test_truncation_is_noticed_wherever_it_is(kept: int) -> None:
    with pytest.raises(CorruptArchiveError):
        read_all(PACKED[:kept])


@pytest.mark.parametrize("position", [-8, -5, -4, -1], ids=["crc", "crc-end", "size", "size-end"])
def test_wrong_checksum_or_length_is_noticed(position: int) -> None:
    damaged = bytearray(PACKED)
    damaged[position] ^= 1
    with pytest.raises(CorruptArchiveError):
        read_all(bytes(damaged))


@pytest.mark.parametrize("extra", [PACKED, b"x", bytes(2 * MIB) + b"x"], ids=["stream", "byte", "late byte"])
def test_nothing_may_follow_the_stream(extra: bytes) -> None:
    with pytest.raises(CorruptArchiveError, match="more bytes"):
        read_all(PACKED + extra)


def test_zero_padding_may_follow_the_stream() -> None:
    assert read_all(PACKED + bytes(2 * MIB)) == CONTENT


def test_no_bytes_at_all() -> None:
    with pytest.raises(EmptyArchiveError):
        read_all(b"")


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"hello, world", b"\x1f", zlib.compress(b"x"), b"\x80\x02"])
def test_other_files_are_no_gzip(start: bytes) -> None:
    with pytest.raises(NotTarGzError):
        read_all(start)


def test_a_bomb_ends_early_in_time_and_memory() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(16 * MIB)
    bomb = b"".join(packer.compress(zeros) for _ in range(40)) + packer.flush()
    assert len(bomb) < MIB
    tracemalloc.start()
    started = time.monotonic()
    with (
        GzipReader(io.BytesIO(bomb), ArchiveLimits()) as reader,
        pytest.raises(DecompressionLimitError, match="50 times"),
    ):
        reader.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * MIB
    assert time.monotonic() - started < 5


def test_compressible_content_below_the_floor_passes() -> None:
    zeros = gzip.compress(bytes(32 * MIB))
    with GzipReader(io.BytesIO(zeros), ArchiveLimits()) as reader:
        reader.finish()


def test_unpacked_bytes_are_limited() -> None:
    assert read_all(PACKED, unpacked_bytes=len(CONTENT)) == CONTENT
    with pytest.raises(DecompressionLimitError, match="more than"):
        read_all(PACKED, unpacked_bytes=len(CONTENT) - 1)


def test_time_is_limited() -> None:
    with pytest.raises(DecompressionLimitError, match="longer"):
        read_all(PACKED, seconds=-1.0)
