"""Names of features: unique, stable, and read back as they are written."""

from __future__ import annotations

import json

import pytest

from mixpeek_ray.catalog.availability import Availability, BuiltinModel
from mixpeek_ray.catalog.catalog import packaged_catalog, parse_catalog
from mixpeek_ray.catalog.extractors import FeatureUri, feature_outputs, text_extractor
from mixpeek_ray.catalog.stages import Rerank, retriever_stages
from mixpeek_ray.core.errors import InvalidCatalogError, ValidationError


def _catalog(*models):
    common = {"licence": "MIT", "description": "x", "max_tokens": 64, "source": {"path": "unused"}}
    sparse = {"family": "sparse", "dimensions": 9}
    return parse_catalog(json.dumps({"models": [common | sparse | model for model in models]}), file_name="test.yaml")


def _models(catalog, unavailable=()):
    return [
        BuiltinModel(
            card=card,
            availability=Availability.UNAVAILABLE if card.name in unavailable else Availability.AVAILABLE,
        )
        for card in catalog.values()
    ]


def test_the_packaged_catalogs_features():
    # Indexes out there are named by these: none may ever change.
    assert {output: card.name for output, card in feature_outputs(packaged_catalog().values()).items()} == {
        "multilingual_e5_large_instruct_v1": "multilingual-e5-large-instruct",
        "gte_modernbert_base_v1": "gte-modernbert-base",
        "splade_v1": "splade_v1",
        "colbertv2_v1": "colbertv2",
    }


@pytest.mark.parametrize(
    ("model", "output"),
    [
        ({"name": "Some-Model"}, "some_model_v1"),
        ({"name": "some_v2"}, "some_v2"),
        ({"name": "some", "aliases": ["org/some", "some_v3"]}, "some_v3"),
        ({"name": "some", "aliases": ["Some_v3"]}, "some_v1"),
    ],
)
def test_outputs_are_versioned(model, output):
    (found,) = feature_outputs(_catalog(model).values())
    assert found == output


def test_two_models_are_never_one_feature():
    with pytest.raises(InvalidCatalogError, match=r"'a_b'.*'a_b_v1'.*'a-b'"):
        feature_outputs(_catalog({"name": "a-b"}, {"name": "a_b"}).values())


@pytest.mark.parametrize("text", ["mixpeek://text_extractor@v1/splade_v1", "mixpeek://my-model@1.20.3/embedding"])
def test_uris_are_read_as_written(text):
    assert str(FeatureUri.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "splade_v1", "mixpeek://a/b", "mixpeek://a@v1", "mixpeek://a@v1/b/c", "mixpeek://../a@v1/b", "http://a@v1/b"],
)
def test_what_is_no_uri(text):
    with pytest.raises(ValidationError) as refused:
        FeatureUri.parse(text)
    assert refused.value.details["field"] == "feature_uri"


def test_the_default_is_what_can_be_had():
    catalog = _catalog({"name": "first"}, {"name": "second"})
    assert text_extractor(_models(catalog, unavailable={"first"})).default.model == "second"
    assert text_extractor(_models(catalog, unavailable={"first", "second"})).default.model == "first"


def test_stages_need_models_that_serve_them():
    reranker = {"name": "judge", "family": "rerank", "activation": "none"}
    common = {"licence": "MIT", "description": "x", "max_tokens": 64, "source": {"path": "unused"}}
    alone = parse_catalog(json.dumps({"models": [common | reranker]}), file_name="test.yaml")
    assert [stage.stage_id for stage in retriever_stages(_models(alone))] == ["rerank"]
    assert [stage.stage_id for stage in retriever_stages(_models(_catalog({"name": "first"})))] == ["feature_search"]
    stages = retriever_stages(_models(packaged_catalog(), unavailable={"colbertv2", "bge-reranker-v2-m3"}))
    assert [stage.stage_id for stage in stages] == ["feature_search", "hybrid_search", "rerank"]
    assert isinstance(stages[-1], Rerank)
    assert stages[-1].default.card.name == "cross-encoder"
    assert retriever_stages([]) == ()
