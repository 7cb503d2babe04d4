"""Archives of pytorch and safetensors files as users have them: shards, an index, training checkpoints (row 13)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mixpeek_ray.core.errors import ArchiveRefusedError, FormatMismatchError, InvalidWeightsError, UnsafePathError
from mixpeek_ray.core.records import FileInfo
from mixpeek_ray.formats.base import OpenedModel
from mixpeek_ray.formats.pytorch import PyTorchFormat
from mixpeek_ray.formats.safetensors import SafetensorsFormat

MODEL = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
WEIGHTS = MODEL.state_dict()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def tensors(**values: float) -> bytes:
    return safetensors.torch.save({name: torch.full((2,), value) for name, value in values.items()})


def index(**homes: str) -> bytes:
    return json.dumps({"metadata": {"total_size": 16}, "weight_map": homes}).encode()


@pytest.fixture
def open_files(tmp_path: Path) -> Callable[..., OpenedModel]:
    def open_archive(files: dict[str, bytes], weight_format: Any = None) -> OpenedModel:
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
        infos = [FileInfo(path=path, size_bytes=len(content)) for path, content in files.items()]
        return (weight_format or SafetensorsFormat()).open(tmp_path, infos)

    return open_archive


Open = Callable[..., OpenedModel]
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt", "PT"])
def test_every_ending(ending: str, open_files: Open) -> None:
    assert list(open_files({f"m.{ending}": saved(WEIGHTS)}, PyTorchFormat()).tensors) == list(WEIGHTS)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_training_checkpoints_give_their_weights(key: str, open_files: Open) -> None:
    optimizer = torch.optim.Adam(MODEL.parameters())
    MODEL(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    weights = MODEL.state_dict()
    checkpoint = {
        key: weights, "optimizer_state_dict": optimizer.state_dict(), "epoch": 3, "loss": 0.5,
        "hyper_parameters": {"lr": 1e-3, "layers": [3, 4]}, "pytorch-lightning_version": "2.5",
    }  # fmt: skip
    opened = open_files({"last.ckpt": saved(checkpoint)}, PyTorchFormat())
    assert list(opened.tensors) == list(weights)
    assert all(torch.equal(opened.tensors[name], weights[name]) for name in weights)
    assert opened.tensors._metadata == weights._metadata  # type: ignore[attr-defined]


def test_names_stay_as_they_are(open_files: Open) -> None:
    # DataParallel's prefix: whoever loads them knows whether the module is wrapped.
    opened = open_files({"m.pt": saved({"module.weight": torch.ones(2)})}, PyTorchFormat())
    assert list(opened.tensors) == ["module.weight"]


OPTIMIZER = torch.optim.Adam([torch.zeros(2, requires_grad=True)]).state_dict()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (OPTIMIZER, r"optimizer.*model\.state_dict\(\)"),
        ({"optimizer_state_dict": OPTIMIZER, "epoch": 3}, r"optimizer.*model\.state_dict\(\)"),
        ({"state_dict": OPTIMIZER}, r"optimizer.*model\.state_dict\(\)"),
        ({"model": {"w": torch.ones(2)}, "state_dict": {"w": torch.ones(2)}}, "'state_dict' and 'model'"),
    ],
    ids=["alone", "with counters", "in place of weights", "two models"],
)
def test_checkpoints_without_one_set_of_weights(value: Any, said: str, open_files: Open) -> None:
    with pytest.raises(FormatMismatchError, match=said):
        open_files({"m.pt": saved(value)}, PyTorchFormat())


def test_a_parameter_may_be_called_like_an_optimizer(open_files: Open) -> None:
    weights = {"optimizer.weight": torch.ones(2), "state": torch.ones(1), "model": torch.ones(1)}
    assert list(open_files({"m.pt": saved(weights)}, PyTorchFormat()).tensors) == list(weights)


def test_shards_are_one_model(open_files: Open) -> None:
    files = {f"m/{TWO}": tensors(c=3), f"m/{ONE}": tensors(b=2, a=1), "m/config.json": b"{}", f"m/._{ONE}": b"x"}
    opened = open_files(files)
    assert {name: tensor[0].item() for name, tensor in opened.tensors.items()} == {"a": 1, "b": 2, "c": 3}
    assert list(opened.tensors)[-1] == "c"
    assert opened.weight_file is None
    indexed = {**files, "m/model.safetensors.index.json": index(a=ONE, b=ONE, c=TWO)}
    assert list(open_files(indexed).tensors) == list(opened.tensors)


def test_pytorch_shards_keep_their_versions(open_files: Open) -> None:
    first, second = MODEL.state_dict(), MODEL.state_dict()
    for name in list(WEIGHTS):
        del (second if name.startswith("0.") else first)[name]
    files = {"pytorch_model-00001-of-00002.bin": saved(first), "pytorch_model-00002-of-00002.bin": saved(second)}
    opened = open_files(files, PyTorchFormat())
    assert sorted(opened.tensors) == sorted(WEIGHTS)
    assert opened.tensors._metadata["1"] == {"version": 2}  # type: ignore[attr-defined]
    torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).load_state_dict(opened.tensors)


def test_an_index_makes_files_of_any_name_one_model(open_files: Open) -> None:
    files = {"body.safetensors": tensors(a=1), "head.safetensors": tensors(b=2)}
    opened = open_files({**files, "my.index.json": index(a="body.safetensors", b="head.safetensors")})
    assert list(opened.tensors) == ["a", "b"]


MISMATCHES = {
    "two files": ({"a.safetensors": b"", "b.safetensors": b""}, "'a.safetensors', 'b.safetensors'"),
    "two models": ({ONE: b"", "other-00002-of-00002.safetensors": b""}, "2 weight files"),
    "two folders": ({f"x/{ONE}": b"", f"y/{TWO}": b""}, "2 weight files"),
    "two endings": ({ONE: b"", "model-00002-of-00002.bin": b""}, "2 weight files"),
    "a shard and the whole": ({ONE: b"", TWO: b"", "model.safetensors": b""}, "3 weight files"),
    "a shard missing": ({ONE: b"", "model-00003-of-00003.safetensors": b""}, "2 weight files"),
    "the second of two missing": ({ONE: b""}, "number 2 is missing"),
    "the middle missing": (
        {"m-1-of-3.safetensors": b"", "m-3-of-3.safetensors": b""}, "3 shards.*holds 2.*number 2 is missing",
    ),
    "too many": ({"m-1-of-1.safetensors": b"", "m-2-of-1.safetensors": b""}, "1 shards"),
    "one number twice": ({"m-1-of-2.safetensors": b"", "m-01-of-2.safetensors": b""}, "2 weight files"),
    "ten thousand missing": ({"m-1-of-99999.safetensors": b""}, "number 2 is missing"),
    "none": ({"model.safetensors.index.json": b"{}"}, "No weight file"),
    "index in another folder": (
        {"a.safetensors": b"", "b.safetensors": b"", "x/y.index.json": b""}, "2 weight files",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "said"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_files_that_are_not_one_model(files: dict[str, bytes], said: str, open_files: Open) -> None:
    with pytest.raises(FormatMismatchError, match=said) as caught:
        open_files(files)
    assert caught.value.message.isascii()


def test_a_name_in_two_shards(open_files: Open) -> None:
    with pytest.raises(InvalidWeightsError, match="'a' is in two shards"):
        open_files({ONE: tensors(a=1), TWO: tensors(a=2)})


INDEXES: dict[str, tuple[bytes, type[ArchiveRefusedError]]] = {
    "tensor in another shard": (index(a=TWO, b=TWO), InvalidWeightsError),
    "tensor missing": (index(a=ONE, b=TWO, c=TWO), InvalidWeightsError),
    "tensor left out": (index(a=ONE), InvalidWeightsError),
    "file that is not there": (index(a=ONE, b="z.safetensors"), InvalidWeightsError),
    "parent folder": (index(a=ONE, b=f"../{TWO}"), UnsafePathError),
    "absolute": (index(a=ONE, b="/etc/passwd"), UnsafePathError),
    "backslash": (index(a=ONE, b=f"..\\{TWO}"), UnsafePathError),
    "folder itself": (index(a=ONE, b=".."), UnsafePathError),
    "no text": (b'{"weight_map": {"a": 1}}', InvalidWeightsError),
    "no map": (b'{"weight_map": []}', InvalidWeightsError),
    "empty map": (b'{"weight_map": {}}', InvalidWeightsError),
    "a list": (b"[]", InvalidWeightsError),
    "no JSON": (b"{", InvalidWeightsError),
    "not UTF-8": (b"\xff\xfe\xfd", InvalidWeightsError),
    "deep": (b"[" * 100_000, InvalidWeightsError),
    "a name twice": (b'{"weight_map": {"a": "x", "a": "y"}}', InvalidWeightsError),
    "huge": (b" " * (9 << 20), InvalidWeightsError),
}


@pytest.mark.parametrize(("content", "error"), INDEXES.values(), ids=INDEXES.keys())
def test_indexes_that_contradict_the_shards(content: bytes, error: type[ArchiveRefusedError], open_files: Open) -> None:
    with pytest.raises(error) as caught:
        open_files({ONE: tensors(a=1), TWO: tensors(b=2), "model.safetensors.index.json": content})
    assert caught.value.message.isascii()
