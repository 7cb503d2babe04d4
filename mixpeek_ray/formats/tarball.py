"""Strict streaming extraction of a ``.tar.gz`` that a stranger sent.

Only regular files and directories come out, into a private folder, under names checked beforehand. ``tarfile`` is not
used: its ``filter="data"`` was escaped through a long symlink chain, a two-header archive loops it forever, and a
199 KB archive peaked at 424 MB before any filter ran.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import (
    ArchiveRefusedError,
    CorruptArchiveError,
    CorruptStoreError,
    DecompressionLimitError,
    EmptyArchiveError,
    InvalidArchiveHeaderError,
    NotTarGzError,
    TooManyEntriesError,
    UnsafePathError,
)
from mixpeek_ray.core.records import FileInfo
from mixpeek_ray.formats.disk import disk_full_as_error
from mixpeek_ray.formats.gzip_reader import ArchiveLimits, GzipReader, retain_freed_memory
from mixpeek_ray.formats.member_paths import Parts, PathSet, parse_path
from mixpeek_ray.formats.tar_header import (
    BLOCK_BYTES,
    DIRECTORY_TYPE,
    GNU_LONG_NAME_TYPE,
    PAX_GLOBAL_TYPE,
    PAX_TYPE,
    PaxRecords,
    TarHeader,
    merge,
    parse_header,
    parse_pax,
)

_ZERO_BLOCK = bytes(BLOCK_BYTES)
_NOFOLLOW_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def extract(
    stream: BinaryIO,
    folder: Path,
    *,
    archive_limits: ArchiveLimits | None = None,
    expected_sha256: str | None = None,
) -> tuple[FileInfo, ...]:
    """Unpack the archive into ``folder``, which must be empty and private; return its files in archive order.

    ``stream`` is read once, forwards, to its end. Raises a subclass of ``ArchiveRefusedError`` for an archive that is
    not acceptable, ``CorruptStoreError`` when its bytes do not have ``expected_sha256`` (whatever else is wrong with
    them), and ``DiskFullError``. On an error ``folder`` may hold part of the archive.
    """
    archive_limits = archive_limits or ArchiveLimits()
    digest = hashlib.sha256()
    retain_freed_memory()
    with GzipReader(stream, archive_limits, digest if expected_sha256 else None) as reader:
        try:
            with disk_full_as_error():
                files = _Extraction(reader, folder, archive_limits).run()
            reader.finish()
        except ArchiveRefusedError:
            # The upload was checked against its hash: if the bytes differ now, the store is at fault, not the archive.
            if expected_sha256:
                reader.drain()
                _check_digest(digest.hexdigest(), expected_sha256)
            raise
    if expected_sha256:
        _check_digest(digest.hexdigest(), expected_sha256)
    return files


def _check_digest(found: str, expected: str) -> None:
    if found != expected:
        raise CorruptStoreError("The stored archive does not have the hash it was uploaded with: upload it again.")


class _Extraction:
    def __init__(self, reader: GzipReader, folder: Path, archive_limits: ArchiveLimits) -> None:
        self._reader = reader
        self._folder = folder
        self._limits = archive_limits
        self._paths = PathSet()
        self._files: list[FileInfo] = []
        self._at_start = True
        self._members = 0
        self._extended_bytes = 0

    def run(self) -> tuple[FileInfo, ...]:
        root = os.open(self._folder, _NOFOLLOW_DIRECTORY)
        try:
            while (header := self._next_member()) is not None:
                self._unpack(root, header)
        finally:
            os.close(root)
        if not self._members:
            raise EmptyArchiveError("The archive holds no file: pack your weights with `tar czf model.tar.gz <file>`.")
        return tuple(self._files)

    def _next_member(self) -> TarHeader | None:
        """Return the next member's header with its extended headers applied, or None at the end of the archive."""
        pax: PaxRecords | None = None
        long_name: bytes | None = None
        while True:
            block = self._read_header_block()
            if block == _ZERO_BLOCK:
                if pax is not None or long_name is not None or self._reader.read_exactly(BLOCK_BYTES) != _ZERO_BLOCK:
                    raise CorruptArchiveError("The archive's end mark is incomplete: pack and upload it again.")
                return None
            header = parse_header(block, first=self._at_start)
            self._at_start = False
            if header.typeflag == PAX_GLOBAL_TYPE:
                self._count_member()
                # `git archive` writes one with a comment. A global path or size would apply to every member.
                if parse_pax(self._read_extended(header)) != PaxRecords():
                    raise InvalidArchiveHeaderError("The archive sets a path or size for all its members.")
            elif header.typeflag == PAX_TYPE and pax is None:
                pax = parse_pax(self._read_extended(header))
            elif header.typeflag == GNU_LONG_NAME_TYPE and long_name is None:
                long_name = self._read_extended(header).removesuffix(b"\0")
            elif header.typeflag in (PAX_TYPE, GNU_LONG_NAME_TYPE):
                raise InvalidArchiveHeaderError("A member has two extended headers of one kind.")
            else:
                self._count_member()
                return merge(header, pax or PaxRecords(), long_name)

    def _read_header_block(self) -> bytes:
        block = self._reader.read_up_to(BLOCK_BYTES)
        if len(block) == BLOCK_BYTES:
            return block
        if self._at_start:
            raise NotTarGzError("The file is gzip, but there is no tar inside: pack it with `tar czf`.")
        raise CorruptArchiveError("The archive has no end mark: pack and upload it again.")

    def _count_member(self) -> None:
        self._members += 1
        if self._members > self._limits.members:
            raise TooManyEntriesError(f"The archive has more than {self._limits.members} members.")

    def _read_extended(self, header: TarHeader) -> bytes:
        self._extended_bytes += header.size
        if header.size > limits.MAX_EXTENDED_HEADER_BYTES:
            raise InvalidArchiveHeaderError(
                f"A tar header announces {header.size} bytes of names, more than {limits.MAX_EXTENDED_HEADER_BYTES}."
            )
        if self._extended_bytes > limits.MAX_EXTENDED_HEADERS_TOTAL_BYTES:
            raise InvalidArchiveHeaderError(
                f"The archive's extended headers pass {limits.MAX_EXTENDED_HEADERS_TOTAL_BYTES} bytes in all."
            )
        data = self._reader.read_exactly(header.size)
        self._skip_padding(header.size)
        return data

    def _unpack(self, root: int, header: TarHeader) -> None:
        parts = parse_path(header.path)
        # Old tars mark a folder by its trailing slash alone.
        if header.typeflag == DIRECTORY_TYPE or header.path.endswith(b"/"):
            if header.size:
                raise InvalidArchiveHeaderError("A folder in the archive announces content.")
            self._paths.add_folder(parts)
            os.close(_open_folder(root, parts))
            return
        if not parts:
            raise UnsafePathError("A file in the archive has no name.")
        if header.size > self._limits.unpacked_bytes:
            raise DecompressionLimitError(
                f"A file in the archive announces {header.size} bytes, more than {self._limits.unpacked_bytes}."
            )
        self._paths.add_file(parts)
        self._write_file(root, parts, header.size)
        self._skip_padding(header.size)
        self._files.append(FileInfo(path="/".join(parts), size_bytes=header.size))

    def _write_file(self, root: int, parts: Parts, size: int) -> None:
        folder = _open_folder(root, parts[:-1])
        try:
            file = os.open(parts[-1], _NEW_FILE, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            left = size
            while left:
                chunk = self._reader.next_chunk(left)
                if not chunk:
                    raise CorruptArchiveError("The archive ends in the middle of a file: pack and upload it again.")
                left -= len(chunk)
                while chunk:
                    chunk = chunk[os.write(file, chunk) :]
        finally:
            os.close(file)

    def _skip_padding(self, size: int) -> None:
        self._reader.read_exactly(-size % BLOCK_BYTES)


def _open_folder(root: int, parts: Parts) -> int:
    """Return a descriptor of the folder, made where it is missing; never follows a link on the way."""
    folder = os.dup(root)
    for part in parts:
        parent = folder
        try:
            with suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=parent)
            folder = os.open(part, _NOFOLLOW_DIRECTORY, dir_fd=parent)
        finally:
            os.close(parent)
    return folder
