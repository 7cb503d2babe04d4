"""ONNX files read as protobuf's bytes: what is cut out, what stays, and what is refused."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.onnx_layout import layout, walk
from mixpeek_ray.formats.onnx_wire import INLINE_BYTES, MAX_GRAPH_BYTES, detach_tensors


def model_of(*tensors: TensorProto) -> ModelProto:
    return ModelProto(ir_version=10, producer_name="test", graph=GraphProto(name="g", initializer=tensors))


def tensor_of(size_bytes: int, name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.arange(size_bytes, dtype=np.uint8), name)


def test_the_reference_leads_to_the_same_bytes() -> None:
    content = model_of(tensor_of(INLINE_BYTES + 1, "a"), tensor_of(INLINE_BYTES, "b")).SerializeToString()
    large, small = ModelProto.FromString(detach_tensors(content, "m.onnx")).graph.initializer
    reference = {entry.key: entry.value for entry in large.external_data}
    start, size = int(reference["offset"]), int(reference["length"])
    assert content[start : start + size] == tensor_of(INLINE_BYTES + 1).raw_data
    assert (reference["location"], large.data_location, large.name) == ("m.onnx", TensorProto.EXTERNAL, "a")
    assert small == tensor_of(INLINE_BYTES, "b")


def test_a_model_without_large_tensors_stays_as_it_is() -> None:
    content = model_of(*(tensor_of(100, f"t{number}") for number in range(1_000))).SerializeToString()
    assert detach_tensors(content, "m.onnx") == content


def test_weights_are_not_copied() -> None:
    content = model_of(tensor_of(64 * MIB)).SerializeToString()
    tracemalloc.start()
    try:
        thin = detach_tensors(content, "m.onnx")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(thin) < 1_000
    assert peak < MIB


def test_the_schema_names_every_place_of_a_tensor() -> None:
    # A place that a newer schema adds is walked without a change here; these are the ones that must not get lost.
    assert {name.removeprefix("onnx.") for name in layout()} >= {
        "ModelProto", "GraphProto", "NodeProto", "AttributeProto", "FunctionProto", "TensorProto", "SparseTensorProto",
        "TrainingInfoProto",
    }  # fmt: skip
    model = model_of(tensor_of(1, "a"), tensor_of(1, "b"))
    model.graph.node.add().attribute.add().g.initializer.append(tensor_of(1, "inner"))
    names = [message.name for message in walk(model) if isinstance(message, TensorProto)]
    assert sorted(names) == ["a", "b", "inner"]
    assert names == [message.name for message in walk(model) if isinstance(message, TensorProto)]


def delimited(number: int, content: bytes) -> bytes:
    length = bytearray()
    size = len(content)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def nest(depth: int) -> bytes:
    # A graph that is an attribute of a node of a graph, …
    content = bytes(INLINE_BYTES + 1)
    for _ in range(depth):
        content = delimited(1, delimited(5, delimited(6, content)))
    return delimited(7, content)


BROKEN = {
    "number without an end": b"\xff" * 20,
    "field zero": b"\x02\x00",
    "group": b"\x0b\x0c",
    "kind that nobody has": b"\x0f",
    "length beyond the end": b"\x3a\x7f\x00",
    "length of 2**63": b"\x3a" + b"\xff" * 8 + b"\x7f",
    "half a fixed number": b"\x0d\x00\x00",
    "inner length beyond the end": delimited(7, b"\x2a\xff\xff\x7f" + bytes(INLINE_BYTES)),
    "too deep": nest(40),
    "graph too large": delimited(7, delimited(2, bytes(MAX_GRAPH_BYTES))),
    "graph of too many parts": delimited(7, bytes([0x0A, 0]) * 1_000_001),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_broken_encodings_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidWeightsError):
        detach_tensors(content, "m.onnx")


def test_changed_bytes_give_the_same_as_protobuf_reads() -> None:
    """What was copied means what the original means: a reader of the original sees no other model."""
    model = model_of(*(tensor_of(size, f"t{size}") for size in (0, 10, INLINE_BYTES, INLINE_BYTES + 1, 9_000)))
    content = model.SerializeToString()
    source = random.Random(7)
    for _ in range(2_000):
        changed = bytearray(content)
        for _ in range(source.randint(1, 4)):
            changed[source.choice((source.randrange(len(changed)), source.randrange(60)))] = source.randrange(256)
        try:
            thin = ModelProto.FromString(detach_tensors(changed, "m.onnx"))
        except (InvalidWeightsError, DecodeError):
            continue
        original = ModelProto.FromString(bytes(changed))
        for tensor, expected in zip(thin.graph.initializer, original.graph.initializer, strict=True):
            reference = {entry.key: entry.value for entry in tensor.external_data}
            if "length" in reference and len(tensor.external_data) == 3:
                start, size = int(reference["offset"]), int(reference["length"])
                assert bytes(changed[start : start + size]) == _array_bytes(expected)
            assert (tensor.name, tensor.dims, tensor.data_type) == (expected.name, expected.dims, expected.data_type)


def _array_bytes(tensor: TensorProto) -> bytes:
    lists = (np.array(tensor.float_data, np.float32), np.array(tensor.double_data, np.float64))
    return tensor.raw_data or b"".join(values.tobytes() for values in lists)
