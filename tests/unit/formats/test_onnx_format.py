"""ONNX archives, as exporters write them and as attackers do (hardening.md rows 13 and 17)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mixpeek_ray.core.errors import (
    ArchiveRefusedError,
    FormatMismatchError,
    InvalidWeightsError,
    UnsafeExternalDataError,
)
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.records import FileInfo, ModelKind, TensorSignature
from mixpeek_ray.formats.base import OpenedModel
from mixpeek_ray.formats.onnx_files import GRAPH_FILE
from mixpeek_ray.formats.onnx_model import OnnxFormat
from mixpeek_ray.formats.onnx_wire import INLINE_BYTES
from mixpeek_ray.formats.packed import plan
from mixpeek_ray.formats.sandbox import run_limited

Open = Callable[[Mapping[str, bytes]], OpenedModel]

# Enough float32 elements to be worth keeping outside the graph.
LARGE = INLINE_BYTES // 4 + 1
WEIGHTS = np.arange(LARGE, dtype=np.float32)


@pytest.fixture
def open_files(tmp_path: Path) -> Open:
    def open_folder(files: Mapping[str, bytes]) -> OpenedModel:
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
        listed = [FileInfo(path=path, size_bytes=len(content)) for path, content in files.items()]
        return OnnxFormat().open(tmp_path, listed)

    return open_folder


def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, [output], **attributes)


def build(
    nodes: list[NodeProto] | None = None,
    initializers: list[TensorProto] | None = None,
    *,
    opset: int = 20,
    domains: tuple[str, ...] = (),
    ir_version: int = 10,
    functions: list[onnx.FunctionProto] | None = None,
) -> ModelProto:
    """Return a model from `x` to `y`, by default `y = x + w`."""
    graph = helper.make_graph(
        nodes or [node("Add", ["x", "w"], "y")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", None, LARGE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers or [],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=functions or [])


def external(
    location: str = "w.bin", *, name: str = "w", dims: tuple[int, ...] = (LARGE,), **entries: str
) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph_of(opened: OpenedModel) -> ModelProto:
    (companion,) = opened.companions
    assert companion.path == GRAPH_FILE
    return ModelProto.FromString(companion.content)


def test_large_tensors_leave_the_graph_and_small_ones_stay(open_files: Open) -> None:
    small = np.float32([1, 2, 3])
    model = build(
        [node("Add", ["x", "w"], "z"), node("Mul", ["z", "s"], "y")],
        [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(small[:1], "s")],
    )
    opened = open_files({"prefix/model.onnx": model.SerializeToString(), "prefix/README.md": b"text"})
    assert opened.kind is ModelKind.ONNX
    assert {name: tensor.tolist() for name, tensor in opened.tensors.items()} == {"w": WEIGHTS.tolist(), "s": [1.0]}
    large, kept = graph_of(opened).graph.initializer
    assert [(entry.key, entry.value) for entry in large.external_data] == [("location", "w")]
    assert not large.raw_data
    assert numpy_helper.to_array(kept).tolist() == [1.0]
    assert len(opened.companions[0].content) < INLINE_BYTES


def test_weights_beside_the_model_are_views_of_their_file(open_files: Open, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = build(initializers=[numpy_helper.from_array(WEIGHTS, "w")])
    onnx.save(model, source / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    files = {f"a/{path.name}": path.read_bytes() for path in source.iterdir()}
    opened = open_files(files)
    assert opened.tensors["w"].tolist() == WEIGHTS.tolist()
    # A view of the file, not a copy: writing to it is private.
    opened.tensors["w"].zero_()
    assert (tmp_path / "a" / "m.onnx.data").read_bytes() == files["a/m.onnx.data"]


def everywhere(tensor: Callable[[str], TensorProto]) -> dict[str, ModelProto]:
    """Return a model for every place that a tensor can lie in."""
    branch = helper.make_graph(
        [node("Add", ["x", "w"], "b")], "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
        [tensor("w")],
    )  # fmt: skip
    condition = [node("ReduceMax", ["x"], "m", keepdims=0), node("Cast", ["m"], "c", to=TensorProto.BOOL)]
    function = helper.make_function(
        "local", "F", ["a"], ["b"],
        [node("Constant", [], "k", value=tensor("w")), node("Add", ["a", "k"], "b")], [helper.make_opsetid("", 20)],
    )  # fmt: skip
    training = build([node("Identity", ["x"], "y")])
    training.training_info.add().initialization.initializer.append(tensor("w"))
    sparse = build([node("Identity", ["x"], "y")])
    indices = numpy_helper.from_array(np.arange(LARGE, dtype=np.int64), "i")
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor("w"), indices, [2 * LARGE]))
    return {
        "initializer": build(initializers=[tensor("w")]),
        "constant": build([node("Constant", [], "w", value=tensor("w")), node("Add", ["x", "w"], "y")]),
        "branch": build([*condition, node("If", ["c"], "y", then_branch=branch, else_branch=branch)]),
        "function": build([node("F", ["x"], "y", domain="local")], domains=("local",), functions=[function]),
        "training": training,
        "sparse": sparse,
    }


PLACES = tuple(everywhere(lambda name: numpy_helper.from_array(WEIGHTS, name)))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["inside", "beside"])
def test_tensors_are_found_wherever_they_are(place: str, how: str, open_files: Open) -> None:
    def tensor(name: str) -> TensorProto:
        return numpy_helper.from_array(WEIGHTS, name) if how == "inside" else external(name=name)

    model = everywhere(tensor)[place]
    opened = open_files({"m.onnx": model.SerializeToString(), "w.bin": WEIGHTS.tobytes()})
    floats = [tensor for tensor in opened.tensors.values() if tensor.dtype == torch.float32]
    # `If` has two branches.
    assert [found.tolist() for found in floats] == [WEIGHTS.tolist()] * (2 if place == "branch" else 1)
    assert len(opened.companions[0].content) < INLINE_BYTES
    if how == "beside":
        assert plan(dict(opened.tensors)).total_bytes < 2 * WEIGHTS.nbytes + LARGE * 8


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "absent.bin"])
def test_no_place_may_refer_outside_the_archive(place: str, location: str, open_files: Open, tmp_path: Path) -> None:
    (tmp_path.parent / "w.bin").write_bytes(WEIGHTS.tobytes())
    model = everywhere(lambda name: external(location, name=name))[place]
    with pytest.raises(UnsafeExternalDataError) as caught:
        open_files({"m.onnx": model.SerializeToString(), "w.bin": WEIGHTS.tobytes()})
    assert str(tmp_path) not in caught.value.message


SIZE = str(WEIGHTS.nbytes)
UNSAFE_REFERENCES = {
    "no location": external(""),
    "parent": external("a/../../w.bin"),
    "parent inside": external("a/../w.bin"),
    "backslash": external("..\\w.bin"),
    "drive": external("C:/w.bin"),
    "control character": external("w.bin\0"),
    "folder": external("."),
    "memory address": external("*/_ORT_MEM_ADDR_/*", offset="4096", length=SIZE),
    "negative offset": external(offset="-4", length=SIZE),
    "negative length": external(length="-4"),
    "offset beyond the end": external(offset=str(2**62)),
    "offset that overflows": external(offset=str(2**64 - 4)),
    "end beyond the end": external(offset="4"),
    "length beyond the end": external(length=str(2**40)),
    "fraction": external(offset="0.0"),
    "spaces": external(offset=" 0"),
    "other digits": external(offset="\u0664"),
    "weights in kernel order": external(prepacked_0="key|0;4;0"),
}
SHORT = np.zeros(8, dtype=np.float32)
TWICE = external()
TWICE.external_data.add(key="location", value="README.md")
BOTH = external()
BOTH.raw_data = WEIGHTS.tobytes()[:8]
DENIES = external()
DENIES.data_location = TensorProto.DEFAULT


@pytest.mark.parametrize("tensor", [*UNSAFE_REFERENCES.values(), TWICE], ids=[*UNSAFE_REFERENCES, "two locations"])
def test_references_that_lead_elsewhere(tensor: TensorProto, open_files: Open) -> None:
    model = build(initializers=[tensor])
    files = {"m.onnx": model.SerializeToString(), "w.bin": WEIGHTS.tobytes(), "README.md": b"text"}
    with pytest.raises(UnsafeExternalDataError) as caught:
        open_files(files)
    assert caught.value.message.isascii()


def test_an_archive_cannot_provide_the_memory_address(open_files: Open) -> None:
    location = "*/_ORT_MEM_ADDR_/*"
    model = build(initializers=[external(location)])
    with pytest.raises(UnsafeExternalDataError):
        open_files({"m.onnx": model.SerializeToString(), location: WEIGHTS.tobytes()})


@pytest.mark.parametrize("text", [b"location", b"w.bin"])
def test_a_reference_that_is_no_text_is_refused(text: bytes, open_files: Open) -> None:
    model = build(initializers=[external()]).SerializeToString()
    assert model.count(text) == 1
    broken = model.replace(text, b"\xff" * len(text))
    with pytest.raises(UnsafeExternalDataError, match="not text"):
        open_files({"model.onnx": broken, "w.bin": WEIGHTS.tobytes()})


@pytest.mark.parametrize("link", ["symlink", "hard link", "linked folder"])
def test_links_are_not_followed(link: str, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "archive"
    outside.mkdir()
    folder.mkdir()
    (outside / "w.bin").write_bytes(WEIGHTS.tobytes())
    target = "w.bin" if link != "linked folder" else "sub/w.bin"
    if link == "symlink":
        (folder / target).symlink_to(outside / "w.bin")
    elif link == "hard link":
        os.link(outside / "w.bin", folder / target)
    else:
        (folder / "sub").symlink_to(outside)
    content = build(initializers=[external(target)]).SerializeToString()
    (folder / "m.onnx").write_bytes(content)
    files = [FileInfo(path="m.onnx", size_bytes=len(content)), FileInfo(path=target, size_bytes=WEIGHTS.nbytes)]
    with pytest.raises(UnsafeExternalDataError):
        OnnxFormat().open(folder, files)


def with_dims(*dims: int, data_type: int = TensorProto.FLOAT, raw: bytes = SHORT.tobytes()) -> TensorProto:
    return TensorProto(name="w", data_type=data_type, dims=dims, raw_data=raw)


def sparse_bomb() -> ModelProto:
    model = build([node("Identity", ["x"], "y")])
    values, indices = np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.int64)
    tensors = numpy_helper.from_array(values, "s"), numpy_helper.from_array(indices, "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(*tensors, [2**42]))
    return model


def nested(depth: int) -> ModelProto:
    """Return a model whose functions call each other, each twice: 2**depth nodes once expanded."""
    functions = [
        helper.make_function(
            "local", f"F{level}", ["a"], ["c"],
            [node(f"F{level + 1}", ["a"], "b", domain="local"), node(f"F{level + 1}", ["b"], "c", domain="local")]
            if level < depth else [node("Neg", ["a"], "c")],
            [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)],
        )
        for level in range(depth + 1)
    ]  # fmt: skip
    return build([node("F0", ["x"], "y", domain="local")], domains=("local",), functions=functions)


INVALID = {
    "short": build(initializers=[with_dims(9)]),
    "long": build(initializers=[with_dims(7)]),
    "large and short": build(initializers=[with_dims(LARGE + 1, raw=WEIGHTS.tobytes())]),
    "giant": build(initializers=[with_dims(2**40)]),
    "overflowing": build(initializers=[with_dims(2**32, 2**32, 8)]),
    "negative": build(initializers=[with_dims(-2, -4)]),
    "rank": build(initializers=[with_dims(*[1] * 65, 8)]),
    "giant without data": build(initializers=[TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40])]),
    "segments": build(initializers=[TensorProto(name="w", data_type=1, dims=[0], segment={"begin": 0, "end": 1})]),
    "no data type": build(initializers=[with_dims(8, data_type=TensorProto.UNDEFINED)]),
    "unknown data type": build(initializers=[with_dims(8, data_type=99)]),
    "strings as bytes": build(initializers=[with_dims(8, data_type=TensorProto.STRING)]),
    "strings beside": build(initializers=[TensorProto.FromString(external().SerializeToString() + b"\x10\x08")]),
    "data and reference": build(initializers=[BOTH]),
    "reference that is denied": build(initializers=[DENIES]),
    "length for another shape": build(initializers=[external(dims=(8,), length=SIZE)]),
    "overlap": build(
        [node("Add", ["x", "w"], "z"), node("Add", ["z", "v"], "y")],
        [external(dims=(600,)), external(name="v", dims=(600,), offset="4")],
    ),
    "names": build([node("Identity", ["x"], "y")], [with_dims(8), with_dims(8)]),
    "sparse bomb": sparse_bomb(),
    "custom operator": build([node("Foo", ["x"], "y", domain="evil")], domains=("evil",)),
    "custom operator in a branch": everywhere(lambda name: numpy_helper.from_array(WEIGHTS, name))["branch"],
    "compiled": build([node("EPContext", ["x"], "y", domain="com.microsoft")], domains=("com.microsoft",)),
    "unknown operator": build([node("Nope", ["x"], "y")]),
    "types that do not fit": build([node("And", ["x", "x"], "y")]),
    "missing input": build([node("Add", ["x", "nothing"], "y")]),
    "cycle": build([node("Add", ["x", "z"], "y"), node("Neg", ["y"], "z")]),
    "newer opset": build([node("Identity", ["x"], "y")], opset=999),
    "newer IR": build([node("Identity", ["x"], "y")], ir_version=999),
    "no graph": ModelProto(ir_version=10),
}
INVALID["custom operator in a branch"].graph.node[-1].attribute[0].g.node[0].domain = "evil"


@pytest.mark.parametrize("model", INVALID.values(), ids=INVALID.keys())
def test_models_that_contradict_themselves(model: ModelProto, open_files: Open, tmp_path: Path) -> None:
    with pytest.raises(InvalidWeightsError) as caught:
        open_files({"m.onnx": model.SerializeToString(), "w.bin": WEIGHTS.tobytes()})
    message = caught.value.message
    assert message.isascii()
    assert not any(place in message for place in (str(tmp_path), "onnxruntime_src", "::Model("))


def test_functions_that_multiply_end_at_the_limits(tmp_path: Path) -> None:
    content = nested(40).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content)
    files = [FileInfo(path="m.onnx", size_bytes=len(content))]
    with pytest.raises(ArchiveRefusedError):
        run_limited(OnnxFormat().open, tmp_path, files, memory_bytes=224 * MIB, seconds=1.0)


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"not onnx at all", b"PK\x03\x04" + bytes(99), bytes(10_000), b"\x3a\xff"]
)
def test_files_that_are_no_onnx(content: bytes, open_files: Open) -> None:
    with pytest.raises(InvalidWeightsError):
        open_files({"m.onnx": content})


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "holds no file"),
        (["model.pt", "config.json"], "model.pt"),
        (["a.onnx", "b.onnx"], "b.onnx"),
        (["._model.onnx"], "No .onnx"),
    ],
)
def test_exactly_one_model(names: list[str], said: str, open_files: Open) -> None:
    with pytest.raises(FormatMismatchError, match=said):
        open_files(dict.fromkeys(names, build().SerializeToString()))


def test_other_files_may_lie_beside_it(open_files: Open) -> None:
    model = build(initializers=[external("tf.pb")])
    files = {"M.ONNX": model.SerializeToString(), "tf.pb": WEIGHTS.tobytes(), "tokenizer.bin": b"", "._M.ONNX": b""}
    assert open_files(files).tensors["w"].tolist() == WEIGHTS.tolist()


def test_tied_weights_stay_one(open_files: Open) -> None:
    nodes = [node("Add", ["x", "w"], "z"), node("Add", ["z", "v"], "y")]
    model = build(nodes, [external(), external(name="v", offset="0", length=SIZE)])
    opened = open_files({"m.onnx": model.SerializeToString(), "w.bin": WEIGHTS.tobytes()})
    assert plan(opened.tensors).total_bytes == WEIGHTS.nbytes


TYPES = {name: number for name, number in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")}


@pytest.mark.parametrize("name", TYPES)
def test_every_data_type_is_carried(name: str, open_files: Open) -> None:
    content = bytes(range(256)) * 96
    tensor = TensorProto(name="w", data_type=TYPES[name], raw_data=content)
    bits = 6 if name.startswith("FLOAT6") else 8
    bits = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.get(name, bits)
    if bits == 8:
        bits *= helper.tensor_dtype_to_np_dtype(TYPES[name]).itemsize
    tensor.dims.extend([2, len(content) * 8 // bits // 2])
    opened = open_files({"m.onnx": build([node("Identity", ["x"], "y")], [tensor]).SerializeToString()})
    assert bytes(opened.tensors["w"].contiguous().view(-1).view(torch.uint8).numpy()) == content


@pytest.mark.parametrize(("field", "dtype"), [("float_data", np.float32), ("double_data", np.float64)])
def test_lists_of_numbers_are_weights_too(field: str, dtype: type, open_files: Open) -> None:
    values = np.linspace(-1, 1, 4096, dtype=dtype)
    tensor = TensorProto(name="w", data_type=helper.np_dtype_to_tensor_dtype(values.dtype), dims=[4096])
    getattr(tensor, field).extend(values.tolist())
    opened = open_files({"m.onnx": build([node("Identity", ["x"], "y")], [tensor]).SerializeToString()})
    assert np.array_equal(opened.tensors["w"].numpy(), values)
    assert len(opened.companions[0].content) < INLINE_BYTES


def test_a_model_without_weights_opens(open_files: Open) -> None:
    opened = open_files({"m.onnx": build([node("Neg", ["x"], "y")]).SerializeToString()})
    assert not opened.tensors


def test_the_signature_is_told(open_files: Open) -> None:
    model = build([node("Identity", ["x"], "y"), node("SequenceConstruct", ["x"], "s")], [with_dims(8)])
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8]))
    model.graph.output.append(
        helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None),
    )
    opened = open_files({"m.onnx": model.SerializeToString()})
    # An initializer that is listed as an input, as before IR version 4, is none that a caller has to give.
    assert opened.inputs == (TensorSignature(name="x", dtype="float32", shape=("batch", None, LARGE)),)
    assert opened.outputs == (
        TensorSignature(name="y", dtype="float32", shape=()),
        TensorSignature(name="s", dtype="sequence", shape=()),
    )


def test_what_the_reader_does_not_know_is_dropped(open_files: Open) -> None:
    # Field 2000 of the model: bytes that a newer onnxruntime might take for something.
    content = build([node("Neg", ["x"], "y")]).SerializeToString() + b"\x82\x7d\x04evil"
    assert b"evil" not in open_files({"m.onnx": content}).companions[0].content


def test_any_changed_byte_is_survived(open_files: Open) -> None:
    good = build(initializers=[numpy_helper.from_array(SHORT, "w"), external(name="v")]).SerializeToString()
    for position in range(0, len(good), 3):
        changed = bytearray(good)
        changed[position] ^= 0x15
        try:
            open_files({"m.onnx": bytes(changed), "w.bin": WEIGHTS.tobytes()})
        except ArchiveRefusedError:
            continue


def test_the_graph_and_its_weights_are_the_model(open_files: Open, tmp_path: Path) -> None:
    model = build(initializers=[numpy_helper.from_array(WEIGHTS, "w")])
    opened = open_files({"m.onnx": model.SerializeToString()})
    graph = graph_of(opened)
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(opened.tensors["w"].numpy(), "w"))
    x = np.ones((2, 3, LARGE), dtype=np.float32)
    ours, theirs = (
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for proto in (graph, model)
    )
    assert np.array_equal(ours[0], theirs[0])
