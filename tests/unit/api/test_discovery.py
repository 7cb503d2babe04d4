"""Discovery: what is listed can be used as it is listed, and comes from the catalog alone."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import jsonschema
import pytest
from custom_models import custom_model

from mixpeek_ray.catalog.availability import Availability
from mixpeek_ray.catalog.cards import Family
from mixpeek_ray.catalog.catalog import parse_catalog
from mixpeek_ray.core.errors import RegistryUnavailableError
from mixpeek_ray.core.records import DeploymentStatus

pytestmark = pytest.mark.anyio

OPEN_PATHS = ["/v1/feature-extractors", "/v1/collections/features/extractors", "/v1/retrievers/stages"]
KEYED_PATHS = ["/v1/discovery/extractors", "/v1/discovery/stages", "/v1/namespaces/ns_acme/extractors"]
E5 = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
COMMON = {"licence": "MIT", "description": "Tiny.", "max_tokens": 64, "source": {"path": "unused"}}
CUT = {
    **COMMON,
    "name": "Cut-Model",
    "family": "dense",
    "dimensions": 4,
    "matryoshka": [2, 3],
    "pooling": "cls",
    "limits": {"max_inputs": 7},
}


def _catalog(*models):
    return parse_catalog(json.dumps({"models": [{**COMMON, **model} for model in models]}), file_name="test.yaml")


async def _get(api, path, key="sk_writer", **params):
    async with api.client(key=key) as client:
        return await client.get(path, params=params)


def _nulls(value, path=""):
    if isinstance(value, dict):
        return [found for name, part in value.items() for found in _nulls(part, f"{path}.{name}")]
    if isinstance(value, list):
        return [found for part in value for found in _nulls(part, f"{path}[]")]
    return [path] if value is None else []


@pytest.mark.parametrize("path", [*OPEN_PATHS, *(f"{path}/text_extractor_v1" for path in OPEN_PATHS[:2])])
async def test_open_routes_need_no_key(api, path):
    answer = await _get(api, path, key=None)
    assert answer.status_code == 200
    async with api.client(key=None) as client:
        head = await client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert "authenticate" not in api.platform.calls


@pytest.mark.parametrize("path", [*KEYED_PATHS, "/v1/namespaces/ns_acme/extractors/text_extractor_v1"])
async def test_the_others_need_one_of_any_tier_and_role(api, path):
    assert (await _get(api, path, key=None)).json()["error"]["code"] == "unauthenticated"
    assert (await _get(api, path, key="sk_reader")).status_code == 200


async def test_every_embedding_model_is_an_output_and_every_feature_has_an_index(api):
    (extractor,) = (await _get(api, OPEN_PATHS[0])).json()
    assert (extractor["feature_extractor_id"], extractor["source"]) == ("text_extractor_v1", "builtin")
    shown = {
        index["feature_uri"]: (index["index"]["type"], index["index"]["dimensions"], index["index"]["distance"])
        for index in extractor["required_vector_indexes"]
    }
    assert shown == {
        E5: ("dense", 1024, "cosine"),
        "mixpeek://text_extractor@v1/gte_modernbert_base_v1": ("dense", 768, "cosine"),
        "mixpeek://text_extractor@v1/splade_v1": ("sparse", 30522, "dot"),
        "mixpeek://text_extractor@v1/colbertv2_v1": ("multi_dense", 128, "cosine"),
    }
    assert list(extractor["output_schema"]["properties"]) == [uri.rpartition("/")[2] for uri in shown]
    assert [feature["feature_uri"] for feature in extractor["features"]] == list(shown)
    embedding = [card.name for card in api.catalog.values() if card.family is not Family.RERANK]
    assert extractor["parameter_schema"]["properties"]["model"]["enum"] == embedding


@pytest.mark.parametrize("path", [*OPEN_PATHS, *KEYED_PATHS])
async def test_schemas_maps_and_lists_hold_no_null(api, path):
    api.have(custom_model())
    body = (await _get(api, path)).json()
    # What these fields have nothing to say of is null in them, and in no other.
    nullable = ("reason", "max_tokens", "dimensions", "plugin_id", "validation_status", "created_at", "updated_at")
    assert [path for path in _nulls(body) if not path.endswith(nullable)] == []


@pytest.mark.parametrize("path", ["/v1/discovery/stages", "/v1/discovery/extractors"])
async def test_examples_work_as_they_are(api, path):
    for entry in (await _get(api, path)).json():
        example = entry.get("example_config") or entry["example_usage"]["body"]
        endpoint = entry.get("endpoint") or entry["example_usage"]["endpoint"]
        async with api.client() as client:
            answer = await client.post(endpoint, json=example)
        assert answer.status_code == 200, answer.text
        if "parameter_schema" in entry:
            jsonschema.Draft202012Validator.check_schema(entry["parameter_schema"])
            jsonschema.validate(example, entry["parameter_schema"])


async def test_every_listed_feature_and_reranker_computes(api):
    stages = {stage["stage_id"]: stage for stage in (await _get(api, "/v1/retrievers/stages")).json()}
    bodies = [
        {"feature_uri": uri, "inputs": {"text": "a"}}
        for uri in stages["feature_search"]["parameter_schema"]["properties"]["feature_uri"]["enum"]
    ] + [
        {"inference_name": name, "inputs": {"query": "a", "documents": ["b"]}}
        for name in stages["rerank"]["parameter_schema"]["properties"]["inference_name"]["enum"]
    ]
    async with api.client() as client:
        answers = [await client.post("/v1/inference", json=body) for body in bodies]
    assert [answer.json()["model"] for answer in answers] == [
        "multilingual-e5-large-instruct", "gte-modernbert-base", "splade_v1", "colbertv2",
        "colbertv2", "bge-reranker-v2-m3", "cross-encoder", "cross-encoder-light",
    ]  # fmt: skip


async def test_parameter_schemas_allow_what_each_model_takes(make_api):
    api = make_api(
        catalog=_catalog(
            CUT,
            {**CUT, "name": "asked", "matryoshka": [], "prompts": {"query": "{instruction}{text}", "instruction": "x"}},
            {"name": "splade", "family": "sparse", "dimensions": 9},
            {"name": "late", "family": "late_interaction", "dimensions": 4, "document_tokens": 32},
        )
    )
    (extractor,) = (await _get(api, OPEN_PATHS[0])).json()
    stage = next(stage for stage in (await _get(api, OPEN_PATHS[2])).json() if stage["stage_id"] == "feature_search")
    extracting = jsonschema.Draft202012Validator(extractor["parameter_schema"])
    searching = jsonschema.Draft202012Validator(stage["parameter_schema"])
    common = [{}, {"input_type": "query"}, {"truncate": "none"}, {"input_type": "x"}, {"truncate": 1}, {"other": 1}]
    dense = [{"instruction": "y"}, *({"dimensions": size} for size in (0, 2, 3, 4, 5))]
    cases = itertools.product(extractor["features"], [*common, *dense])
    for feature, parameters in cases:
        is_allowed = parameters in common[:3] or _is_allowed(feature["model"], parameters)
        body = {"feature_uri": feature["feature_uri"], "inputs": {"text": "a"}, "parameters": parameters}
        assert extracting.is_valid({"model": feature["model"], **parameters}) is is_allowed, body
        assert searching.is_valid(body) is is_allowed, body


async def test_without_a_model_the_defaults_parameters_are_meant(make_api):
    asked = {**CUT, "name": "asked", "matryoshka": [], "prompts": {"query": "{instruction}{text}", "instruction": "x"}}
    (extractor,) = (await _get(make_api(catalog=_catalog(CUT, asked)), OPEN_PATHS[0])).json()
    schema = jsonschema.Draft202012Validator(extractor["parameter_schema"])
    assert extractor["parameter_schema"]["properties"]["model"]["default"] == "Cut-Model"
    cases = [{"dimensions": 2}, {"dimensions": 5}, {"instruction": "y"}, {"input_type": "query"}]
    assert [schema.is_valid(parameters) for parameters in cases] == [True, False, False, True]


async def test_a_hybrid_search_takes_what_its_dense_model_takes(make_api):
    api = make_api(catalog=_catalog(CUT, {"name": "splade", "family": "sparse", "dimensions": 9}))
    stages = {stage["stage_id"]: stage for stage in (await _get(api, OPEN_PATHS[2])).json()}
    schema = jsonschema.Draft202012Validator(stages["hybrid_search"]["parameter_schema"])
    cases = [
        ({"models": {"dense": "Cut-Model", "sparse": "splade"}, "dimensions": 2}, True),
        ({"models": {"dense": "Cut-Model"}, "dimensions": 5}, False),
        ({"models": {"dense": "Cut-Model"}, "instruction": "x"}, False),
        ({"models": {"sparse": "splade"}}, True),
        ({"models": {"sparse": "splade"}, "dimensions": 2}, False),
        ({"models": {"sparse": "Cut-Model"}}, False),
        ({"models": {"multi_vector": "splade"}}, False),
        ({"models": {}}, False),
        ({}, False),
    ]
    assert [schema.is_valid({"input": "a", **body}) for body, _ in cases] == [expected for _, expected in cases]


def _is_allowed(model, parameters):
    match parameters:
        case {"instruction": _}:
            return model == "asked"
        case {"dimensions": size}:
            return size in {"Cut-Model": (2, 3, 4), "asked": (4,)}.get(model, ())
    return False


async def test_limits_and_names_come_from_the_catalog(make_api):
    api = make_api(catalog=_catalog(CUT))
    (extractor,) = (await _get(api, OPEN_PATHS[1])).json()
    assert extractor["max_inputs"] == {"text": 7, "string": 7}
    assert extractor["features"][0]["feature_uri"] == "mixpeek://text_extractor@v1/cut_model_v1"
    checker = jsonschema.Draft202012Validator(extractor["input_schema"])
    assert checker.is_valid({"texts": ["a"] * 7})
    assert not checker.is_valid({"texts": ["a"] * 8})
    assert not checker.is_valid({"text": "a", "texts": ["a"]})
    # Nothing here reranks.
    assert [stage["stage_id"] for stage in (await _get(api, OPEN_PATHS[2])).json()] == ["feature_search"]


async def test_without_embedding_models_there_is_no_extractor(make_api):
    api = make_api(catalog=_catalog({"name": "judge", "family": "rerank", "activation": "none"}))
    assert (await _get(api, OPEN_PATHS[0])).json() == []
    assert [stage["stage_id"] for stage in (await _get(api, OPEN_PATHS[2])).json()] == ["rerank"]
    missing = await _get(api, "/v1/feature-extractors/text_extractor_v1")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


async def test_a_model_without_weights_is_listed_as_unavailable_and_is_no_default(api):
    first, *others = api.platform.builtin
    api.platform.builtin = [replace(first, availability=Availability.UNAVAILABLE, reason="Put it there."), *others]
    (extractor,) = (await _get(api, OPEN_PATHS[0])).json()
    feature = extractor["features"][0]
    assert (feature["availability"], feature["reason"]) == ("unavailable", "Put it there.")
    choice = extractor["parameter_schema"]["properties"]["model"]
    assert first.card.name in choice["enum"]
    assert choice["x-availability"][first.card.name] == "unavailable"
    assert choice["default"] == extractor["default_parameters"]["model"] == "gte-modernbert-base"


async def test_a_namespace_sees_its_own_embedding_models(api):
    api.have(
        custom_model("dense-one"),
        custom_model("terms", architecture="BertForMaskedLM"),
        custom_model("judge", architecture="BertForSequenceClassification"),
        custom_model("chat", architecture="LlamaForCausalLM"),
        custom_model("off", status=DeploymentStatus.NOT_DEPLOYED),
    )
    path = "/v1/namespaces/ns_acme/extractors"
    body = (await _get(api, path)).json()
    assert (body["total"], body["builtin_count"], body["custom_count"]) == (3, 1, 2)
    custom = [extractor for extractor in body["extractors"] if extractor["source"] == "custom"]
    assert [extractor["feature_uri"] for extractor in custom] == [
        "mixpeek://dense-one@1.0.0/embedding",
        "mixpeek://terms@1.0.0/sparse_embedding",
    ]
    assert [extractor["deployed"] for extractor in custom] == [True, True]
    for extractor in custom:
        call = {"feature_uri": extractor["feature_uri"], "inputs": {"text": "a"}}
        async with api.client() as client:
            answer = await client.post("/v1/inference", json=call, headers={"X-Namespace": "ns_acme"})
        assert answer.json()["model"] == extractor["features"][0]["model"]

    only = {source: (await _get(api, path, source=source)).json() for source in ("builtin", "custom", "all")}
    assert [(found["builtin_count"], found["custom_count"]) for found in only.values()] == [(1, 0), (0, 2), (1, 2)]
    assert (await _get(api, path, source="community")).status_code == 422
    assert (await _get(api, path, include_disabled=True)).json()["custom_count"] == 3
    off = (await _get(api, f"{path}/off_1_0_0")).json()
    assert (off["deployed"], off["features"][0]["availability"]) == (False, "unavailable")
    assert (await _get(api, f"{path}/judge_1_0_0")).status_code == 404


async def test_without_the_tier_there_are_the_built_in_extractors(api):
    api.platform.namespaces["ns_small"] = "org_small"
    api.have(custom_model(namespace_id="ns_small"))
    body = (await _get(api, "/v1/namespaces/ns_small/extractors", key="sk_pro")).json()
    assert (body["builtin_count"], body["custom_count"]) == (1, 0)


@pytest.mark.parametrize("below", ["", "?source=builtin", "/text_extractor_v1", "/mine_1_0_0"])
async def test_a_foreign_namespace_is_none(api, below):
    api.have(custom_model(namespace_id="ns_other"))
    foreign = (await _get(api, f"/v1/namespaces/ns_other/extractors{below}")).json()
    absent = (await _get(api, f"/v1/namespaces/ns_absent/extractors{below}")).json()
    assert foreign["error"]["code"] == absent["error"]["code"] == "namespace_not_found"


async def test_a_registry_that_does_not_answer_is_said(api):
    api.platform.failures["builtin_models"] = RegistryUnavailableError("The model registry does not answer.")
    for path in [*OPEN_PATHS, *KEYED_PATHS]:
        answer = await _get(api, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "registry_unavailable")


async def test_ids_that_cannot_be_are_not_repeated(api):
    for identifier in ("nothing_v1", "%E2%80%AE<script>"):
        answer = await _get(api, f"/v1/feature-extractors/{identifier}", key=None)
        assert (answer.status_code, "script" in answer.text) == (404, False)
