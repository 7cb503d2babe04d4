"""Weights in safetensors files, whose header is parsed here and held to every rule of the format.

The library accepts duplicate keys, reused offsets and files without tensors (safetensors 0.8); none of them pass here.
"""

from __future__ import annotations

import json
import math
import mmap
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.records import FileInfo, ModelFormat, ModelKind
from mixpeek_ray.formats.base import OpenedModel
from mixpeek_ray.formats.packed import dtype_table
from mixpeek_ray.formats.tensors import MAX_RANK, check_state_dict, shown
from mixpeek_ray.formats.weight_files import find_weight_files, open_shards

if TYPE_CHECKING:
    import torch

_LENGTH_BYTES = 8
# The format allows 100 MB; a header takes about 100 bytes a tensor, and hostile JSON unpacks to 24 times its size.
_MAX_HEADER_BYTES = 8 * MIB
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
_SUB_BYTE_DTYPES = ("F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True, kw_only=True)
class _Entry:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    # First byte and the one after the last, counted from the end of the header.
    begin: int
    end: int


class SafetensorsFormat:
    """One ``.safetensors`` file, or the shards of one model."""

    model_format = ModelFormat.SAFETENSORS
    extensions = frozenset({".safetensors"})

    def open(self, folder: Path, files: Sequence[FileInfo]) -> OpenedModel:
        """Check the weight files and return their tensors, in file order, as copy-on-write views.

        Raises ``FormatMismatchError``, ``InvalidWeightsError``, ``UnsafePathError``.
        """
        chosen = find_weight_files(files, self.model_format, self.extensions)
        if len(chosen.paths) > 1:
            return OpenedModel(kind=ModelKind.STATE_DICT, tensors=open_shards(folder, chosen, open_safetensors))
        path = folder / chosen.paths[0]
        return OpenedModel(kind=ModelKind.STATE_DICT, tensors=open_safetensors(path), weight_file=path)


def open_safetensors(path: Path) -> OrderedDict[str, torch.Tensor]:
    """Check the file and return its tensors, in file order, as copy-on-write views of it.

    Raises ``InvalidWeightsError``.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < _LENGTH_BYTES:
            _refuse(f"it has {size} bytes, fewer than a header's length takes")
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < header_bytes <= min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
            _refuse(f"a header of {header_bytes} bytes does not fit a file of {size} (limit {_MAX_HEADER_BYTES})")
        entries = _parse_header(file.read(header_bytes))
        data_start = _LENGTH_BYTES + header_bytes
        _check_coverage(entries, size - data_start)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return check_state_dict(OrderedDict((entry.name, _view(entry, mapped, data_start)) for entry in entries))


def _view(entry: _Entry, mapped: mmap.mmap, data_start: int) -> torch.Tensor:
    import torch

    count = (entry.end - entry.begin) // entry.dtype.itemsize
    if count == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(mapped, dtype=entry.dtype, count=count, offset=data_start + entry.begin).view(entry.shape)


def _parse_header(raw: bytes) -> list[_Entry]:
    # The format begins with `{` and pads with spaces: anything before it would be read differently elsewhere.
    if not raw.startswith(b"{"):
        _refuse("its header does not begin with '{'")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except InvalidWeightsError:
        raise
    except (ValueError, RecursionError):
        _refuse("its header is not valid JSON")
    _check_user_metadata(header.pop("__metadata__", {}))
    return [_parse_entry(name, entry) for name, entry in header.items()]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            _refuse(f"its header names {shown(key)} twice")
        result[key] = value
    return result


def _refuse_constant(value: str) -> NoReturn:
    _refuse(f"its header holds {value}")


def _check_user_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("its __metadata__ is not a mapping of text to text")


def _parse_entry(name: str, entry: object) -> _Entry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(f"{shown(name)} must have exactly dtype, shape and data_offsets")
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        hint = ", whose elements are smaller than a byte; save it as U8" if dtype_name in _SUB_BYTE_DTYPES else ""
        _refuse(f"{shown(name)} has the dtype {shown(dtype_name)}, which is not supported{hint}")
    if not _are_sizes(shape, at_most=MAX_RANK):
        _refuse(f"{shown(name)} has a shape that is no list of up to {MAX_RANK} sizes")
    if not _are_sizes(offsets, at_most=2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(f"{shown(name)} has data_offsets that are no two positions in order")
    dtype = dtype_table()[_DTYPES[dtype_name]]
    needed, held = math.prod(shape) * dtype.itemsize, offsets[1] - offsets[0]
    if needed != held:
        _refuse(f"{shown(name)} needs {needed} bytes for its shape but has {held}")
    return _Entry(name=name, dtype=dtype, shape=tuple(shape), begin=offsets[0], end=offsets[1])


def _are_sizes(values: object, *, at_most: int) -> bool:
    # bool is an int in Python but not in JSON.
    return (
        isinstance(values, list) and len(values) <= at_most and all(type(v) is int and 0 <= v < 2**63 for v in values)
    )


def _check_coverage(entries: list[_Entry], data_bytes: int) -> None:
    end = 0
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.begin != end:
            what = "belong to no tensor" if entry.begin > end else "belong to another tensor too"
            _refuse(f"{abs(entry.begin - end)} bytes at the start of {shown(entry.name)} {what}")
        end = entry.end
    if end != data_bytes:
        _refuse(f"its tensors take {end} bytes but {data_bytes} follow the header")


def _refuse(what: str) -> NoReturn:
    raise InvalidWeightsError(f"The safetensors file cannot be used: {what}.")
