"""Sessions over prepared models: the ordinary session's results, from weights that workers share."""

from __future__ import annotations

import json
import mmap
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mixpeek_ray.core.errors import InvalidWeightsError, ValidationError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.records import FileInfo
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.formats.base import Companion
from mixpeek_ray.formats.onnx_files import GRAPH_FILE, optimized_model
from mixpeek_ray.formats.onnx_model import OnnxFormat
from mixpeek_ray.formats.packed import WeightIndex, pack
from mixpeek_ray.loading import onnx_session
from mixpeek_ray.loading.onnx_session import open_onnx

WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A packed model, as a worker gets it."""

    index: WeightIndex
    path: Path
    companions: tuple[Companion, ...]

    def data(self) -> memoryview:
        if self.index.total_bytes == 0:
            # As the object store hands an empty array out: not every operation on its memory is possible.
            return np.empty(0, np.uint8).data
        with self.path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))

    def open(self, key: str = "key", **options: Any) -> Any:
        return open_onnx(self.index, self.data(), self.companions, key, **options)


Pack = Callable[[ModelProto], Packed]


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MIXPEEK_SPOOL_DIR", str(tmp_path / "spool"))
    get_settings.cache_clear()
    yield tmp_path / "spool"
    get_settings.cache_clear()


@pytest.fixture
def pack_model(tmp_path: Path) -> Pack:
    def pack_one(model: ModelProto, *, beside: bool = False) -> Packed:
        folder = tmp_path / "archive"
        folder.mkdir()
        onnx.save(model, folder / "m.onnx", save_as_external_data=beside, location="m.data", size_threshold=0)
        files = [FileInfo(path=path.name, size_bytes=path.stat().st_size) for path in folder.iterdir()]
        opened = OnnxFormat().open(folder, files)
        index = pack(opened.tensors, tmp_path / "packed")
        return Packed(index=index, path=tmp_path / "packed", companions=opened.companions)

    return pack_one


def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, [output], **attributes)


def weight(name: str, *shape: int, seed: int = 0) -> TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return numpy_helper.from_array(values / np.float32(shape[0]), name)


def build(nodes: list[NodeProto], initializers: list[TensorProto], shape: list[Any] | None = None) -> ModelProto:
    """Return a model from `x` to `y`."""
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def layers(count: int, width: int = WIDTH) -> ModelProto:
    nodes, initializers = [], []
    for number in range(count):
        ins = "x" if number == 0 else f"h{number - 1}"
        initializers += [weight(f"w{number}", width, width, seed=number), weight(f"b{number}", width)]
        nodes += [
            node("Gemm", [ins, f"w{number}", f"b{number}"], f"g{number}"),
            node("Relu", [f"g{number}"], "y" if number == count - 1 else f"h{number}"),
        ]
    return build(nodes, initializers, ["batch", width])


def convolution() -> ModelProto:
    nodes = [
        node("Conv", ["x", "w"], "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "s", "b", "m", "v"], "y"),
    ]
    ones = [
        numpy_helper.from_array(np.full(32, value, np.float32), name)
        for name, value in zip("sbmv", (2, 1, 0.5, 3), strict=True)
    ]
    return build(nodes, [weight("w", 32, 16, 3, 3), *ones], ["batch", 16, 8, 8])


def branches() -> ModelProto:
    """Return a model with weights in the graphs of both branches, and in a constant."""

    def branch(seed: int) -> onnx.GraphProto:
        output = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
        return helper.make_graph(
            [node("MatMul", ["k", "w"], "o")], "b", [], [output], [weight("w", WIDTH, WIDTH, seed=seed)]
        )

    nodes = [
        node("ReduceSum", ["x"], "sum", keepdims=0),
        node("Constant", [], "zero", value=numpy_helper.from_array(np.float32(0))),
        node("Constant", [], "bias", value=weight("", 64, WIDTH)),
        node("ReduceMean", ["bias"], "mean", keepdims=0),
        node("Add", ["x", "mean"], "k"),
        node("Greater", ["sum", "zero"], "positive"),
        node("If", ["positive"], "y", then_branch=branch(1), else_branch=branch(2)),
    ]
    return build(nodes, [])


def quantized() -> ModelProto:
    """Return a model with int8 and 4-bit weights."""
    values = np.random.default_rng(0).integers(-8, 8, (WIDTH, WIDTH), dtype=np.int8)
    four_bits = helper.make_tensor("q4", TensorProto.INT4, values.shape, values.flatten())
    scale = numpy_helper.from_array(np.float32(0.01), "scale")
    nodes = [
        node("DequantizeLinear", ["q8", "scale"], "w8"), node("MatMul", ["x", "w8"], "h"),
        node("DequantizeLinear", ["q4", "scale"], "w4"), node("MatMul", ["h", "w4"], "y"),
    ]  # fmt: skip
    model = build(nodes, [numpy_helper.from_array(values, "q8"), four_bits, scale])
    model.opset_import[0].version = 21
    return model


def half() -> ModelProto:
    model = layers(2)
    for initializer in model.graph.initializer:
        initializer.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(initializer).astype(np.float16), initializer.name)
        )
    model.graph.node.insert(0, node("Cast", ["x"], "x16", to=TensorProto.FLOAT16))
    model.graph.node[1].input[0] = "x16"
    model.graph.node[-1].output[0] = "y16"
    model.graph.node.append(node("Cast", ["y16"], "y", to=TensorProto.FLOAT))
    return model


MODELS = {
    "layers": layers(3),
    "convolution": convolution(),
    "branches": branches(),
    "quantized": quantized(),
    "half": half(),
    "no weights": build([node("Neg", ["x"], "y")], []),
}


def inputs_for(model: ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    shape = [axis.dim_value or 3 for axis in model.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(5).standard_normal(shape, dtype=np.float32)}


def ordinary(model: ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("beside", [False, True], ids=["inside", "beside"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_results_are_those_of_an_ordinary_session(
    model: ModelProto, beside: bool, pack_model: Any, spool: Path
) -> None:
    expected = ordinary(model)
    session = pack_model(model, beside=beside).open(threads=1)
    for inputs in (inputs_for(model), {"x": -inputs_for(model)["x"]}):
        assert np.array_equal(session.run(None, inputs)[0], expected.run(None, inputs)[0])
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        (value.name, value.type, value.shape) for value in expected.get_inputs()
    ]
    # Prepared, not the fallback; and nothing but what sessions need is kept.
    (files,) = spool.glob("models/*/files")
    assert [path.name for path in files.iterdir()] == ["optimized"]
    assert optimized_model(files).exists()


def test_the_packed_weights_are_needed_for_the_first_session_only(pack_model: Pack) -> None:
    packed = pack_model(layers(1))
    inputs = inputs_for(layers(1))
    first = packed.open("same").run(None, inputs)[0]
    packed.path.unlink()
    again = open_onnx(packed.index, b"", packed.companions, "same")
    assert np.array_equal(again.run(None, inputs)[0], first)


def test_where_optimizing_fails_the_session_works_all_the_same(
    pack_model: Pack, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack_model(layers(2))
    # A process that writes the plain model, then dies half-way through optimizing it.
    dying = (
        "import json, os, sys; from mixpeek_ray.formats import onnx_prepare as p; from pathlib import Path; "
        "p._optimize = lambda folder, threads: (folder.joinpath('optimized').mkdir(), os.abort()); p.main()"
    )
    run = subprocess.run
    monkeypatch.setattr(
        onnx_session.subprocess, "run", lambda command, **options: run([*command[:2], "-c", dying], **options)
    )
    session = packed.open(threads=1)
    assert np.array_equal(
        session.run(None, inputs_for(layers(2)))[0], ordinary(layers(2)).run(None, inputs_for(layers(2)))[0]
    )
    (files,) = spool.glob("models/*/files")
    assert sorted(path.name for path in files.iterdir()) == ["plain.onnx", "weights"]


def test_a_model_that_cannot_be_prepared_leaves_nothing(pack_model: Pack, spool: Path) -> None:
    packed = pack_model(layers(1))
    broken = (Companion(path=GRAPH_FILE, content=b"\xff"),)
    with pytest.raises(InvalidWeightsError):
        open_onnx(packed.index, packed.data(), broken, "key")
    assert not list(spool.glob("models/*/*"))


def test_providers_that_are_not_there_are_named(pack_model: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_model(layers(1))
    with pytest.raises(ValidationError, match="NoSuchExecutionProvider"):
        packed.open(providers=["NoSuchExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setenv("MIXPEEK_ONNX_PROVIDERS", "OtherExecutionProvider")
    get_settings.cache_clear()
    with pytest.raises(ValidationError, match="OtherExecutionProvider"):
        packed.open()


def test_several_providers_get_the_plain_model(pack_model: Pack, spool: Path) -> None:
    model = layers(2)
    # Every build of onnxruntime has one more, which takes only nodes that ask for it.
    others = [name for name in onnxruntime.get_available_providers() if name != "CPUExecutionProvider"]
    session = pack_model(model).open(providers=[*others, "CPUExecutionProvider"], threads=1)
    assert np.array_equal(session.run(None, inputs_for(model))[0], ordinary(model).run(None, inputs_for(model))[0])
    (files,) = spool.glob("models/*/files")
    assert sorted(path.name for path in files.iterdir()) == ["plain.onnx", "weights"]


def test_threads_come_from_the_call_the_setting_or_the_worker(
    pack_model: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack_model(layers(1))

    def threads(**options: Any) -> int:
        get_settings.cache_clear()
        return int(packed.open(**options).get_session_options().intra_op_num_threads)

    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert threads() == 3
    monkeypatch.setenv("MIXPEEK_ONNX_THREADS", "2")
    assert threads() == 2
    assert threads(threads=1) == 1
    monkeypatch.delenv("MIXPEEK_ONNX_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert threads() == 0


# Opens the model, runs it, and says how much anonymous memory opening it took; ends when told to.
WORKER = """
import json, mmap, pickle, sys
import numpy as np, onnxruntime
from mixpeek_ray.loading.onnx_session import open_onnx

def anonymous():
    rows = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("Anonymous:"))

index, companions, path = pickle.load(sys.stdin.buffer)
with open(path, "rb") as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
before = anonymous()
session = open_onnx(index, data, companions, sys.argv[1], threads=1)
taken = anonymous() - before
out = session.run(None, {"x": np.ones((1, session.get_inputs()[0].shape[1]), np.float32)})[0]
print(json.dumps({"taken": taken, "sum": float(out.astype(np.float64).sum())}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_a_further_worker_holds_little_of_its_own(pack_model: Pack) -> None:
    model = layers(8, width=2048)  # 128 MiB of weights
    packed = pack_model(model)
    request = pickle.dumps((packed.index, packed.companions, str(packed.path)))
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", WORKER, "shared"], input=request, stdout=subprocess.PIPE, check=True, timeout=100
        )
        said.append(json.loads(done.stdout))
    assert packed.index.total_bytes > 128 * MIB
    # An ordinary session takes 1.4 times the weights; each matrix whose reordered copy stays with the allocator 12%.
    assert max(answer["taken"] for answer in said) < 0.05 * packed.index.total_bytes
    expected = ordinary(model).run(None, {"x": np.ones((1, 2048), np.float32)})[0].astype(np.float64).sum()
    assert {answer["sum"] for answer in said} == {expected}
