"""One 512-byte tar header, parsed strictly: a field is what the standard says, or the archive is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from mixpeek_ray.core.errors import InvalidArchiveHeaderError, NotTarGzError, UnsafeEntryError, UnsafePathError

BLOCK_BYTES = 512
REGULAR_TYPES = frozenset({b"0", b"\0"})
DIRECTORY_TYPE = b"5"
GNU_LONG_NAME_TYPE = b"L"
PAX_TYPE = b"x"
PAX_GLOBAL_TYPE = b"g"
_PARSED_TYPES = REGULAR_TYPES | {DIRECTORY_TYPE, GNU_LONG_NAME_TYPE, PAX_TYPE, PAX_GLOBAL_TYPE}

_REFUSED_TYPES = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device", b"4": "a block device",
    b"6": "a named pipe", b"K": "a link with a long name", b"S": "a sparse file",
}  # fmt: skip

_POSIX_MAGIC = b"ustar\x0000"
_GNU_MAGIC = b"ustar  \0"
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")

# Sizes from here on do not fit the octal field (11 digits), so that the extended header alone holds them.
_OCTAL_SIZE_LIMIT = 8**11

# Pax records without influence on a file's bytes, name or kind: who owned it, when it was touched, what macOS and
# SELinux keep beside it. Every macOS and many Linux archives hold them.
_IGNORED_KEYS = re.compile(
    r"mtime|atime|ctime|uid|gid|uname|gname|comment"
    r"|(LIBARCHIVE|RHT)\..*"
    r"|SCHILY\.(xattr|acl|fflags|dev|ino|nlink|devmajor|devminor).*",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class TarHeader:
    """A checked header: ``path`` as stored, ``size`` in bytes, 0 ≤ size."""

    typeflag: bytes
    path: bytes
    size: int


@dataclass(frozen=True, kw_only=True)
class PaxRecords:
    """What an extended header says about the member after it."""

    path: bytes | None = None
    size: int | None = None


def parse_header(block: bytes, *, first: bool) -> TarHeader:
    """Return the header in ``block``, a member's or an extended one.

    Raises ``NotTarGzError`` when ``first`` is set and the block is no tar header at all, ``UnsafeEntryError`` for a
    kind of member other than file and directory, and ``InvalidArchiveHeaderError`` for a header that is wrong.
    """
    magic = block[257:265]
    has_magic = magic in (_POSIX_MAGIC, _GNU_MAGIC)
    if not _checksum_holds(block):
        if first and not has_magic:
            raise NotTarGzError("The file is gzip, but there is no tar inside: pack it with `tar czf`.")
        _refuse("its checksum is wrong")
    typeflag = block[156:157]
    if typeflag not in _PARSED_TYPES:
        kind = _REFUSED_TYPES.get(typeflag, f"a member of type {typeflag!a}")
        raise UnsafeEntryError(f"The archive holds {kind}: only regular files and directories are allowed.")
    path = block[0:100].partition(b"\0")[0]
    # GNU headers keep times where POSIX has the prefix.
    prefix = block[345:500].partition(b"\0")[0] if magic == _POSIX_MAGIC else b""
    return TarHeader(
        typeflag=typeflag, path=prefix + b"/" + path if prefix else path, size=_number(block[124:136], "size")
    )


def _checksum_holds(block: bytes) -> bool:
    # Always octal, base-256 or not: eight digits hold the sum of 512 bytes.
    match = _OCTAL.fullmatch(block[148:156])
    # The sum is over the header with its own field blank.
    return match is not None and sum(block) - sum(block[148:156]) + 8 * ord(" ") == int(match.group(1) or b"0", 8)


def _number(raw: bytes, what: str) -> int:
    if raw[0] & 0x80:
        # GNU's base-256: sign in the first byte, then a big-endian number.
        if raw[0] != 0x80:
            _refuse(f"its {what} is negative or out of range")
        return int.from_bytes(raw[1:], "big")
    match = _OCTAL.fullmatch(raw)
    if match is None:
        _refuse(f"its {what} is not a number")
    return int(match.group(1) or b"0", 8)


def parse_pax(data: bytes) -> PaxRecords:
    """Return path and size from an extended header's records (``<length> <key>=<value>\\n``).

    Raises ``UnsafeEntryError`` for a sparse file, ``InvalidArchiveHeaderError`` for a key that would change what the
    member is, a key given twice or a record that is malformed.
    """
    found: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        key, value, position = _parse_record(data, position)
        if key.startswith(("GNU.sparse.", "SCHILY.realsize")):
            raise UnsafeEntryError("The archive holds a sparse file: pack it without --sparse (-S).")
        if _IGNORED_KEYS.fullmatch(key):
            continue
        # linkpath, charset, hdrcharset, SCHILY.filetype and whatever comes next change what a member means.
        if key not in ("path", "size") or key in found:
            _refuse(f"its extended header has the key {key[:40]!a}, which is not allowed or there twice")
        found[key] = value
    size = found.get("size")
    if size is not None and re.fullmatch(rb"[0-9]{1,19}", size) is None:
        _refuse("its extended size is not a number")
    return PaxRecords(path=found.get("path"), size=None if size is None else int(size))


def _parse_record(data: bytes, position: int) -> tuple[str, bytes, int]:
    match = re.compile(rb"([1-9][0-9]{0,6}) ").match(data, position)
    end = position + int(match.group(1)) if match else 0
    if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
        _refuse("its extended header is malformed")
    raw_key, equals, value = data[match.end() : end - 1].partition(b"=")
    if not equals or not raw_key:
        _refuse("its extended header is malformed")
    return raw_key.decode("utf-8", "replace"), value, end


def merge(header: TarHeader, pax: PaxRecords, long_name: bytes | None) -> TarHeader:
    """Return a member's header with its extended headers applied.

    Raises ``InvalidArchiveHeaderError`` when they contradict it or one another: readers would differ on what the
    archive holds.
    """
    size = header.size if pax.size is None else pax.size
    overflown = size >= _OCTAL_SIZE_LIMIT and header.size == 0
    if size != header.size and not overflown:
        _refuse(f"its extended size {size} disagrees with the size {header.size} in its header")
    if pax.path is not None and long_name is not None and pax.path != long_name:
        _refuse("it has two different long names")
    path = pax.path if pax.path is not None else long_name
    if path is not None and b"\0" in path:
        raise UnsafePathError("A member's name holds a zero byte.")
    return TarHeader(typeflag=header.typeflag, path=header.path if path is None else path, size=size)


def _refuse(what: str) -> NoReturn:
    raise InvalidArchiveHeaderError(f"A tar header cannot be trusted: {what}. Pack the archive again with `tar czf`.")
