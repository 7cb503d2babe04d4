"""What every weight format promises: one suite, one entry a format."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixpeek_ray.core.errors import ArchiveRefusedError, FormatMismatchError, UnsafePickleError
from mixpeek_ray.core.records import ModelFormat
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.formats.inspect import PackedArchive, inspect_archive, pack_archive
from mixpeek_ray.formats.packed import DTYPE_NAMES, dtype_table
from mixpeek_ray.loading.open_model import DeployedModel, open_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit", "ignore:ComplexHalf"),
]
Tensors = Mapping[str, torch.Tensor]
Build = Callable[..., bytes]


@dataclass(frozen=True)
class Format:
    """How a format writes tensors into an archive's files, and finds them again in what is loaded."""

    model_format: ModelFormat
    write: Callable[[Tensors], dict[str, bytes]]
    read: Callable[[Any], Tensors]
    without: frozenset[str] = frozenset()
    # An ONNX session does not hand its weights out.
    writable: bool = True


def as_it_is(loaded: Tensors) -> Tensors:
    return loaded


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def contiguous(tensors: Tensors) -> dict[str, torch.Tensor]:
    # The safetensors library refuses tensors that share memory or have strides of their own.
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def write_sharded(tensors: Tensors) -> dict[str, bytes]:
    shards = {f"w-{i:05}-of-{len(tensors):05}.safetensors": name for i, name in enumerate(sorted(tensors), 1)}
    index = {"weight_map": {name: shard for shard, name in shards.items()}}
    files = {shard: safetensors.torch.save({name: contiguous(tensors)[name]}) for shard, name in shards.items()}
    return {**files, "w.safetensors.index.json": json.dumps(index).encode()}


class Holder(torch.nn.Module):
    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self) -> None:
        return None


def write_torchscript(tensors: Tensors) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Holder(tensors)), buffer)
    return {"model.pt": buffer.getvalue()}


def write_huggingface(tensors: Tensors) -> dict[str, bytes]:
    config = {"model_type": "bert", "architectures": ["BertModel"]}
    return {
        "my-model/config.json": json.dumps(config).encode(),
        "my-model/model.safetensors": safetensors.torch.save(contiguous(tensors), metadata={"format": "pt"}),
    }


def write_onnx(tensors: Tensors) -> dict[str, bytes]:
    nodes, outputs, weights = [], [], []
    for name, tensor in contiguous(tensors).items():
        data_type = onnx.helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype)
        weights.append(onnx.numpy_helper.from_array(tensor.numpy(), f"w_{name}"))
        nodes.append(onnx.helper.make_node("Identity", [f"w_{name}"], [name]))
        outputs.append(onnx.helper.make_tensor_value_info(name, data_type, list(tensor.shape)))
    graph = onnx.helper.make_graph(nodes, "weights", [], outputs, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return {"model.onnx": model.SerializeToString()}


def run_onnx(session: Any) -> Tensors:
    names = [output.name for output in session.get_outputs()]
    return {
        name: torch.from_numpy(value.view(value.dtype.name))
        for name, value in zip(names, session.run(names, {}), strict=True)
    }


NO_COMPLEX = frozenset({"complex32", "complex128"})
# What NumPy can name and ONNX can hold.
NOT_IN_ONNX = frozenset(name for name in DTYPE_NAMES if name.startswith(("float8", "bfloat", "complex")))
FORMATS = {
    "pytorch": Format(ModelFormat.PYTORCH, lambda tensors: {"model.pt": saved(dict(tensors))}, as_it_is),
    "checkpoint": Format(
        ModelFormat.PYTORCH, lambda tensors: {"last.ckpt": saved({"state_dict": dict(tensors), "epoch": 3})}, as_it_is
    ),
    "torchscript": Format(ModelFormat.PYTORCH, write_torchscript, lambda module: dict(module.named_buffers())),
    "safetensors": Format(
        ModelFormat.SAFETENSORS,
        lambda t: {"m.safetensors": safetensors.torch.save(contiguous(t))},
        as_it_is,
        NO_COMPLEX,
    ),
    "sharded": Format(ModelFormat.SAFETENSORS, write_sharded, as_it_is, NO_COMPLEX),
    "huggingface": Format(ModelFormat.HUGGINGFACE, write_huggingface, lambda m: m.state_dict, NO_COMPLEX),
    "onnx": Format(ModelFormat.ONNX, write_onnx, run_onnx, NOT_IN_ONNX, writable=False),
}
WEIGHTS = {"t0": torch.arange(12.0).view(3, 4), "t1": torch.ones(7, dtype=torch.int64)}

every_format = pytest.mark.parametrize("weight_format", FORMATS.values(), ids=FORMATS.keys())


def own_descriptors() -> Iterator[str]:
    return (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what loaders put on the node's disk within the test's folder; this process stands for the node's raylet."""
    monkeypatch.setenv("MIXPEEK_SPOOL_DIR", str(tmp_path_factory.mktemp("node")))
    get_settings.cache_clear()
    monkeypatch.setattr("mixpeek_ray.loading.shared_files.descriptor_paths", own_descriptors)


@pytest.fixture
def pack(build_tgz: Build, tmp_path: Path, node: None) -> Callable[[Format, Tensors], PackedArchive]:
    def pack_tensors(weight_format: Format, tensors: Tensors) -> PackedArchive:
        archive = io.BytesIO(build_tgz(weight_format.write(tensors)))
        return pack_archive(archive, weight_format.model_format, tmp_path)

    return pack_tensors


Pack = Callable[[Format, Tensors], PackedArchive]


def load(packed: PackedArchive) -> Any:
    """Return what a worker gets: the file stands for the node's object store."""
    data = packed.map_buffer()
    content_id = hashlib.sha256(packed.data_path.read_bytes() + repr(packed.index).encode()).hexdigest()
    return open_model(
        DeployedModel(
            content_id=content_id, kind=packed.contents.kind, index=packed.index, data=data,
            companions=packed.companions,
        )
    )  # fmt: skip


def as_bytes(tensor: torch.Tensor) -> bytes:
    """Return the elements' bytes: NaNs compare, and so do dtypes without an equality of their own."""
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else b""


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert as_bytes(found[name]) == as_bytes(tensor)


@st.composite
def random_tensor(draw: st.DrawFn, dtype_name: str) -> torch.Tensor:
    dtype = dtype_table()[dtype_name]
    shape: list[int] = draw(st.lists(st.integers(0, 4), max_size=3))
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=dtype).view(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    tensor = torch.frombuffer(bytearray(raw), dtype=dtype).view(shape)
    return tensor.transpose(0, -1) if tensor.dim() > 1 and draw(st.booleans()) else tensor


@every_format
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8, deadline=None)
@given(data=st.data())
def test_random_tensors_of_every_dtype_round_trip(weight_format: Format, pack: Pack, data: st.DataObject) -> None:
    names = [name for name in DTYPE_NAMES if name not in weight_format.without]
    tensors = {f"t{i}": data.draw(random_tensor(name)) for i, name in enumerate(names)}
    packed = pack(weight_format, tensors)
    try:
        assert_same(weight_format.read(load(packed)), tensors)
    finally:
        packed.data_path.unlink()


@every_format
def test_an_archive_always_packs_to_the_same(weight_format: Format, pack: Pack) -> None:
    first, second = pack(weight_format, WEIGHTS), pack(weight_format, WEIGHTS)
    assert first.data_path != second.data_path
    assert first.data_path.read_bytes() == second.data_path.read_bytes()
    assert (first.index, first.companions, first.contents) == (second.index, second.companions, second.contents)


@pytest.mark.parametrize("name", [name for name, weight_format in FORMATS.items() if weight_format.writable])
def test_a_write_through_a_view_reaches_no_one_else(name: str, pack: Pack) -> None:
    weight_format = FORMATS[name]
    packed = pack(weight_format, WEIGHTS)
    before = packed.data_path.read_bytes()
    ours, theirs = weight_format.read(load(packed)), weight_format.read(load(packed))
    for tensor in ours.values():
        tensor.zero_()
    assert all(not tensor.any() for tensor in ours.values())
    assert_same(theirs, WEIGHTS)
    assert packed.data_path.read_bytes() == before


@every_format
def test_a_model_outlives_what_it_was_loaded_from(weight_format: Format, pack: Pack) -> None:
    packed = pack(weight_format, WEIGHTS)
    model = load(packed)
    packed.data_path.unlink()
    gc.collect()
    assert_same(weight_format.read(model), WEIGHTS)


def inspect(files: dict[str, bytes], weight_format: Format, build_tgz: Build, work_dir: Path) -> None:
    try:
        inspect_archive(io.BytesIO(build_tgz(files)), weight_format.model_format, work_dir)
    finally:
        assert list(work_dir.iterdir()) == []


@every_format
def test_archives_without_weights_are_refused(weight_format: Format, build_tgz: Build, tmp_path: Path) -> None:
    with pytest.raises(FormatMismatchError, match="README"):
        inspect({"README.md": b"hello"}, weight_format, build_tgz, tmp_path)


@every_format
@pytest.mark.parametrize("other", FORMATS.values(), ids=FORMATS.keys())
def test_archives_of_another_format_are_refused(
    weight_format: Format, other: Format, build_tgz: Build, tmp_path: Path
) -> None:
    files = other.write(WEIGHTS)
    # A model directory with safetensors in it is one file of safetensors too.
    beside = {ModelFormat.HUGGINGFACE: {ModelFormat.SAFETENSORS}}.get(other.model_format, set())
    if weight_format.model_format in {other.model_format, *beside}:
        inspect(files, weight_format, build_tgz, tmp_path)
        return
    # A model directory may hold no pickle, TorchScript's included.
    with pytest.raises((FormatMismatchError, UnsafePickleError)):
        inspect(files, weight_format, build_tgz, tmp_path)


@every_format
@pytest.mark.parametrize("cut", [lambda c: b"", lambda c: c[: len(c) // 2], lambda c: b"\0" * len(c)])
def test_damaged_weight_files_are_refused(
    weight_format: Format, cut: Callable[[bytes], bytes], build_tgz: Build, tmp_path: Path
) -> None:
    files = weight_format.write(WEIGHTS)
    damaged = max(files, key=lambda name: len(files[name]))
    with pytest.raises(ArchiveRefusedError):
        inspect({**files, damaged: cut(files[damaged])}, weight_format, build_tgz, tmp_path)


@pytest.mark.parametrize("name", ["pytorch", "safetensors", "sharded", "huggingface", "torchscript"])
def test_an_optimizer_step_in_place_stays_private(name: str, pack: Pack) -> None:
    weight_format = FORMATS[name]
    start = torch.nn.Linear(4, 3).state_dict()
    packed = pack(weight_format, start)
    module = torch.nn.Linear(4, 3)
    weights = weight_format.read(load(packed))
    module.load_state_dict(weights)
    if name != "torchscript":  # its weights come in a module, not as a state dict that makes modules adopt them
        assert module.weight.data_ptr() == weights["weight"].data_ptr()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(module.weight, start["weight"])
    assert_same(weight_format.read(load(packed)), start)
