"""Cards made of a model's own files: the library that saved it computes the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mixpeek_ray.catalog.cards import Activation, Family, ModelCard, Pooling, Precision
from mixpeek_ray.core.errors import InvalidWeightsError, ValidationError
from mixpeek_ray.core.records import FileInfo
from mixpeek_ray.families.base import Role, SparseVector, Truncate
from mixpeek_ray.families.build import build_family
from mixpeek_ray.families.describe import describe
from mixpeek_ray.formats.huggingface import HuggingFaceFormat

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "",
    "What IS the query?",
    "naïve café, straße: été!",
    "over-long " * 300,
]
QUERY = "what is the quick query"
TOLERANCE = 1e-5
NAME = "ns_acme/model_1_0_0"


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """A directory as a deploy leaves it: the small files of a folder, and the tensors of all its modules."""

    path: Path
    state_dict: Mapping[str, torch.Tensor]


def uploaded(saved: Path, folder: Path) -> Uploaded:
    """Return what deploying the directory ``saved`` would make of it, its files in ``folder``."""
    files = [path for path in saved.rglob("*") if path.is_file()]
    infos = [FileInfo(path=path.relative_to(saved).as_posix(), size_bytes=path.stat().st_size) for path in files]
    opened = HuggingFaceFormat().open(saved, infos)
    for companion in opened.companions:
        path = folder / companion.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(companion.content)
    return Uploaded(path=folder, state_dict=opened.tensors)


@pytest.fixture
def deployed(tmp_path: Path) -> Callable[[Path], Uploaded]:
    return lambda saved: uploaded(saved, tmp_path / "deployed")


@pytest.fixture
def copied(tiny_model, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a tiny model that the test may change."""

    def copy(architecture: str, head: str = "encoder") -> Path:
        return Path(shutil.copytree(tiny_model(architecture, head), tmp_path / "bare"))

    return copy


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def computed(card: ModelCard, source: Uploaded, *, role: Role = Role.DOCUMENT) -> list[np.ndarray]:
    """Return one array a text of ``TEXTS``, by the family that the card says."""
    family: Any = build_family(card, source)
    match card.family:
        case Family.DENSE | Family.LATE_INTERACTION:
            items = family.pre(TEXTS, role=role, truncate=Truncate.END)
        case Family.SPARSE:
            items = family.pre(TEXTS, truncate=Truncate.END)
        case Family.RERANK:
            items = family.pre(QUERY, TEXTS, truncate=Truncate.END)
    return [dense(result, card) for result in family.post(family.core(items), items)]


def dense(result: Any, card: ModelCard) -> np.ndarray:
    if not isinstance(result, SparseVector):
        return np.asarray(result)
    row = np.zeros(card.options.dimensions, dtype=np.float32)
    row[result.indices] = result.values
    return row


def assert_same(found: Sequence[np.ndarray], expected: Sequence[Any]) -> None:
    assert len(found) == len(expected) == len(TEXTS)
    for one, other in zip(found, expected, strict=True):
        reference = other.numpy() if isinstance(other, torch.Tensor) else np.asarray(other)
        assert one.shape == reference.shape
        assert np.abs(one - reference).max(initial=0.0) <= TOLERANCE


# Dense


def sentence_transformer(
    folder: Path, saved: Path, *, pooling: str = "mean", normalize: bool = False, **options: Any
) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

    modules = [Transformer(str(folder)), PoolingModule(32, pooling_mode=pooling), *([Normalize()] if normalize else [])]
    model = SentenceTransformer(modules=modules, device="cpu", **options)
    model.save_pretrained(str(saved))
    return model


@pytest.mark.parametrize(
    ("architecture", "pooling", "normalize", "expected"),
    [
        ("bert", "mean", True, Pooling.MEAN),
        ("xlm-roberta", "cls", False, Pooling.CLS),
        ("modernbert", "lasttoken", True, Pooling.LAST),
    ],
)
def test_sentence_transformers(tiny_model, tmp_path, deployed, architecture, pooling, normalize, expected):
    folder = tiny_model(architecture)
    model = sentence_transformer(folder, tmp_path / "saved", pooling=pooling, normalize=normalize)
    source = deployed(tmp_path / "saved")
    card = describe(source, NAME)
    assert (card.options.pooling, card.options.normalize, card.options.dimensions) == (expected, normalize, 32)
    assert (card.name, card.limits.max_tokens, card.compute.precision) == (NAME, 64, Precision.FLOAT32)
    assert_same(computed(card, source), model.encode(TEXTS))


def test_its_prompts_for_queries_and_documents(tiny_model, tmp_path, deployed):
    prompts = {"query": "query: ", "document": "instruct the fox: ", "passage": "the dog "}
    model = sentence_transformer(tiny_model("bert"), tmp_path / "saved", prompts=prompts)
    source = deployed(tmp_path / "saved")
    card = describe(source, NAME)
    assert_same(computed(card, source, role=Role.QUERY), model.encode_query(TEXTS))
    assert_same(computed(card, source), model.encode_document(TEXTS))


def test_what_releases_before_6_saved(tiny_model, tmp_path, deployed):
    from sentence_transformers import SentenceTransformer

    saved = tmp_path / "saved"
    sentence_transformer(tiny_model("bert"), saved)
    (saved / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    (saved / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": False}))
    (saved / "config_sentence_transformers.json").unlink()
    modules = json.loads((saved / "modules.json").read_text())
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    (saved / "modules.json").write_text(json.dumps(modules))
    source = deployed(saved)
    card = describe(source, NAME)
    assert (card.options.pooling, card.limits.max_tokens) == (Pooling.CLS, 24)
    assert_same(computed(card, source), SentenceTransformer(str(saved), device="cpu").encode(TEXTS))


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "modernbert"])
def test_a_bare_encoder(tiny_model, deployed, architecture):
    from sentence_transformers import SentenceTransformer

    source = deployed(tiny_model(architecture))
    card = describe(source, NAME)
    assert card.family is Family.DENSE
    assert_same(computed(card, source), SentenceTransformer(str(tiny_model(architecture)), device="cpu").encode(TEXTS))


# Sparse


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("bare", [True, False])
def test_splade(tiny_model, tmp_path, deployed, architecture, bare):
    from sentence_transformers import SparseEncoder

    folder = tiny_model(architecture, "masked_lm")
    model = SparseEncoder(str(folder), device="cpu")
    model.save_pretrained(str(tmp_path / "saved"))
    source = deployed(folder if bare else tmp_path / "saved")
    card = describe(source, NAME)
    assert card.family is Family.SPARSE
    assert_same(computed(card, source), model.encode(TEXTS, convert_to_sparse_tensor=False))


# Rerank

SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Activation.SIGMOID),
        ({"sbert_ce_default_activation_function": IDENTITY}, Activation.NONE),
        ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.0.0"}}, Activation.NONE),
        ({"sentence_transformers": {"activation_fn": SIGMOID}}, Activation.SIGMOID),
    ],
)
def test_a_cross_encoder_without_modules(copied, deployed, config, expected):
    from sentence_transformers import CrossEncoder

    folder = copied("bert", "classifier")
    change(folder / "config.json", **config)
    source = deployed(folder)
    card = describe(source, NAME)
    assert card.options.activation is expected
    pairs = [(QUERY, text) for text in TEXTS]
    assert_same(computed(card, source), CrossEncoder(str(folder), device="cpu").predict(pairs))


@pytest.mark.parametrize(("activation", "expected"), [("Sigmoid", Activation.SIGMOID), ("Identity", Activation.NONE)])
@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "modernbert"])
def test_a_cross_encoder_with_modules(tiny_model, tmp_path, deployed, architecture, activation, expected):
    from sentence_transformers import CrossEncoder

    function = getattr(torch.nn, activation)()
    model = CrossEncoder(str(tiny_model(architecture, "classifier")), activation_fn=function, device="cpu")
    model.save_pretrained(str(tmp_path / "saved"))
    source = deployed(tmp_path / "saved")
    card = describe(source, NAME)
    assert card.options.activation is expected
    assert_same(computed(card, source), model.predict([(QUERY, text) for text in TEXTS]))


# Late interaction


@pytest.fixture
def published(tiny_colbert, tmp_path) -> Path:
    """A checkpoint of ColBERT's own code, with its metadata."""
    folder = Path(shutil.copytree(tiny_colbert, tmp_path / "published"))
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder / "config.json", architectures=["HF_ColBERT"])
    (folder / "artifact.metadata").write_text(
        json.dumps({"query_maxlen": 12, "doc_maxlen": 40, "query_token_id": "[unused0]", "doc_token_id": "[unused1]"})
    )
    return folder


def multi_vector(folder: Path) -> Any:
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(folder), device="cpu")


@pytest.mark.parametrize("saved_again", [False, True])
def test_colbert(published, tmp_path, deployed, saved_again):
    model = multi_vector(published)
    folder = published
    if saved_again:
        folder = tmp_path / "saved"
        model.save_pretrained(str(folder))
    source = deployed(folder)
    card = describe(source, NAME)
    options = card.options
    assert card.family is Family.LATE_INTERACTION
    assert (options.dimensions, options.query_tokens, options.document_tokens) == (16, 12, 40)
    assert_same(computed(card, source, role=Role.QUERY), model.encode_query(TEXTS))
    assert_same(computed(card, source), model.encode_document(TEXTS))


def test_a_colbert_without_metadata_has_the_published_lengths(published, deployed):
    (published / "artifact.metadata").unlink()
    change(published / "tokenizer_config.json", model_max_length=512)
    change(published / "config.json", max_position_embeddings=512)
    weights = load_file(published / "model.safetensors")
    table = weights["bert.embeddings.position_embeddings.weight"]
    weights["bert.embeddings.position_embeddings.weight"] = table.repeat(8, 1)
    save_file(weights, published / "model.safetensors")
    options = describe(deployed(published), NAME).options
    assert (options.query_tokens, options.document_tokens) == (32, 180)
    assert (options.query_marker, options.document_marker) == ("[unused0]", "[unused1]")


# How long a text may be


@pytest.mark.parametrize(
    ("architecture", "tokenizer", "expected"),
    [("bert", 48, 48), ("bert", 1e30, 64), ("bert", 10**30, 64), ("xlm-roberta", 1e30, 64), ("xlm-roberta", 50, 50)],
)
def test_max_tokens_is_what_tokenizer_and_positions_allow(copied, deployed, architecture, tokenizer, expected):
    folder = copied(architecture)
    change(folder / "tokenizer_config.json", model_max_length=tokenizer)
    assert describe(deployed(folder), NAME).limits.max_tokens == expected


def test_a_batch_holds_the_longest_text(copied, deployed):
    folder = copied("modernbert")
    change(folder / "config.json", max_position_embeddings=32_768)
    change(folder / "tokenizer_config.json", model_max_length=32_768)
    limits = describe(deployed(folder), NAME).limits
    assert limits.max_batch_tokens == limits.max_tokens == 32_768


# What is refused


def refusal(source: Uploaded) -> str:
    with pytest.raises(ValidationError) as raised:
        describe(source, NAME)
    assert not isinstance(raised.value, InvalidWeightsError)
    assert NAME in raised.value.message
    # What would be served instead.
    assert "cross-encoder" in raised.value.message
    return raised.value.message


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "gpt2", "architectures": ["GPT2Model"]},
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]},
        {"model_type": "clip", "architectures": ["CLIPModel"]},
        {"model_type": "vit", "architectures": ["ViTModel"]},
        {"model_type": "t5", "architectures": ["T5Model"]},
        {"architectures": ["BertForTokenClassification"]},
        {"architectures": ["BertForQuestionAnswering"]},
    ],
    ids=lambda config: config["architectures"][0],
)
def test_other_kinds_of_model(copied, deployed, config):
    folder = copied("bert")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    refusal(deployed(folder))


def test_a_classifier_of_several_labels(copied, deployed):
    folder = copied("bert", "classifier")
    change(folder / "config.json", id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert "3 labels" in refusal(deployed(folder))


@pytest.mark.parametrize("mode", ["max", "mean_sqrt_len_tokens", "weightedmean", ["mean", "cls"]])
def test_other_poolings(tiny_model, tmp_path, deployed, mode):
    sentence_transformer(tiny_model("bert"), tmp_path / "saved")
    change(tmp_path / "saved" / "1_Pooling" / "config.json", pooling_mode=mode)
    assert "pools" in refusal(deployed(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config_sentence_transformers.json", {"truncate_dim": 8}),
        ("config_sentence_transformers.json", {"prompts": {"query": "say {text} of"}}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("sentence_bert_config.json", {"query_length": 12}),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"truncation": False}}}),
        ("sentence_bert_config.json", {"modality_config": {"message": {"method": "forward"}}}),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_settings_that_would_change_the_vectors(tiny_model, tmp_path, deployed, file, values):
    saved = tmp_path / "saved"
    sentence_transformer(tiny_model("modernbert"), saved, normalize=True)
    (saved / file).parent.mkdir(exist_ok=True)
    current = json.loads((saved / file).read_text()) if (saved / file).exists() else {}
    (saved / file).write_text(json.dumps(current | values))
    refusal(deployed(saved))


def test_a_pooling_that_leaves_the_prompt_out(tiny_model, tmp_path, deployed):
    sentence_transformer(tiny_model("bert"), tmp_path / "saved", prompts={"query": "query: "})
    change(tmp_path / "saved" / "1_Pooling" / "config.json", include_prompt=False)
    assert "prompt" in refusal(deployed(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("1_Dense/config.json", {"bias": True}),
        ("1_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"}),
        ("1_Dense/config.json", {"use_residual": True}),
        ("2_MultiVectorMask/config.json", {"skiplist_words": ["."]}),
        ("2_MultiVectorMask/config.json", {"keep_only_token_ids": [5]}),
        ("3_Normalize/config.json", {"module_input_name": "sentence_embedding"}),
        ("sentence_bert_config.json", {"query_expansion": {"strategy": "min", "length": 12}}),
        ("sentence_bert_config.json", {"query_expansion": {"strategy": "fixed", "attend": True, "length": 12}}),
        ("config_sentence_transformers.json", {"prompts": {"query": "two words ", "document": "[unused1] "}}),
        ("config_sentence_transformers.json", {"prompts": {}}),
    ],
    ids=str,
)
def test_late_interaction_of_other_kinds(published, tmp_path, deployed, file, values):
    saved = tmp_path / "saved"
    multi_vector(published).save_pretrained(str(saved))
    change(saved / file, **values)
    refusal(deployed(saved))


def test_splade_that_sums(tiny_model, tmp_path, deployed):
    from sentence_transformers import SparseEncoder

    SparseEncoder(str(tiny_model("bert", "masked_lm")), device="cpu").save_pretrained(str(tmp_path / "saved"))
    change(tmp_path / "saved" / "1_SpladePooling" / "config.json", pooling_strategy="sum")
    assert "sum" in refusal(deployed(tmp_path / "saved"))


def test_a_transformer_alone_or_with_a_projection(tiny_model, tmp_path, deployed):
    saved = tmp_path / "saved"
    sentence_transformer(tiny_model("bert"), saved)
    modules = json.loads((saved / "modules.json").read_text())
    (saved / "modules.json").write_text(json.dumps(modules[:1]))
    assert "modules" in refusal(deployed(saved))


# What files may not hold


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"max_position_embeddings": 512}),
        ("config.json", {"hidden_size": 64}),
        ("config.json", {"vocab_size": 5}),
        ("config.json", {"architectures": "BertModel"}),
        ("config.json", {"model_type": ["bert"]}),
        ("tokenizer_config.json", {"model_max_length": -1}),
        ("tokenizer_config.json", {"model_max_length": 3}),
        ("tokenizer_config.json", {"model_max_length": "512"}),
    ],
    ids=str,
)
def test_files_that_contradict_themselves(copied, deployed, file, values):
    folder = copied("bert")
    change(folder / file, **values)
    with pytest.raises(InvalidWeightsError):
        describe(deployed(folder), NAME)


def test_no_config(tiny_model, tmp_path):
    source = uploaded(tiny_model("bert"), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InvalidWeightsError, match=r"config\.json"):
        describe(source, NAME)


HOSTILE = [None, -1, 0, 2**70, 1e308, True, "x", [], ["x"], {}, {"x": []}]


@pytest.mark.parametrize(
    "file",
    [
        "config.json", "tokenizer_config.json", "sentence_bert_config.json", "config_sentence_transformers.json",
        "1_Dense/config.json", "2_MultiVectorMask/config.json", "3_Normalize/config.json",
    ],
)  # fmt: skip
def test_no_value_brings_out_another_error(published, tmp_path, file):
    multi_vector(published).save_pretrained(str(tmp_path / "saved"))
    source = uploaded(tmp_path / "saved", tmp_path / "deployed")
    path = source.path / file
    content = json.loads(path.read_text())
    tried = 0
    for name in content:
        for value in HOSTILE:
            path.write_text(json.dumps(content | {name: value}))
            tried += 1
            try:
                describe(source, NAME)
            except ValidationError:
                continue
    assert tried >= len(HOSTILE)
