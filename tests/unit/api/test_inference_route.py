"""``POST /v1/inference``: every way to name a model, and what each kind of model takes and gives."""

from __future__ import annotations

import json
import subprocess
import sys

import cohere
import pytest
from custom_models import custom_model

from mixpeek_ray.api import custom_families, remembered
from mixpeek_ray.catalog.catalog import parse_catalog
from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import InputTooLongError, InvalidCatalogError, OverloadedError, RegistryUnavailableError
from mixpeek_ray.core.records import DeploymentStatus
from mixpeek_ray.families.base import Role, Truncate

pytestmark = pytest.mark.anyio

E5 = "multilingual-e5-large-instruct"
E5_URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
TEXT = {"inputs": {"text": "hello"}}
PAIR = {"inputs": {"query": "pet", "documents": ["a cat", "an ox", "a horse"]}}


async def _infer(api, body, key="sk_writer", **headers):
    async with api.client(key=key) as client:
        return await client.post("/v1/inference", json=body, headers=headers)


def _fields(answer):
    error = answer.json()["error"]
    assert error["code"] == "validation_error", error
    return [".".join(str(part) for part in found["loc"]) for found in error["details"]["validation_errors"]]


@pytest.mark.parametrize(
    "named",
    [
        {"provider": "mixpeek", "model": E5},
        {"provider": "mixpeek", "model": "multilingual_e5_large_instruct_v1"},
        {"provider": "intfloat", "model": "multilingual-e5-large-instruct"},
        {"model": E5},
        {"inference_name": E5},
        {"inference_name": f"mixpeek/{E5}"},
        {"inference_name": f"mixpeek:{E5}"},
        {"inference_name": "intfloat/multilingual-e5-large-instruct"},
        {"feature_uri": E5_URI},
        {"provider": "mixpeek", "model": E5, "inference_name": f"mixpeek:{E5}", "feature_uri": E5_URI},
    ],
)
async def test_ways_to_name_a_built_in_model(api, named):
    # A namespace in the header is what published clients always send.
    answer = (await _infer(api, named | TEXT, **{"X-Namespace": "ns_acme"})).json()
    assert (answer["provider"], answer["model"], answer["cached"]) == ("mixpeek", E5, False)
    assert api.inference.requests[0].model == E5


@pytest.mark.parametrize(
    ("named", "namespace"),
    [
        ({"provider": "custom", "model": "ns_acme/mine_1_0_0"}, None),
        ({"provider": "custom", "model": "mine_1_0_0"}, "ns_acme"),
        ({"model": "ns_acme/mine_1_0_0"}, None),
        ({"inference_name": "ns_acme/mine_1_0_0"}, "ns_other"),
        ({"inference_name": "custom/ns_acme/mine_1_0_0"}, None),
        ({"inference_name": "custom:ns_acme/mine_1_0_0"}, None),
        ({"inference_name": "mine_1_0_0"}, "ns_acme"),
        ({"feature_uri": "mixpeek://mine@1.0.0/embedding"}, "ns_acme"),
        ({"feature_uri": "mixpeek://mine@1.0.0/embedding", "inference_name": "ns_acme/mine_1_0_0"}, "ns_acme"),
    ],
)
async def test_ways_to_name_a_custom_model(api, named, namespace):
    api.have(custom_model())
    headers = {} if namespace is None else {"X-Namespace": namespace}
    answer = (await _infer(api, named | TEXT, **headers)).json()
    assert (answer["provider"], answer["model"]) == ("custom", "ns_acme/mine_1_0_0")


@pytest.mark.parametrize(
    ("named", "field"),
    [
        ({}, "inference_name"),
        ({"provider": "mixpeek"}, "model"),
        ({"provider": "openai", "model": "text-embedding-3-large"}, "provider"),
        ({"inference_name": "openai:gpt-4"}, "inference_name"),
        ({"inference_name": E5, "feature_uri": "mixpeek://text_extractor@v1/splade_v1"}, "feature_uri"),
        ({"model": E5, "inference_name": "splade_v1"}, "inference_name"),
        ({"feature_uri": "mixpeek://text_extractor/x"}, "feature_uri"),
        ({"feature_uri": "https://example.org"}, "feature_uri"),
        ({"inference_name": 7}, "inference_name"),
        ({"inference_name": E5, "modell": "x"}, "modell"),
    ],
)
async def test_names_that_contradict_or_cannot_be(api, named, field):
    answer = await _infer(api, named | TEXT)
    assert (answer.status_code, _fields(answer)) == (422, [f"body.{field}"])
    assert api.inference.requests == []


@pytest.mark.parametrize(
    "named",
    [
        {"inference_name": "none"},
        {"inference_name": "mixpeek:none"},
        {"inference_name": "openai/gpt-4"},
        {"inference_name": ""},
        {"provider": "mixpeek", "model": "mine_1_0_0"},
        {"provider": "custom", "model": E5},
        {"provider": "custom", "model": "a/b/c"},
        {"feature_uri": "mixpeek://text_extractor@v1/none"},
        {"feature_uri": "mixpeek://text_extractor@v2/splade_v1"},
        {"feature_uri": "mixpeek://mine@1.0.0/embedding"},
    ],
)
async def test_models_that_are_not(api, named):
    api.have(custom_model())
    answer = await _infer(api, named | TEXT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("name", ["a/b/c", "ns_acme/../mine", "ns_acme/\u202emine", "x" * 129, "ns_acme/"])
async def test_what_cannot_be_an_id_is_never_looked_up(api, name):
    answer = await _infer(api, {"inference_name": name} | TEXT, **{"X-Namespace": "ns_acme"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "get_model" not in api.platform.calls


async def test_foreign_models_look_like_none(api):
    api.have(custom_model(namespace_id="ns_other"))
    bodies = [{"inference_name": f"{owner}/mine_1_0_0"} | TEXT for owner in ("ns_other", "ns_absent", "ns_acme")]
    errors = [(await _infer(api, body)).json()["error"] for body in bodies]
    bare = await _infer(api, {"inference_name": "mine_1_0_0"} | TEXT, **{"X-Namespace": "ns_other"})
    assert [*errors, bare.json()["error"]] == [errors[0]] * 4
    assert errors[0]["code"] == "model_not_found"


async def test_without_the_tier_a_custom_model_looks_like_none(api):
    api.platform.namespaces["ns_small"] = "org_small"
    api.have(custom_model(namespace_id="ns_small"))
    answer = await _infer(api, {"inference_name": "ns_small/mine_1_0_0"} | TEXT, key="sk_pro")
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_custom_models_that_cannot_answer(api):
    api.have(
        custom_model("off", status=DeploymentStatus.NOT_DEPLOYED),
        custom_model("chat", architecture="LlamaForCausalLM"),
        custom_model("judge", architecture="BertForSequenceClassification"),
    )
    off = await _infer(api, {"inference_name": "ns_acme/off_1_0_0"} | TEXT)
    assert (off.status_code, off.json()["error"]["code"]) == (409, "model_not_deployed")
    chat = await _infer(api, {"inference_name": "ns_acme/chat_1_0_0"} | TEXT)
    assert (chat.status_code, "reranking" in chat.text) == (422, True)
    other = await _infer(api, {"feature_uri": "mixpeek://judge@1.0.0/embedding"} | TEXT, **{"X-Namespace": "ns_acme"})
    assert other.json()["error"]["code"] == "model_not_found"


async def test_dense_data(api):
    one = (await _infer(api, {"model": E5, "inputs": {"text": "hello"}})).json()
    assert one["data"] == pytest.approx([5, 0, 0.1, -1])
    assert one["tokens_used"] == {"prompt": 5, "total": 5}
    assert one["latency_ms"] > 0
    parameters = {"input_type": "query", "instruction": "Find it", "dimensions": 2, "truncate": "NONE"}
    many = (await _infer(api, {"model": E5, "inputs": {"texts": ["a", "", "ccc"]}, "parameters": parameters})).json()
    assert many["data"] == [[1, 1], [0, 1], [3, 1]]
    asked = api.inference.requests[-1]
    assert (asked.role, asked.instruction, asked.dimensions, asked.truncate) == (
        Role.QUERY, "Find it", 2, Truncate.NONE,
    )  # fmt: skip


async def test_coheres_names_of_input_types(api):
    for name, role in (("search_query", Role.QUERY), ("search_document", Role.DOCUMENT)):
        await _infer(api, {"model": E5, "parameters": {"input_type": name}} | TEXT)
        assert api.inference.requests[-1].role is role


async def test_sparse_and_multi_vector_data(api):
    sparse = (await _infer(api, {"model": "splade_v1", "inputs": {"texts": ["a", "bb"]}})).json()
    assert sparse["data"] == [{"indices": [2, 31], "values": [0.5, 2.0]}, {"indices": [3, 32], "values": [0.5, 2.0]}]
    late = (await _infer(api, {"model": "colbertv2", "inputs": {"text": "a"}})).json()
    assert late["data"] == [pytest.approx([1, 0, 0.1, -1])] * 2


@pytest.mark.parametrize("model", ["cross-encoder", "colbertv2"])
async def test_scores_come_best_first_and_ties_in_order(api, model):
    whole = (await _infer(api, {"model": model} | PAIR)).json()
    assert whole["data"] == [
        {"index": 2, "relevance_score": 7.0},
        {"index": 0, "relevance_score": 5.0},
        {"index": 1, "relevance_score": 5.0},
    ]
    parameters = {"top_n": 1, "return_documents": True}
    best = (await _infer(api, {"model": model, "parameters": parameters} | PAIR)).json()
    assert best["data"] == [{"index": 2, "relevance_score": 7.0, "document": {"text": "a horse"}}]
    more = (await _infer(api, {"model": model, "parameters": {"top_n": 9}} | PAIR)).json()
    assert more["data"] == whole["data"]


@pytest.mark.parametrize(
    ("model", "inputs", "field", "takes"),
    [
        (E5, {}, "inputs", "`text` or `texts`"),
        (E5, {"text": "a", "texts": ["b"]}, "inputs", "not both"),
        (E5, {"query": "a"}, "inputs.query", "text, texts"),
        (E5, {"text": "a", "image_url": "x"}, "inputs.image_url", "text, texts"),
        (E5, {"text": 7}, "inputs.text", "string"),
        (E5, {"text": None}, "inputs", "`text` or `texts`"),
        (E5, {"texts": []}, "inputs.texts", "at least 1"),
        (E5, {"texts": ["a", 7]}, "inputs.texts.1", "string"),
        ("cross-encoder", {"text": "a"}, "inputs.text", "query, documents"),
        ("cross-encoder", {"query": "a"}, "inputs.documents", "required"),
        ("cross-encoder", {"query": "a", "documents": []}, "inputs.documents", "at least 1"),
        ("cross-encoder", {"query": ["a"], "documents": ["b"]}, "inputs.query", "string"),
        ("colbertv2", {"query": "a", "text": "b"}, "inputs.text", "query, documents"),
        ("colbertv2", {}, "inputs", "`text` or `texts`"),
    ],
)
async def test_inputs_that_a_model_does_not_take(api, model, inputs, field, takes):
    answer = await _infer(api, {"model": model, "inputs": inputs})
    assert (answer.status_code, _fields(answer)) == (422, [f"body.{field}"])
    assert takes in answer.text
    assert api.inference.requests == []


@pytest.mark.parametrize(
    ("model", "parameters", "field"),
    [
        (E5, {"top_n": 1}, "parameters.top_n"),
        (E5, {"dimensions": 0}, "parameters.dimensions"),
        (E5, {"dimensions": "many"}, "parameters.dimensions"),
        (E5, {"input_type": "title"}, "parameters.input_type"),
        (E5, {"truncate": "middle"}, "parameters.truncate"),
        (E5, {"truncate": 3}, "parameters.truncate"),
        ("splade_v1", {"dimensions": 7}, "parameters.dimensions"),
        ("splade_v1", {"instruction": "x"}, "parameters.instruction"),
        ("colbertv2", {"instruction": "x"}, "parameters.instruction"),
    ],
)
async def test_parameters_that_a_model_does_not_take(api, model, parameters, field):
    answer = await _infer(api, {"model": model, "parameters": parameters} | TEXT)
    assert (answer.status_code, _fields(answer)) == (422, [f"body.{field}"])
    pair = await _infer(api, {"model": "cross-encoder", "parameters": {"input_type": "query"}} | PAIR)
    assert _fields(pair) == ["body.parameters.input_type"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"enable_semantic_cache": True}, "enable_semantic_cache"),
        ({"cache_delta": 2}, "cache_delta"),
        ({"inputs": []}, "inputs"),
        ({"parameters": "x"}, "parameters"),
    ],
)
async def test_what_is_refused_of_the_whole(api, body, field):
    answer = await _infer(api, {"model": E5} | TEXT | body)
    assert (answer.status_code, _fields(answer)) == (422, [f"body.{field}"])


async def test_a_cache_that_is_not_asked_for_changes_nothing(api):
    body = {"model": E5, "enable_semantic_cache": False, "cache_delta": 0.1, "parameters": None} | TEXT
    assert (await _infer(api, body)).json()["cached"] is False


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"inputs": {"text": "\\ud800"}, "model": "splade"}', b"\xff"])
async def test_bodies_that_are_no_json_object_of_text(api, raw):
    async with api.client() as client:
        answer = await client.post("/v1/inference", content=raw)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_error")


async def test_bodies_and_lists_are_bounded(api):
    async with api.client() as client:
        large = await client.post("/v1/inference", content=b" " * (limits.MAX_INFERENCE_BODY_BYTES + 1))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
        texts = ["a"] * 1_000_000
        many = await client.post("/v1/inference", json={"model": E5, "inputs": {"texts": texts}})
    assert _fields(many) == ["body.inputs.texts"]


async def test_who_may_call(api):
    assert (await _infer(api, {"model": E5} | TEXT, key=None)).json()["error"]["code"] == "unauthenticated"
    # Computing changes nothing: a key that may read may do it.
    assert (await _infer(api, {"model": E5} | TEXT, key="sk_reader")).status_code == 200
    async with api.client() as client:
        for method in ("GET", "HEAD", "PUT"):
            assert (await client.request(method, "/v1/inference")).status_code == 405


async def test_what_the_models_refuse_is_said(api):
    api.inference.failure = OverloadedError("Too much to do.", retry_after_seconds=3)
    answer = await _infer(api, {"model": E5} | TEXT)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


@pytest.mark.parametrize(
    ("body", "details", "place"),
    [
        (TEXT, {"index": 0}, ["inputs", "text"]),
        ({"inputs": {"texts": ["a", "b"]}}, {"index": 1}, ["inputs", "texts", 1]),
        ({"inputs": {"texts": ["a", "b"]}}, {}, ["inputs", "texts"]),
        (TEXT, {"field": "dimensions"}, ["parameters", "dimensions"]),
        (TEXT, {"field": "model"}, ["model"]),
        (PAIR, {"index": 2}, ["inputs", "documents", 2]),
        (PAIR, {"field": "query"}, ["inputs", "query"]),
    ],
)
async def test_what_a_model_refuses_is_placed_in_this_body(api, body, details, place):
    api.inference.failure = InputTooLongError("Too long.", **details)
    answer = await _infer(api, {"model": "colbertv2"} | body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "input_too_long")
    assert answer.json()["error"]["details"]["validation_errors"][0]["loc"] == ["body", *place]


async def test_built_in_models_need_no_registry(api):
    api.platform.failures = {name: RuntimeError("down") for name in ("builtin_models", "get_model", "list_namespaces")}
    assert (await _infer(api, {"model": E5} | TEXT)).status_code == 200


async def test_custom_models_that_answered_outlive_the_registry(make_api, monkeypatch):
    monkeypatch.setattr(custom_families, "_TRUST_S", 0.0)
    api = make_api()
    api.have(custom_model(), custom_model("unasked"))
    mine = {"inference_name": "ns_acme/mine_1_0_0"} | TEXT
    assert (await _infer(api, mine)).status_code == 200
    api.platform.failures["get_model"] = RegistryUnavailableError("The model registry does not answer.")
    assert (await _infer(api, mine)).status_code == 200
    for body, key in (({"inference_name": "ns_acme/unasked_1_0_0"} | TEXT, "sk_writer"), (mine, "sk_other")):
        answer = await _infer(api, body, key=key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "registry_unavailable")


async def test_the_registry_is_not_asked_for_every_call(make_api, monkeypatch):
    monkeypatch.setattr(custom_families, "_TRUST_S", 3600.0)
    api = make_api()
    api.have(custom_model())
    for _ in range(3):
        assert (await _infer(api, {"inference_name": "ns_acme/mine_1_0_0"} | TEXT)).status_code == 200
    assert api.platform.calls.count("get_model") == 1
    wrong = {"feature_uri": "mixpeek://mine@1.0.0/sparse_embedding"} | TEXT
    assert (await _infer(api, wrong, **{"X-Namespace": "ns_acme"})).status_code == 404


async def test_what_the_gateway_remembers_is_bounded(make_api, monkeypatch):
    monkeypatch.setattr(custom_families, "_TRUST_S", 3600.0)
    monkeypatch.setattr(remembered, "_MAX_REMEMBERED", 2)
    api = make_api()
    api.have(*(custom_model(name) for name in ("one", "two", "three")))
    for name in ("one", "two", "three", "two", "one"):
        await _infer(api, {"inference_name": f"ns_acme/{name}_1_0_0"} | TEXT)
    assert api.platform.calls.count("get_model") == 4


async def test_the_cohere_packages_second_version_reranks(api):
    async with api.client() as http:
        client = cohere.AsyncClientV2("sk_writer", base_url="http://platform", httpx_client=http)
        ranked = await client.rerank(model="cross-encoder", query="pet", documents=["a cat", "a horse"], top_n=1)
    assert [(result.index, result.relevance_score) for result in ranked.results] == [(1, 7.0)]
    async with api.client(key=None) as client:
        refused = await client.post("/v2/rerank", json={"model": "cross-encoder", "query": "a", "documents": ["b"]})
    assert refused.json()["error"]["code"] == "unauthenticated"


def test_the_gateways_process_stays_small():
    script = "import sys, mixpeek_ray.api.app; print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_two_models_that_would_be_one_feature_stop_the_start(make_api):
    models = [
        {
            "name": name,
            "family": "sparse",
            "dimensions": 9,
            "max_tokens": 64,
            "licence": "MIT",
            "description": "Tiny.",
            "source": {"path": "unused"},
        }
        for name in ("a-b", "a_b")
    ]
    with pytest.raises(InvalidCatalogError, match="alias"):
        make_api(catalog=parse_catalog(json.dumps({"models": models}), file_name="test.yaml"))
