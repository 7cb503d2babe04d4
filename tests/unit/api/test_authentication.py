"""Who may call what, decided before any byte of a body is read."""

from __future__ import annotations

import pytest

from mixpeek_ray.core.errors import RegistryUnavailableError

pytestmark = pytest.mark.anyio

MODELS = "/v1/namespaces/{ns}/models"
MODEL_ROUTES = [
    ("POST", MODELS),
    ("GET", MODELS),
    ("GET", MODELS + "/m_1_0_0"),
    ("DELETE", MODELS + "/m_1_0_0"),
    ("POST", MODELS + "/m_1_0_0/deploy"),
    ("POST", MODELS + "/m_1_0_0/undeploy"),
]
KEYED_ROUTES = [*MODEL_ROUTES, ("GET", "/v1/namespaces"), ("POST", "/v1/namespaces"), ("GET", "/v1/whoami")]
WRITING_ROUTES = [(method, path) for method, path in KEYED_ROUTES if method != "GET"]


def _code(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(("method", "path"), KEYED_ROUTES)
async def test_without_a_key(api, method, path):
    async with api.client(key=None) as client:
        answer = await client.request(method, path.format(ns="ns_acme"))
    assert _code(answer) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert api.platform.calls == []


@pytest.mark.parametrize(
    "header", ["Bearer sk_revoked", "Bearer", "Basic YTpi", "sk_writer", "Bearer a b", "Bearer " + "x" * 300]
)
async def test_a_key_that_is_none(api, header):
    async with api.client(key=None) as client:
        answer = await client.get("/v1/whoami", headers={"Authorization": header})
    assert _code(answer) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "sk_" not in answer.json()["error"]["message"].replace("sk_...", "")


async def test_two_keys_at_once_are_refused_whichever_is_valid(api):
    async with api.client(key=None) as client:
        headers = [("Authorization", "Bearer sk_writer"), ("Authorization", "Bearer sk_admin")]
        assert _code(await client.get("/v1/whoami", headers=headers)) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/v1/no-such-route", "/v1/", "/v1/namespaces/ns_acme/models/m/no", "/v1/healthy"])
async def test_unknown_paths_tell_nothing_without_a_key(api, path):
    async with api.client(key=None) as client:
        assert _code(await client.get(path)) == (401, "unauthenticated")
    async with api.client() as client:
        assert _code(await client.get(path)) == (404, "not_found")


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "//v1/whoami", "/V1/whoami", "/v1/../v1/whoami", "/v1/health/nothing"]
)
async def test_paths_that_need_no_key_lead_nowhere_else(api, path, exchange):
    request = exchange(api.app, "GET", path, {}, _chunks())
    await request.run()
    assert request.status in (401, 404)


async def test_the_host_header_does_not_move_the_decision(api, exchange):
    request = exchange(api.app, "GET", "/v1/whoami", {"Host": "x/v1/health?"}, _chunks())
    await request.run()
    assert request.status == 401


@pytest.mark.parametrize("path", ["/v1/health", "/v1/health/liveness", "/docs", "/openapi.json"])
async def test_open_routes(api, path):
    async with api.client(key=None) as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/feature-extractors", "/v1/collections/features/extractors/x", "/v1/retrievers/stages"]
)
async def test_discovery_needs_no_key(api, path):
    async with api.client(key=None) as client:
        assert (await client.get(path)).status_code != 401


@pytest.mark.parametrize(("method", "path"), WRITING_ROUTES)
async def test_a_reading_key_may_not_write(api, method, path):
    async with api.client("sk_reader") as client:
        assert _code(await client.request(method, path.format(ns="ns_acme"))) == (403, "forbidden")
    assert api.platform.calls == ["authenticate"]


async def test_a_reading_key_may_read(api):
    async with api.client("sk_reader") as client:
        assert (await client.get(MODELS.format(ns="ns_acme"))).status_code == 200


@pytest.mark.parametrize("namespace", ["ns_acme", "ns_other", "ns_none"])
@pytest.mark.parametrize(("method", "path"), MODEL_ROUTES)
async def test_custom_models_need_the_enterprise_tier(api, method, path, namespace):
    async with api.client("sk_pro") as client:
        answer = await client.request(method, path.format(ns=namespace))
    assert _code(answer) == (403, "tier_required")
    assert "Custom models require Enterprise tier" in answer.json()["error"]["message"]
    assert api.platform.calls == ["authenticate"]


async def test_other_tiers_may_use_the_rest(api):
    async with api.client("sk_pro") as client:
        assert (await client.get("/v1/whoami")).json()["tier"] == "pro"
        assert (await client.get("/v1/namespaces")).status_code == 200


@pytest.mark.parametrize(("method", "path"), MODEL_ROUTES)
async def test_a_foreign_namespace_looks_like_none(api, method, path):
    async with api.client() as client:
        foreign = await client.request(method, path.format(ns="ns_other"))
        absent = await client.request(method, path.format(ns="ns_absent"))
    assert _code(foreign) == _code(absent) == (404, "namespace_not_found")
    assert foreign.text.replace("ns_other", "ns_absent") == absent.text


@pytest.mark.parametrize("namespace", ["a%2e%2e", "a%00b", "x" * 5000, "%E2%80%AE"])
async def test_ids_that_cannot_be_are_not_looked_up(api, namespace):
    async with api.client() as client:
        assert _code(await client.get(MODELS.format(ns=namespace))) == (404, "namespace_not_found")
        assert _code(await client.get(MODELS.format(ns="ns_acme") + f"/{namespace}")) == (404, "model_not_found")
    assert "list_models" not in api.platform.calls


async def test_a_key_cannot_be_checked_while_the_registry_is_down(api):
    api.platform.failures["authenticate"] = RegistryUnavailableError("The model registry did not answer.")
    async with api.client() as client:
        answer = await client.get("/v1/whoami")
    assert _code(answer) == (503, "registry_unavailable")


async def test_whoami(api):
    async with api.client("sk_admin") as client:
        assert (await client.get("/v1/whoami")).json() == {
            "success": True,
            "key_id": "key_admin",
            "organization_id": "org_acme",
            "organization_name": "Acme",
            "role": "admin",
            "tier": "enterprise",
        }
    assert api.platform.calls == ["authenticate"]


@pytest.mark.parametrize(
    ("key", "path", "status"),
    [
        (None, "/v1/namespaces/ns_acme/models", 401),
        ("sk_unknown", "/v1/namespaces/ns_acme/models", 401),
        ("sk_reader", "/v1/namespaces/ns_acme/models", 403),
        ("sk_pro", "/v1/namespaces/ns_acme/models", 403),
        ("sk_writer", "/v1/namespaces/ns_other/models", 404),
        (None, "/v1/namespaces", 401),
    ],
)
@pytest.mark.parametrize("length", [{"Content-Length": "1000000000"}, {"Transfer-Encoding": "chunked"}])
async def test_refusals_read_no_byte_of_the_body(api, exchange, key, path, status, length):
    headers = length | {"Content-Type": "multipart/form-data; boundary=x"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = exchange(api.app, "POST", path, headers, _chunks(b"x" * 65536, times=16_000))
    await request.run()
    assert (request.status, request.read_bytes) == (status, 0)
    assert request.headers["connection"] == "close"
    assert api.kept() == set()


async def _chunks(chunk: bytes = b"", times: int = 0):
    for _ in range(times):
        yield chunk
