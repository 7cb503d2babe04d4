"""The tensors of an ONNX model: what each claims, held against the bytes that are there."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from onnx import TensorProto

from mixpeek_ray.core.errors import InvalidWeightsError, UnsafeExternalDataError, UnsafePathError
from mixpeek_ray.core.records import FileInfo
from mixpeek_ray.formats.member_paths import parse_path
from mixpeek_ray.formats.onnx_wire import MAX_GRAPH_BYTES
from mixpeek_ray.formats.tensors import MAX_RANK, shown

# ONNX data type → bits of one element, and the dtype of packed weights; None: no such dtype, carried as bytes.
_TYPES: Mapping[int, tuple[int, str | None]] = {
    TensorProto.BOOL: (8, "bool"),
    TensorProto.UINT8: (8, "uint8"), TensorProto.UINT16: (16, "uint16"), TensorProto.UINT32: (32, "uint32"),
    TensorProto.UINT64: (64, "uint64"), TensorProto.INT8: (8, "int8"), TensorProto.INT16: (16, "int16"),
    TensorProto.INT32: (32, "int32"), TensorProto.INT64: (64, "int64"),
    TensorProto.FLOAT16: (16, "float16"), TensorProto.BFLOAT16: (16, "bfloat16"),
    TensorProto.FLOAT: (32, "float32"), TensorProto.DOUBLE: (64, "float64"),
    TensorProto.COMPLEX64: (64, "complex64"), TensorProto.COMPLEX128: (128, "complex128"),
    TensorProto.FLOAT8E4M3FN: (8, "float8_e4m3fn"), TensorProto.FLOAT8E4M3FNUZ: (8, "float8_e4m3fnuz"),
    TensorProto.FLOAT8E5M2: (8, "float8_e5m2"), TensorProto.FLOAT8E5M2FNUZ: (8, "float8_e5m2fnuz"),
    TensorProto.FLOAT8E8M0: (8, "float8_e8m0fnu"),
    TensorProto.UINT4: (4, None), TensorProto.INT4: (4, None), TensorProto.FLOAT4E2M1: (4, None),
    TensorProto.UINT2: (2, None), TensorProto.INT2: (2, None),
    TensorProto.FLOAT6E2M3: (6, None), TensorProto.FLOAT6E3M2: (6, None),
}  # fmt: skip
_LISTS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
# `checksum` is the format's own, and nobody reads it. onnxruntime follows further keys (`prepacked_…`) elsewhere.
_REFERENCE_KEYS = frozenset({"location", "offset", "length", "checksum"})
_COUNT = re.compile(r"\d{1,19}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class TensorBytes:
    """Where a tensor's bytes lie in the unpacked archive, and what they are."""

    path: str
    offset: int
    size: int
    dtype: str
    shape: tuple[int, ...]


class ExternalFiles:
    """The files beside a model that its tensors may lie in: members of the archive, and nothing else."""

    def __init__(self, folder: Path, files: Sequence[FileInfo], model_path: str) -> None:
        self._folder = folder
        self._sizes = {file.path: file.size_bytes for file in files}
        self._model_path = model_path
        self._checked: set[str] = set()

    def locate(self, tensor: TensorProto) -> TensorBytes:
        """Return where the tensor that refers to a file lies.

        Raises ``UnsafeExternalDataError`` when it leads out of the archive or beyond a file, and
        ``InvalidWeightsError`` when it has more or fewer bytes than it needs.
        """
        bits, dtype = tensor_type(tensor)
        reference = _reference(tensor)
        path = self._resolve(tensor, reference.get("location", ""))
        offset, size = _number(tensor, reference, "offset", 0), stored_bytes(tensor, bits)
        length = _number(tensor, reference, "length", size)
        if offset + length > self._sizes[path]:
            _refuse(tensor, f"refers to bytes {offset} to {offset + length} of a file of {self._sizes[path]}")
        if length != size:
            _refuse_claim(tensor, f"needs {size} bytes for its shape but has {length}")
        shape = tuple(tensor.dims) if dtype is not None else (size,)
        return TensorBytes(path=path, offset=offset, size=size, dtype=dtype or "uint8", shape=shape)

    def _resolve(self, tensor: TensorProto, location: str) -> str:
        # onnxruntime takes a location that begins so for an address in its own memory.
        if location.startswith("*/"):
            _refuse(tensor, f"refers to the location {shown(location)}, which is no file")
        try:
            parts = parse_path(location.encode())
        except UnsafePathError:
            _refuse(tensor, f"refers to {shown(location)}, which is not a plain relative path beside the model")
        path = str(PurePosixPath(self._model_path).parent.joinpath(*parts))
        if path not in self._sizes:
            _refuse(tensor, f"refers to the file {shown(location)}, which is not in the archive")
        if path not in self._checked:
            self._check_file(tensor, path)
            self._checked.add(path)
        return path

    def _check_file(self, tensor: TensorProto, path: str) -> None:
        # The archive reader makes plain files only; a link here would be someone else's doing.
        found = os.lstat(self._folder / path)
        inside = (self._folder / path).resolve().is_relative_to(self._folder.resolve())
        if not (inside and stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size == self._sizes[path]):
            _refuse(tensor, f"refers to {shown(path)}, which is a link or no regular file")


def check_no_overlap(places: Sequence[TensorBytes]) -> None:
    """Return if no two tensors share some of their bytes; sharing all of them is how tied weights are stored.

    Raises ``InvalidWeightsError``.
    """
    end_of: dict[str, int] = {}
    for path, offset, size in sorted({(place.path, place.offset, place.size) for place in places if place.size}):
        if offset < end_of.get(path, 0):
            raise InvalidWeightsError(
                f"The ONNX file cannot be used: two tensors overlap at byte {offset} of {shown(path)}."
            )
        end_of[path] = offset + size


def check_inline(tensor: TensorProto) -> None:
    """Return if the tensor that is part of the graph can be as large as it claims. Raises ``InvalidWeightsError``."""
    if tensor.data_type == TensorProto.STRING:
        if math.prod(checked_shape(tensor)) != len(tensor.string_data):
            _refuse_claim(tensor, f"has {len(tensor.string_data)} strings, which its shape contradicts")
        return
    needed = stored_bytes(tensor, tensor_type(tensor)[0])
    held = len(tensor.raw_data) if tensor.HasField("raw_data") else needed
    if needed != held or needed > MAX_GRAPH_BYTES:
        _refuse_claim(tensor, f"needs {needed} bytes for its shape, which is not what the file holds")


def tensor_type(tensor: TensorProto) -> tuple[int, str | None]:
    """Return the bits of one element, and the dtype of packed weights, or None for types that those do not have.

    Raises ``InvalidWeightsError`` for types whose elements have no size, or that ONNX does not have.
    """
    try:
        return _TYPES[tensor.data_type]
    except KeyError:
        _refuse_claim(tensor, f"has the data type {tensor.data_type}, which has no fixed size")


def dtype_name(data_type: int) -> str:
    """Return a data type's name as packed weights have it, or ONNX's own in lower case (``string``, ``int4``)."""
    _, name = _TYPES.get(data_type, (0, None))
    if name is not None:
        return name
    try:
        onnx_name: str = TensorProto.DataType.Name(data_type)
    except ValueError:
        raise InvalidWeightsError(f"The model has an input or output of unknown data type {data_type}.") from None
    return onnx_name.lower()


def checked_shape(tensor: TensorProto) -> tuple[int, ...]:
    """Return the tensor's shape. Raises ``InvalidWeightsError`` when it is none."""
    if len(tensor.dims) > MAX_RANK or any(size < 0 for size in tensor.dims):
        _refuse_claim(tensor, f"has a shape that is no list of up to {MAX_RANK} sizes")
    return tuple(tensor.dims)


def stored_bytes(tensor: TensorProto, bits: int) -> int:
    """Return how many bytes the tensor's elements take, packed tightly. Raises ``InvalidWeightsError``."""
    if tensor.HasField("segment"):
        _refuse_claim(tensor, "is stored in segments")
    return -(-math.prod(checked_shape(tensor)) * bits // 8)


def _reference(tensor: TensorProto) -> dict[str, str]:
    if tensor.HasField("raw_data") or any(getattr(tensor, name) for name in _LISTS):
        _refuse_claim(tensor, "has data of its own and refers to a file")
    # What is no UTF-8 comes as bytes.
    if not all(isinstance(text, str) for entry in tensor.external_data for text in (entry.key, entry.value)):
        _refuse(tensor, "refers to a file in a way that is not text")
    reference = {entry.key: entry.value for entry in tensor.external_data}
    if len(reference) != len(tensor.external_data) or not _REFERENCE_KEYS.issuperset(reference):
        _refuse(tensor, f"refers to a file in a way that is not understood ({shown(sorted(reference))})")
    return reference


def _number(tensor: TensorProto, reference: Mapping[str, str], key: str, default: int) -> int:
    if key not in reference:
        return default
    if _COUNT.fullmatch(reference[key]) is None:
        _refuse(tensor, f"has an external {key} of {shown(reference[key])}, which is no count of bytes")
    return int(reference[key])


def _refuse(tensor: TensorProto, what: str) -> NoReturn:
    raise UnsafeExternalDataError(f"The tensor {shown(tensor.name)} {what}: save the model with its data beside it.")


def _refuse_claim(tensor: TensorProto, what: str) -> NoReturn:
    raise InvalidWeightsError(f"The tensor {shown(tensor.name)} {what}: export the model again.")
