"""The catalog file: what it may hold, and what its errors say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixpeek_ray.catalog import catalog as module
from mixpeek_ray.catalog.cards import (
    Activation,
    Backend,
    DenseOptions,
    DirectorySource,
    Family,
    HubSource,
    LateInteractionOptions,
    Pooling,
    Precision,
    RerankOptions,
    SparseOptions,
    Task,
    UrlSource,
)
from mixpeek_ray.catalog.catalog import (
    Catalog,
    get_catalog,
    local_weights,
    packaged_catalog,
    parse_catalog,
    read_catalog,
)
from mixpeek_ray.core.errors import InvalidCatalogError, ModelNotFoundError, WeightsUnavailableError
from mixpeek_ray.core.settings import get_settings

BUILT_IN = {
    "multilingual-e5-large-instruct": Family.DENSE,
    "gte-modernbert-base": Family.DENSE,
    "splade_v1": Family.SPARSE,
    "colbertv2": Family.LATE_INTERACTION,
    "bge-reranker-v2-m3": Family.RERANK,
    "cross-encoder": Family.RERANK,
    "cross-encoder-light": Family.RERANK,
}


def dense(**changes) -> dict[str, object]:
    """Return a valid entry with ``changes``; a change to None removes the field."""
    entry = {
        "name": "small",
        "family": "dense",
        "source": {"hub": "owner/small"},
        "licence": "MIT",
        "description": "A small model.",
        "max_tokens": 128,
        "dimensions": 384,
        "pooling": "mean",
    }
    return {key: value for key, value in {**entry, **changes}.items() if value is not None}


def parse(*entries: dict[str, object]) -> Catalog:
    return parse_catalog(json.dumps({"models": entries}), file_name="models.yaml")


def test_packaged_catalog_holds_the_built_in_models():
    assert {name: card.family for name, card in packaged_catalog().items()} == BUILT_IN


def test_packaged_catalog_is_the_one_in_configs():
    root = Path(__file__).resolve().parents[3]
    assert dict(read_catalog(root / "configs" / "models.yaml")) == dict(packaged_catalog())


def test_facts_of_the_built_in_models():
    cards = packaged_catalog()
    e5, gte = cards["multilingual-e5-large-instruct"].options, cards["gte-modernbert-base"].options
    assert isinstance(e5, DenseOptions)
    assert isinstance(gte, DenseOptions)
    assert (e5.dimensions, e5.pooling, e5.normalize) == (1024, Pooling.MEAN, True)
    assert e5.prompts.query == "Instruct: {instruction}\nQuery: {text}"
    assert e5.prompts.document is None
    assert (gte.dimensions, gte.pooling, gte.normalize) == (768, Pooling.CLS, True)
    assert cards["gte-modernbert-base"].limits.max_tokens == 8192
    assert cards["splade_v1"].options == SparseOptions(dimensions=30522)
    assert cards["colbertv2"].options == LateInteractionOptions(
        dimensions=128, query_tokens=32, document_tokens=180, query_marker="[unused0]", document_marker="[unused1]"
    )
    assert cards["bge-reranker-v2-m3"].options == RerankOptions(activation=Activation.SIGMOID)
    assert cards["cross-encoder"].options == RerankOptions(activation=Activation.NONE)
    assert [card.task for card in cards.values()][2:5] == [
        Task.SPARSE_EMBEDDING,
        Task.MULTI_VECTOR_EMBEDDING,
        Task.RERANK,
    ]


def test_feature_uri_output_is_an_alias():
    assert packaged_catalog().find("multilingual_e5_large_instruct_v1").name == "multilingual-e5-large-instruct"


def test_defaults_of_an_entry():
    card = parse(dense())["small"]
    assert card.source == HubSource(repository="owner/small", revision=None)
    assert (card.limits.max_inputs, card.limits.max_batch_tokens) == (2048, 8192)
    assert (card.compute.precision, card.compute.backend) == (Precision.AUTO, Backend.AUTO)
    assert (card.resources.num_cpus, card.resources.num_gpus) == (1.0, 0)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"path": "models/small"}, DirectorySource(path=Path("models/small"))),
        ({"url": "s3://bucket/small"}, UrlSource(url="s3://bucket/small")),
        ({"hub": "a/b", "revision": "0" * 40}, HubSource(repository="a/b", revision="0" * 40)),
    ],
)
def test_sources(source, expected):
    assert parse(dense(source=source))["small"].source == expected


@pytest.mark.parametrize(
    ("entry", "field", "expectation"),
    [
        (dense(pooling="meen"), "pooling", "'mean', 'cls' or 'last', not 'meen'"),
        (dense(dimensions=None), "dimensions", "Field required."),
        (dense(dimensions="384"), "dimensions", "valid integer, not '384'"),
        (dense(dimension=384), "dimension", "not permitted"),
        (dense(family="dens"), None, "'dense', 'sparse', 'late_interaction', 'rerank'"),
        (dense(family=None), None, "discriminator 'family'"),
        (dense(max_tokens=0), "max_tokens", "greater than or equal to 8, not 0"),
        (dense(source={}), "source", "exactly one of hub, path and url"),
        (dense(source={"hub": "a/b", "path": "c"}), "source", "exactly one of hub, path and url"),
        (dense(source={"path": "c", "revision": "0" * 40}), "source", "revision belongs to hub"),
        (dense(source={"hub": "a/b", "revision": "main"}), "source.revision", "'main'"),
        (dense(source={"hub": "../b"}), "source.hub", "'../b'"),
        (dense(prompts={"query": "find:"}), "prompts", "must hold {text}"),
        (dense(prompts={"query": "{instruction} {text}"}), "prompts", "needs a default instruction"),
        (dense(matryoshka=[512]), None, "matryoshka sizes must be below dimensions (384)"),
        (dense(aliases=["a b"]), "aliases.0", "'a b'"),
        (dense(resources={"cpus": -1.0}), "resources.cpus", "-1.0"),
        (dense(resources={"gpus": 0.5}), "resources.gpus", "0.5"),
        (dense(limits={"max_batch_tokens": 64}), None, "limits.max_batch_tokens must be at least max_tokens (128)"),
        (dense(precision="int8"), "precision", "'int8'"),
    ],
)
def test_an_error_names_file_model_field_and_expectation(entry, field, expectation):
    with pytest.raises(InvalidCatalogError) as problem:
        parse(dense(name="fine"), entry)
    message = problem.value.message
    place = "" if field is None else f", field {field!r}"
    assert message.startswith(f"models.yaml: model 'small'{place}: ")
    assert expectation in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text", ["", "[]", "models: []", "models: 5", "models: [5]", "models: [", "other: 1", "- a\n b"]
)
def test_a_file_of_another_shape_is_refused(text):
    with pytest.raises(InvalidCatalogError, match=r"models\.yaml"):
        parse_catalog(text, file_name="models.yaml")


def test_a_name_with_control_characters_is_shown_escaped():
    with pytest.raises(InvalidCatalogError) as problem:
        parse(dense(name="a\u202eb"))
    assert problem.value.message.isascii()
    assert "'a\\u202eb'" in problem.value.message


@pytest.mark.parametrize(
    "entries",
    [
        (dense(), dense()),
        (dense(aliases=["shared"]), dense(name="other", aliases=["shared"])),
        (dense(), dense(name="other", aliases=["small"])),
        (dense(aliases=["other"]), dense(name="other")),
    ],
)
def test_names_and_aliases_are_unique(entries):
    with pytest.raises(InvalidCatalogError, match="is taken by 'small'"):
        parse(*entries)


def test_unknown_model_is_not_found():
    with pytest.raises(ModelNotFoundError, match=r"'nobody\\x00'"):
        parse(dense()).find("nobody\x00")


def test_a_file_that_is_not_there_is_an_error_without_its_folder(tmp_path):
    with pytest.raises(InvalidCatalogError, match=r"absent\.yaml") as problem:
        read_catalog(tmp_path / "absent.yaml")
    assert str(tmp_path) not in problem.value.message


def test_setting_chooses_the_file(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"models": [dense()]}))
    monkeypatch.setenv("MIXPEEK_MODEL_CATALOG", str(path))
    get_settings.cache_clear()
    get_catalog.cache_clear()
    try:
        assert list(get_catalog()) == ["small"]
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
        get_catalog.cache_clear()


def test_models_folder_comes_before_the_source(tmp_path):
    own, offered = tmp_path / "own", tmp_path / "offered" / "small"
    own.mkdir()
    card = parse(dense(source={"path": str(own)}))["small"]
    assert local_weights(card, None) == own
    assert local_weights(card, tmp_path / "offered") == own
    offered.mkdir(parents=True)
    assert local_weights(card, tmp_path / "offered") == offered


def test_weights_elsewhere_are_not_local(tmp_path):
    assert local_weights(parse(dense())["small"], tmp_path) is None


def test_an_absent_directory_says_how_to_provide_the_weights(tmp_path):
    card = parse(dense(source={"path": str(tmp_path / "gone")}))["small"]
    with pytest.raises(WeightsUnavailableError, match="MIXPEEK_MODELS_DIR") as problem:
        local_weights(card, None)
    assert str(tmp_path) not in problem.value.message
    assert problem.value.status == 503


def test_reading_the_catalog_needs_neither_torch_nor_ray():
    script = f"import sys, {module.__name__} as c; c.packaged_catalog(); print({{'torch', 'ray'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
