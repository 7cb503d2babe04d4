"""The zip container of a ``torch.save`` file, held to the plain shape that torch itself writes.

torch accepts deflated entries (a small file that unpacks to gigabytes), entries that overlap, and a directory that
says something else than the entries themselves. Torch writes none of these.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.tensors import MAX_TENSORS, shown

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_LOCAL_MAGIC = b"PK\x03\x04"
# The end of the directory; torch also writes the second one, for large files, and the locator that leads to it.
_END = struct.Struct("<4s4H2IH")
_END_MAGIC = b"PK\x05\x06"
_END_64 = struct.Struct("<4sQ2H2I4Q")
_END_64_MAGIC = b"PK\x06\x06"
_LOCATOR = struct.Struct("<4sIQI")
_LOCATOR_MAGIC = b"PK\x06\x07"
_ENCRYPTED = 0x1
# A data.pkl takes some 200 bytes a tensor, and torch's safe loader, which is Python, some seconds for 8 MiB.
MAX_PICKLE_BYTES = 8 * MIB
# The directory repeats each entry's name: 32,768 storages take about 3 MB, and zipfile holds it in objects.
_MAX_DIRECTORY_BYTES = 8 * MIB
# data.pkl, version, byteorder, .data/serialization_id and their like, beside one record a storage.
_MAX_ENTRIES = MAX_TENSORS + 64
# "little" or "big".
_MAX_BYTEORDER_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class ZipRecord:
    """One entry: where its bytes lie in the file, as they are stored."""

    name: str
    start: int
    size: int
    compressed: bool


def read_records(path: Path) -> dict[str, ZipRecord]:
    """Return the entries of the zip at ``path`` by name, less the archive's own top folder.

    Raises ``InvalidWeightsError`` unless every entry is named once, lies inside the file, overlaps no other, and is
    described alike by the directory and by its own header.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        _check_end(file, size)
        try:
            entries = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError):
            _refuse("its zip directory cannot be read")
        if not 0 < len(entries) <= _MAX_ENTRIES:
            _refuse(f"it has {len(entries)} entries (1 to {_MAX_ENTRIES} are allowed)")
        entries.sort(key=lambda entry: entry.header_offset)
        if entries[0].header_offset != 0:
            _refuse("bytes before its first entry belong to nothing")
        records = [_read_record(file, entry) for entry in entries]
    ends = [entry.header_offset for entry in entries[1:]] + [size]
    for record, end in zip(records, ends, strict=True):
        if record.start + record.size > end:
            _refuse(f"the entry {shown(record.name)} overlaps the next or passes the end of the file")
    return _by_name(records)


def require_stored(records: Iterable[ZipRecord]) -> None:
    """Raise ``InvalidWeightsError`` if an entry is compressed: a small one can unpack to gigabytes."""
    for record in records:
        if record.compressed:
            _refuse(f"the entry {shown(record.name)} is compressed; torch.save stores entries as they are")


def require_little_endian(file: BinaryIO, records: Mapping[str, ZipRecord]) -> None:
    """Raise ``InvalidWeightsError`` unless the numbers in the file are as this machine reads them."""
    record = records.get("byteorder")
    if record is None:
        return
    file.seek(record.start)
    # Swapping them would take a copy of the weights.
    if record.compressed or file.read(min(record.size, _MAX_BYTEORDER_BYTES)) != b"little":
        _refuse("its numbers are not little-endian: save it again on a common machine")


def _check_end(file: BinaryIO, size: int) -> None:
    """Refuse a file whose directory two readers could look for in two places."""
    if size < _END.size:
        _refuse(f"it has only {size} bytes")
    position = size - _END.size
    magic, *_, directory_bytes, directory_start, comment_bytes = _END.unpack(_read_at(file, position, _END.size))
    # Readers search backwards for this mark; with a comment after it two readers could settle on different ones.
    if magic != _END_MAGIC or comment_bytes:
        _refuse("it does not end with a zip directory (is it truncated?)")
    locator = _read_at(file, max(0, position - _LOCATOR.size), _LOCATOR.size)
    if locator.startswith(_LOCATOR_MAGIC):
        position -= _LOCATOR.size + _END_64.size
        magic, *_, directory_bytes, directory_start = _END_64.unpack(_read_at(file, max(0, position), _END_64.size))
        # Python looks right before the locator, torch wherever the locator says.
        if magic != _END_64_MAGIC or _LOCATOR.unpack(locator)[2] != position:
            _refuse("the end of its zip directory is in two places")
    if directory_start + directory_bytes != position:
        _refuse("its zip directory is not where the file's end says")
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        _refuse(f"its zip directory is larger than {_MAX_DIRECTORY_BYTES} bytes")


def _read_at(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size).ljust(size, b"\0")


def _read_record(file: BinaryIO, entry: zipfile.ZipInfo) -> ZipRecord:
    if entry.flag_bits & _ENCRYPTED:
        _refuse(f"the entry {shown(entry.filename)} is encrypted")
    file.seek(entry.header_offset)
    raw = file.read(_LOCAL_HEADER.size)
    if len(raw) < _LOCAL_HEADER.size or not raw.startswith(_LOCAL_MAGIC):
        _refuse(f"the entry {shown(entry.filename)} has no header of its own")
    _, _, flags, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(raw)
    name = file.read(name_bytes)
    if method != entry.compress_type or flags & _ENCRYPTED or name != entry.orig_filename.encode():
        _refuse(f"the entry {shown(entry.filename)} is described differently by its own header")
    start = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    compressed = method != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
    return ZipRecord(name=entry.filename, start=start, size=entry.compress_size, compressed=compressed)


def _by_name(records: list[ZipRecord]) -> dict[str, ZipRecord]:
    top = records[0].name.partition("/")[0] + "/"
    found: dict[str, ZipRecord] = {}
    # torch looks entries up without regard to case: with a DATA.PKL beside data.pkl, it reads the former.
    folded: set[str] = set()
    for record in records:
        name = record.name.removeprefix(top)
        if name == record.name or name.lower() in folded:
            _refuse(f"the entry {shown(record.name)} lies outside the folder {shown(top)} or is there twice")
        found[name] = record
        folded.add(name.lower())
    return found


def _refuse(what: str) -> NoReturn:
    raise InvalidWeightsError(f"The PyTorch file cannot be used: {what}.")
