"""The routes of custom models, over a platform in memory."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from custom_models import custom_model

from mixpeek_ray.core.records import ModelKind, ResourceRequest

pytestmark = pytest.mark.anyio

MODELS = "/v1/namespaces/ns_acme/models"
ARCHIVE = b"\x1f\x8b weights \r\n--" * 500
FORM = {"name": "my-embedding-model", "version": "1.0.0", "model_format": "pytorch"}


async def _upload(client, files=None, **fields):
    return await client.post(
        MODELS, files={"file": ("m.tar.gz", ARCHIVE)} if files is None else files, data=FORM | fields
    )


async def test_upload_then_list_get_deploy_undeploy_delete(api):
    async with api.client() as client:
        uploaded = await _upload(client, framework="pytorch", task_type="embedding", num_gpus="0", memory_gb="4.0")
        assert uploaded.status_code == 200, uploaded.text
        sha256 = hashlib.sha256(ARCHIVE).hexdigest()
        assert uploaded.json() == {
            "success": True,
            "model_id": "my-embedding-model_1_0_0",
            "deployment_status": "not_deployed",
            "endpoint": "/models/ns_acme/my-embedding-model_1_0_0",
            "model_archive_url": f"mixpeek://ns_acme/my-embedding-model_1_0_0/{sha256}.tar.gz",
        }
        assert api.store.read(f"archives/{sha256}") == ARCHIVE
        assert api.kept() == {f"archives/{sha256}"}

        listed = (await client.get(MODELS)).json()
        assert (listed["total"], listed["namespace_id"]) == (1, "ns_acme")
        assert listed["models"][0]["deployed"] is False

        model = f"{MODELS}/my-embedding-model_1_0_0"
        deployed = (await client.post(f"{model}/deploy")).json()
        assert (deployed["success"], deployed["deployment_status"], deployed["cached"]) == (True, "deployed", False)
        assert (await client.post(f"{model}/deploy")).json()["cached"] is True

        got = (await client.get(model)).json()["model"]
        assert got["deployed"] is True
        assert got["deployment_info"]["endpoint"] == "/models/ns_acme/my-embedding-model_1_0_0"
        assert got["model_hash"] == sha256
        assert got["archive_bytes"] == len(ARCHIVE)
        assert got["resource_requirements"] == {"num_cpus": 1.0, "num_gpus": 0, "memory": 4 * 1024**3}
        assert got["files"] == [{"path": "model.pt", "size_bytes": 787_456}]
        assert got["created_at"] == "2026-01-02T03:04:05Z"

        assert (await client.post(f"{model}/undeploy")).json()["deployment_status"] == "not_deployed"
        deleted = await client.delete(model)
        assert deleted.json()["success"] is True
        gone = await client.get(model)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


async def test_deploy_without_waiting_answers_pending(api):
    async with api.client() as client:
        await _upload(client)
        answer = await client.post(f"{MODELS}/my-embedding-model_1_0_0/deploy?wait=false")
    assert (answer.json()["deployment_status"], answer.json()["success"]) == ("pending", True)


@pytest.mark.parametrize(
    ("kind", "resources", "served_by"),
    [
        (ModelKind.ONNX, ResourceRequest(), "pool"),
        (ModelKind.ONNX, ResourceRequest(num_gpus=1), "dedicated"),
        (ModelKind.STATE_DICT, ResourceRequest(), None),
    ],
)
async def test_who_answers_a_deployed_models_requests_is_told(api, kind, resources, served_by):
    state = custom_model("m")
    contents = replace(state.manifest.contents, kind=kind)
    api.have(replace(state, manifest=replace(state.manifest, resources=resources, contents=contents)))
    async with api.client() as client:
        found = (await client.get(f"{MODELS}/m_1_0_0")).json()["model"]["deployment_info"]
    assert found["served_by"] == served_by
