"""From an archive to its description or its packed weights, and nothing left behind (hardening.md row 13)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from mixpeek_ray.core.errors import (
    CorruptArchiveError,
    CorruptStoreError,
    DecompressionLimitError,
    FormatMismatchError,
    InvalidWeightsError,
    MixpeekError,
    UnsafePickleError,
)
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.records import FileInfo, ModelFormat, ModelKind
from mixpeek_ray.formats.inspect import inspect_archive, pack_archive
from mixpeek_ray.formats.packed import view

Build = Callable[..., bytes]
MODEL = torch.nn.Linear(768, 256)


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def weights_of(model_format: ModelFormat, torch_file: Build) -> tuple[str, bytes]:
    if model_format is ModelFormat.PYTORCH:
        return "my_model.pt", torch_file(MODEL.state_dict())
    return "my_model.safetensors", save(dict(MODEL.state_dict()))


@pytest.mark.parametrize("model_format", [ModelFormat.PYTORCH, ModelFormat.SAFETENSORS])
def test_inspecting_describes_the_weights(
    model_format: ModelFormat, build_tgz: Build, torch_file: Build, work_dir: Path
) -> None:
    name, content = weights_of(model_format, torch_file)
    archive = build_tgz({"README.md": b"hi", f"sub/{name}": content, f"sub/._{name}": b"AppleDouble"})
    contents = inspect_archive(io.BytesIO(archive), model_format, work_dir)
    assert contents.files == (
        FileInfo(path="README.md", size_bytes=2),
        FileInfo(path=f"sub/{name}", size_bytes=len(content)),
        FileInfo(path=f"sub/._{name}", size_bytes=11),
    )
    assert (contents.tensor_count, contents.parameter_count) == (2, 768 * 256 + 256)
    assert contents.dtypes == ("float32",)
    assert 4 * (768 * 256 + 256) <= contents.weights_bytes <= len(content)
    assert list(work_dir.iterdir()) == []


@pytest.mark.parametrize("model_format", [ModelFormat.PYTORCH, ModelFormat.SAFETENSORS])
def test_packing_leaves_the_packed_weights_alone(
    model_format: ModelFormat, build_tgz: Build, torch_file: Build, work_dir: Path
) -> None:
    archive = build_tgz(dict([weights_of(model_format, torch_file)]))
    packed = pack_archive(
        io.BytesIO(archive), model_format, work_dir, expected_sha256=hashlib.sha256(archive).hexdigest()
    )
    assert list(work_dir.iterdir()) == [packed.data_path]
    weights = view(packed.index, bytearray(packed.map_buffer()))
    assert torch.equal(weights["weight"], MODEL.weight)
    assert packed.contents == inspect_archive(io.BytesIO(archive), model_format, work_dir)


def test_tied_weights_count_once(build_tgz: Build, torch_file: Build, work_dir: Path) -> None:
    tied = torch.zeros(10)
    archive = build_tgz({"m.bin": torch_file({"a": tied, "b": tied, "c": torch.zeros(3, dtype=torch.bfloat16)})})
    contents = inspect_archive(io.BytesIO(archive), ModelFormat.PYTORCH, work_dir)
    assert (contents.tensor_count, contents.parameter_count) == (3, 13)
    assert contents.dtypes == ("bfloat16", "float32")


MISMATCHES = {
    "no weight file": ([], "README"),
    "two candidates": (["a.pt", "b.pth"], "'a.pt', 'b.pth'"),
    "another format": (["model.safetensors"], "'model.safetensors' looks like a safetensors file"),
    "another format beside it": (["a.pt", "model.onnx"], "'a.pt', 'model.onnx'"),
    "an AppleDouble file alone": (["._a.pt"], r"\._a\.pt"),
}


@pytest.mark.parametrize(("names", "said"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_exactly_one_weight_file(names: list[str], said: str, build_tgz: Build, work_dir: Path) -> None:
    archive = build_tgz(dict.fromkeys(["README", "config.json", *names], b"x"))
    with pytest.raises(FormatMismatchError, match=said):
        inspect_archive(io.BytesIO(archive), ModelFormat.PYTORCH, work_dir)
    assert list(work_dir.iterdir()) == []


@pytest.mark.parametrize("function", [inspect_archive, pack_archive])
def test_bad_weights_leave_nothing(
    function: Callable[..., object], build_tgz: Build, torch_file: Build, touch_canary: type, work_dir: Path
) -> None:
    good = torch_file({"x": torch.zeros(4)})
    canary = work_dir.parent / "canary"
    cases: dict[type[MixpeekError], bytes] = {
        UnsafePickleError: build_tgz({"m.pt": torch_file(touch_canary(canary))}),
        InvalidWeightsError: build_tgz({"m.pt": torch_file({"x": torch.zeros(1).expand(10**9)})}),
        CorruptArchiveError: build_tgz({"m.pt": good})[:-5],
        DecompressionLimitError: build_tgz({"m.pt": bytes(80 * MIB)}),
    }
    for error, archive in cases.items():
        with pytest.raises(error):
            function(io.BytesIO(archive), ModelFormat.PYTORCH, work_dir)
        assert list(work_dir.iterdir()) == []
    assert not canary.exists()


def test_a_killed_packing_leaves_nothing(
    build_tgz: Build, torch_file: Build, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object, **_: object) -> None:
        *_, data_path, companions_path = arguments
        data_path.write_bytes(b"half")
        companions_path.write_bytes(b"half")
        raise DecompressionLimitError("too slow")

    monkeypatch.setattr("mixpeek_ray.formats.inspect.run_limited", killed)
    with pytest.raises(DecompressionLimitError):
        pack_archive(io.BytesIO(build_tgz({"m.pt": b"x"})), ModelFormat.PYTORCH, work_dir)
    assert list(work_dir.iterdir()) == []


def test_a_model_directory_travels_whole(build_tgz: Build, work_dir: Path) -> None:
    weights = {"embeddings.weight": torch.randn(30, 8), "out.weight": torch.randn(8, 8, dtype=torch.float64)}
    config = json.dumps({"model_type": "bert", "architectures": ["BertModel"]}).encode()
    archive = build_tgz({"m/config.json": config, "m/vocab.txt": b"[PAD]\n", "m/model.safetensors": save(weights)})
    packed = pack_archive(io.BytesIO(archive), ModelFormat.HUGGINGFACE, work_dir)
    assert {companion.path: companion.content for companion in packed.companions} == {
        "config.json": config,
        "vocab.txt": b"[PAD]\n",
    }
    assert packed.contents == inspect_archive(io.BytesIO(archive), ModelFormat.HUGGINGFACE, work_dir)
    assert (packed.contents.kind, packed.contents.architecture) == (ModelKind.HUGGINGFACE, "BertModel")
    assert packed.contents.parameter_count == 30 * 8 + 8 * 8
    assert len(packed.contents.files) == 3
    viewed = view(packed.index, bytearray(packed.map_buffer()))
    assert all(torch.equal(viewed[name], tensor) for name, tensor in weights.items())
    assert list(work_dir.iterdir()) == [packed.data_path]


def test_too_much_beside_the_weights_is_refused(
    build_tgz: Build, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(function: Callable[..., object], *arguments: object, **_: object) -> object:
        return function(*arguments)

    monkeypatch.setattr("mixpeek_ray.formats.inspect.run_limited", here)
    monkeypatch.setattr("mixpeek_ray.formats.inspect.MAX_COMPANION_BYTES", 10)
    files = {"config.json": b'{"model_type": "bert"}', "model.safetensors": save({"x": torch.zeros(4)})}
    with pytest.raises(InvalidWeightsError, match="more than the 10"):
        pack_archive(io.BytesIO(build_tgz(files)), ModelFormat.HUGGINGFACE, work_dir)
    assert list(work_dir.iterdir()) == []


@pytest.mark.parametrize("claim", ["../other", "m.pt/../../other", "other"])
def test_a_forged_answer_of_the_sandbox_moves_no_other_file(
    claim: str, build_tgz: Build, torch_file: Build, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work_dir / "other").write_bytes(b"somebody's")

    def forged(function: Callable[..., Any], *arguments: object, **_: object) -> object:
        return replace(function(*arguments), in_place=claim)

    monkeypatch.setattr("mixpeek_ray.formats.inspect.run_limited", forged)
    with pytest.raises(InvalidWeightsError):
        pack_archive(io.BytesIO(build_tgz({"m.pt": torch_file({"x": torch.zeros(4)})})), ModelFormat.PYTORCH, work_dir)
    assert (work_dir / "other").read_bytes() == b"somebody's"


@pytest.mark.parametrize("function", [inspect_archive, pack_archive])
def test_a_changed_archive_leaves_nothing(
    function: Callable[..., object], build_tgz: Build, torch_file: Build, work_dir: Path
) -> None:
    archive = build_tgz({"m.pt": torch_file({"x": torch.zeros(4)})})
    with pytest.raises(CorruptStoreError):
        function(io.BytesIO(archive), ModelFormat.PYTORCH, work_dir, expected_sha256="0" * 64)
    assert list(work_dir.iterdir()) == []


@pytest.mark.parametrize(
    "program", [b"\x80\x02" + b"]" * (7 * MIB) + b".", b"\x80\x02r" + b"\xff\xff\xff\x7f" + b"."], ids=["lists", "memo"]
)
def test_pickle_bombs_end_in_time_and_memory(
    program: bytes, build_tgz: Build, torch_file: Build, work_dir: Path
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    started = time.monotonic()
    before = peak_bytes()
    with pytest.raises((InvalidWeightsError, FormatMismatchError, UnsafePickleError, DecompressionLimitError)):
        inspect_archive(io.BytesIO(build_tgz({"m.pt": buffer.getvalue()})), ModelFormat.PYTORCH, work_dir)
    assert time.monotonic() - started < 10
    assert peak_bytes() - before < 128 * MIB


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_full_disk_is_said_and_leaves_nothing(
    build_tgz: Build, torch_file: Build, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("mixpeek_ray.formats.tarball.os.write", full)
    with pytest.raises(MixpeekError) as caught:
        inspect_archive(io.BytesIO(build_tgz({"m.pt": b"x"})), ModelFormat.PYTORCH, work_dir)
    assert caught.value.code == "disk_full"
    assert list(work_dir.iterdir()) == []
