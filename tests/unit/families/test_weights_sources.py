"""Directories of weights in each of the shapes that transformers saves."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.families.tokens import TextTokenizer
from mixpeek_ray.families.weights import DirectoryWeights, read_config


@pytest.fixture
def saved(tiny_model):
    folder = tiny_model("bert")
    return folder, load_file(folder / "model.safetensors")


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_file(saved):
    folder, weights = saved
    assert same(DirectoryWeights(path=folder).state_dict, weights)


def test_shards(saved, tmp_path):
    _, weights = saved
    names = sorted(weights)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: weights[name] for name in members}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(DirectoryWeights(path=tmp_path).state_dict, weights)


def test_a_pickle_is_read_without_running_it(saved, tmp_path):
    _, weights = saved
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert same(DirectoryWeights(path=tmp_path).state_dict, weights)


def test_a_directory_without_weights_says_what_it_needs(tmp_path):
    with pytest.raises(InvalidWeightsError, match=r"model\.safetensors or pytorch_model\.bin"):
        DirectoryWeights(path=tmp_path).state_dict  # noqa: B018


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_config_that_cannot_be_read_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InvalidWeightsError, match=r"config\.json"):
        read_config(DirectoryWeights(path=tmp_path))


def test_a_tokenizer_that_is_not_there_is_named(saved, tmp_path):
    shutil.copy(saved[0] / "config.json", tmp_path)
    with pytest.raises(InvalidWeightsError, match=r"put tokenizer\.json beside") as problem:
        TextTokenizer(DirectoryWeights(path=tmp_path))
    assert str(tmp_path) not in problem.value.message


def test_a_tokenizer_of_another_model_is_refused(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(InvalidWeightsError, match="the model only 100"):
        TextTokenizer(DirectoryWeights(path=tmp_path))
