"""``/v1/models`` for OpenAI's client, unmodified, and for the contract's."""

from __future__ import annotations

import json
from dataclasses import replace

import openai
import pytest
from custom_models import custom_model

from mixpeek_ray.catalog.availability import Availability
from mixpeek_ray.catalog.catalog import parse_catalog
from mixpeek_ray.core.records import DeploymentStatus

pytestmark = pytest.mark.anyio


def _openai(api, http, key="sk_writer"):
    return openai.AsyncOpenAI(api_key=key, base_url="http://platform/v1", http_client=http, max_retries=0)


async def _get(api, path, key="sk_writer", **headers):
    async with api.client(key=key) as client:
        return await client.get(f"/v1/models{path}", headers=headers)


async def test_the_openai_package_lists_and_retrieves(api):
    api.have(custom_model(), custom_model("waiting", status=DeploymentStatus.PENDING))
    async with api.client(key=None) as http:
        client = _openai(api, http)
        listed = [model async for model in client.models.list()]
        assert [model.id for model in listed] == [*api.catalog, "ns_acme/mine_1_0_0"]
        assert {(model.object, model.owned_by) for model in listed[:-1]} == {("model", "mixpeek")}
        assert (listed[-1].owned_by, listed[-1].created) == ("org_acme", 1767323045)
        for model in listed:
            assert (await client.models.retrieve(model.id)).id == model.id
        for alias in ("intfloat/multilingual-e5-large-instruct", "splade"):
            assert (await client.models.retrieve(alias)).id in api.catalog
        with pytest.raises(openai.NotFoundError) as refused:
            await client.models.retrieve("gpt-5")
    assert refused.value.response.json()["error"]["code"] == "model_not_found"


async def test_the_contracts_fields_hold_the_organizations_own_models(api):
    api.platform.namespaces["ns_second"] = "org_acme"
    off = custom_model("off", namespace_id="ns_second", status=DeploymentStatus.NOT_DEPLOYED)
    failed = replace(
        custom_model("failed", status=DeploymentStatus.FAILED), failure_code="x", failure_message="It broke."
    )
    api.have(custom_model(), off, failed, custom_model("theirs", namespace_id="ns_other"))
    body = (await _get(api, "")).json()
    assert (body["success"], body["total"], body["organization_id"], body["object"]) == (True, 3, "org_acme", "list")
    assert {(model["model_id"], model["deployed"], model["validation_status"]) for model in body["models"]} == {
        ("mine_1_0_0", True, "passed"),
        ("off_1_0_0", False, "passed"),
        ("failed_1_0_0", False, "failed"),
    }
    assert "theirs" not in str(body)
    model = (await _get(api, "/failed_1_0_0")).json()["model"]
    assert (model["validation_errors"], model["deployed"]) == (["It broke."], False)


async def test_a_built_in_model_says_what_the_catalog_says(api):
    first, *others = api.platform.builtin
    api.platform.builtin = [replace(first, availability=Availability.UNAVAILABLE, reason="Put it there."), *others]
    body = (await _get(api, "/multilingual_e5_large_instruct_v1")).json()
    assert (body["id"], body["object"], body["created"]) == ("multilingual-e5-large-instruct", "model", 0)
    assert (body["availability"], body["reason"], body["task"]) == ("unavailable", "Put it there.", "embedding")
    assert body["builtin"]["dimensions"] == 1024
    assert body["model"]["model_hash"] == first.card.source.revision
    assert "created_at" not in body["model"]


async def test_where_the_weights_lie_is_not_told(make_api):
    models = [
        {"name": name, "source": source, "family": "rerank", "activation": "none", "max_tokens": 64}
        | {"licence": "MIT", "description": "Tiny."}
        for name, source in (("here", {"path": "/srv/secret/model"}), ("there", {"url": "s3://secret/model"}))
    ]
    api = make_api(catalog=parse_catalog(json.dumps({"models": models}), file_name="test.yaml"))
    for path in ("", "/here", "/there"):
        answer = await _get(api, path)
        assert (answer.status_code, "secret" in answer.text) == (200, False)


async def test_a_bare_id_is_looked_for_where_it_can_be(api):
    api.platform.namespaces["ns_second"] = "org_acme"
    api.have(custom_model(), custom_model("twin"), custom_model("twin", namespace_id="ns_second"))
    assert (await _get(api, "/mine_1_0_0")).json()["id"] == "ns_acme/mine_1_0_0"
    ambiguous = await _get(api, "/twin_1_0_0")
    assert ambiguous.status_code == 422
    assert ambiguous.json()["error"]["details"]["validation_errors"][0]["loc"] == ["header", "X-Namespace"]
    named = await _get(api, "/twin_1_0_0", **{"X-Namespace": "ns_second"})
    assert named.json()["id"] == "ns_second/twin_1_0_0"


async def test_foreign_absent_and_impossible_models_look_the_same(api):
    api.have(custom_model(namespace_id="ns_other"))
    paths = ["/ns_other/mine_1_0_0", "/ns_absent/mine_1_0_0", "/ns_acme/none", "/none", "/a%20b", "/ns acme/none"]
    errors = [(await _get(api, path)).json()["error"] for path in paths]
    assert all(error == errors[0] for error in errors)
    assert errors[0]["code"] == "model_not_found"
    foreign = await _get(api, "/mine_1_0_0", **{"X-Namespace": "ns_other"})
    assert foreign.json()["error"] == errors[0]


async def test_an_organization_without_the_tier_has_the_built_in_models(api):
    api.platform.namespaces["ns_small"] = "org_small"
    api.have(custom_model(namespace_id="ns_small"))
    body = (await _get(api, "", key="sk_pro")).json()
    assert ([model["id"] for model in body["data"]], body["models"]) == (list(api.catalog), [])
    assert (await _get(api, "/ns_small/mine_1_0_0", key="sk_pro")).status_code == 404


async def test_uploads_are_no_models(api):
    async with api.client() as client:
        assert (await client.get("/v1/models/uploads/upl_1/confirm")).status_code == 405
        assert (await client.head("/v1/models")).status_code == 200
    assert (await _get(api, "", key=None)).status_code == 401
