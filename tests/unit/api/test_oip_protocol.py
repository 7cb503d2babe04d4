"""Requests and answers of the Open Inference Protocol, exactly as their clients write and read them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from mixpeek_ray.api.oip_protocol import HEADER_LENGTH, describe_tensors, parse_request, write_response
from mixpeek_ray.core.errors import BadRequestError, BodyTooLargeError, MixpeekError, ValidationError
from mixpeek_ray.core.limits import MAX_INFERENCE_VALUES
from mixpeek_ray.core.records import TensorSignature
from mixpeek_ray.servables.base import ServableSpec, Task

NUMBERS = ("bool", "int8", "int32", "int64", "uint8", "uint64", "float16", "float32", "float64")
TEXTS = np.array([["a", ""], ["שלום 🎉", "x" * 300]], dtype=object)


def spec(*outputs: str) -> ServableSpec:
    made = [TensorSignature(name=name, dtype="float32", shape=("batch", 2)) for name in ("given", *outputs)]
    return ServableSpec(task=Task.TENSORS, inputs=(made[0],), outputs=tuple(made[1:]))


def triton_datatype(array: np.ndarray) -> str:
    from tritonclient.utils import np_to_triton_dtype

    found: str = np_to_triton_dtype(array.dtype)
    return found


def sample(dtype: str) -> np.ndarray:
    return np.array([[0, 1, 0], [1, 1, 0]]).astype(dtype)


# tritonclient sends float16 as binary data alone.
CASES = [
    (array, binary) for array in (*map(sample, NUMBERS), TEXTS) for binary in (True, False)
    if binary or array.dtype != np.float16
]  # fmt: skip


@pytest.mark.parametrize(("array", "binary"), CASES)
def test_what_tritonclient_writes_and_reads(array: np.ndarray, binary: bool) -> None:
    given = InferInput("given", list(array.shape), triton_datatype(array))
    given.set_data_from_numpy(array, binary_data=binary)
    body, length = InferenceServerClient.generate_request_body(
        [given], outputs=[InferRequestedOutput("made", binary_data=binary)], request_id="7"
    )
    raw = body if isinstance(body, bytes) else body.encode()
    request = parse_request(raw, None if length is None else str(length), spec("made", "unasked"))
    assert request.id == "7"
    np.testing.assert_array_equal(request.inputs["given"], array)
    assert request.inputs["given"].dtype == array.dtype
    answer, json_length = write_response("ns/m", "1.0.0", request, {"made": array, "unasked": array})
    assert (json_length is not None) is binary
    result = InferenceServerClient.parse_response_body(answer, header_length=json_length)
    assert [entry["name"] for entry in result.get_response()["outputs"]] == ["made"]
    found = result.as_numpy("made")
    if array.dtype == object and binary:
        found = np.vectorize(bytes.decode, otypes=[object])(found)
    np.testing.assert_array_equal(found, array)


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "given", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes


def binary(size: Any, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in entry(**changes).items() if key != "data"} | {
        "parameters": {"binary_data_size": size}
    }


@pytest.mark.parametrize(
    ("inputs", "tensors", "error", "field"),
    [
        ([entry(datatype="FP33")], b"", ValidationError, "inputs.given"),
        ([entry(datatype=None)], b"", ValidationError, "inputs.given"),
        ([entry(shape=[2, 2])], b"", ValidationError, "inputs.given"),
        ([entry(shape=[-1, 2])], b"", ValidationError, "shape"),
        ([entry(shape=[True, 2])], b"", ValidationError, "shape"),
        ([entry(shape="12")], b"", ValidationError, "shape"),
        ([entry(shape=[0, 2], data=[])], b"", ValidationError, "inputs.given"),
        ([entry(data=["a", "b"])], b"", ValidationError, "inputs.given"),
        ([entry(data=[1e39, 0])], b"", ValidationError, "inputs.given"),
        ([entry(data=[None, 0])], b"", ValidationError, "inputs.given"),
        ([entry(datatype="INT8", data=[1.5, 0])], b"", ValidationError, "inputs.given"),
        ([entry(datatype="INT8", data=[128, 0])], b"", ValidationError, "inputs.given"),
        ([entry(datatype="UINT64", data=[-1, 0])], b"", ValidationError, "inputs.given"),
        ([entry(datatype="INT64", data=[2**64, 0])], b"", ValidationError, "inputs.given"),
        ([entry(datatype="BOOL", data=[1, 0])], b"", ValidationError, "inputs.given"),
        ([entry(datatype="BYTES")], b"", ValidationError, "inputs.given"),
        ([entry(), entry()], b"", ValidationError, "inputs"),
        ([entry(name=3)], b"", ValidationError, "inputs.name"),
        ([], b"", ValidationError, "inputs"),
        (None, b"", ValidationError, "inputs"),
        ([binary(8)], b"\0" * 7, ValidationError, "inputs.given"),
        ([binary(-1)], b"", ValidationError, "inputs.given"),
        ([binary(7)], b"\0" * 7, ValidationError, "inputs.given"),
        ([binary(4)], b"\0" * 4, ValidationError, "inputs.given"),
        ([binary(8) | {"data": [1, 2]}], b"\0" * 8, ValidationError, "inputs.given"),
        ([binary(5, datatype="BYTES", shape=[1])], b"\2\0\0\0a", ValidationError, "inputs.given"),
        ([binary(2, datatype="BYTES", shape=[1])], b"\2\0", ValidationError, "inputs.given"),
        ([binary(5, datatype="BYTES", shape=[1])], b"\1\0\0\0\xff", ValidationError, "inputs.given"),
        ([binary(8)], b"\0" * 9, BadRequestError, None),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(
    inputs: Any, tensors: bytes, error: type[MixpeekError], field: str | None
) -> None:
    header = json.dumps({"inputs": inputs}).encode()
    with pytest.raises(error) as refusal:
        parse_request(header + tensors, str(len(header)), spec("made"))
    assert refusal.value.details.get("field") == field


@pytest.mark.parametrize("length", ["-1", "x", "99", "9" * 30, "²"])
def test_a_header_length_that_is_none(length: str) -> None:
    with pytest.raises(BadRequestError, match="Content-Length"):
        parse_request(b"{}", length, spec("made"))


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b'{"inputs": NaN}'])
def test_a_body_that_is_no_request(raw: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse_request(raw, None, spec("made"))


def test_more_values_than_are_read_are_refused_before_they_take_memory() -> None:
    with pytest.raises(BodyTooLargeError):
        parse_request(b"[" + b"0," * MAX_INFERENCE_VALUES + b"0]", None, spec("made"))


@pytest.mark.parametrize(
    "more",
    [
        {"parameters": {"sequence_id": 1}},
        {"outputs": [{"name": "no"}]},
        {"outputs": [{"name": "made", "parameters": {"classification": 2}}]},
    ],
)
def test_what_is_not_offered_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse_request(json.dumps({"inputs": [entry()], **more}).encode(), None, spec("made"))


def test_binary_outputs_for_all_by_one_parameter() -> None:
    raw = json.dumps({"inputs": [entry()], "parameters": {"binary_data_output": True}}).encode()
    request = parse_request(raw, None, spec("made", "too"))
    assert [(wanted.name, wanted.is_binary) for wanted in request.outputs] == [("made", True), ("too", True)]


def test_metadata_has_a_number_for_every_axis() -> None:
    signature = TensorSignature(name="x", dtype="string", shape=("batch", None, 3))
    assert describe_tensors([signature]) == [{"name": "x", "datatype": "BYTES", "shape": [-1, -1, 3]}]
    assert "Inference-Header-Content-Length".lower() == HEADER_LENGTH
