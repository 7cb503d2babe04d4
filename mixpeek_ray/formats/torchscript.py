"""TorchScript archives: a program with its weights, checked without running it and taken apart to share the weights.

``torch.jit.load`` would run parts of the program and copy every weight. Here the storages are mapped like those of any
other weight file, and the program, less its weights, becomes one small companion: a zip in the layout of
``torch.package``, whose loader takes storages that are there already (``loading.torchscript``).
"""

from __future__ import annotations

import io
import mmap
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.formats.base import Companion, OpenedModel
from mixpeek_ray.formats.packed import dtype_table
from mixpeek_ray.formats.script_pickle import (
    MAX_SCRIPT_PICKLE_BYTES,
    ScriptTensor,
    read_constants,
    read_program,
    write_constants,
)
from mixpeek_ray.formats.script_source import MAX_SOURCE_BYTES, check_source
from mixpeek_ray.formats.tensors import check_state_dict, shown
from mixpeek_ray.formats.zip_check import ZipRecord, require_little_endian

if TYPE_CHECKING:
    import torch

# The companion's name, and the one program's name inside it.
PROGRAM_FILE = "program.zip"
PROGRAM_ID = "0"
_PREFIX = "program/.data/"
_STORAGE_DTYPES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32", "DoubleStorage": "float64", "ComplexHalfStorage": "complex32",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128", "UInt16Storage": "uint16",
    "UInt32Storage": "uint32", "UInt64Storage": "uint64", "Float8_e4m3fnStorage": "float8_e4m3fn",
    "Float8_e4m3fnuzStorage": "float8_e4m3fnuz", "Float8_e5m2Storage": "float8_e5m2",
    "Float8_e5m2fnuzStorage": "float8_e5m2fnuz", "Float8_e8m0fnuStorage": "float8_e8m0fnu",
}  # fmt: skip
# A number of at most three digits; torch writes 10.
_MAX_VERSION_BYTES = 4
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def is_torchscript(records: Mapping[str, ZipRecord]) -> bool:
    """Tell whether the zip's entries are those of ``torch.jit.save`` rather than ``torch.save``."""
    return "constants.pkl" in records or any(name.startswith("code/") for name in records)


def storage_key(name: str) -> str:
    """Return the key by which the program in the companion asks for the storage of the tensor ``name``."""
    archive, key = name.split("/")[:2]
    return key if archive == "data" else f"{archive}/{key}"


def open_torchscript(path: Path, records: Mapping[str, ZipRecord]) -> OpenedModel:
    """Check the archive and return its tensors, as copy-on-write views of it, with its program as companion.

    The tensors are those of attributes (``data/<storage>``), then of constants (``constants/<storage>``); a storage's
    further tensors have a number behind. Extra files and the traced inputs are left out. Raises
    ``InvalidWeightsError``, and ``UnsafePickleError`` for a program that reads or writes files or calls out.
    """
    with path.open("rb") as file:
        entries = _read_entries(file, records)
        program = read_program(entries["data.pkl"])
        constants = read_constants(entries["constants.pkl"])
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    views = _views("data", program.tensors, records, mapped)
    views.update(_views("constants", (c for c in constants if isinstance(c, ScriptTensor)), records, mapped))
    # In the companion all storages share one set of names.
    entries["constants.pkl"] = write_constants(constants, "constants/")
    return OpenedModel(
        kind=ModelKind.TORCHSCRIPT,
        tensors=check_state_dict(views),
        weight_file=path,
        companions=(Companion(path=PROGRAM_FILE, content=_written(entries)),),
        architecture=program.class_name,
    )


def _read_entries(file: BinaryIO, records: Mapping[str, ZipRecord]) -> dict[str, bytes]:
    # Programs that use newer operators have it in the second place.
    version = ".data/version" if ".data/version" in records else "version"
    entries: dict[str, bytes] = {}
    for name, most in (
        ("data.pkl", MAX_SCRIPT_PICKLE_BYTES),
        ("constants.pkl", MAX_SCRIPT_PICKLE_BYTES),
        (version, _MAX_VERSION_BYTES),
    ):
        if name not in records:
            _refuse(f"it has no {name}: save it again with torch.jit.save of PyTorch 1.6 or later")
        entries[name.removeprefix(".data/")] = _read(file, records[name], most)
    if not entries["version"].strip().isdigit():
        _refuse(f"its version is {shown(entries['version'].decode('latin-1'))}")
    require_little_endian(file, records)
    left = MAX_SOURCE_BYTES
    for name in sorted(records):
        if name.startswith("code/") and name.endswith(".py"):
            entries[name] = _read(file, records[name], left)
            left -= len(entries[name])
            # Not ASCII is refused as text: torch.jit.save escapes whatever is not.
            check_source(name, entries[name].decode("latin-1"))
    return entries


def _read(file: BinaryIO, record: ZipRecord, most: int) -> bytes:
    file.seek(record.start)
    stored = file.read(min(record.size, most + 1))
    if record.compressed:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflate.decompress(stored, most + 1)
        except zlib.error:
            _refuse(f"the entry {shown(record.name)} cannot be decompressed")
    else:
        content = stored
    if len(content) > most or (record.compressed and not inflate.eof):
        _refuse(f"the entry {shown(record.name)} is damaged, or passes the limit of {most} bytes")
    return content


def _views(
    archive: str, tensors: Iterable[ScriptTensor], records: Mapping[str, ZipRecord], mapped: mmap.mmap
) -> OrderedDict[str, torch.Tensor]:
    views: OrderedDict[str, torch.Tensor] = OrderedDict()
    storages: dict[str, torch.UntypedStorage] = {}
    users: dict[str, int] = {}
    for tensor in tensors:
        key = tensor.storage.key
        name = f"{archive}/{key}"
        dtype = _check_extent(name, tensor, records)
        if key not in storages:
            storages[key] = _map(records[name], mapped)
        count = users[key] = users.get(key, 0) + 1
        views[name if count == 1 else f"{name}/{count}"] = _view(tensor, dtype, storages[key])
    return views


def _check_extent(name: str, tensor: ScriptTensor, records: Mapping[str, ZipRecord]) -> torch.dtype:
    dtype_name = _STORAGE_DTYPES.get(tensor.storage.type_name)
    record = records.get(name)
    if dtype_name is None or record is None or record.compressed:
        _refuse(f"the storage {shown(name)} is missing, compressed or of unknown type")
    dtype, count = dtype_table()[dtype_name], tensor.storage.element_count
    if count * dtype.itemsize != record.size:
        _refuse(f"the storage {shown(name)} claims {count} elements of {dtype.itemsize} bytes but has {record.size}")
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if 0 not in tensor.shape and tensor.offset + steps >= count:
        _refuse(f"a tensor reaches beyond its storage {shown(name)}")
    return dtype


def _map(record: ZipRecord, mapped: mmap.mmap) -> torch.UntypedStorage:
    import torch

    if record.size == 0:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer(mapped, dtype=torch.uint8, count=record.size, offset=record.start).untyped_storage()


def _view(tensor: ScriptTensor, dtype: torch.dtype, storage: torch.UntypedStorage) -> torch.Tensor:
    import torch

    try:
        return torch.empty(0, dtype=dtype).set_(storage, tensor.offset, tensor.shape, tensor.strides)
    except RuntimeError:
        _refuse(f"a tensor of the shape {shown(str(tensor.shape))} cannot be made")


def _written(entries: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            if name == "version":
                path = _PREFIX + name
            elif name.startswith("code/"):
                path = _PREFIX + "ts_code/" + name
            else:
                path = f"{_PREFIX}ts_code/{PROGRAM_ID}/{name}"
            archive.writestr(zipfile.ZipInfo(path, _NO_DATE), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _refuse(what: str) -> NoReturn:
    raise InvalidWeightsError(f"The TorchScript file cannot be used: {what}.")
