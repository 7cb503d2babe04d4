"""A gzip stream inflated in bounded steps: one stream, whole, with a right checksum, and nothing after it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, BinaryIO, Self

from isal import igzip_lib, isal_zlib

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import (
    CorruptArchiveError,
    DecompressionLimitError,
    EmptyArchiveError,
    NotTarGzError,
)
from mixpeek_ray.formats.read_ahead import ReadAhead

if TYPE_CHECKING:
    import hashlib

_MAGIC = b"\x1f\x8b"
# Large enough that Python's share of the work and the hand-over between threads are nothing.
_READ_BYTES = 1 * limits.MIB
_INFLATE_BYTES = 1 * limits.MIB
# glibc hands freed blocks of a piece's size back to the system, which costs each next piece 256 page faults and each of
# the other threads' cores an interrupt: up to 2 s of a 1 GB archive's 5. Once a block of this size was freed, which
# never was touched, it keeps up to twice as much for reuse.
_RETAINED_BYTES = 31 * limits.MIB
# Pieces that wait between two threads: enough to ride out the scheduler, and each one is a MiB.
_DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What an archive may take at most; the defaults are the platform's."""

    unpacked_bytes: int = limits.MAX_UNPACKED_BYTES
    inflate_ratio: int = limits.MAX_INFLATE_RATIO
    inflate_ratio_floor_bytes: int = limits.INFLATE_RATIO_FLOOR_BYTES
    members: int = limits.MAX_ARCHIVE_MEMBERS
    # Wall clock for the whole archive: 20 GiB at a slow disk's 20 MB/s.
    seconds: float = 1_000.0


class GzipReader:
    """Sequential reader of the bytes inside a gzip stream, which two threads read and inflate ahead of the caller.

    Keeps at most 10 MiB in memory. ``digest``, when given, is fed every compressed byte that was read, ahead of the
    caller too: it is complete after ``finish`` or ``drain``. Use it as a context manager: ``stream`` is in use until
    its end. Reading raises ``EmptyArchiveError``, ``NotTarGzError``, ``CorruptArchiveError``,
    ``DecompressionLimitError``; whatever ``stream`` raises passes through.
    """

    def __init__(self, stream: BinaryIO, archive_limits: ArchiveLimits, digest: hashlib._Hash | None = None) -> None:
        self._stream = stream
        self._limits = archive_limits
        self._deadline = time.monotonic() + archive_limits.seconds
        self._inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        self._digest = digest
        self._taken_bytes = 0
        self._inflated_bytes = 0
        self._chunk = memoryview(b"")
        # Inflating takes a core; reading, hashing and the caller's own work take place on others meanwhile.
        self._compressed = ReadAhead(self._read(), depth=_DEPTH)
        self._inflated = ReadAhead(self._inflate(), depth=_DEPTH)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inflated.close()
        self._compressed.close()

    def next_chunk(self, at_most: int) -> memoryview:
        """Return the next 1 to ``at_most`` bytes; empty at the end of the stream."""
        if not self._chunk:
            self._chunk = memoryview(next(self._inflated, b""))
        taken, self._chunk = self._chunk[:at_most], self._chunk[at_most:]
        return taken

    def read_exactly(self, count: int) -> bytes:
        """Return the next ``count`` bytes; raise ``CorruptArchiveError`` when the stream ends before."""
        data = self.read_up_to(count)
        if len(data) < count:
            raise CorruptArchiveError("The archive ends in the middle of an entry: pack and upload it again.")
        return data

    def read_up_to(self, count: int) -> bytes:
        """Return the next ``count`` bytes, fewer only where the stream ends."""
        parts = []
        while count and (chunk := self.next_chunk(count)):
            parts.append(bytes(chunk))
            count -= len(chunk)
        return b"".join(parts)

    def finish(self) -> None:
        """Read to the end of the input; raise ``CorruptArchiveError`` unless it is one whole stream and zeros."""
        while chunk := self.next_chunk(_INFLATE_BYTES):
            _require_zeros(chunk, "the end of the tar")
        _require_zeros(memoryview(self._inflater.unused_data), "the end of the gzip stream")
        for data in self._compressed:
            _require_zeros(memoryview(data), "the end of the gzip stream")

    def drain(self) -> None:
        """Read the rest of the input without looking at it, for the digest; nothing can be read after that."""
        self._inflated.close()
        for _ in self._compressed:
            pass

    def _read(self) -> Iterator[bytes]:
        while True:
            if time.monotonic() > self._deadline:
                raise DecompressionLimitError(f"The archive takes longer than {self._limits.seconds:.0f} s to unpack.")
            data = self._stream.read(_READ_BYTES)
            if not data:
                return
            if self._digest is not None:
                self._digest.update(data)
            yield data

    def _inflate(self) -> Iterator[bytes]:
        data = self._take_start()
        while not self._inflater.eof:
            try:
                out = self._inflater.decompress(data, _INFLATE_BYTES)
            except isal_zlib.error:  # type: ignore[misc]  # its stub declares an instance, not the class
                raise CorruptArchiveError(
                    "The archive's gzip stream is damaged: pack it with `tar czf` and upload it again."
                ) from None
            if out:
                self._count(len(out))
                yield out
            data = b""
            if self._inflater.needs_input and not self._inflater.eof:
                data = self._take()
                if not data:
                    raise CorruptArchiveError("The archive is truncated: pack and upload it again.")

    def _take_start(self) -> bytes:
        data = self._take()
        # A stream may return less than it was asked for.
        while 0 < len(data) < len(_MAGIC) and (more := self._take()):
            data += more
        if not data:
            raise EmptyArchiveError("The file is empty: upload a gzip-compressed tar (`tar czf model.tar.gz ...`).")
        if not data.startswith(_MAGIC):
            raise NotTarGzError("The file is not gzip: upload a gzip-compressed tar (`tar czf model.tar.gz ...`).")
        return data

    def _take(self) -> bytes:
        data = next(self._compressed, b"")
        self._taken_bytes += len(data)
        return data

    def _count(self, inflated: int) -> None:
        self._inflated_bytes += inflated
        if self._inflated_bytes > self._limits.unpacked_bytes:
            raise DecompressionLimitError(
                f"The archive unpacks to more than {self._limits.unpacked_bytes} bytes: upload a smaller model."
            )
        ratio_applies = self._inflated_bytes > self._limits.inflate_ratio_floor_bytes
        if ratio_applies and self._inflated_bytes > self._limits.inflate_ratio * self._taken_bytes:
            raise DecompressionLimitError(
                f"The archive unpacks to more than {self._limits.inflate_ratio} times its size: real weights do not "
                "compress so well."
            )


@cache
def retain_freed_memory() -> None:
    """Make this process's allocator reuse the memory of pieces; changes nothing where that is not glibc."""
    block = bytes(_RETAINED_BYTES)
    del block


def _require_zeros(data: memoryview, where: str) -> None:
    if data.tobytes().strip(b"\0"):
        raise CorruptArchiveError(f"The archive has more bytes after {where}: pack it again as one `tar czf`.")
