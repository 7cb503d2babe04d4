"""Models of sentence-transformers: pooling, prompts and all, held against the library's own loading of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer import modules
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from tokenizers import Tokenizer

from mixpeek_ray.core.errors import ArchiveRefusedError, InvalidWeightsError

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
Base = Callable[[Any], str]
Deploy = Callable[[Path], Any]
TEXTS = ["hello world", "no"]
PAIRS = [("hello", "world"), ("yes", "no hello")]


@pytest.fixture
def base(tmp_path: Path, tokenizers: dict[str, Callable[[], Any]], randomized: Callable[[Any], Any]) -> Base:
    """Return a function that saves a transformers model and its tokenizer, and returns where."""

    def save(model: Any) -> str:
        folder = tmp_path / f"base-{type(model).__name__}"
        randomized(model).save_pretrained(folder)
        tokenizers["wordpiece"]().save_pretrained(folder)
        return str(folder)

    return save


def bert(base: Base) -> str:
    return base(transformers.BertModel(transformers.BertConfig(**SIZES)))


def dense(base: Base) -> Any:
    parts = [Transformer(bert(base)), modules.Pooling(32, pooling_mode="mean"), Dense(32, 16), Normalize()]
    return SentenceTransformer(modules=parts, prompts={"query": "hello "}, default_prompt_name="query")


def modern_bert_with_first_token(base: Base) -> Any:
    config = transformers.ModernBertConfig(**SIZES, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3)
    parts = [Transformer(base(transformers.ModernBertModel(config))), modules.Pooling(32, pooling_mode="cls")]
    return SentenceTransformer(modules=parts)


def encoder_of_t5(base: Base) -> Any:
    config = transformers.T5Config(vocab_size=61, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8)
    parts = [Transformer(base(transformers.T5EncoderModel(config))), modules.Pooling(32)]
    return SentenceTransformer(modules=parts)


def convolved(base: Base) -> Any:
    transformer = Transformer(bert(base), config_kwargs={"output_hidden_states": True})
    weighting = modules.WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1)
    layers = [modules.CNN(32, 8), modules.Pooling(24), modules.LayerNorm(24)]
    return SentenceTransformer(modules=[transformer, weighting, *layers])


def words(_base: Base) -> Any:
    vocabulary = ["hello", "world", "no", "yes"]
    table = torch.randn(len(vocabulary), 32, generator=torch.Generator().manual_seed(1)).numpy()
    tokenizer = WhitespaceTokenizer(vocabulary, stop_words=[], do_lower_case=True)
    weighting = modules.WordWeights(vocabulary, {"hello": 2.0, "no": 0.5})
    return SentenceTransformer(
        modules=[modules.WordEmbeddings(tokenizer, table), weighting, modules.LSTM(32, 8), modules.Pooling(16)]
    )


def static(base: Base) -> Any:
    tokenizer = Tokenizer.from_file(str(Path(bert(base), "tokenizer.json")))
    return SentenceTransformer(modules=[modules.StaticEmbedding(tokenizer, embedding_dim=16)])


def routed(base: Base) -> Any:
    folder = bert(base)
    router = Router.for_query_document(
        query_modules=[Transformer(folder), modules.Pooling(32, pooling_mode="cls")],
        document_modules=[Transformer(folder), modules.Pooling(32), Dense(32, 32)],
    )
    return SentenceTransformer(modules=[router])


DENSE_MODELS: dict[str, Callable[..., Any]] = {
    "pooling, projection, normalisation and prompts": dense,
    "ModernBERT, first token": modern_bert_with_first_token,
    "encoder of T5": encoder_of_t5,
    "weighted layers, convolution, normalisation": convolved,
    "words, their weights, recurrence": words,
    "static": static,
    "router": routed,
}


@pytest.mark.parametrize("name", DENSE_MODELS)
def test_sentence_transformers_encode_alike(name: str, base: Base, deploy: Deploy, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    DENSE_MODELS[name](base).save_pretrained(str(folder))
    deployed = deploy(folder)
    loaded, reference = deployed.model.load(), SentenceTransformer(str(folder), device="cpu")
    assert [type(module) for module in loaded.modules()] == [type(module) for module in reference.modules()]
    assert not loaded.training
    for encode in ("encode_query", "encode_document", "encode"):
        if name == "router" and encode == "encode":
            continue
        assert np.array_equal(getattr(loaded, encode)(TEXTS), getattr(reference, encode)(TEXTS)), encode
    assert (loaded.prompts, loaded.default_prompt_name) == (reference.prompts, reference.default_prompt_name)
    assert not deployed.copied(loaded)


def test_a_saved_copy_is_the_library_s_own(base: Base, deploy: Deploy, tmp_path: Path) -> None:
    dense(base).save_pretrained(str(tmp_path / "saved"))
    deploy(tmp_path / "saved").model.load().save_pretrained(str(tmp_path / "again"))
    written = [json.loads((tmp_path / name / "modules.json").read_bytes()) for name in ("saved", "again")]
    assert written[0] == written[1]


def test_cross_encoders_predict_alike(base: Base, deploy: Deploy, tmp_path: Path) -> None:
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=1))
    CrossEncoder(base(model)).save_pretrained(str(tmp_path / "saved"))
    deployed = deploy(tmp_path / "saved")
    loaded = deployed.model.load()
    assert type(loaded) is CrossEncoder
    reference = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    assert np.allclose(loaded.predict(PAIRS), reference.predict(PAIRS), rtol=0, atol=1e-6)
    assert not deployed.copied(loaded)


def test_sparse_encoders_encode_alike(base: Base, deploy: Deploy, tmp_path: Path) -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))
    parts = [Transformer(base(model), transformer_task="fill-mask"), SpladePooling()]
    SparseEncoder(modules=parts).save_pretrained(str(tmp_path / "saved"))
    deployed = deploy(tmp_path / "saved")
    loaded = deployed.model.load()
    assert type(loaded) is SparseEncoder
    reference = SparseEncoder(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(loaded.encode(TEXTS).to_dense(), reference.encode(TEXTS).to_dense())
    assert set(deployed.copied(loaded)) <= {"0.model.cls.predictions.bias"}


def test_tables_of_token_weights_are_views(base: Base, deploy: Deploy, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert(base))
    parts = [SparseStaticEmbedding(tokenizer, weight=torch.rand(61))]
    SparseEncoder(modules=parts).save_pretrained(str(tmp_path / "saved"))
    deployed = deploy(tmp_path / "saved")
    loaded, reference = deployed.model.load(), SparseEncoder(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(loaded.encode(TEXTS).to_dense(), reference.encode(TEXTS).to_dense())
    assert not deployed.copied(loaded)


def test_multi_vector_encoders_encode_alike(base: Base, deploy: Deploy, tmp_path: Path) -> None:
    parts = [Transformer(bert(base)), Dense(32, 8, bias=False, module_input_name="token_embeddings")]
    MultiVectorEncoder(modules=parts).save_pretrained(str(tmp_path / "saved"))
    deployed = deploy(tmp_path / "saved")
    loaded, reference = deployed.model.load(), MultiVectorEncoder(str(tmp_path / "saved"), device="cpu")
    assert type(loaded) is MultiVectorEncoder
    for found, expected in zip(loaded.encode_query(TEXTS), reference.encode_query(TEXTS), strict=True):
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_the_transformer_is_found_in_its_folder(base: Base, deploy: Deploy, tmp_path: Path) -> None:
    """Versions before 3 put the first module in a folder, and name classes as they were then."""
    folder = tmp_path / "saved"
    dense(base).save_pretrained(str(folder))
    (folder / "0_Transformer").mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(folder / "0_Transformer" / path.name)
    listed = json.loads((folder / "modules.json").read_bytes())
    listed[0]["path"] = "0_Transformer"
    for module in listed:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    (folder / "modules.json").write_text(json.dumps(listed))
    deployed = deploy(folder)
    loaded, reference = deployed.model.load(), SentenceTransformer(str(folder), device="cpu")
    assert np.array_equal(loaded.encode(TEXTS), reference.encode(TEXTS))
    assert deployed.model.config.model_type == "bert"
    assert type(deployed.model.model()) is transformers.BertModel
    assert deployed.model.tokenizer()("hello")["input_ids"] == [2, 5, 3]
    assert "2_Dense/linear.weight" in deployed.model.state_dict
    assert not deployed.copied(loaded)


def test_a_projection_far_larger_than_its_weights_takes_no_memory(base: Base, deploy: Deploy, tmp_path: Path) -> None:
    dense(base).save_pretrained(str(tmp_path / "saved"))
    path = tmp_path / "saved" / "2_Dense" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "in_features": 2**20, "out_features": 2**20}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        deploy(tmp_path / "saved").model.load()


def test_an_encoder_far_larger_than_its_weights_takes_no_memory(base: Base, deploy: Deploy, tmp_path: Path) -> None:
    encoder_of_t5(base).save_pretrained(str(tmp_path / "saved"))
    path = tmp_path / "saved" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "d_model": 2**20}))
    with pytest.raises(InvalidWeightsError, match="numbers, but the weights hold"):
        deploy(tmp_path / "saved").model.load()


def test_a_module_without_weights_is_named(base: Base, deploy: Deploy, tmp_path: Path) -> None:
    dense(base).save_pretrained(str(tmp_path / "saved"))
    (tmp_path / "saved" / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(InvalidWeightsError, match="2_Dense"):
        deploy(tmp_path / "saved").model.load()


def test_a_model_of_an_unknown_kind_is_named(base: Base, deploy: Deploy, tmp_path: Path) -> None:
    dense(base).save_pretrained(str(tmp_path / "saved"))
    path = tmp_path / "saved" / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "model_type": "LoggingHandler"}))
    with pytest.raises(ArchiveRefusedError, match="LoggingHandler"):
        deploy(tmp_path / "saved").model.load()


def test_half_precision_on_demand(base: Base, deploy: Deploy, tmp_path: Path) -> None:
    dense(base).save_pretrained(str(tmp_path / "saved"))
    loaded = deploy(tmp_path / "saved").model.load(dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
