"""Forward passes: own weights used where they lie, precision, and the two backends against each other."""

from __future__ import annotations

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mixpeek_ray.catalog.cards import Compute, Precision
from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.families.base import Item, Role, Truncate
from mixpeek_ray.families.build import build_family
from mixpeek_ray.families.networks import bert, precision
from mixpeek_ray.families.networks.base import build_batch
from mixpeek_ray.families.networks.bert import BertEncoder, Tensors
from mixpeek_ray.families.networks.build import build_network, prepared
from mixpeek_ray.families.networks.layers import Linear, PackedLinear, has_one_dnn
from mixpeek_ray.families.networks.packing import CALLS_BEFORE_PACKING
from mixpeek_ray.families.networks.transformers import TransformersNetwork
from mixpeek_ray.families.weights import DirectoryWeights

TEXTS = ["the quick brown fox", "", "dog", "the lazy dog is over the fox", "what is query"]


@dataclass(frozen=True)
class Loaded:
    """A weights source made in a test."""

    path: object
    state_dict: dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_model):
    return tiny_model("bert")


@pytest.fixture
def dense_card(card):
    return card("dense", dimensions=32, pooling="mean")


def embedded(described, source) -> np.ndarray:
    family = build_family(described, source)
    items = family.pre(TEXTS, role=Role.DOCUMENT, truncate=Truncate.END)
    return np.stack(family.post(family.core(items), items))


def item(*ids: int, visible: int | None = None) -> Item:
    return Item(ids=np.array(ids, dtype=np.int64), visible=visible)


def test_batches_are_sorted_by_length_and_restored():
    items = [item(1, 2, 3), item(4), item(5, 6, 7), item(8, 9)]
    batch = build_batch(items)
    assert batch.ids.tolist() == [4, 8, 9, 1, 2, 3, 5, 6, 7]
    assert batch.positions.tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2]
    assert [(run.start, run.stop, run.texts, run.length) for run in batch.runs()] == [
        (0, 1, 1, 1),
        (1, 3, 1, 2),
        (3, 9, 2, 3),
    ]
    assert batch.restore(torch.tensor([[1.0], [2.0], [3.0], [4.0]])).tolist() == [[3.0], [1.0], [4.0], [2.0]]


def test_unseen_tokens_change_nobody_elses_vector(folder, dense_card):
    network = build_network(dense_card, DirectoryWeights(path=folder))
    with torch.inference_mode():
        alone = network(build_batch([item(4, 20, 5)]))
        padded = network(build_batch([item(4, 20, 5, 6, 6, visible=3), item(4, 20, 21, 22, 5)]))
    assert torch.allclose(padded[:3], alone, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
def test_both_backends_agree(tiny_model, card, architecture):
    source = DirectoryWeights(path=tiny_model(architecture))
    own, other = (
        embedded(card("dense", dimensions=32, pooling="cls", backend=backend), source)
        for backend in ("auto", "transformers")
    )
    assert np.abs(own - other).max() <= 1e-5


@pytest.mark.parametrize(
    ("architecture", "changes", "own"),
    [
        ("bert", {}, True),
        ("xlm-roberta", {}, True),
        ("modernbert", {}, False),
        ("bert", {"hidden_act": "relu"}, False),
        ("bert", {"position_embedding_type": "relative_key"}, False),
        ("bert", {"is_decoder": True}, False),
    ],
)
def test_the_own_forward_takes_only_what_it_computes(tiny_model, dense_card, tmp_path, architecture, changes, own):
    shutil.copytree(tiny_model(architecture), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    network = build_network(dense_card, DirectoryWeights(path=tmp_path))
    assert isinstance(network, BertEncoder if own else TransformersNetwork)


def test_another_activation_is_computed_by_transformers(tiny_model, dense_card, tmp_path):
    from transformers import BertModel

    shutil.copytree(tiny_model("bert"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    network = build_network(dense_card, DirectoryWeights(path=tmp_path))
    ids = [4, 20, 21, 5]
    with torch.inference_mode():
        expected = BertModel.from_pretrained(tmp_path).eval()(torch.tensor([ids])).last_hidden_state[0]
        assert torch.allclose(network(build_batch([item(*ids)])), expected, atol=1e-5)


def test_matrices_are_views_when_they_are_not_packed(folder, dense_card, monkeypatch):
    monkeypatch.setattr(bert, "PACKED_AT_MOST_BYTES", 0)
    source = DirectoryWeights(path=folder)
    network = build_network(dense_card, source)
    assert isinstance(network, BertEncoder)
    linear = network.linear("encoder.layer.0.attention.self.query")
    assert isinstance(linear, Linear)
    assert linear.weight.data_ptr() == source.state_dict["encoder.layer.0.attention.self.query.weight"].data_ptr()
    assert network._words.data_ptr() == source.state_dict["embeddings.word_embeddings.weight"].data_ptr()


def test_transformers_models_are_views(tiny_model, dense_card):
    source = DirectoryWeights(path=tiny_model("modernbert"))
    network = build_network(dense_card, source)
    assert isinstance(network, TransformersNetwork)
    lent = {tensor.data_ptr() for tensor in source.state_dict.values()}
    assert {parameter.data_ptr() for parameter in network._model.parameters()} <= lent


@pytest.mark.skipif(not has_one_dnn(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_products_are_the_same(dtype):
    torch.manual_seed(0)
    linear = Linear(weight=torch.randn(48, 32).to(dtype), bias=torch.randn(48).to(dtype))
    packed = PackedLinear(linear)
    for rows in (1, 3, 64):
        given = torch.randn(rows, 32)
        found, expected = packed(given), linear(given)
        assert found.dtype == expected.dtype == dtype
        assert torch.allclose(found.float(), expected.float(), atol=1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.skipif(not has_one_dnn(), reason="this build of torch has no oneDNN")
def test_a_custom_model_is_packed_while_it_is_busy_and_its_results_stay(folder, dense_card):
    card = dataclasses.replace(dense_card, compute=dataclasses.replace(dense_card.compute, packs_at_once=False))
    network = build_network(card, DirectoryWeights(path=folder))
    matrices = network._layers._weights
    batch = build_batch([item(4, 20, 21, 5)])
    with torch.inference_mode():
        first = network(batch)
        assert not matrices.are_packed
        for _ in range(CALLS_BEFORE_PACKING):
            last = network(batch)
    assert matrices.are_packed
    assert torch.allclose(first, last, atol=1e-5)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_packed_or_not_the_result_is_the_references(folder, dense_card, monkeypatch, limit):
    monkeypatch.setattr(bert, "PACKED_AT_MOST_BYTES", limit)
    found = embedded(dense_card, DirectoryWeights(path=folder))
    monkeypatch.setattr(bert, "PACKED_AT_MOST_BYTES", 0)
    assert np.abs(found - embedded(dense_card, DirectoryWeights(path=folder))).max() <= 1e-5


def test_bfloat16_products_stay_close(folder, card):
    exact, rounded = (
        embedded(card("dense", dimensions=32, pooling="mean", precision=wanted), DirectoryWeights(path=folder))
        for wanted in ("float32", "bfloat16")
    )
    assert np.abs(exact - rounded).max() > 0
    assert (exact * rounded).sum(axis=1).min() >= 0.999


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx512_bf16 sse", True), ("amx_bf16", True), ("asimd bf16 i8mm", True), ("avx512f avx_bf16x", False)],
)
def test_bfloat16_is_used_where_the_cpu_has_it(tmp_path, monkeypatch, flags, expected):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags : {flags}\n")
    monkeypatch.setattr(precision, "Path", lambda _: cpuinfo)
    precision.multiplies_bfloat16.cache_clear()
    try:
        assert precision.multiplies_bfloat16() is expected
        assert precision.matrix_dtype(Precision.AUTO) is (torch.bfloat16 if expected else torch.float32)
        assert precision.matrix_dtype(Precision.FLOAT32) is torch.float32
    finally:
        monkeypatch.undo()
        precision.multiplies_bfloat16.cache_clear()


def test_prepared_weights_need_no_copy(folder, card, monkeypatch):
    monkeypatch.setattr(bert, "PACKED_AT_MOST_BYTES", 0)
    described = card("dense", dimensions=32, pooling="mean", precision="bfloat16")
    converted = prepared(described, DirectoryWeights(path=folder))
    assert converted["embeddings.word_embeddings.weight"].dtype is torch.float32
    network = build_network(described, Loaded(folder, converted))
    assert isinstance(network, BertEncoder)
    linear = network.linear("encoder.layer.1.output.dense")
    assert isinstance(linear, Linear)
    assert linear.weight.data_ptr() == converted["encoder.layer.1.output.dense.weight"].data_ptr()
    assert np.array_equal(
        embedded(described, Loaded(folder, converted)), embedded(described, DirectoryWeights(path=folder))
    )


def test_prepared_decoder_is_shared_though_it_was_tied(tiny_model, card):
    folder = tiny_model("bert", "masked_lm")
    source = DirectoryWeights(path=folder)
    described = card("sparse", dimensions=182, precision="bfloat16")
    converted = prepared(described, source)
    assert converted["cls.predictions.decoder.weight"].dtype is torch.bfloat16
    plain, shared = build_family(described, source), build_family(described, Loaded(folder, converted))
    items = plain.pre(TEXTS, truncate=Truncate.END)
    assert np.array_equal(plain.core(items), shared.core(items))


def test_weights_prepared_for_transformers_have_its_one_dtype(tiny_model, dense_card):
    source = DirectoryWeights(path=tiny_model("modernbert"))
    half = Loaded(source.path, {name: tensor.half() for name, tensor in source.state_dict.items()})
    automatic = dataclasses.replace(dense_card, compute=Compute())
    converted = prepared(automatic, half)
    assert {tensor.dtype for tensor in converted.values()} == {torch.float32}
    network = build_network(automatic, Loaded(source.path, converted))
    assert isinstance(network, TransformersNetwork)
    lent = {tensor.data_ptr() for tensor in converted.values()}
    assert {parameter.data_ptr() for parameter in network._model.parameters()} <= lent


def test_half_precision_checkpoints_are_computed_in_float32(folder, dense_card):
    half = {name: tensor.half() for name, tensor in DirectoryWeights(path=folder).state_dict.items()}
    widened = {name: tensor.float() for name, tensor in half.items()}
    found, expected = (embedded(dense_card, Loaded(folder, state)) for state in (half, widened))
    assert np.abs(found - expected).max() <= 1e-6


@pytest.mark.parametrize("prefix", ["bert.", "model.", "0_Transformer/"])
def test_a_savers_prefix_makes_no_difference(folder, dense_card, prefix):
    plain = DirectoryWeights(path=folder)
    prefixed = {prefix + name: tensor for name, tensor in plain.state_dict.items()}
    assert np.array_equal(embedded(dense_card, Loaded(folder, prefixed)), embedded(dense_card, plain))


def test_names_of_old_checkpoints_are_understood(folder, dense_card):
    plain = DirectoryWeights(path=folder)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in plain.state_dict.items()
    }
    assert old.keys() != plain.state_dict.keys()
    assert np.array_equal(embedded(dense_card, Loaded(folder, old)), embedded(dense_card, plain))


@pytest.mark.parametrize("absent", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.weight"])
@pytest.mark.parametrize("backend", ["auto", "transformers"])
def test_an_absent_tensor_is_named(folder, card, absent, backend):
    state_dict = {name: tensor for name, tensor in DirectoryWeights(path=folder).state_dict.items() if name != absent}
    with pytest.raises(InvalidWeightsError, match=absent.replace(".", r"\.")):
        build_family(card("dense", dimensions=32, pooling="mean", backend=backend), Loaded(folder, state_dict))


@pytest.mark.parametrize("field", ["num_attention_heads", "num_hidden_layers"])
@pytest.mark.parametrize(("backend", "named"), [("auto", "{field}"), ("transformers", "StrictDataclass")])
def test_a_config_without_a_size_is_refused(folder, card, tmp_path, field, backend, named):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: None}))
    with pytest.raises(InvalidWeightsError, match=named.format(field=field)):
        build_family(card("dense", dimensions=32, pooling="mean", backend=backend), DirectoryWeights(path=tmp_path))


@pytest.mark.parametrize("backend", ["auto", "transformers"])
@pytest.mark.parametrize(
    "name",
    [
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.0.attention.self.key.weight",
        "encoder.layer.0.attention.self.key.bias",
        "encoder.layer.1.intermediate.dense.weight",
        "encoder.layer.1.output.dense.weight",
        "encoder.layer.1.output.LayerNorm.weight",
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder, card, backend, name):
    state_dict = dict(DirectoryWeights(path=folder).state_dict)
    state_dict[name] = torch.zeros([7, 5][: state_dict[name].dim()])
    with pytest.raises(InvalidWeightsError, match=r"config\.json|save_pretrained"):
        build_family(card("dense", dimensions=32, pooling="mean", backend=backend), Loaded(folder, state_dict))


def test_two_encoders_in_one_checkpoint_are_refused(folder):
    state_dict = DirectoryWeights(path=folder).state_dict
    with pytest.raises(InvalidWeightsError, match="2 tensors"):
        Tensors.of({**state_dict, **{f"other.{name}": tensor for name, tensor in state_dict.items()}})


def test_a_classifier_of_several_labels_is_no_reranker(tiny_model, card, tmp_path):
    shutil.copytree(tiny_model("bert", "classifier"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {
        name: torch.cat([tensor] * 3) if name.startswith("classifier.") else tensor for name, tensor in weights.items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InvalidWeightsError, match="3 labels"):
        build_family(card("rerank", activation="none"), DirectoryWeights(path=tmp_path))


def test_an_untied_decoder_is_used(tiny_model, card, tmp_path):
    shutil.copytree(tiny_model("bert", "masked_lm"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    words = weights["bert.embeddings.word_embeddings.weight"]
    described = card("sparse", dimensions=len(words))

    def first_weights(extra: dict[str, torch.Tensor]) -> np.ndarray:
        save_file({**weights, **extra}, tmp_path / "model.safetensors")
        family = build_family(described, DirectoryWeights(path=tmp_path))
        return family.core(family.pre(["the fox"], truncate=Truncate.END))

    tied = first_weights({"cls.predictions.decoder.weight": words.clone()})
    assert np.array_equal(first_weights({}), tied)
    assert not np.array_equal(first_weights({"cls.predictions.decoder.weight": words.flip(0).contiguous()}), tied)


def test_threads_may_share_a_family(folder, dense_card):
    family = build_family(dense_card, DirectoryWeights(path=folder))

    def vector(text: str) -> np.ndarray:
        items = family.pre([text], role=Role.DOCUMENT, truncate=Truncate.END)
        return family.post(family.core(items), items)[0]

    texts = [f"{text} {number}" for number in range(20) for text in TEXTS]
    expected = [vector(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(vector, texts), expected, strict=True):
            assert np.abs(found - wanted).max() <= 1e-6
