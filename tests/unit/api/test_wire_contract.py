"""Answers hold what the published contract says, and the OpenAPI page says what the application does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import httpx
import jsonschema
import pytest
from custom_models import custom_model

from mixpeek_ray.api.access import access_for
from mixpeek_ray.core.records import DeploymentStatus

pytestmark = pytest.mark.anyio

# The contract's own schemas of the answers below, copied as they are.
SCHEMAS = json.loads((Path(__file__).parent / "contract" / "responses.json").read_text())
MODELS = "/v1/namespaces/ns_acme/models"
MODEL = f"{MODELS}/m_1_0_0"


def _check(name: str, answer) -> dict:
    schema = {"$ref": f"#/$defs/{name}", "$defs": SCHEMAS}
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(answer.json())
    return answer.json()


async def test_answers_are_the_contracts(api):
    async with api.client() as client:
        form = {"name": "m", "version": "1.0.0", "model_format": "pytorch"}
        _check("ModelUploadResponse", await client.post(MODELS, data=form, files={"file": ("m", b"weights")}))
        _check("ModelListResponse", await client.get(MODELS))
        _check("ModelDetailResponse", await client.get(MODEL))
        _check("ModelDeployResponse", await client.post(f"{MODEL}/deploy"))
        _check("ModelListResponse", await client.get(MODELS))
        deployed = _check("ModelDetailResponse", await client.get(MODEL))
        assert deployed["model"]["deployment_info"]["deployed_at"] == "2026-01-02T03:04:05Z"
        _check("ModelDeployResponse", await client.post(f"{MODEL}/undeploy"))
        _check("ModelDeleteResponse", await client.delete(MODEL))
        _check("HealthCheckResponse", await client.get("/v1/health?metrics=true"))
        _check("ErrorResponse", await client.get(MODEL))


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/v1/collections/features/extractors", "FeatureExtractorResponseModel"),
        ("/v1/feature-extractors", "FeatureExtractorResponseModel"),
        ("/v1/discovery/extractors", "ExtractorDiscovery"),
        ("/v1/discovery/stages", "StageDiscovery"),
        ("/v1/retrievers/stages", "RetrieverStageDefinition"),
    ],
)
async def test_lists_of_discovery_are_the_contracts(api, path, schema):
    async with api.client() as client:
        listed = await client.get(path)
    assert listed.json()
    for entry in listed.json():
        _check(schema, httpx.Response(200, json=entry))


async def test_discovery_and_inference_of_a_namespace_are_the_contracts(api):
    api.have(custom_model(), custom_model("waiting", status=DeploymentStatus.NOT_DEPLOYED))
    extractors = "/v1/namespaces/ns_acme/extractors"
    async with api.client() as client:
        _check("UnifiedExtractorListResponse", await client.get(extractors, params={"include_disabled": True}))
        _check("UnifiedExtractorResponse", await client.get(f"{extractors}/mine_1_0_0"))
        _check("UnifiedExtractorResponse", await client.get(f"{extractors}/text_extractor_v1"))
        one = "/v1/collections/features/extractors/text_extractor_v1"
        _check("FeatureExtractorResponseModel", await client.get(one))
        _check("OrgModelListResponse", await client.get("/v1/models"))
        for model in ("colbertv2", "ns_acme/mine_1_0_0", "waiting_1_0_0"):
            _check("OrgModelDetailResponse", await client.get(f"/v1/models/{model}"))
        body = {
            "provider": "mixpeek",
            "model": "splade_v1",
            "inputs": {"text": "hello"},
            "enable_semantic_cache": False,
        }
        jsonschema.validate(body, {"$ref": "#/$defs/RawInferenceRequest", "$defs": SCHEMAS})
        _check("RawInferenceResponse", await client.post("/v1/inference", json=body))


async def test_a_degraded_health_is_the_contracts_too(api):
    api.platform.failures["health"] = RuntimeError("down")
    async with api.client() as client:
        assert _check("HealthCheckResponse", await client.get("/v1/health"))["status"] == "DEGRADED"


async def test_a_model_that_was_never_inspected_or_failed(api):
    async with api.client() as client:
        form = {"name": "m", "version": "1.0.0", "model_format": "pytorch"}
        await client.post(MODELS, data=form, files={"file": ("m", b"weights")})
        state = api.platform.models["ns_acme", "m_1_0_0"]
        api.platform.models["ns_acme", "m_1_0_0"] = replace(
            state,
            manifest=replace(state.manifest, contents=None),
            status=DeploymentStatus.FAILED,
            failure_code="unsafe_pickle",
            failure_message="The pickle would run code.",
        )
        model = _check("ModelDetailResponse", await client.get(MODEL))["model"]
    assert (model["deployed"], model["deployment_status"], model["deployment_info"]) == (False, "failed", None)
    assert model["failure"] == {"code": "unsafe_pickle", "message": "The pickle would run code."}
    assert (model["files"], model["tensor_count"], model["weights_bytes"]) == (None, None, None)


async def test_openapi_documents_the_upload_the_key_and_the_envelope(api):
    async with api.client(key=None) as client:
        document = (await client.get("/openapi.json")).json()
    upload = document["paths"]["/v1/namespaces/{namespace_id}/models"]["post"]
    body = upload["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert body["required"] == ["file", "name", "version", "model_format"]
    assert set(body["properties"]) == {
        "file", "name", "version", "model_format", "framework", "task_type", "num_cpus", "num_gpus", "memory_gb",
    }  # fmt: skip
    schemes = document["components"]["securitySchemes"]
    assert [scheme["scheme"] for scheme in schemes.values()] == ["bearer"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert bool(operation.get("security")) is access_for(method.upper(), path).needs_key, path
    assert "HTTPValidationError" not in document["components"]["schemas"]
    computing = ["/v1/embeddings", "/v1/embeddings/sparse", "/v1/embeddings/multi-vector", "/v1/embeddings/hybrid"]
    for path in [*computing, "/v1/rerank", "/v2/rerank", "/v1/inference"]:
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["properties"], path
