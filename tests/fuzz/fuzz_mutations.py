"""Changes that make a good archive a bad one: blind ones, and ones that know a container's structure.

Blind changes of a checksummed container test nothing but its checksum, so most changes are made inside, and whatever
guards the container (CRC, header checksum, header length) is made right again.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from random import Random
from typing import Any

import onnx
from fuzz_seeds import Seed, build_tar
from google.protobuf.message import DecodeError

_BLOCK = 512
# Offset and length of a tar header's fields; the checksum comes last.
_FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155), (148, 8))
_CHECKSUM = slice(148, 156)
_BYTES = (0, 1, 0x15, 0x7F, 0x80, 0xFF)
_NUMBERS = (0, 1, -1, 2, 63, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**40)
_NAMES = (
    b"../escaped", b"/escaped", b"a/../../escaped", b"C:\\escaped", b"..\\escaped", b"a/b/c", b".", b"..", b"", b"/",
    b"\xff\xfe", "e\u0301".encode(), "\u202eabc".encode(), b"con", b"x" * 99, b"M.PT", b"m.pt", b"a\nb", b"~/x",
    b"m.safetensors", b"config.json", b"modeling.py", b"m.onnx", b"-rf", b"a//b", b"./a",
)  # fmt: skip
_JSON_KEYS = (
    "auto_map", "model_type", "dtype", "shape", "data_offsets", "__metadata__", "weight_map", "architectures",
    "_attn_implementation", "torch_dtype", "quantization_config", "custom_code", "a", "", "\u0000",
)  # fmt: skip
_PAX = (b"path=../escaped", b"size=-1", b"size=99999999999999", b"size=0", b"path=", b"GNU.sparse.major=1", b"x=y")
_SOURCE = (b"torch.save(x)", b"ops.c10d.a(x)", b"from_file", b"\n", b"'", b'"', b"(", b"getattr(x, 'save')", b"\\")


def mutate_archive(seed: Seed, rng: Random) -> bytes:
    """Return a changed ``.tar.gz``: its tar changed inside, or, now and then, its gzip stream."""
    tar = build_tar(seed.files)
    for _ in range(rng.randint(1, 3)):
        tar = rng.choices((_change_header, _change_members, mutate_bytes), (4, 2, 2))[0](tar, rng)
    packed = gzip.compress(tar, 1)
    return mutate_bytes(packed, rng) if rng.random() < 0.15 else packed


def mutate_weights(seed: Seed, rng: Random) -> bytes:
    """Return a whole ``.tar.gz`` with one of its files changed."""
    name = rng.choice(list(seed.files))
    change = _CHANGES.get(PurePosixPath(name).suffix, mutate_bytes)
    content = seed.files[name]
    for _ in range(rng.randint(1, 3)):
        content = (mutate_bytes if rng.random() < 0.2 else change)(content, rng)
    return gzip.compress(build_tar({**seed.files, name: content}), 1)


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Return the bytes with a few changed, moved, left out or repeated; blind to what they mean."""
    changed = bytearray(data)
    if not changed:
        return rng.randbytes(rng.randint(0, 64))
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1)
        end = min(len(changed), start + rng.choice((1, 1, 2, 4, 8, 64, _BLOCK)))
        match rng.randrange(7):
            case 0:
                changed[start:end] = bytes(rng.choice(_BYTES) for _ in range(end - start))
            case 1:
                changed[start:end] = bytes(byte ^ 1 << rng.randrange(8) for byte in changed[start:end])
            case 2:
                del changed[start:end]
            case 3:
                changed[start:start] = changed[start:end] * rng.choice((1, 2, 50))
            case 4:
                number = rng.choice(_NUMBERS) & (2**64 - 1)
                changed[start : start + 8] = struct.pack(rng.choice("<>") + "Q", number)
            case 5:
                other = rng.randrange(len(changed) + 1)
                changed[start:end], changed[other : other + 8] = changed[other : other + 8], changed[start:end]
            case _:
                changed = changed[:start] if rng.random() < 0.3 else changed + rng.randbytes(rng.randint(1, 600))
    return bytes(changed)


def repair_checksums(tar: bytes) -> bytes:
    """Return the tar with every header's checksum made right."""
    repaired = bytearray(tar)
    for position in _headers(tar):
        repaired[position : position + _BLOCK] = _with_checksum(repaired[position : position + _BLOCK])
    return bytes(repaired)


def _headers(tar: bytes) -> list[int]:
    """Return where the headers begin; a damaged size ends the walk."""
    found, position = [], 0
    while position + _BLOCK <= len(tar) and tar[position]:
        found.append(position)
        size = re.fullmatch(rb"[0-7]+", tar[position + 124 : position + 135].strip(b" \0"))
        if size is None:
            break
        position += _BLOCK * (1 + -(-int(size[0], 8) // _BLOCK))
    return found


def _with_checksum(header: bytearray) -> bytes:
    header[_CHECKSUM] = b" " * 8
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header)


def _change_header(tar: bytes, rng: Random) -> bytes:
    positions = _headers(tar)
    if not positions:
        return mutate_bytes(tar, rng)
    position = rng.choice(positions)
    header = bytearray(tar[position : position + _BLOCK])
    offset, length = rng.choice(_FIELDS)
    numbers = (b"%011o" % (abs(rng.choice(_NUMBERS)) % 8**11), b"-1", b"99999999999", b"\x80" + rng.randbytes(11))
    value = rng.choice((*numbers, rng.choice(_NAMES), rng.randbytes(length)) if length > 1 else (None,))
    if value is None:
        value = rng.choice(b"0\x001234567xgLKSVD").to_bytes(1, "little")
    header[offset : offset + length] = value[:length].ljust(length, b"\0")
    return tar[:position] + (bytes(header) if offset == 148 else _with_checksum(header)) + tar[position + _BLOCK :]


def _change_members(tar: bytes, rng: Random) -> bytes:
    positions = [*_headers(tar), len(tar)]
    if len(positions) < 2:
        return tar
    members = [tar[start:end] for start, end in itertools.pairwise(positions)]
    at = rng.randrange(len(members))
    match rng.randrange(4):
        case 0:
            members.insert(at, members[rng.randrange(len(members))])
        case 1:
            del members[at]
        case 2:
            rng.shuffle(members)
        case _:
            members.insert(at, _extended_header(rng))
    return b"".join(members)


def _extended_header(rng: Random) -> bytes:
    record = rng.choice(_PAX)
    content = b"%d %s\n" % (len(record) + 4 if len(record) > 6 else len(record) + 3, record)
    if rng.random() < 0.3:
        content = rng.choice(_NAMES) * rng.choice((1, 3, 300))
    header = bytearray(_BLOCK)
    header[0:9] = b"PaxHeader"
    header[124:136] = b"%011o\0" % len(content)
    header[156:157] = rng.choice((b"x", b"g", b"L", b"K"))
    header[257:265] = b"ustar\x0000"
    return _with_checksum(header) + content.ljust(-(-len(content) // _BLOCK) * _BLOCK, b"\0")


def _change_zip(data: bytes, rng: Random) -> bytes:
    """Change one entry of a PyTorch file, mostly one that says what the others are."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError, zipfile.zlib.error):  # type: ignore[attr-defined]
        return mutate_bytes(data, rng)
    telling = [i for i, (name, _) in enumerate(entries) if name.endswith((".pkl", ".py", "version"))]
    at = rng.choice(telling or range(len(entries))) if rng.random() < 0.8 else rng.randrange(len(entries))
    name, content = entries[at]
    if name.endswith(".py") and rng.random() < 0.6:
        cut = rng.randrange(len(content) + 1)
        content = content[:cut] + rng.choice(_SOURCE) + content[cut:]
    elif rng.random() < 0.1:
        name = name.rpartition("/")[0] + "/" + rng.choice(_NAMES).decode("latin-1")
    elif rng.random() < 0.1:
        content = bytes(rng.choice((2**16, 2**24)))
    else:
        content = mutate_bytes(content, rng)
    entries[at] = (name, content)
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for entry in entries:
            archive.writestr(*entry)
    return buffer.getvalue()


def _change_safetensors(data: bytes, rng: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = _change_json(data[8 : 8 + length], rng)
    announced = len(header) if rng.random() < 0.9 else rng.choice(_NUMBERS) & (2**64 - 1)
    return struct.pack("<Q", announced) + header + data[8 + length :]


def _change_json(data: bytes, rng: Random) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    return json.dumps(_changed(value, rng)).encode("utf-8", "surrogatepass")


def _changed(value: Any, rng: Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        new = rng.choice(_JSON_KEYS) if rng.random() < 0.2 else key
        return {**value, new: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [*value[:at], _changed(value[at], rng), *value[at + rng.randint(0, 1) :]]
    names = rng.choice(_NAMES).decode("latin-1")
    return rng.choice((rng.choice(_NUMBERS), names, None, [], {}, True, 0.5, float("inf"), [[]], {names: value}, value))


def _change_onnx(data: bytes, rng: Random) -> bytes:
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        return mutate_bytes(data, rng)
    fields = list(_scalars(model))
    if not fields:
        return mutate_bytes(data, rng)
    message, field, value = rng.choice(fields)
    new: Any = rng.choice(_NAMES).decode("latin-1")
    if field.enum_type is not None:
        new = rng.choice(field.enum_type.values).number  # the library refuses to write any other
    elif isinstance(value, bytes):
        new = mutate_bytes(value, rng)
    elif not isinstance(value, str):
        new = type(value)(rng.choice(_NUMBERS) % 2**31)
    if field.is_repeated:
        values = getattr(message, field.name)
        values[:] = [*values, new] if rng.random() < 0.3 else [new if rng.random() < 0.5 else old for old in values]
    else:
        setattr(message, field.name, new)
    return model.SerializeToString()


def _scalars(message: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield every field, at any depth, that holds plain values: its message, its description, one of its values."""
    for field, value in message.ListFields():
        inner = value if field.is_repeated else [value]
        if field.type == field.TYPE_MESSAGE:
            for child in inner:
                yield from _scalars(child)
        elif len(inner):
            yield message, field, inner[0]


_CHANGES: dict[str, Callable[[bytes, Random], bytes]] = {
    ".pt": _change_zip, ".safetensors": _change_safetensors, ".json": _change_json, ".onnx": _change_onnx,
}  # fmt: skip
