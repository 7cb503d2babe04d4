"""The fields of an upload, as they come over HTTP."""

from __future__ import annotations

import pytest

from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.records import ModelFormat, ResourceRequest

pytestmark = pytest.mark.anyio

MODELS = "/v1/namespaces/ns_acme/models"
FORM = {"name": "m", "version": "1.0.0", "model_format": "pytorch"}


async def _upload(api, content: bytes = b"weights", **fields: str | None):
    data = {name: value for name, value in (FORM | fields).items() if value is not None}
    async with api.client() as client:
        return await client.post(MODELS, data=data, files={"file": ("m.tar.gz", content)})


async def test_defaults(api):
    assert (await _upload(api)).status_code == 200
    form, archive = api.platform.uploads[0]
    assert form.resources == ResourceRequest(num_cpus=1.0, num_gpus=0, memory_bytes=4 * GIB)
    assert (form.model_format, form.framework, form.task_type) == (ModelFormat.PYTORCH, None, None)
    assert archive.size_bytes == len(b"weights")


async def test_every_field(api):
    fields = {"framework": "pytorch", "task_type": "embedding", "num_cpus": "0.5", "num_gpus": "2", "memory_gb": "1.5"}
    assert (await _upload(api, **fields, unknown="ignored")).status_code == 200
    form, _ = api.platform.uploads[0]
    assert (form.framework, form.task_type) == ("pytorch", "embedding")
    assert form.resources == ResourceRequest(num_cpus=0.5, num_gpus=2, memory_bytes=3 * GIB // 2)


async def test_an_empty_label_is_none(api):
    assert (await _upload(api, framework="", task_type="")).status_code == 200
    assert (api.platform.uploads[0][0].framework, api.platform.uploads[0][0].task_type) == (None, None)


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        *[("name", value, "invalid_name") for value in ("../x", "a/b", "a\0b", "x" * 300, "a\u202eb", "")],
        *[("version", value, "invalid_version") for value in ("latest", "1..0", "1.0.0/../", "")],
        *[("model_format", value, "unsupported_format") for value in ("tensorflow", "PyTorch", "")],
        *[("memory_gb", value, "invalid_resources") for value in ("-1", "nan", "inf", "1e9", "four", "")],
        *[("num_gpus", value, "invalid_resources") for value in ("0.5", "9", "-1", "nan")],
        *[("num_cpus", value, "invalid_resources") for value in ("0", "1e9", "inf", "x" * 4000)],
        *[("framework", value, "validation_error") for value in ("x" * 65, "a\nb", "a\u202eb")],
        *[("task_type", value, "validation_error") for value in ("x" * 65, "a\0b")],
    ],
)
async def test_a_value_that_is_not_allowed(api, field, value, code):
    answer = await _upload(api, **{field: value})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, code)
    assert error["details"]["validation_errors"][0]["loc"] == ["body", field]
    assert error["message"].isascii()
    assert len(error["message"]) < 500
    assert api.kept() == set()


async def test_all_that_is_missing_is_told_at_once(api):
    answer = await _upload(api, name=None, version=None)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "validation_error")
    assert [found["loc"] for found in error["details"]["validation_errors"]] == [["body", "name"], ["body", "version"]]
    assert api.kept() == set()


async def test_an_empty_file(api):
    answer = await _upload(api, content=b"")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "empty_archive")
    assert answer.json()["error"]["details"]["validation_errors"][0]["loc"] == ["body", "file"]


async def test_a_field_twice(api):
    async with api.client() as client:
        data = FORM | {"name": ["a", "b"]}
        answer = await client.post(MODELS, data=data, files={"file": ("m.tar.gz", b"weights")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_multipart")
    assert api.kept() == set()


async def test_json_instead_of_a_form(api):
    async with api.client() as client:
        answer = await client.post(MODELS, json=FORM)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_multipart")


async def test_the_same_upload_again_and_the_same_version_with_other_bytes(api):
    first, again = await _upload(api), await _upload(api)
    assert (again.status_code, again.json()) == (200, first.json())
    kept = api.kept()
    other = await _upload(api, content=b"other weights")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "version_exists")
    assert other.json()["error"]["type"] == "AlreadyExistsError"
    assert api.kept() == kept
