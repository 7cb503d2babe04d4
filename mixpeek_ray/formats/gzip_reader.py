"""A gzip stream inflated in bounded steps: one stream, whole, with a right checksum, and nothing after it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from isal import igzip_lib, isal_zlib

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import (
    CorruptArchiveError,
    DecompressionLimitError,
    EmptyArchiveError,
    NotTarGzError,
)

if TYPE_CHECKING:
    import hashlib

_MAGIC = b"\x1f\x8b"
# Large enough that Python's share of the work is nothing, small enough to stay in the processor's cache.
_READ_BYTES = 1 * limits.MIB
_INFLATE_BYTES = 1 * limits.MIB


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
    """Sequential reader of the bytes inside a gzip stream; keeps at most a few MiB in memory.

    Raises ``EmptyArchiveError``, ``NotTarGzError``, ``CorruptArchiveError``, ``DecompressionLimitError``; whatever
    ``stream`` raises passes through. ``digest``, when given, is fed every compressed byte that was read.
    """

    def __init__(self, stream: BinaryIO, archive_limits: ArchiveLimits, digest: hashlib._Hash | None = None) -> None:
        self._stream = stream
        self._limits = archive_limits
        self._deadline = time.monotonic() + archive_limits.seconds
        self._inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        self._digest = digest
        self._read_bytes = 0
        self._inflated_bytes = 0
        self._chunk = memoryview(b"")

    def next_chunk(self, at_most: int) -> memoryview:
        """Return the next 1 to ``at_most`` bytes, valid until the next call; empty at the end of the stream."""
        if not self._chunk:
            self._chunk = memoryview(self._inflate())
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
        while data := self._read():
            _require_zeros(memoryview(data), "the end of the gzip stream")

    def drain(self) -> None:
        """Read the rest of the input without looking at it, for the digest."""
        while self._read():
            pass

    def _inflate(self) -> bytes:
        while not self._inflater.eof:
            data = b""
            if self._inflater.needs_input:
                data = self._read() if self._read_bytes else self._read_start()
                if not data:
                    raise CorruptArchiveError("The archive is truncated: pack and upload it again.")
            try:
                out = self._inflater.decompress(data, _INFLATE_BYTES)
            except isal_zlib.error:  # type: ignore[misc]  # its stub declares an instance, not the class
                raise CorruptArchiveError(
                    "The archive's gzip stream is damaged: pack it with `tar czf` and upload it again."
                ) from None
            if out:
                self._count(len(out))
                return bytes(out)
        return b""

    def _read_start(self) -> bytes:
        data = self._read()
        # A stream may return less than it was asked for.
        while 0 < len(data) < len(_MAGIC) and (more := self._read()):
            data += more
        if not data:
            raise EmptyArchiveError("The file is empty: upload a gzip-compressed tar (`tar czf model.tar.gz ...`).")
        if not data.startswith(_MAGIC):
            raise NotTarGzError("The file is not gzip: upload a gzip-compressed tar (`tar czf model.tar.gz ...`).")
        return data

    def _read(self) -> bytes:
        if time.monotonic() > self._deadline:
            raise DecompressionLimitError(f"The archive takes longer than {self._limits.seconds:.0f} s to unpack.")
        data = self._stream.read(_READ_BYTES)
        if self._digest is not None:
            self._digest.update(data)
        self._read_bytes += len(data)
        return data

    def _count(self, inflated: int) -> None:
        self._inflated_bytes += inflated
        if self._inflated_bytes > self._limits.unpacked_bytes:
            raise DecompressionLimitError(
                f"The archive unpacks to more than {self._limits.unpacked_bytes} bytes: upload a smaller model."
            )
        ratio_applies = self._inflated_bytes > self._limits.inflate_ratio_floor_bytes
        if ratio_applies and self._inflated_bytes > self._limits.inflate_ratio * self._read_bytes:
            raise DecompressionLimitError(
                f"The archive unpacks to more than {self._limits.inflate_ratio} times its size: real weights do not "
                "compress so well."
            )


def _require_zeros(data: memoryview, where: str) -> None:
    if data.tobytes().strip(b"\0"):
        raise CorruptArchiveError(f"The archive has more bytes after {where}: pack it again as one `tar czf`.")
