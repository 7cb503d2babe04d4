"""Every error has one shape, whoever raised it."""

from __future__ import annotations

import json
import logging

import pytest

from mixpeek_ray.core import errors
from mixpeek_ray.core.errors import MixpeekError, RegistryUnavailableError

pytestmark = pytest.mark.anyio

NAMESPACES = "/v1/namespaces"


def _tree(cls):
    return [cls] + [found for child in cls.__subclasses__() for found in _tree(child)]


def _check_envelope(answer) -> dict:
    body = answer.json()
    assert set(body) == {"success", "status", "error"}
    assert (body["success"], body["status"]) == (False, answer.status_code)
    assert set(body["error"]) == {"type", "code", "message", "details"}
    assert answer.headers["x-request-id"]
    return body["error"]


@pytest.mark.parametrize("cls", [c for c in _tree(MixpeekError) if c.__module__ == errors.__name__])
async def test_every_platform_error_is_answered_with_its_own_status_and_code(api, cls):
    api.platform.failures["list_models"] = cls("It failed: try again.")
    async with api.client() as client:
        answer = await client.get("/v1/namespaces/ns_acme/models")
    error = _check_envelope(answer)
    assert answer.status_code == cls.status
    assert (error["type"], error["code"], error["message"]) == (cls.error_type, cls.code, "It failed: try again.")
    if cls.status == 422:
        assert error["details"]["validation_errors"][0].keys() == {"loc", "msg", "type"}
    if cls.status in (429, 503):
        assert int(answer.headers["retry-after"]) == error["details"]["retry_after_seconds"] > 0
    else:
        assert "retry-after" not in answer.headers


async def test_a_field_is_named_where_clients_look_for_it(api):
    api.platform.failures["list_models"] = errors.InvalidNameError("No name.", field="name")
    async with api.client() as client:
        error = _check_envelope(await client.get("/v1/namespaces/ns_acme/models"))
    assert error["details"] == {
        "field": "name",
        "validation_errors": [{"loc": ["body", "name"], "msg": "No name.", "type": "invalid_name"}],
    }


async def test_details_set_the_time_to_retry(api):
    api.platform.failures["list_models"] = RegistryUnavailableError("Down.", retry_after_seconds=7)
    async with api.client() as client:
        answer = await client.get("/v1/namespaces/ns_acme/models")
    assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize("call", ["authenticate", "list_namespaces"])
async def test_unforeseen_errors_tell_nothing(api, call, caplog):
    api.platform.failures[call] = RuntimeError("/srv/secret: password=hunter2")
    logging.getLogger("mixpeek_ray").addHandler(caplog.handler)
    try:
        async with api.client() as client:
            answer = await client.get(NAMESPACES, headers={"X-Request-Id": "report-me"})
    finally:
        logging.getLogger("mixpeek_ray").removeHandler(caplog.handler)
    error = _check_envelope(answer)
    assert (answer.status_code, error["type"], error["code"]) == (500, "InternalServerError", "internal_error")
    assert "hunter2" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["x-request-id"] == "report-me"
    assert any(record.exc_info and "hunter2" in str(record.exc_info[1]) for record in caplog.records)


async def test_the_frameworks_own_answers_have_the_envelope_too(api):
    async with api.client() as client:
        absent = await client.get("/nothing")
        wrong_method = await client.put(NAMESPACES)
        wrong_type = await client.post(NAMESPACES, json={"namespace_name": 5})
        extra = await client.post(NAMESPACES, json={"namespace_name": "a", "x\u202e" * 500: 1})
        no_json = await client.post(NAMESPACES, content=b"{", headers={"Content-Type": "application/json"})
        no_body = await client.post(NAMESPACES)
        wrong_query = await client.post("/v1/namespaces/ns_acme/models/m/deploy?wait=perhaps")
    assert (absent.status_code, _check_envelope(absent)["code"]) == (404, "not_found")
    assert (wrong_method.status_code, _check_envelope(wrong_method)["code"]) == (405, "method_not_allowed")
    assert wrong_method.headers["allow"]
    for answer in (wrong_type, extra, no_json, no_body, wrong_query):
        error = _check_envelope(answer)
        assert (answer.status_code, error["code"]) == (422, "validation_error")
        assert error["details"]["validation_errors"][0].keys() == {"loc", "msg", "type"}
        assert "\u202e" not in answer.json()["error"]["message"]
        assert len(answer.content) < 2000


async def test_a_thousand_wrong_fields_are_not_all_told(api):
    async with api.client() as client:
        answer = await client.post(NAMESPACES, json={f"field{i}": i for i in range(1000)})
    assert len(_check_envelope(answer)["details"]["validation_errors"]) == 20


async def test_json_bodies_are_limited_declared_or_not(api, exchange):
    async def long():
        for _ in range(64):
            yield b" " * 65536

    headers = {"Authorization": "Bearer sk_writer", "Content-Type": "application/json"}
    declared = exchange(api.app, "POST", NAMESPACES, headers | {"Content-Length": "1048577"}, long())
    chunked = exchange(api.app, "POST", NAMESPACES, headers | {"Transfer-Encoding": "chunked"}, long())
    await declared.run()
    await chunked.run()
    assert (declared.status, declared.read_bytes) == (413, 0)
    assert (chunked.status, chunked.read_bytes) == (413, 1048576 + 65536)
    for request in (declared, chunked):
        assert json.loads(request.body)["error"]["code"] == "body_too_large"
        assert request.headers["connection"] == "close"


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "", "1_0", "9" * 5000, "\u0661".encode().decode("latin-1")])
async def test_a_content_length_that_is_none(api, exchange, length):
    async def nothing():
        return
        yield b""

    request = exchange(api.app, "GET", "/v1/health", {"Content-Length": length}, nothing())
    await request.run()
    assert (request.status, json.loads(request.body)["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-DEF_1", True), ("a" * 65, False), ("a b", False), ("", False), ("a\n", False)]
)
async def test_request_ids_are_echoed_when_sane_and_made_otherwise(api, sent, kept, exchange):
    async def nothing():
        return
        yield b""

    request = exchange(api.app, "GET", "/v1/health/liveness", {"X-Request-Id": sent}, nothing())
    await request.run()
    assert (request.headers["x-request-id"] == sent) is kept
    assert request.headers["x-request-id"].isprintable()
    assert "connection" not in request.headers


async def test_head_answers_what_get_would_without_the_body(api):
    async with api.client() as client:
        head, get = await client.head("/v1/whoami"), await client.get("/v1/whoami")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


async def test_a_namespace_is_made_and_listed(api):
    async with api.client() as client:
        made = await client.post(NAMESPACES, json={"namespace_name": "search"})
        listed = (await client.get(NAMESPACES)).json()
        refused = await client.post(NAMESPACES, json={"namespace_name": "../x"})
    assert made.json()["namespace_id"] == "ns_search"
    assert [found["namespace_id"] for found in listed["namespaces"]] == ["ns_acme", "ns_search"]
    assert (refused.status_code, _check_envelope(refused)["code"]) == (422, "invalid_name")


async def test_the_access_log_has_ids_and_no_text_of_the_caller(api, caplog):
    logging.getLogger("mixpeek_ray").addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "mixpeek_ray")
    try:
        async with api.client() as client:
            await client.get("/v1/namespaces/ns_acme/models/private-name_1_0_0?secret=1")
            await client.get("/v1/secret-path")
    finally:
        logging.getLogger("mixpeek_ray").removeHandler(caplog.handler)
    found, unknown = [vars(record) for record in caplog.records if record.getMessage() == "request"]
    assert found["route"] == "/v1/namespaces/{namespace_id}/models/{model_id}"
    assert (found["status"], found["error_code"]) == (404, "model_not_found")
    assert (found["key_id"], found["organization_id"]) == ("key_writer", "org_acme")
    assert (found["namespace_id"], found["model_id"]) == ("ns_acme", "private-name_1_0_0")
    assert found["duration_ms"] >= 0
    assert (unknown["route"], unknown["status"]) == ("-", 404)
    assert not any("secret" in str(value) for line in (found, unknown) for value in line.values())
