"""Model directories, as libraries write them and as attackers do (hardening.md rows 13, 14 and 18)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mixpeek_ray.core.errors import (
    ArchiveRefusedError,
    FormatMismatchError,
    InvalidWeightsError,
    RemoteCodeNotAllowedError,
    UnsafePathError,
    UnsafePickleError,
)
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.records import FileInfo, ModelKind
from mixpeek_ray.formats.base import OpenedModel
from mixpeek_ray.formats.huggingface import HuggingFaceFormat

Files = dict[str, bytes]
Open = Callable[[Mapping[str, bytes]], OpenedModel]
Save = Callable[..., bytes]

TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
DENSE = "sentence_transformers.base.modules.dense.Dense"
ROUTER = "sentence_transformers.base.modules.router.Router"


def text(content: Any) -> bytes:
    return json.dumps(content).encode()


def tensors(*names: str) -> bytes:
    return safetensors.torch.save({name: torch.full((2,), float(number)) for number, name in enumerate(names)})


def plain(**settings: Any) -> Files:
    """Return the smallest directory that is a model, with more settings in its config.json."""
    config = {"model_type": "bert", "architectures": ["BertModel"], **settings}
    return {"config.json": text(config), "model.safetensors": tensors("weight")}


def sentence(*modules: tuple[str, str], **more: bytes) -> Files:
    """Return a directory of sentence-transformers with (path, type) modules."""
    listed = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(modules)]
    return {**plain(), "modules.json": text(listed), **more}


@pytest.fixture
def open_files(tmp_path: Path) -> Open:
    def open_mapping(files: Mapping[str, bytes]) -> OpenedModel:
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
        listed = [FileInfo(path=path, size_bytes=len(content)) for path, content in files.items()]
        return HuggingFaceFormat().open(tmp_path, listed)

    return open_mapping


def test_a_directory_opens(open_files: Open, tmp_path: Path) -> None:
    files = {**plain(), "tokenizer.json": b"{}", "vocab.txt": b"a", "README.md": b"#", "trainer_state.json": b"{}"}
    opened = open_files(files)
    assert (opened.kind, opened.architecture) == (ModelKind.HUGGINGFACE, "BertModel")
    assert [(name, tensor.tolist()) for name, tensor in opened.tensors.items()] == [("weight", [0.0, 0.0])]
    assert {companion.path: companion.content for companion in opened.companions} == {
        path: files[path] for path in ("config.json", "tokenizer.json", "vocab.txt")
    }
    assert opened.weight_file == tmp_path / "model.safetensors"


@pytest.mark.parametrize("beside", [(), ("._my-model", ".DS_Store", "__MACOSX/my-model/._config.json")])
def test_one_directory_around_everything_is_left_out(beside: tuple[str, ...], open_files: Open) -> None:
    inner = {f"my-model/{path}": content for path, content in plain().items()}
    opened = open_files({**inner, **dict.fromkeys(beside, b"x")})
    assert [companion.path for companion in opened.companions] == ["config.json"]


def test_files_of_tools_and_of_other_frameworks_are_left_alone(open_files: Open, torch_file: Save) -> None:
    others = {
        ".gitattributes": b"x", ".cache/huggingface/download/config.json.metadata": b"x", "onnx/model.onnx": b"x",
        "onnx/config.json": b"not JSON", "flax_model.msgpack": b"x", "tf_model.h5": b"x", "model.x.safetensors": b"x",
        "openvino/openvino_model.bin": bytes(100), "pytorch_model.bin": torch_file({"other": torch.ones(1)}),
        "checkpoint-5/config.json": b"not JSON",
    }  # fmt: skip
    opened = open_files({**plain(), **others})
    assert list(opened.tensors) == ["weight"]
    assert [companion.path for companion in opened.companions] == ["config.json"]


def test_what_a_trainer_leaves_behind_is_never_opened(
    open_files: Open, torch_file: Save, touch_canary: type, tmp_path: Path
) -> None:
    hostile = torch_file(touch_canary(tmp_path / "canary"))
    names = ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth", "checkpoint-5/optimizer.bin")
    opened = open_files({**plain(), **dict.fromkeys(names, hostile)})
    assert [companion.path for companion in opened.companions] == ["config.json"]
    assert not (tmp_path / "canary").exists()


def test_pytorch_weights_open(open_files: Open, torch_file: Save) -> None:
    files = plain()
    del files["model.safetensors"]
    opened = open_files({**files, "pytorch_model.bin": torch_file({"a": torch.ones(2)})})
    assert opened.tensors["a"].tolist() == [1.0, 1.0]


def sharded(weight_map: Mapping[str, str], **shards: bytes) -> Files:
    files = plain()
    del files["model.safetensors"]
    shards = {f"{name}.safetensors": content for name, content in shards.items()}
    return {**files, **shards, "model.safetensors.index.json": text({"metadata": {}, "weight_map": dict(weight_map)})}


def test_shards_open_together(open_files: Open) -> None:
    weight_map = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    opened = open_files(sharded(weight_map, one=tensors("a"), two=tensors("b", "c")))
    assert list(opened.tensors) == ["a", "b", "c"]
    assert opened.weight_file is None
    assert [companion.path for companion in opened.companions] == ["config.json"]


def test_pytorch_shards_open_together(open_files: Open, torch_file: Save) -> None:
    files = plain()
    del files["model.safetensors"]
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    shards = {f"pytorch_model-{n}.bin": torch_file({name: torch.ones(2)}) for n, name in ((1, "a"), (2, "b"))}
    assert list(open_files({**files, **shards, "pytorch_model.bin.index.json": text(index)}).tensors) == ["a", "b"]


def test_modules_name_their_tensors_after_their_folders(open_files: Open) -> None:
    opened = open_files(
        sentence(
            ("", TRANSFORMER),
            ("1_Dense", DENSE),
            **{"1_Dense/model.safetensors": tensors("linear.weight"), "1_Dense/config.json": b"{}"},
        )
    )
    assert list(opened.tensors) == ["weight", "1_Dense/linear.weight"]
    assert [companion.path for companion in opened.companions] == ["1_Dense/config.json", "config.json", "modules.json"]
    assert opened.weight_file is None


def test_modules_may_all_have_folders_and_hold_modules(open_files: Open) -> None:
    files = {f"0_Router/query_0_Transformer/{path}": content for path, content in plain().items()}
    routes = {"types": {"query_0_Transformer": TRANSFORMER}, "structure": {"query": ["query_0_Transformer"]}}
    listed = [{"idx": 0, "name": "0", "path": "0_Router", "type": ROUTER}]
    opened = open_files({**files, "modules.json": text(listed), "0_Router/router_config.json": text(routes)})
    assert list(opened.tensors) == ["0_Router/query_0_Transformer/weight"]
    assert opened.architecture == "BertModel"


CODE: dict[str, Files] = {
    "a Python file": {"modeling_bert.py": b""},
    "a Python file in a folder": {"custom_generate/generate.py": b""},
    "compiled code": {"x/__pycache__/modeling.cpython-311.PYC": b""},
    "a library": {"kernel.so": b""},
    "auto_map": plain(auto_map={"AutoModel": "modeling.Model"}),
    "auto_map in a part's config": plain(text_config={"inner": [{"auto_map": {"AutoModel": "a/b--modeling.Model"}}]}),
    "auto_map of a tokenizer": {"tokenizer_config.json": text({"auto_map": {"AutoTokenizer": ["t.Slow", None]}})},
    "auto_map of a processor": {"preprocessor_config.json": text({"auto_map": {"AutoProcessor": "p.Processor"}})},
    "auto_map in a file nobody knows": {"x.json": text({"auto_map": "a"})},
    "custom pipelines": plain(custom_pipelines={"x": {"impl": "pipeline.Pipeline"}}),
    "an attention kernel": plain(_attn_implementation="evil/kernel"),
    "an attention kernel behind a wrapper": plain(attn_implementation="flash|evil/kernel@main:forward"),
    "an internal attention kernel": plain(_attn_implementation_internal="evil/kernel"),
    "an attention kernel of a part": plain(_attn_implementation={"text_config": "evil/kernel"}),
    "flash attention, which may come from the Hub": plain(_attn_implementation="flash_attention_2"),
    "experts from the Hub": plain(experts_implementation="evil/kernel"),
    "kernels": plain(use_kernels=True, kernel_config={"RMSNorm": "evil/kernel"}),
    "trust": {"sentence_bert_config.json": text({"model_args": {"trust_remote_code": True}})},
    "quantization": plain(quantization_config={"quant_method": "fp8"}),
    "a class of another library": {"tokenizer_config.json": text({"tokenizer_class": "os.path.Tokenizer"})},
    "an activation of another library": {"config_sentence_transformers.json": text({"activation_fn": "os.system"})},
    "a module of the archive": sentence(("", "modeling_x.Transformer")),
    "a module of another library": sentence(("", TRANSFORMER), ("1", "pylate.models.Dense.Dense")),
    "a module that only looks like the library's": sentence(("", "sentence_transformers_evil.modules.Transformer")),
    "a class that is no module": sentence(("", "sentence_transformers.util.misc.import_from_string")),
    "a routed module of another library": sentence(
        ("", ROUTER), **{"router_config.json": text({"types": {"q": "os.path.Transformer"}})}
    ),
}


@pytest.mark.parametrize("files", CODE.values(), ids=CODE.keys())
def test_code_is_refused(files: Files, open_files: Open) -> None:
    with pytest.raises(RemoteCodeNotAllowedError) as caught:
        open_files({**plain(), **files})
    assert caught.value.message.isascii()


HARMLESS: dict[str, Files] = {
    "attention of torch": plain(_attn_implementation="sdpa", _attn_implementation_autoset=True),
    "nothing set": plain(auto_map={}, quantization_config=None, trust_remote_code=False, attn_implementation=None),
    "a vocabulary with such words": {"vocab.json": text({"auto_map": 1}), "tokenizer.json": text({"auto_map": "x"})},
    "labels with such names": plain(label2id={"auto_map": 1}, id2label={"1": "auto_map"}),
    "where the tokenizer was saved": {
        "tokenizer_config.json": text({"name_or_path": "/saved/x", "special_tokens_map_file": "/saved/x.json"})
    },
    "where the data was": plain(data_path="/data/train"),
    "an activation by name": plain(activation_function="gelu", sbert_ce_default_activation_function="torch.nn.Sigmoid"),
    "a tokenizer without a limit": {"tokenizer_config.json": text({"model_max_length": 10**30})},
    "a limit without end": plain(time_step_limit=[0.0, float("inf")]),
    "the settings of an older library": sentence(("", "sentence_transformers.models.Transformer")),
}


@pytest.mark.parametrize("files", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_only_looks_like_it_opens(files: Files, open_files: Open) -> None:
    assert list(open_files({**plain(), **files}).tensors) == ["weight"]


PATHS: dict[str, Files] = {
    "a shard above": sharded({"a": "../a.safetensors"}),
    "a shard by its full path": sharded({"a": "/etc/a.safetensors"}),
    "a shard in another folder": sharded({"a": "x/a.safetensors"}),
    "a shard behind a backslash": sharded({"a": "..\\a.safetensors"}),
    "a module above": sentence(("../other", TRANSFORMER)),
    "a module above, inside": sentence(("1/../../other", TRANSFORMER)),
    "a module by its full path": sentence(("/etc", TRANSFORMER)),
    "a routed module above": sentence(("", ROUTER), **{"router_config.json": text({"types": {"../q": TRANSFORMER}})}),
    "a vocabulary by its full path": {"tokenizer_config.json": text({"vocab_file": "/etc/passwd"})},
    "a tokenizer's file above": {"tokenizer_config.json": text({"fast_tokenizer_files": ["../tokenizer.json"]})},
    "a file behind a home": {"processor_config.json": text({"a": {"chat_template_file": "~/x"}})},
    "a file behind an address": {"tokenizer_config.json": text({"merges_file": "http://x/y"})},
    "the tokenizer of another model": {"sentence_bert_config.json": text({"tokenizer_name_or_path": "evil/model"})},
    "weights of another model": plain(use_pretrained_backbone=True, backbone="evil/model"),
    "a folder for from_pretrained": {"sentence_bert_config.json": text({"config_args": {"subfolder": "x"}})},
    "table of a sparse module": {"config.json": text({"path": "/etc/x.json"})},
}


@pytest.mark.parametrize("files", PATHS.values(), ids=PATHS.keys())
def test_what_leads_elsewhere_is_refused(files: Files, open_files: Open) -> None:
    with pytest.raises(UnsafePathError) as caught:
        open_files(files if "model.safetensors.index.json" in files else {**plain(), **files})
    assert caught.value.message.isascii()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "extra.bin", "x/model.pt", "model.ckpt", "old.pth"])
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
@pytest.mark.parametrize("beside_safetensors", [True, False])
def test_pickles_that_run_code_are_refused_wherever_they_lie(
    name: str, options: dict[str, Any], beside_safetensors: bool, open_files: Open, torch_file: Save,
    touch_canary: type, tmp_path: Path,
) -> None:  # fmt: skip
    files = {**plain(), name: torch_file(touch_canary(tmp_path / "canary"), **options)}
    if not beside_safetensors:
        del files["model.safetensors"]
    with pytest.raises(UnsafePickleError):
        open_files(files)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["tokenizer.pkl", "model.joblib", "x/y.pickle"])
def test_plain_pickles_are_refused(name: str, open_files: Open) -> None:
    with pytest.raises(UnsafePickleError):
        open_files({**plain(), name: b"x"})


DAMAGED: dict[str, Files] = {
    "config that is no JSON": {"config.json": b"{"},
    "config that is no UTF-8": {"config.json": b'{"a": "\xff"}'},
    "config that is a number": {"config.json": b"1"},
    "config that names a key twice": {"config.json": b'{"model_type": "bert", "model_type": "t5"}'},
    "config that is too deep": {"config.json": b'{"a":' * 40 + b"1" + b"}" * 40},
    "config that is deeper than any stack": {"config.json": b"[" * 100_000 + b"]" * 100_000},
    "config that is too long": {"config.json": text({"a": "x" * (8 * MIB)})},
    "config with a number of 5,000 digits": {"config.json": b'{"a": ' + b"9" * 5_000 + b"}"},
    "settings that are too long together": {f"{n}.json": text({"a": "x" * (6 * MIB)}) for n in range(3)},
    "a billion layers": plain(num_hidden_layers=10**9),
    "a billion layers in a part": plain(text_config={"n_layer": 10**9}),
    "stages of a billion blocks": plain(depths=[2, 10**9]),
    "a billion labels": plain(num_labels=10**9),
    "an architecture that is no name": plain(architectures=["os.system('x')"]),
    "modules that are no list": {"modules.json": b"{}"},
    "no modules": {"modules.json": b"[]"},
    "a module without a type": {"modules.json": text([{"name": "0", "path": ""}])},
    "a module listed twice": sentence(("", TRANSFORMER), ("", TRANSFORMER)),
    "too many modules": sentence(*[(str(number), TRANSFORMER) for number in range(65)]),
    "a shard that is missing": sharded({"a": "one.safetensors"}),
    "a shard of another kind": sharded({"a": "config.json"}),
    "a tensor in two shards": sharded({"a": "one.safetensors", "b": "two.safetensors"}, one=tensors("a"),
                                      two=tensors("a", "b")),
    "a tensor that its shard lacks": sharded({"a": "one.safetensors", "b": "one.safetensors"}, one=tensors("a")),
    "an index without a map": {**sharded({}), "model.safetensors.index.json": b"{}"},
    "an index that is a list": {**sharded({}), "model.safetensors.index.json": b"[]"},
    "a router that is a list": sentence(("", ROUTER), **{"router_config.json": b"[]"}),
    "a router of numbers": sentence(("", ROUTER), **{"router_config.json": text({"types": {"q": 1}})}),
    "an index of numbers": {**sharded({}), "model.safetensors.index.json": text({"weight_map": {"a": 1}})},
    "an index that names a tensor twice": {
        **sharded({}, one=tensors("a")),
        "model.safetensors.index.json": b'{"weight_map": {"a": "one.safetensors", "a": "one.safetensors"}}',
    },
    "weights that are damaged": {"model.safetensors": b"x" * 100},
    "vocabularies larger than memory": {f"vocab-{n}.txt": bytes(86 * MIB) for n in range(3)},
}  # fmt: skip


@pytest.mark.parametrize("files", DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_refused(files: Files, open_files: Open) -> None:
    with pytest.raises(InvalidWeightsError) as caught:
        open_files(files if "model.safetensors.index.json" in files else {**plain(), **files})
    assert caught.value.message.isascii()


MISMATCHES: dict[str, tuple[Files, str]] = {
    "nothing": ({}, "no file"),
    "weights alone": ({"model.safetensors": tensors("a")}, "model.safetensors"),
    "two directories": ({f"{top}/{path}": b for top in "ab" for path, b in plain().items()}, "a/config.json"),
    "two levels": ({f"a/b/{path}": content for path, content in plain().items()}, "a/b/config.json"),
    "a config alone": ({"config.json": b"{}"}, "config.json"),
    "weights of another framework": ({"config.json": b"{}", "tf_model.h5": b"x"}, "tf_model.h5"),
    "an adapter": ({**plain(), "adapter_config.json": b"{}"}, "adapter_config.json"),
    "weights under another name": (plain(transformers_weights="other.safetensors"), "other.safetensors"),
}


@pytest.mark.parametrize(("files", "named"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_what_is_no_model_directory_is_named(files: Files, named: str, open_files: Open) -> None:
    with pytest.raises(FormatMismatchError) as caught:
        open_files(files)
    assert named in caught.value.message


def test_any_single_changed_byte_of_the_settings_is_survived(open_files: Open) -> None:
    files = sentence(("", TRANSFORMER))
    for name in ("modules.json", "config.json"):
        for position in range(len(files[name])):
            changed = bytearray(files[name])
            changed[position] ^= 0x15
            try:
                open_files({**files, name: bytes(changed)})
            except ArchiveRefusedError:
                continue
