"""The Open Inference Protocol's requests and answers, version 2, with its extension for binary tensors.

https://github.com/kserve/open-inference-protocol and Triton's `extension_binary_data.md`: a body is JSON, or JSON of
the length that a header tells and behind it the tensors' bytes, little-endian and in row-major order; each element of
a BYTES tensor comes after its length, four bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from mixpeek_ray.api.inference_request import count_values
from mixpeek_ray.api.predict_arrays import array_of, parse_shape, reshaped
from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import BadRequestError, BodyTooLargeError, ValidationError
from mixpeek_ray.core.records import TensorSignature
from mixpeek_ray.servables.base import TEXT, NamedArrays, ServableSpec
from mixpeek_ray.servables.tensors import DTYPES, refused

# How long the JSON before the tensors' bytes is.
HEADER_LENGTH = "inference-header-content-length"
BINARY_EXTENSION = "binary_tensor_data"

DATATYPES = {
    "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "uint8": "UINT8",
    "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "float16": "FP16", "float32": "FP32",
    "float64": "FP64", TEXT: "BYTES",
}  # fmt: skip
_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class WantedOutput:
    """An output that a request names, and whether its bytes come behind the answer's JSON."""

    name: str
    is_binary: bool


@dataclass(frozen=True, kw_only=True)
class OipRequest:
    """A request as it was sent, its tensors made arrays."""

    id: str | None
    inputs: NamedArrays
    # Empty: all of them, by a model that does not tell their names before it has computed.
    outputs: tuple[WantedOutput, ...]
    is_binary: bool


def parse_request(raw: bytes, header_length: str | None, spec: ServableSpec) -> OipRequest:
    """Return the request; without named outputs, it wants all of the model's.

    Raises ``BadRequestError`` for a body that is none of this protocol, ``ValidationError`` naming what is wrong in it,
    ``BodyTooLargeError`` for more JSON than is read.
    """
    header, tensors = _split(raw, header_length)
    body = _parse_json(header)
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict) or parameters.keys() - {"binary_data_output"}:
        raise ValidationError("The only parameter of a request is `binary_data_output`.", field="parameters")
    is_binary = parameters.get("binary_data_output") is True
    return OipRequest(
        id=_text(body["id"], "id") if body.get("id") else None,
        inputs=_Inputs(tensors).arrays(_entries(body, "inputs")),
        outputs=_wanted(_entries(body, "outputs") if body.get("outputs") else [], spec, is_binary=is_binary),
        is_binary=is_binary,
    )


def write_response(model: str, version: str, request: OipRequest, outputs: NamedArrays) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON where bytes follow.

    Raises ``ValidationError`` for a named output that the model did not make.
    """
    described: list[dict[str, Any]] = []
    behind: list[bytes] = []
    all_of_them = tuple(WantedOutput(name=name, is_binary=request.is_binary) for name in outputs)
    for wanted in request.outputs or all_of_them:
        if wanted.name not in outputs:
            raise _no_output(wanted.name, outputs)
        array = outputs[wanted.name]
        dtype = TEXT if array.dtype == object else array.dtype.name
        entry: dict[str, Any] = {"name": wanted.name, "datatype": DATATYPES[dtype], "shape": list(array.shape)}
        if wanted.is_binary:
            behind.append(_to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            flat = array.ravel()
            entry["data"] = flat.tolist() if dtype == TEXT else np.ascontiguousarray(flat)
        described.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id is not None:
        answer["id"] = request.id
    header = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([header, *behind]), len(header) if behind else None


def describe_tensors(signatures: Sequence[TensorSignature]) -> list[dict[str, object]]:
    """Return signatures as metadata has them: -1 for an axis whose size varies; nothing of unknown tensors."""
    return [
        {
            "name": signature.name,
            "datatype": DATATYPES[signature.dtype],
            "shape": [size if isinstance(size, int) else -1 for size in signature.shape],
        }
        for signature in signatures
        if signature.dtype
    ]


def _split(raw: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return raw, memoryview(b"")
    if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 12):
        raise BadRequestError("Inference-Header-Content-Length is no number of bytes.")
    length = int(header_length)
    if length > len(raw):
        raise BadRequestError(f"Inference-Header-Content-Length is {length}, and the body has {len(raw)} bytes.")
    return raw[:length], memoryview(raw)[length:]


def _parse_json(header: bytes) -> dict[str, Any]:
    if len(header) > limits.MAX_INFERENCE_BODY_BYTES or count_values(header) > limits.MAX_INFERENCE_VALUES:
        raise BodyTooLargeError(
            f"The request's JSON has more than {limits.MAX_INFERENCE_VALUES} values, or "
            f"{limits.MAX_INFERENCE_BODY_BYTES} bytes: send its tensors as binary data.",
            limit_values=limits.MAX_INFERENCE_VALUES,
        )
    try:
        body = orjson.loads(header)
    except orjson.JSONDecodeError:
        raise BadRequestError("The request is no JSON: send an inference request of the protocol.") from None
    if not isinstance(body, dict):
        raise BadRequestError("The request is no JSON object: send an inference request of the protocol.")
    return body


def _entries(body: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    entries = body.get(field)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValidationError(f"`{field}` is no list of tensors: send at least one.", field=field)
    names = [_text(entry.get("name"), f"{field}.name") for entry in entries]
    if len(set(names)) < len(names):
        raise ValidationError(f"`{field}` has a name twice.", field=field)
    return entries


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ValidationError(f"`{field}` is no text.", field=field)
    return value


class _Inputs:
    """Takes the tensors of a request one after the other, those that are binary off the bytes behind its JSON."""

    def __init__(self, tensors: memoryview) -> None:
        self._tensors = tensors
        self._used = 0

    def arrays(self, entries: Sequence[Mapping[str, Any]]) -> NamedArrays:
        arrays = {entry["name"]: self._array(entry["name"], entry) for entry in entries}
        if self._used < len(self._tensors):
            raise BadRequestError(f"{len(self._tensors) - self._used} bytes of the body belong to no input.")
        return arrays

    def _array(self, name: str, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
        datatype = entry.get("datatype")
        if not isinstance(datatype, str) or datatype not in _DTYPES:
            raise refused(name, f"has the datatype {str(datatype)[:80]!a}: use one of {', '.join(_DTYPES)}")
        dtype, shape = _DTYPES[datatype], parse_shape(name, entry.get("shape"))
        parameters = entry.get("parameters") or {}
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            return array_of(name, dtype, entry.get("data"), shape)
        if "data" in entry:
            raise refused(name, "comes both as data and as binary data")
        return reshaped(name, _from_bytes(name, dtype, self._take(name, size)), shape)

    def _take(self, name: str, size: Any) -> memoryview:
        left = len(self._tensors) - self._used
        if type(size) is not int or not 0 <= size <= left:
            raise refused(name, f"has the binary_data_size {str(size)[:80]!a}, and {left} bytes are left of the body")
        taken = self._tensors[self._used : self._used + size]
        self._used += size
        return taken


def _from_bytes(name: str, dtype: str, data: memoryview) -> npt.NDArray[Any]:
    if dtype == TEXT:
        return _texts(name, data)
    wire = DTYPES[dtype].newbyteorder("<")
    if len(data) % wire.itemsize:
        raise refused(name, f"has {len(data)} bytes, no multiple of the {wire.itemsize} of one {dtype}")
    # Copied: the body is the HTTP server's, and aligned to nothing.
    return np.frombuffer(data, dtype=wire).astype(DTYPES[dtype])


def _texts(name: str, data: memoryview) -> npt.NDArray[Any]:
    texts: list[str] = []
    place = 0
    while place < len(data):
        start = place + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, place)[0] if start <= len(data) else len(data) + 1
        if end > len(data):
            raise refused(name, "has an element that ends after its data")
        try:
            texts.append(str(data[start:end], "utf-8"))
        except UnicodeDecodeError:
            raise refused(name, "has an element that is no text in UTF-8", index=len(texts)) from None
        place = end
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array


def _to_bytes(array: npt.NDArray[Any]) -> bytes:
    if array.dtype != object:
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    encoded = [text.encode() for text in array.ravel()]
    return b"".join(part for text in encoded for part in (_LENGTH.pack(len(text)), text))


def _wanted(entries: Sequence[Mapping[str, Any]], spec: ServableSpec, *, is_binary: bool) -> tuple[WantedOutput, ...]:
    known = [signature.name for signature in spec.outputs]
    if not entries:
        return tuple(WantedOutput(name=name, is_binary=is_binary) for name in known)
    wanted = []
    for entry in entries:
        name, parameters = entry["name"], entry.get("parameters") or {}
        if spec.is_typed and name not in known:
            raise _no_output(name, known)
        if not isinstance(parameters, dict) or parameters.keys() - {"binary_data"}:
            raise ValidationError("The only parameter of an output is `binary_data`.", field="outputs")
        wanted.append(WantedOutput(name=name, is_binary=parameters.get("binary_data", is_binary) is True))
    return tuple(wanted)


def _no_output(name: str, known: Iterable[str]) -> ValidationError:
    return ValidationError(
        f"{name[:80]!a} is no output of the model: it has {', '.join(map(ascii, known))}.", field="outputs"
    )
