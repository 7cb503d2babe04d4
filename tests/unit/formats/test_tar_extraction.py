"""Archives as users pack them, and as attackers do (hardening.md rows 10 to 12)."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mixpeek_ray.core.errors import (
    ArchiveRefusedError,
    CorruptArchiveError,
    CorruptStoreError,
    DecompressionLimitError,
    DuplicateEntryError,
    EmptyArchiveError,
    InvalidArchiveHeaderError,
    NotTarGzError,
    TooManyEntriesError,
    UnsafeEntryError,
    UnsafePathError,
)
from mixpeek_ray.core.limits import GIB, KIB, MIB
from mixpeek_ray.core.records import FileInfo
from mixpeek_ray.formats.gzip_reader import ArchiveLimits
from mixpeek_ray.formats.tar_header import PaxRecords, merge, parse_header
from mixpeek_ray.formats.tarball import extract

END = bytes(1024)


def header(
    name: bytes = b"x", size: int | bytes = 0, kind: bytes = b"0", *, magic: bytes = b"ustar\x0000", prefix: bytes = b""
) -> bytes:
    """Return one tar header, with a right checksum whatever its fields are."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes, content: bytes = b"", kind: bytes = b"0") -> bytes:
    return header(name, len(content), kind) + padded(content)


def pax(**records: str) -> bytes:
    body = b""
    for key, value in records.items():
        rest = f" {key.replace('__', '.')}={value}\n".encode()
        length = next(n for n in range(1, 100_000) if len(str(n)) + len(rest) == n)
        body += str(length).encode() + rest
    return member(b"pax", body, b"x")


def unpack(tar: bytes, folder: Path, **limits: float) -> tuple[FileInfo, ...]:
    return extract(io.BytesIO(gzip.compress(tar)), folder, archive_limits=ArchiveLimits(**limits))  # type: ignore[arg-type]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_unpacks_what_python_packs(build_tgz: Callable[..., bytes], tar_format: int, target: Path) -> None:
    files = {"model.pt": os.urandom(3 * MIB + 1), "a/b/config.json": b"{}", "empty": b""}
    if tar_format != tarfile.USTAR_FORMAT:
        files["long/" + "n" * 180] = b"long"
    found = extract(io.BytesIO(build_tgz(files, tar_format)), target)
    assert found == tuple(FileInfo(path=path, size_bytes=len(content)) for path, content in files.items())
    assert {path: (target / path).read_bytes() for path in files} == files


@pytest.mark.parametrize("tar_format", ["gnu", "posix", "ustar", "v7", "oldgnu"])
def test_unpacks_what_gnu_tar_packs(tar_format: str, tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    (source / "sub" / "deep").mkdir(parents=True)
    (source / "model.pt").write_bytes(os.urandom(100_000))
    (source / "sub" / "deep" / ("n" * 80)).write_bytes(b"a long name")
    archive = tmp_path / "model.tar.gz"
    subprocess.run(["tar", "czf", archive, f"--format={tar_format}", "-C", source, "."], check=True)
    with archive.open("rb") as stream:
        files = extract(stream, target)
    assert {file.path for file in files} == {"model.pt", "sub/deep/" + "n" * 80}
    for file in files:
        assert (target / file.path).read_bytes() == (source / file.path).read_bytes()


def test_files_are_private(target: Path) -> None:
    unpack(member(b"folder/x", b"1") + END, target)
    assert stat.S_IMODE((target / "folder").stat().st_mode) == 0o700
    assert stat.S_IMODE((target / "folder/x").stat().st_mode) == 0o600


def test_keys_that_change_nothing_are_ignored(target: Path) -> None:
    harmless = pax(mtime="1.5", uid="501", comment="c", LIBARCHIVE__xattr__com="\0\n=", SCHILY__xattr__x="y")
    assert unpack(harmless + member(b"x", b"1") + END, target) == (FileInfo(path="x", size_bytes=1),)


def test_git_archives_have_a_global_comment(target: Path) -> None:
    comment = pax(comment="0" * 40)
    as_global = header(b"pax_global_header", 52, b"g") + comment[512:]
    assert unpack(as_global + member(b"x") + END, target) == (FileInfo(path="x", size_bytes=0),)


def test_extended_names_and_sizes_apply(target: Path) -> None:
    tar = pax(path="renamed", size="3") + member(b"x", b"123") + member(b"L", b"long\0", b"L") + member(b"y") + END
    assert [file.path for file in unpack(tar, target)] == ["renamed", "long"]


@pytest.mark.parametrize("size_field", [b"00000000000\0", b"\x80" + (9 * GIB).to_bytes(11, "big")])
def test_sizes_beyond_the_octal_field(size_field: bytes) -> None:
    # Python and GNU tar write zero there and the size in an extended header; others write GNU's base-256 as well.
    plain = parse_header(header(b"x", size_field), first=False)
    assert merge(plain, PaxRecords(size=9 * GIB), None).size == 9 * GIB


def test_ustar_prefixes_apply(target: Path) -> None:
    tar = header(b"x", prefix=b"a/b") + header(b"y", magic=b"ustar  \0", prefix=b"123456") + END
    assert [file.path for file in unpack(tar, target)] == ["a/b/x", "y"]


NOT_TARS = {"text": b"hello", "long text": b"hello world " * 100, "nothing": b""}


@pytest.mark.parametrize("content", NOT_TARS.values(), ids=NOT_TARS.keys())
def test_gzip_without_a_tar_inside(content: bytes, target: Path) -> None:
    with pytest.raises(NotTarGzError):
        unpack(content, target)


def test_a_tar_without_members(target: Path) -> None:
    with pytest.raises(EmptyArchiveError):
        unpack(END, target)


BROKEN = {
    "ends in a header": member(b"x") + header(b"y")[:300],
    "ends in a file": header(b"x", 2000) + bytes(1000),
    "ends in padding": header(b"x", 1) + b"1",
    "has no end mark": member(b"x"),
    "has half an end mark": member(b"x") + bytes(512),
    "goes on after half an end mark": member(b"x") + bytes(512) + member(b"y") + END,
    "goes on after its end": member(b"x") + END + member(b"y") + END,
    "ends after an extended header": pax(path="y") + END,
}


@pytest.mark.parametrize("tar", BROKEN.values(), ids=BROKEN.keys())
def test_broken_archives(tar: bytes, target: Path) -> None:
    with pytest.raises(CorruptArchiveError):
        unpack(tar, target)


def wrong_checksum() -> bytes:
    block = bytearray(header(b"x"))
    block[0] ^= 1
    return bytes(block)


BAD_HEADERS = {
    "checksum": wrong_checksum() + END,
    "negative size": header(b"x", b"\xff" * 12) + END,
    "size that is no number": header(b"x", b"12z45678901\0") + END,
    "size with a sign": header(b"x", b"-0000000001\0") + END,
    "long name of 200 MB": header(b"L", 200 * MIB, b"L") + bytes(64 * KIB),
    "long pax header": header(b"p", 65 * KIB, b"x") + bytes(65 * KIB),
    "pax size that disagrees": pax(size="5") + member(b"x", b"123") + END,
    "pax size over a zero size": pax(size="512") + member(b"x") + END,
    "pax size that is negative": pax(size="-1") + member(b"x") + END,
    "pax key twice": member(b"p", b"10 path=a\n10 path=b\n", b"x") + member(b"x") + END,
    "pax path in another charset": pax(hdrcharset="BINARY", path="a") + member(b"x") + END,
    "pax link path": pax(linkpath="/etc/passwd") + member(b"x") + END,
    "pax file type": pax(SCHILY__filetype="symlink") + member(b"x") + END,
    "pax record too long": member(b"p", b"99 path=a\n", b"x") + member(b"x") + END,
    "pax record without length": member(b"p", b"path=a\n", b"x") + member(b"x") + END,
    "global path": member(b"g", b"10 path=a\n", b"g") + member(b"x") + END,
    "two pax headers": pax(path="a") + pax(path="b") + member(b"x") + END,
    "two long names": member(b"L", b"a\0", b"L") * 2 + member(b"x") + END,
    "pax and long name that disagree": pax(path="a") + member(b"L", b"b\0", b"L") + member(b"x") + END,
    "folder with content": member(b"d/", b"123", b"5") + END,
}  # fmt: skip


@pytest.mark.parametrize("tar", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_headers_that_contradict_themselves(tar: bytes, target: Path) -> None:
    with pytest.raises(InvalidArchiveHeaderError):
        unpack(tar, target)


def test_extended_headers_are_limited_in_all(target: Path) -> None:
    tar = b"".join(pax(comment="c" * 60_000) + member(b"%d" % i) for i in range(20)) + END
    with pytest.raises(InvalidArchiveHeaderError, match="in all"):
        unpack(tar, target)


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6", b"7", b"K", b"S", b"M", b"V", b"D", b"A", b"\xff"])
def test_only_files_and_folders_come_out(kind: bytes, target: Path) -> None:
    with pytest.raises(UnsafeEntryError):
        unpack(member(b"before") + header(b"x", 0, kind) + END, target)


@pytest.mark.parametrize("key", ["GNU__sparse__major", "GNU__sparse__map", "SCHILY__realsize"])
def test_sparse_files_in_disguise(key: str, target: Path) -> None:
    with pytest.raises(UnsafeEntryError, match="sparse"):
        unpack(pax(**{key: "1"}) + member(b"x") + END, target)


@pytest.mark.parametrize("name", [b"../x", b"/etc/x", b"C:\\x", b"a/../../x", b"a\nb", b""])
def test_names_that_lead_outside(name: bytes, target: Path) -> None:
    with pytest.raises(UnsafePathError):
        unpack(member(name) + END, target)


@pytest.mark.parametrize("outer", [b"L", b"x"])
def test_extended_names_are_checked_too(outer: bytes, target: Path) -> None:
    extended = member(b"L", b"../outside\0", b"L") if outer == b"L" else pax(path="../outside")
    with pytest.raises(UnsafePathError):
        unpack(extended + member(b"x", b"1") + END, target)
    assert not (target.parent / "outside").exists()


def test_a_link_in_the_folder_is_not_followed(target: Path, tmp_path: Path) -> None:
    # No archive can make one; the second line of defence must hold all the same.
    (tmp_path / "elsewhere").mkdir()
    (target / "link").symlink_to(tmp_path / "elsewhere")
    (target / "file").symlink_to(tmp_path / "elsewhere" / "file")
    for name in (b"link/x", b"file"):
        with pytest.raises(OSError, match=r"Not a directory|exists|symbolic"):
            unpack(member(name, b"1") + END, target)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_duplicates(target: Path) -> None:
    with pytest.raises(DuplicateEntryError):
        unpack(member(b"model.pt") + member(b"./Model.PT") + END, target)


def test_members_are_limited(target: Path) -> None:
    tar = b"".join(member(b"d%d/" % i, kind=b"5") for i in range(11)) + END
    assert unpack(tar, target, members=11) == ()
    with pytest.raises(TooManyEntriesError):
        unpack(tar, target, members=10)


def test_global_headers_cannot_go_on_for_ever(target: Path) -> None:
    with pytest.raises(TooManyEntriesError):
        unpack(header(b"g", 0, b"g") * 11 + member(b"x") + END, target, members=10)


def test_an_announced_size_beyond_the_limit_is_refused_at_once(target: Path) -> None:
    with pytest.raises(DecompressionLimitError):
        unpack(header(b"x", b"\x80" + (2**62).to_bytes(11, "big")) + END, target)


@pytest.mark.parametrize("position", [0, 20, 500, -200, -1])
def test_a_changed_archive_is_the_stores_fault(build_tgz: Callable[..., bytes], position: int, tmp_path: Path) -> None:
    archive = bytearray(build_tgz({"x": os.urandom(1000)}) + bytes(100))
    expected = hashlib.sha256(archive).hexdigest()
    for name in ("whole", "damaged"):
        (tmp_path / name).mkdir()
    assert extract(io.BytesIO(archive), tmp_path / "whole", expected_sha256=expected)
    archive[position] ^= 0xFF
    with pytest.raises(CorruptStoreError):
        extract(io.BytesIO(archive), tmp_path / "damaged", expected_sha256=expected)


def test_a_refused_archive_is_not_the_stores_fault(target: Path) -> None:
    # Long enough that most of it is unread when the first name is refused.
    archive = gzip.compress(member(b"../x", os.urandom(4 * MIB)) + END, compresslevel=1)
    with pytest.raises(UnsafePathError):
        extract(io.BytesIO(archive), target, expected_sha256=hashlib.sha256(archive).hexdigest())


def test_other_zeros_at_the_end_are_noticed(build_tgz: Callable[..., bytes], target: Path) -> None:
    archive = build_tgz({"x": b"1"})
    expected = hashlib.sha256(archive + bytes(100)).hexdigest()
    with pytest.raises(CorruptStoreError):
        extract(io.BytesIO(archive + bytes(99)), target, expected_sha256=expected)


class FailingStream(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise ConnectionResetError("the store went away")


def test_what_the_stream_raises_passes_through(target: Path) -> None:
    with pytest.raises(ConnectionResetError):
        extract(FailingStream(), target)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_escapes_the_error_tree(seed: int, tmp_path: Path) -> None:

    chance = random.Random(seed)
    tar = bytearray(
        pax(path="a/b", mtime="1.5") + member(b"x", b"123" * 300) + member(b"L", b"n" * 120, b"L") + member(b"y") + END
    )
    for _ in range(3):
        tar[chance.randrange(len(tar))] = chance.randrange(256)
    try:
        unpack(bytes(tar), tmp_path)
    except ArchiveRefusedError:
        return
