"""Which files of a directory a model needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mixpeek_ray.registry.builtin_files import needed, needed_files

SMALL = ["1_Pooling/config.json", "config.json", "modules.json", "tokenizer.json", "vocab.txt"]


def test_settings_vocabularies_and_modules_are_needed() -> None:
    assert needed([*SMALL, "1_Dense/model.safetensors", "model.safetensors"]) == [
        "1_Dense/model.safetensors",
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
        "vocab.txt",
    ]


def test_one_form_of_the_weights_is_enough() -> None:
    both = ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "model.fp16.safetensors"]
    assert needed(both) == ["model.safetensors"]
    assert needed(["pytorch_model.bin", "tf_model.h5"]) == ["pytorch_model.bin"]
    assert needed(["model.safetensors", "1_Dense/pytorch_model.bin"]) == [
        "1_Dense/pytorch_model.bin",
        "model.safetensors",
    ]


def test_all_shards_are_needed() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert needed([*shards, "pytorch_model-00001-of-00001.bin"]) == shards


@pytest.mark.parametrize(
    "path",
    [
        "modeling.py", "README.md", ".gitattributes", ".cache/config.json", "onnx/config.json", "training_args.bin",
        "optimizer.pt", "../config.json", "1_Pooling/../../config.json", "/etc/config.json",
        "1_Pooling/deep/config.json",
        "a\\config.json", "config.json\n", "1_Pooling\n/config.json", "..json", "",
    ],
)  # fmt: skip
def test_nothing_else_is(path: str) -> None:
    assert needed([path]) == []


def test_of_a_directory_only_files_count(tmp_path: Path) -> None:
    elsewhere = tmp_path / "blob"
    elsewhere.write_bytes(b"12345")
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "tokenizer.json").mkdir()
    os.mkfifo(folder / "vocab.txt")
    # As in the hub's cache, where files are links.
    (folder / "model.safetensors").symlink_to(elsewhere)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    found = {file.path: file.size_bytes for file in needed_files(folder)}
    assert found == {"1_Pooling/config.json": 2, "config.json": 2, "model.safetensors": 5}
