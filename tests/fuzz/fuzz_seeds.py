"""Good archives of every format, small, as the starting points of fuzzing."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import safetensors.torch
import torch

from mixpeek_ray.core.records import ModelFormat

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0)}


@dataclass(frozen=True, kw_only=True)
class Seed:
    """An archive that is accepted."""

    model_format: ModelFormat
    files: dict[str, bytes]


class Doubler(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * torch.tensor([1.0, 2.0])


def build_seeds() -> dict[str, Seed]:
    """Return the seeds by name: a format is fuzzed once it has one here."""
    shards = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")
    first, second = (safetensors.torch.save({name: WEIGHTS[name]}) for name in "ab")
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    tensors = safetensors.torch.save(WEIGHTS, metadata={"format": "pt"})
    config = json.dumps({"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 4}).encode()
    pytorch, single, huggingface, graph = (
        ModelFormat.PYTORCH, ModelFormat.SAFETENSORS, ModelFormat.HUGGINGFACE, ModelFormat.ONNX,
    )  # fmt: skip
    return {
        "pytorch": Seed(model_format=pytorch, files={"m.pt": _saved({"state_dict": WEIGHTS, "epoch": 1})}),
        "torchscript": Seed(model_format=pytorch, files={"m.pt": _program()}),
        "safetensors": Seed(model_format=single, files={"m.safetensors": tensors}),
        "sharded": Seed(
            model_format=single, files={shards[0]: first, shards[1]: second, "m.safetensors.index.json": index}
        ),
        "huggingface": Seed(model_format=huggingface, files={"m/config.json": config, "m/model.safetensors": tensors}),
        "onnx": Seed(model_format=graph, files={"m.onnx": _graph()}),
        "onnx with external data": Seed(
            model_format=graph, files={"m.onnx": _graph(external="m.data"), "m.data": bytes(64)}
        ),
    }


def build_tar(files: Mapping[str, bytes]) -> bytes:
    """Return an uncompressed tar, with extended headers as packing real files makes them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mtime = len(content), 1_700_000_000.25
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _program() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(Doubler(), torch.zeros(1, 3)), buffer)
    return buffer.getvalue()


def _graph(external: str | None = None) -> bytes:
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [4, 4], bytes(64), raw=True)
    if external is not None:
        onnx.external_data_helper.set_external_data(tensor, external, offset=0, length=64)
        tensor.ClearField("raw_data")
    shape = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", shape[:1], shape[1:], [tensor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()
