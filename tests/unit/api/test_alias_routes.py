"""The routes of aliases and of versions, over the registry's own aliases and a platform in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from custom_models import custom_model

from mixpeek_ray.api import remembered
from mixpeek_ray.api.alias_resolver import AliasResolver
from mixpeek_ray.core import ids, limits
from mixpeek_ray.core.aliases import AliasChange, AliasPlan, AliasRef, sticky_point
from mixpeek_ray.core.errors import AliasNotFoundError, RegistryUnavailableError
from mixpeek_ray.registry.aliases import Aliases
from mixpeek_ray.registry.state import ModelCatalog, ModelKey, now
from mixpeek_ray.store.records import RecordStore

pytestmark = pytest.mark.anyio

MODELS = "/v1/namespaces/ns_acme/models"
ALIASES = "/v1/namespaces/ns_acme/aliases"
PRODUCTION = f"{ALIASES}/m/production"
V1, V2 = "m_1_9_0", "m_1_10_0"
REF = AliasRef(namespace_id="ns_acme", name="m", alias="production")


class InProcessAliases:
    """The registry's aliases without its actor: the port's way of naming the caller."""

    def __init__(self, aliases, platform):
        self._aliases = aliases
        self._platform = platform
        self._changes = 0
        self.asked = 0
        self.away = False

    def _enter(self, principal, namespace_id):
        self._platform._enter("aliases", principal, namespace_id)

    def _change(self, principal):
        self._changes += 1
        return AliasChange(change_id=f"chg_{self._changes}", key_id=principal.key_id, made_at=now())

    async def list(self, principal, namespace_id, name):
        self._enter(principal, namespace_id)
        return self._aliases.list(namespace_id, name)

    async def get(self, principal, ref):
        self._enter(principal, ref.namespace_id)
        return self._aliases.get(ref)

    async def put(self, principal, ref, plan, expected_revision):
        self._enter(principal, ref.namespace_id)
        return await self._aliases.put(ref, plan, self._change(principal), expected_revision)

    async def roll_back(self, principal, ref, expected_revision):
        self._enter(principal, ref.namespace_id)
        return await self._aliases.roll_back(ref, self._change(principal), expected_revision)

    async def delete(self, principal, ref, expected_revision):
        self._enter(principal, ref.namespace_id)
        await self._aliases.delete(ref, expected_revision)

    async def route(self, principal, ref):
        self.asked += 1
        self._enter(principal, ref.namespace_id)
        if self.away:
            raise RegistryUnavailableError("Away.")
        return self._aliases.route(ref)


@pytest.fixture
def api(make_api):
    """The application with two deployed versions of `m`, and one of another model."""
    api = make_api()
    catalog = ModelCatalog()
    for name, version in (("m", "1.9.0"), ("m", "1.10.0"), ("other", "1.0.0")):
        state = custom_model(name)
        state = replace(state, manifest=replace(state.manifest, version=version, model_id=ids.model_id(name, version)))
        api.have(state)
        catalog.created(state.manifest)
        key = ModelKey(namespace_id="ns_acme", model_id=state.manifest.model_id)
        catalog.begin_deploy(key)
        catalog.deployed(key, state.manifest.contents)
    aliases = Aliases(catalog, RecordStore(api.store), is_coming_back=lambda key: False)
    api.platform.aliases = InProcessAliases(aliases, api.platform)
    return api


async def _put(client, targets, path=PRODUCTION, **headers):
    return await client.put(path, json={"targets": targets}, headers=headers)


def _code(answer):
    assert answer.json()["success"] is False
    return answer.status_code, answer.json()["error"]["code"]


async def test_an_alias_from_its_first_targets_to_its_end(api):
    async with api.client() as client:
        made = await _put(client, {V1: 100})
        assert (made.status_code, made.headers["ETag"]) == (200, '"1"')
        moved = (await _put(client, {V1: 90, V2: 10})).json()["alias"]
        assert (moved["reference"], moved["targets"], moved["revision"]) == ("m@production", {V1: 90, V2: 10}, 2)
        assert moved["key_id"] == "key_writer"
        (earlier,) = moved["history"]
        assert (earlier["targets"], earlier["undone"]) == ({V1: 100}, False)
        got = await client.get(PRODUCTION)
        assert (got.json()["alias"], got.headers["ETag"]) == (moved, '"2"')
        back = (await client.post(f"{PRODUCTION}/rollback")).json()["alias"]
        assert (back["targets"], back["revision"]) == ({V1: 100}, 3)
        assert [entry["undone"] for entry in back["history"]] == [True, True]
        assert _code(await client.post(f"{PRODUCTION}/rollback")) == (409, "no_previous_targets")
        assert (await client.delete(PRODUCTION)).json()["reference"] == "m@production"
        for method, path in (("GET", PRODUCTION), ("DELETE", PRODUCTION), ("POST", f"{PRODUCTION}/rollback")):
            assert _code(await client.request(method, path)) == (404, "alias_not_found")


async def test_lists_of_a_namespace_and_of_a_name(api):
    async with api.client() as client:
        for path, target in ((PRODUCTION, V1), (f"{ALIASES}/other/x", "other_1_0_0"), (f"{ALIASES}/m/b", V2)):
            assert (await _put(client, {target: 1}, path)).status_code == 200
        everything = (await client.get(ALIASES)).json()
        of_m = (await client.get(f"{ALIASES}/m")).json()
        nothing = (await client.get(f"{ALIASES}/a.b")).json()
    assert [item["reference"] for item in everything["aliases"]] == ["m@b", "m@production", "other@x"]
    assert everything["total"] == 3
    assert "history" not in everything["aliases"][0]
    assert [item["reference"] for item in of_m["aliases"]] == ["m@b", "m@production"]
    assert nothing["aliases"] == []


@pytest.mark.parametrize(
    ("if_match", "expected"),
    [('"1"', 200), ("1", 200), ('"2"', 409), ('"0"', 409), ("*", 422), ('W/"1"', 422), ('"1", "2"', 422), ("", 422)],
)
async def test_a_caller_may_say_which_revision_it_saw(api, if_match, expected):
    async with api.client() as client:
        assert (await _put(client, {V1: 1}, **{"If-Match": '"0"'})).status_code == 200
        answer = await _put(client, {V2: 1}, **{"If-Match": if_match})
        assert answer.status_code == expected
        if expected == 409:
            assert answer.json()["error"]["code"] == "revision_mismatch"
            assert answer.json()["error"]["details"]["revision"] == 1
        now_there = (await client.get(PRODUCTION)).json()["alias"]
    assert now_there["revision"] == (2 if expected == 200 else 1)


@pytest.mark.parametrize(
    "targets",
    [
        {},
        {V1: 0},
        {V1: -1},
        {V1: 1.5},
        {V1: "1"},
        {V1: True},
        {V1: limits.MAX_ALIAS_WEIGHT + 1},
        {"other_1_0_0": 1},
        {"m_9_9_9": 1},
        {"\u202e/../": 1},
        {f"m_1_0_{number}": 1 for number in range(limits.MAX_MODELS_PER_NAMESPACE + 1)},
        None,
        [V1],
    ],
)
async def test_targets_that_are_refused(api, targets):
    async with api.client() as client:
        answer = await _put(client, targets)
        assert _code(answer) == (422, "validation_error")
        found = answer.json()["error"]["details"]["validation_errors"][0]
        assert found["loc"][:2] == ["body", "targets"]
        assert answer.text.isascii()
        assert (await client.get(ALIASES)).json()["total"] == 0


@pytest.mark.parametrize("path", ["m/latest", "m/Production", "m/-x", "_m/x", "m.n/x", "m/" + "x" * 65])
async def test_names_that_no_alias_can_have(api, path):
    async with api.client() as client:
        assert _code(await _put(client, {V1: 1}, f"{ALIASES}/{path}")) == (422, "invalid_name")
        assert _code(await client.get(f"{ALIASES}/{path}")) == (404, "alias_not_found")


async def test_who_may_do_what(api):
    async with api.client() as client:
        await _put(client, {V1: 1})
    async with api.client("sk_reader") as client:
        assert (await client.get(PRODUCTION)).status_code == 200
        for answer in (
            await _put(client, {V2: 1}),
            await client.delete(PRODUCTION),
            await client.post(f"{PRODUCTION}/rollback"),
        ):
            assert _code(answer) == (403, "forbidden")
    async with api.client("sk_pro") as client:
        assert _code(await client.get(PRODUCTION)) == (403, "tier_required")
    async with api.client("sk_other") as client:
        for answer in (await client.get(PRODUCTION), await client.get(f"{MODELS}/m@production")):
            assert _code(answer) == (404, "namespace_not_found")
    async with api.client(None) as client:
        assert (await client.get(PRODUCTION)).status_code == 401


async def test_a_model_by_its_alias(api):
    async with api.client() as client:
        await _put(client, {V1: 1, V2: 0})
        for reference, model_id in (("m@production", V1), ("m@latest", V2), (V1, V1)):
            answer = await client.get(f"{MODELS}/{reference}")
            assert answer.json()["model"]["model_id"] == answer.headers["X-Mixpeek-Model"] == model_id
        assert _code(await client.get(f"{MODELS}/m@nothing")) == (404, "alias_not_found")
        assert _code(await client.get(f"{MODELS}/unknown@latest")) == (404, "model_not_found")
        for wrong in ("m@", "@production", "m@a@b"):
            assert _code(await client.get(f"{MODELS}/{wrong}")) == (404, "model_not_found")
        assert _code(await client.delete(f"{MODELS}/m@production")) == (404, "model_not_found")


async def test_an_organizations_model_by_its_alias(api):
    async with api.client() as client:
        await _put(client, {V1: 1, V2: 0})
        for reference, model_id in (("m@production", V1), ("m@latest", V2)):
            for path, headers in ((f"ns_acme/{reference}", {}), (reference, {"X-Namespace": "ns_acme"})):
                answer = await client.get(f"/v1/models/{path}", headers=headers)
                assert answer.json()["model"]["model_id"] == answer.headers["X-Mixpeek-Model"] == model_id
        assert _code(await client.get("/v1/models/m@production")) == (404, "model_not_found")
    for key, reference in (("sk_writer", "m@nothing"), ("sk_other", "m@production"), ("sk_pro", "m@production")):
        async with api.client(key) as client:
            assert _code(await client.get(f"/v1/models/ns_acme/{reference}")) == (404, "model_not_found")


async def test_a_version_that_a_request_names_must_be_one_that_the_alias_sends_requests_to(api):
    principal = await api.platform.authenticate("sk_reader")
    resolver = AliasResolver(api.platform.aliases.route)
    await api.platform.aliases.put(principal, REF, AliasPlan(weights={V1: 1, V2: 0}), None)
    assert await resolver.choose(principal, REF, None, version="1.9.0") == V1
    for version in ("1.10.0", "2.0.0", "\u202e"):
        with pytest.raises(LookupError) as refused:
            await resolver.choose(principal, REF, None, version=version)
        assert refused.value.message.isascii()


async def test_shadow_and_guard_are_said_put_and_remembered(api):
    shadow = {"model_id": V2, "percent": 20}
    guard = {"max_error_rate": 0.05, "max_latency_ratio": 2}
    async with api.client() as client:
        made = await client.put(PRODUCTION, json={"targets": {V1: 1}, "shadow": shadow, "guard": guard})
        alias = made.json()["alias"]
        assert alias["shadow"] == shadow
        assert alias["guard"] == {**guard, "min_requests": 100, "window_minutes": 10}
        assert alias["reason"] is None
        moved = (await _put(client, {V1: 1})).json()["alias"]
        assert (moved["shadow"], moved["guard"]) == (None, None)
        (earlier,) = moved["history"]
        assert (earlier["shadow"], earlier["guard"]) == (shadow, alias["guard"])
        assert (await client.post(f"{PRODUCTION}/rollback")).json()["alias"]["shadow"] == shadow
        (listed,) = (await client.get(ALIASES)).json()["aliases"]
        assert listed["shadow"] == shadow


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shadow", {}),
        ("shadow", {"model_id": V2}),
        ("shadow", {"model_id": V2, "percent": 0}),
        ("shadow", {"model_id": V2, "percent": 101}),
        ("shadow", {"model_id": V2, "percent": "5"}),
        ("shadow", {"model_id": V2, "percent": 5, "more": 1}),
        ("shadow", {"model_id": "other_1_0_0", "percent": 5}),
        ("shadow", {"model_id": "\u202e", "percent": 5}),
        ("guard", {}),
        ("guard", {"min_requests": 10}),
        ("guard", {"max_error_rate": 0}),
        ("guard", {"max_error_rate": 1.1}),
        ("guard", {"max_error_rate": "NaN"}),
        ("guard", {"max_latency_ratio": 1}),
        ("guard", {"max_latency_ratio": 2, "min_requests": 0}),
        ("guard", {"max_latency_ratio": 2, "window_minutes": 61}),
    ],
)
async def test_shadows_and_guards_that_are_refused(api, field, value):
    async with api.client() as client:
        answer = await client.put(PRODUCTION, json={"targets": {V1: 1}, field: value})
        assert _code(answer) == (422, "validation_error")
        assert answer.json()["error"]["details"]["validation_errors"][0]["loc"][:2] == ["body", field]
        assert answer.text.isascii()
        assert (await client.get(ALIASES)).json()["total"] == 0


async def test_the_same_sticky_text_meets_the_same_version(api):
    async with api.client() as client:
        await _put(client, {V1: 1, V2: 1})
        met = set()
        for number in range(40):
            sticky = f"user-{number}"
            answers = [
                await client.get(f"{MODELS}/m@production", headers={"X-Mixpeek-Sticky": sticky}) for _ in range(3)
            ]
            # The highest version lies at the lower end.
            expected = V2 if sticky_point(REF, sticky) < 0.5 else V1
            assert {answer.headers["X-Mixpeek-Model"] for answer in answers} == {expected}
            met.add(expected)
        assert met == {V1, V2}
        random = {(await client.get(f"{MODELS}/m@production")).headers["X-Mixpeek-Model"] for _ in range(60)}
        assert random == {V1, V2}
        longest = await client.get(f"{MODELS}/m@production", headers={"X-Mixpeek-Sticky": "x" * 256})
        assert longest.status_code == 200
        too_long = await client.get(f"{MODELS}/m@production", headers={"X-Mixpeek-Sticky": "x" * 257})
        assert _code(too_long) == (422, "validation_error")


async def test_lists_tell_the_latest_version_and_may_be_of_one_name(api):
    async with api.client() as client:
        everything = (await client.get(MODELS)).json()
        of_m = (await client.get(MODELS, params={"name": "m"})).json()
        nothing = (await client.get(MODELS, params={"name": "m_1"})).json()
    assert {model["model_id"]: model["latest"] for model in everything["models"]} == {
        V1: False,
        V2: True,
        "other_1_0_0": True,
    }
    assert (of_m["total"], {model["model_id"] for model in of_m["models"]}) == (2, {V1, V2})
    assert nothing["total"] == 0


async def test_raw_inference_by_an_alias(api):
    body = {"inputs": {"text": "hello"}}
    async with api.client() as client:
        await _put(client, {V1: 1, V2: 0})
        for name in ("ns_acme/m@production", "custom:ns_acme/m@production"):
            answer = await client.post("/v1/inference", json={**body, "inference_name": name})
            assert (answer.status_code, answer.headers["X-Mixpeek-Model"]) == (200, V1), answer.text
            assert answer.json()["model"] == f"ns_acme/{V1}"
        bare = {**body, "provider": "custom", "model": "m@latest"}
        assert (await client.post("/v1/inference", json=bare, headers={"X-Namespace": "ns_acme"})).status_code == 200
        assert api.inference.requests[-1].model == f"ns_acme/{V2}"
        unknown = await client.post("/v1/inference", json={**body, "inference_name": "ns_acme/m@nothing"})
        assert _code(unknown) == (404, "alias_not_found")
    async with api.client("sk_pro") as client:
        refused = await client.post("/v1/inference", json={**body, "inference_name": "ns_acme/m@production"})
        assert _code(refused) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/embeddings/sparse", "/v1/embeddings/multi-vector"])
async def test_embeddings_hand_the_sticky_text_on_and_name_the_model(api, path):
    async with api.client() as client:
        for headers, expected in (({}, None), ({"X-Mixpeek-Sticky": "user-1"}, "user-1")):
            answer = await client.post(path, json={"model": "ns_acme/m_1_9_0", "input": "a"}, headers=headers)
            assert (answer.status_code, answer.headers["X-Mixpeek-Model"]) == (200, V1)
            assert api.inference.requests[-1].sticky == expected
        too_long = {"X-Mixpeek-Sticky": "x" * 257}
        answer = await client.post(path, json={"model": "m", "input": "a"}, headers=too_long)
        assert _code(answer) == (422, "validation_error")


async def test_reranking_and_hybrid_embeddings_hand_the_sticky_text_on(api):
    sticky = {"X-Mixpeek-Sticky": "user-1"}
    async with api.client() as client:
        body = {"model": "ns_acme/m_1_9_0", "query": "a", "documents": ["b"]}
        for path in ("/v1/rerank", "/v2/rerank"):
            assert (await client.post(path, json=body, headers=sticky)).headers["X-Mixpeek-Model"] == V1
        models = dict.fromkeys(("dense", "sparse", "multi_vector"), "ns_acme/m@production")
        body = {"input": "a", "models": models}
        assert (await client.post("/v1/embeddings/hybrid", json=body, headers=sticky)).status_code == 200
    assert [request.sticky for request in api.inference.requests] == ["user-1"] * 5


# What every process does that chooses versions


class _Clock:
    """Time as the test says."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(remembered, "time", clock)
    return clock


async def test_a_moved_alias_is_noticed_within_two_seconds_and_asked_for_once(api, clock):
    principal = await api.platform.authenticate("sk_reader")
    port = api.platform.aliases
    resolver = AliasResolver(port.route)
    await port.put(principal, REF, AliasPlan(weights={V1: 1}), None)
    assert {await resolver.choose(principal, REF, None) for _ in range(20)} == {V1}
    await port.put(principal, REF, AliasPlan(weights={V2: 1}), None)
    assert await resolver.choose(principal, REF, None) == V1
    assert port.asked == 1
    clock.now += 2.0
    chosen = await asyncio.gather(*(resolver.choose(principal, REF, None) for _ in range(20)))
    assert (set(chosen), port.asked) == ({V2}, 2)
    await port.put(principal, REF, AliasPlan(weights={V1: 1}), None)
    assert await resolver.choose(principal, REF, None, afresh=True) == V1


async def test_without_the_registry_the_last_answer_stands(api, clock):
    principal = await api.platform.authenticate("sk_reader")
    port = api.platform.aliases
    resolver = AliasResolver(port.route)
    port.away = True
    with pytest.raises(RegistryUnavailableError):
        await resolver.choose(principal, REF, None)
    port.away = False
    await port.put(principal, REF, AliasPlan(weights={V1: 1}), None)
    await resolver.choose(principal, REF, None)
    port.away = True
    clock.now += 1_000
    assert await resolver.choose(principal, REF, None) == V1
    port.away = False
    await port.delete(principal, REF, None)
    with pytest.raises(AliasNotFoundError):
        await resolver.choose(principal, REF, None)
    port.away = True
    with pytest.raises(RegistryUnavailableError):
        await resolver.choose(principal, REF, None)


async def test_a_registry_that_does_not_answer_holds_nobody_up(api, clock):
    principal = await api.platform.authenticate("sk_reader")
    port = api.platform.aliases
    await port.put(principal, REF, AliasPlan(weights={V1: 1}), None)
    silent, answering = asyncio.Event(), port.route

    async def route(principal, ref):
        if port.asked:
            await silent.wait()
        return await answering(principal, ref)

    resolver = AliasResolver(route)
    await resolver.choose(principal, REF, None)
    clock.now += 10
    assert await asyncio.gather(*(resolver.choose(principal, REF, None) for _ in range(5))) == [V1] * 5
    silent.set()


async def test_one_organization_does_not_hear_anothers_answers(api):
    resolver = AliasResolver(api.platform.aliases.route)
    writer = await api.platform.authenticate("sk_writer")
    await api.platform.aliases.put(writer, REF, AliasPlan(weights={V1: 1}), None)
    await resolver.choose(writer, REF, None)
    stranger = await api.platform.authenticate("sk_other")
    with pytest.raises(LookupError):
        await resolver.choose(stranger, REF, None)
