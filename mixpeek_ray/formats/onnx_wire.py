"""An ONNX file read at the level of protobuf's encoding, so that its weights stay in the file.

Parsing a model with protobuf copies every byte of it, twice its size in private memory. Here a model is copied without
its large tensors, each of which becomes a reference to its place in the very same file: an ordinary model with external
data, whose graph is small enough to be parsed and checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from onnx import TensorProto

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.core.limits import KIB, MIB
from mixpeek_ray.formats.onnx_layout import MODEL, TENSOR, Layout, layout

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from typing_extensions import Buffer

# A page: mapping less than that costs more than it shares. Shapes, which graph checks need at hand, are far smaller.
INLINE_BYTES = 4 * KIB
# The graphs of models with ten thousands of nodes take 10 MB; parsed, they take several times their size.
MAX_GRAPH_BYTES = 64 * MIB
# Nodes, tensors and value descriptions, mostly: large graphs have some 100,000. Reading one takes about 2 us.
_MAX_FIELDS = 1_000_000
# What protobuf's own parsers allow.
_MAX_DEPTH = 100
_MAX_VARINT_BYTES = 10

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
# Fields of a tensor that are encoded as the plain little-endian array (lists of these numbers are packed).
_ARRAY_FIELDS = frozenset(TENSOR.fields_by_name[name].number for name in ("raw_data", "float_data", "double_data"))


class _Field(NamedTuple):
    number: int
    wire_type: int
    # First byte of the tag, first byte of the value, and the byte after the value.
    tag_at: int
    start: int
    end: int


def detach_tensors(data: Buffer, file_name: str) -> bytes:
    """Return the encoded model ``data`` with each tensor of over ``INLINE_BYTES`` as a reference into ``file_name``.

    ``file_name`` is the name of the file that ``data`` is. Raises ``InvalidWeightsError`` when the encoding is broken
    or what remains is larger than ``MAX_GRAPH_BYTES``.
    """
    with memoryview(data) as view, view.cast("B") as flat:
        return bytes(_Detacher(flat, file_name).copy(0, len(flat), MODEL, depth=0))


class _Detacher:
    def __init__(self, data: memoryview, file_name: str) -> None:
        self._data = data
        self._file_name = file_name
        self._layout: Layout = layout()
        self._kept_bytes = 0
        self._field_count = 0

    def copy(self, start: int, end: int, message: Descriptor, depth: int) -> bytearray:
        """Return the message that lies at ``start`` to ``end``, without its large tensors."""
        if depth > _MAX_DEPTH:
            _refuse(f"it nests deeper than {_MAX_DEPTH} messages")
        out = bytearray()
        children = self._layout[message.full_name]
        arrays = _ARRAY_FIELDS if message is TENSOR else frozenset()
        kept_from = start
        for field in _fields(self._data, start, end):
            self._field_count += 1
            if self._field_count > _MAX_FIELDS:
                _refuse(f"its graph has more than {_MAX_FIELDS} parts; keep weights in initializers with raw_data")
            if field.wire_type != _DELIMITED or field.end - field.start <= INLINE_BYTES:
                continue
            child = children.get(field.number)
            if child is None and field.number not in arrays:
                continue
            self._keep(out, kept_from, field.tag_at)
            kept_from = field.end
            if child is None:
                out += self._reference(field)
            else:
                copied = self.copy(field.start, field.end, child, depth + 1)
                out += _varint(field.number << 3 | _DELIMITED) + _varint(len(copied)) + copied
        self._keep(out, kept_from, end)
        return out

    def _keep(self, out: bytearray, start: int, end: int) -> None:
        self._kept_bytes += end - start
        if self._kept_bytes > MAX_GRAPH_BYTES:
            _refuse(f"its graph takes more than {MAX_GRAPH_BYTES} bytes; keep weights in initializers with raw_data")
        out += self._data[start:end]

    def _reference(self, field: _Field) -> bytes:
        tensor = TensorProto(data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._file_name), ("offset", field.start), ("length", field.end - field.start)):
            tensor.external_data.add(key=key, value=str(value))
        encoded: bytes = tensor.SerializeToString()
        return encoded


def _fields(data: memoryview, position: int, end: int) -> Iterator[_Field]:
    while position < end:
        tag_at = position
        tag, position = _read_varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            size = _read_varint(data, position, end)[1] - position
        elif wire_type == _DELIMITED:
            size, position = _read_varint(data, position, end)
        else:
            # Groups (3 and 4) are none of the format's, 6 and 7 nobody's.
            size = _FIXED_BYTES.get(wire_type, -1)
        if number == 0 or not 0 <= size <= end - position:
            _refuse(f"the field at byte {tag_at} is of no known kind or reaches beyond its message")
        yield _Field(number, wire_type, tag_at, position, position + size)
        position += size


def _read_varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    """Return the number at ``position`` and the position after it."""
    value = 0
    for index in range(min(_MAX_VARINT_BYTES, end - position)):
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    _refuse(f"the number at byte {position} has no end")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _refuse(what: str) -> NoReturn:
    raise InvalidWeightsError(f"The ONNX file cannot be used: {what}.")
