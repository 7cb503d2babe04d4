"""The routes of resumable uploads, over the registry's own state and a platform in memory."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import pytest

from mixpeek_ray.core.errors import InvalidApiKeyError, NotTarGzError, StorageUnavailableError, VersionExistsError
from mixpeek_ray.core.ids import new_upload_id
from mixpeek_ray.registry.state import ModelCatalog
from mixpeek_ray.registry.uploads import Uploads
from mixpeek_ray.store.local_store import LocalStore
from mixpeek_ray.store.uploads import UploadStore

pytestmark = pytest.mark.anyio

UPLOADS = "/v1/namespaces/ns_acme/models/uploads"
CONTRACT_UPLOADS = "/v1/models/uploads"
FORM = {"name": "model", "version": "1.0.0", "model_format": "pytorch"}
PARTS = {1: b"first " * 1000, 2: b"second " * 1000, 3: b"third"}
WHOLE = b"".join(PARTS.values())
SHA256 = hashlib.sha256(WHOLE).hexdigest()
SCHEMAS = json.loads((Path(__file__).parent / "contract" / "responses.json").read_text())


class InProcessUploads(Uploads):
    """The registry's uploads without its actor: the port's way of naming the caller."""

    async def create(self, principal, namespace_id, announcement):
        organization_id = principal.organization.organization_id
        return await super().create(new_upload_id(), organization_id, namespace_id, announcement)

    async def list(self, principal, namespace_id):
        return self.unconfirmed(principal.organization.organization_id, namespace_id)

    async def find(self, ref):
        return super().find(ref)

    async def admit_part(self, ref, number):
        return super().admit_part(ref, number)


@pytest.fixture
def api(make_api):
    return with_uploads(make_api())


def with_uploads(api, lifetime: timedelta = timedelta(hours=1)):
    api.platform.resumable = InProcessUploads(ModelCatalog(), UploadStore(api.store), lifetime=lifetime)
    signed = {}

    async def sign_url(principal, path, expires_at):
        signed[path] = principal
        return f"signature={expires_at.timestamp()}"

    async def authenticate_url(path, query):
        if path not in signed or query == "signature=forged":
            raise InvalidApiKeyError("This signed URL is not valid.")
        return signed[path]

    api.platform.sign_url = sign_url
    api.platform.authenticate_url = authenticate_url
    return api


def check(name: str, answer) -> dict:
    """Hold an answer against the contract's own schema."""
    assert answer.status_code == 200, answer.text
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    schema = {"$ref": f"#/$defs/{name}", "$defs": SCHEMAS}
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(answer.json())
    return answer.json()


def code(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def digest(data: bytes) -> dict[str, str]:
    return {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"}


async def opened(client, url: str = UPLOADS, **fields) -> str:
    answer = await client.post(url, json=FORM | fields)
    assert answer.status_code == 200, answer.text
    return f"{url}/{answer.json()['upload_id']}"


async def send(client, upload: str, *numbers: int) -> None:
    for number in numbers:
        answer = await client.put(f"{upload}/parts/{number}", content=PARTS[number], headers=digest(PARTS[number]))
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("url", [UPLOADS, CONTRACT_UPLOADS])
async def test_create_send_look_confirm(api, url):
    async with api.client() as client:
        client.headers["X-Namespace"] = "ns_acme"
        created = check(
            "ModelPresignedURLResponse", await client.post(url, json=FORM | {"file_size_bytes": len(WHOLE)})
        )
        assert (created["name"], created["version"], created["model_format"]) == ("model", "1.0.0", "pytorch")
        assert (created["organization_id"], created["model_id"]) == ("org_acme", "model_1_0_0")
        assert created["part_size_bytes"] == created["max_part_size_bytes"] == api.max_upload_bytes
        upload = f"{url}/{created['upload_id']}"
        await send(client, upload, 3, 1)
        seen = (await client.get(upload)).json()["upload"]
        assert (seen["status"], seen["received_bytes"]) == ("open", len(PARTS[1]) + len(PARTS[3]))
        assert [part["number"] for part in seen["parts"]] == [1, 3]
        await send(client, upload, 2)
        for _ in range(2):
            confirmed = check(
                "ConfirmModelUploadResponse",
                await client.post(f"{upload}/confirm", json={"file_size_bytes": len(WHOLE), "etag": f'"{SHA256}"'}),
            )
            assert confirmed == {
                "success": True,
                "upload_id": created["upload_id"],
                "validation_status": "passed",
                "validation_errors": None,
                "error_code": None,
                "model_id": "model_1_0_0",
                "s3_archive_url": f"mixpeek://ns_acme/model_1_0_0/{SHA256}.tar.gz",
                "message": "The model is uploaded and its archive was checked: deploy it to use it.",
            }
    assert api.store.read(f"archives/{SHA256}") == WHOLE
    assert api.kept() == {f"archives/{SHA256}", f"resumable/{created['upload_id']}/upload.json"}


async def test_a_contracts_client_sends_the_whole_archive_without_a_key_and_confirms_without_a_body(api):
    async with api.client() as client, api.client(key=None) as keyless:
        created = (await client.post(CONTRACT_UPLOADS, json=FORM)).json()
        expires_in = datetime.fromisoformat(created["expires_at"]) - datetime.now(UTC)
        assert timedelta(minutes=59) < expires_in <= timedelta(hours=1)
        answer = await keyless.put(created["presigned_url"], content=WHOLE)
        assert (answer.status_code, answer.headers["etag"]) == (200, f'"{SHA256}"')
        confirmed = await client.post(f"{CONTRACT_UPLOADS}/{created['upload_id']}/confirm")
        assert check("ConfirmModelUploadResponse", confirmed)["success"] is True
    assert api.store.read(f"archives/{SHA256}") == WHOLE


async def test_a_signed_url_is_good_for_its_own_part_only(api):
    async with api.client() as client, api.client(key=None) as keyless:
        created = (await client.post(CONTRACT_UPLOADS, json=FORM)).json()
        url, _, query = created["presigned_url"].partition("?")
        for refused in (f"{url[:-1]}2?{query}", f"{url}?signature=forged"):
            assert code(await keyless.put(refused, content=WHOLE)) == (401, "invalid_api_key")
        assert code(await keyless.put(url, content=WHOLE)) == (401, "unauthenticated")
        assert code(await keyless.get(created["presigned_url"])) == (401, "unauthenticated")


@pytest.mark.parametrize(
    "header",
    ["", "md5=:AAAA:", "sha-256=AAAA", "sha-256=:AAAA:", "sha-256=:***:", "sha-256=::", "sha-512=:" + "A" * 88 + ":"],
)
async def test_a_digest_that_cannot_be_checked_is_refused(api, header):
    async with api.client() as client:
        upload = await opened(client)
        answer = await client.put(f"{upload}/parts/1", content=PARTS[1], headers={"Content-Digest": header})
        assert code(answer) == (400, "bad_request")


async def test_a_part_with_a_wrong_digest_is_refused_and_leaves_nothing(api):
    async with api.client() as client:
        upload = await opened(client)
        before = api.kept()
        answer = await client.put(f"{upload}/parts/1", content=PARTS[1], headers=digest(PARTS[2]))
        assert code(answer) == (400, "digest_mismatch")
        assert api.kept() == before
        headers = {"Content-Digest": "md5=:AAAA:, " + digest(PARTS[1])["Content-Digest"]}
        assert (await client.put(f"{upload}/parts/1", content=PARTS[1], headers=headers)).status_code == 200


@pytest.mark.parametrize("number", ["0", "-1", "10001", "x", "1.5"])
async def test_part_numbers_count_from_one(api, number):
    async with api.client() as client:
        upload = await opened(client)
        assert code(await client.put(f"{upload}/parts/{number}", content=b"x")) == (422, "validation_error")


async def test_an_empty_part_is_none(api):
    async with api.client() as client:
        upload = await opened(client)
        assert code(await client.put(f"{upload}/parts/1", content=b"")) == (400, "bad_request")


async def test_a_part_larger_than_what_was_announced_is_stopped_and_leaves_nothing(api):
    async with api.client() as client:
        upload = await opened(client, file_size_bytes=100)
        before = api.kept()
        assert code(await client.put(f"{upload}/parts/1", content=b"x" * 101)) == (413, "archive_too_large")
        assert api.kept() == before


async def test_a_part_larger_than_what_was_announced_is_not_read_to_its_end(make_api, exchange):
    api = with_uploads(make_api(max_upload_bytes=100 * 1024**2))
    async with api.client() as client:
        upload = await opened(client, file_size_bytes=100)

    async def body():
        for _ in range(40):
            yield bytes(2 * 1024**2)

    headers = {"Authorization": "Bearer sk_writer", "Transfer-Encoding": "chunked"}
    request = exchange(api.app, "PUT", f"{upload}/parts/1", headers, body())
    await request.run()
    assert request.status == 413
    assert request.read_bytes < 10 * 1024**2


async def test_a_part_that_the_registry_does_not_take_leaves_nothing(api, monkeypatch):
    async def add_part(*_):
        raise StorageUnavailableError("down")

    async with api.client() as client:
        upload = await opened(client)
        before = api.kept()
        monkeypatch.setattr(api.platform.resumable, "add_part", add_part)
        assert code(await client.put(f"{upload}/parts/1", content=PARTS[1])) == (503, "storage_unavailable")
    assert api.kept() == before


async def test_a_part_larger_than_the_ingress_takes_is_refused_before_its_body(api, exchange):
    async with api.client() as client:
        upload = await opened(client)

    async def body():
        yield b"x"

    headers = {"Authorization": "Bearer sk_writer", "Content-Length": str(api.max_upload_bytes * 2)}
    request = exchange(api.app, "PUT", f"{upload}/parts/1", headers, body())
    await request.run()
    assert (request.status, request.read_bytes) == (413, 0)


async def test_a_client_that_leaves_in_the_middle_of_a_part_leaves_nothing(make_api, exchange, tmp_path):
    api = with_uploads(make_api(store=LocalStore(tmp_path), max_upload_bytes=100 * 1024**2))
    async with api.client() as client:
        upload = await opened(client)
    before = api.kept()

    async def body():
        for _ in range(3):
            yield bytes(2 * 1024**2)
        raise ConnectionError

    headers = {"Authorization": "Bearer sk_writer", "Content-Length": str(10 * 1024**2)}
    await exchange(api.app, "PUT", f"{upload}/parts/1", headers, body()).run()
    assert api.kept() == before
    assert list((tmp_path / ".partial").iterdir()) == []


async def test_without_a_key_no_byte_of_a_part_is_read(api, exchange):
    async with api.client() as client:
        upload = await opened(client)

    async def body():
        yield b"x"

    request = exchange(api.app, "PUT", f"{upload}/parts/1", {"Content-Length": "1"}, body())
    await request.run()
    assert (request.status, request.read_bytes) == (401, 0)


@pytest.mark.parametrize(
    ("key", "expected"),
    [("sk_reader", (403, "forbidden")), ("sk_pro", (403, "tier_required")), ("sk_other", (404, "upload_not_found"))],
)
async def test_who_may_touch_an_upload(api, key, expected):
    async with api.client() as owner:
        upload_id = (await opened(owner)).rpartition("/")[2]
    upload = f"{CONTRACT_UPLOADS}/{upload_id}"
    before = api.kept()
    async with api.client(key=key) as client:
        assert code(await client.put(f"{upload}/parts/1", content=b"x")) == expected
        assert code(await client.post(f"{upload}/confirm")) == expected
        assert code(await client.delete(upload)) == expected
    assert api.kept() == before


async def test_another_namespace_of_the_owner_does_not_have_it(api):
    async with api.client() as client:
        upload_id = (await opened(client)).rpartition("/")[2]
        elsewhere = f"/v1/namespaces/ns_elsewhere/models/uploads/{upload_id}"
        assert code(await client.get(elsewhere)) == (404, "upload_not_found")
        header = {"X-Namespace": "ns_elsewhere"}
        assert code(await client.get(f"{CONTRACT_UPLOADS}/{upload_id}", headers=header)) == (404, "upload_not_found")


async def test_the_namespace_must_be_named_unless_there_is_only_one(api):
    async with api.client() as client:
        assert (await client.post(CONTRACT_UPLOADS, json=FORM)).json()["namespace_id"] == "ns_acme"
        api.platform.namespaces["ns_second"] = "org_acme"
        answer = await client.post(CONTRACT_UPLOADS, json=FORM)
        assert code(answer) == (422, "validation_error")
        assert answer.json()["error"]["details"]["validation_errors"][0]["loc"] == ["header", "X-Namespace"]
        answer = await client.post(CONTRACT_UPLOADS, json=FORM, headers={"X-Namespace": "ns_second"})
        assert answer.json()["namespace_id"] == "ns_second"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "../x"}, "invalid_name"),
        ({"version": "latest"}, "invalid_version"),
        ({"model_format": "exe"}, "unsupported_format"),
        ({"task_type": "x" * 65}, "validation_error"),
        ({"resource_requirements": {"num_gpus": 0.5}}, "invalid_resources"),
        ({"resource_requirements": {"memory": -1}}, "invalid_resources"),
        ({"file_size_bytes": 0}, "validation_error"),
        ({"file_size_bytes": 10 * 1024**3 + 1}, "validation_error"),
        ({"sha256": "x"}, "validation_error"),
        ({"presigned_url_expiration": 59}, "validation_error"),
        ({"description": "x" * 501}, "validation_error"),
        ({"colour": "blue"}, "validation_error"),
    ],
)
async def test_what_cannot_be_announced(api, fields, expected):
    async with api.client() as client:
        assert code(await client.post(UPLOADS, json=FORM | fields)) == (422, expected)
    assert api.kept() == set()


async def test_the_announcement_is_the_uploads_form(api):
    async with api.client() as client:
        resources = {"num_cpus": 0.5, "num_gpus": 1, "memory": 123_456_789_123}
        labels = {"framework": "pytorch", "task_type": "embedding", "description": "d"}
        upload = await opened(client, resource_requirements=resources, **labels)
        await send(client, upload, 1)
        assert (await client.post(f"{upload}/confirm")).json()["success"] is True
    (form, _) = api.platform.uploads[0]
    assert (form.resources.num_cpus, form.resources.num_gpus) == (0.5, 1)
    assert form.resources.memory_bytes == 123_456_789_123
    assert (form.framework, form.task_type) == ("pytorch", "embedding")


async def test_what_is_missing_is_named_and_can_still_be_sent(api):
    async with api.client() as client:
        upload = await opened(client)
        await send(client, upload, 3)
        answer = await client.post(f"{upload}/confirm")
        assert code(answer) == (400, "upload_incomplete")
        assert answer.json()["error"]["details"]["missing_parts"] == [1, 2]
        await send(client, upload, 1, 2)
        assert code(await client.post(f"{upload}/confirm", json={"etag": "0" * 64})) == (400, "digest_mismatch")
        assert code(await client.post(f"{upload}/confirm", json={"file_size_bytes": 1})) == (400, "upload_incomplete")
        assert (await client.post(f"{upload}/confirm")).json()["success"] is True
        assert code(await client.put(f"{upload}/parts/4", content=b"x")) == (409, "upload_closed")


async def test_an_archive_that_is_refused_is_told_in_the_contracts_words_and_gone(api):
    api.platform.failures["commit_upload"] = NotTarGzError("The file is no gzip-compressed tar.")
    async with api.client() as client:
        upload = await opened(client)
        await send(client, upload, 1)
        for _ in range(2):
            answer = check("ConfirmModelUploadResponse", await client.post(f"{upload}/confirm"))
            assert (answer["success"], answer["validation_status"]) == (False, "failed")
            assert answer["validation_errors"] == ["The file is no gzip-compressed tar."]
            assert (answer["error_code"], answer["model_id"]) == ("not_tar_gz", None)
        assert (await client.get(upload)).json()["upload"]["status"] == "failed"
    assert api.kept() == {f"resumable/{upload.rpartition('/')[2]}/upload.json"}


@pytest.mark.parametrize("failure", [StorageUnavailableError("down"), VersionExistsError("taken")])
async def test_a_confirmation_that_failed_otherwise_can_be_repeated(api, failure):
    api.platform.failures["commit_upload"] = failure
    async with api.client() as client:
        upload = await opened(client)
        await send(client, upload, 2, 1, 3)
        assert code(await client.post(f"{upload}/confirm")) == (failure.status, failure.code)
        api.platform.failures.clear()
        assert (await client.post(f"{upload}/confirm")).json()["success"] is True
    assert api.store.read(f"archives/{SHA256}") == WHOLE


async def test_list_and_abort(api):
    async with api.client() as client:
        first, second = await opened(client), await opened(client)
        await send(client, first, 1)
        listed = (await client.get(UPLOADS)).json()
        assert listed["total"] == 2
        assert {item["upload_id"] for item in listed["uploads"]} == {up.rpartition("/")[2] for up in (first, second)}
        assert (await client.delete(first)).status_code == 200
        assert code(await client.get(first)) == (404, "upload_not_found")
        assert (await client.get(UPLOADS)).json()["total"] == 1
        assert (await client.get("/v1/namespaces/ns_elsewhere/models/uploads")).json()["total"] == 0
    assert api.kept() == {f"resumable/{second.rpartition('/')[2]}/upload.json"}


async def test_an_expired_upload_is_not_found(make_api):
    api = with_uploads(make_api(), lifetime=timedelta(0))
    async with api.client() as client:
        upload = await opened(client)
        assert code(await client.put(f"{upload}/parts/1", content=b"x")) == (404, "upload_not_found")


async def test_openapi_has_both_trees_of_routes(api):
    async with api.client(key=None) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    for prefix in ("/v1/models/uploads", "/v1/namespaces/{namespace_id}/models/uploads"):
        assert set(paths[prefix]) == {"get", "post"}
        assert set(paths[f"{prefix}/{{upload_id}}"]) == {"get", "delete"}
        assert set(paths[f"{prefix}/{{upload_id}}/confirm"]) == {"post"}
        put = paths[f"{prefix}/{{upload_id}}/parts/{{number}}"]["put"]
        assert set(put["requestBody"]["content"]) == {"application/octet-stream"}
        assert "Content-Digest" in {parameter["name"] for parameter in put["parameters"]}
        named = {parameter["name"] for parameter in paths[prefix]["post"]["parameters"]}
        assert named & {"namespace_id", "x-namespace"}
