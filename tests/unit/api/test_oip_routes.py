"""The routes of the custom models' endpoints, over a pool with one graph."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from local_models import LocalKeys

from mixpeek_ray.api.predict_app import ServedElsewhere, create_predict_app
from mixpeek_ray.api.predict_ports import ModelServing, NamedModel
from mixpeek_ray.core.aliases import AliasRef
from mixpeek_ray.core.errors import ModelNotDeployedError, OverloadedError
from mixpeek_ray.core.limits import MAX_INFERENCE_BODY_BYTES, MAX_TENSOR_BODY_BYTES
from mixpeek_ray.core.records import ModelKind, Principal, TensorSignature
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.servables.base import InProcess, NamedArrays, Parameters, ServableRef, ServableSpec, Task
from mixpeek_ray.servables.pool import LoadedServable, OpenModel, ServablePool

REF = ServableRef(
    namespace_id="ns_acme", model_id="double_1_0_0", version="1.0.0", kind=ModelKind.ONNX, content="0" * 64
)
NAMES = ("ns_acme/double_1_0_0", "ns_acme%2Fdouble_1_0_0", "ns_acme%252Fdouble_1_0_0")
REQUEST = {"inputs": [{"name": "given", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}]}


class Doubling(InProcess):
    """Doubles whole numbers."""

    spec = ServableSpec(
        task=Task.TENSORS,
        inputs=(TensorSignature(name="given", dtype="int64", shape=("batch", 2)),),
        outputs=(TensorSignature(name="made", dtype="int64", shape=("batch", 2)),),
    )

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        return {"made": inputs["given"] * 2}


ALIAS = AliasRef(namespace_id="ns_acme", name="double", alias="production")


class Serving:
    """Serves one model from a real pool; ``failure`` is raised instead, ``named`` remembers what was asked for."""

    def __init__(self) -> None:
        loaded = LoadedServable(servable=Doubling(), shared_bytes=0)
        self.pool = ServablePool(lambda _: loaded, max_models=1, max_private_bytes=10**9, max_wait_s=1e9)
        self.failure: Exception | None = None
        self.named: list[NamedModel] = []

    @asynccontextmanager
    async def use(self, principal: Principal, named: NamedModel) -> AsyncIterator[OpenModel]:
        if self.failure is not None:
            raise self.failure
        assert named.namespace_id == REF.namespace_id
        assert named.reference in (REF.model_id, ALIAS)
        self.named.append(named)
        async with self.pool.use(REF) as model:
            yield model

    async def describe(self, principal: Principal, named: NamedModel) -> OpenModel:
        async with self.use(principal, named) as model:
            return model


def run(asked: Callable[[httpx.AsyncClient, Serving], Awaitable[Any]]) -> Any:
    async def running() -> Any:
        serving = Serving()
        async with client_of(serving) as client:
            found = await asked(client, serving)
        await serving.pool.close()
        return found

    return asyncio.run(running())


def client_of(serving: ModelServing) -> httpx.AsyncClient:
    app = create_predict_app(LocalKeys(), serving, Settings())
    headers = {"Authorization": "Bearer sk_reader"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://models", headers=headers)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", ["", "/versions/1.0.0"])
def test_every_way_to_write_a_name(name: str, version: str) -> None:
    async def ask(client: httpx.AsyncClient, _: Serving) -> list[httpx.Response]:
        path = f"/v2/models/{name}{version}"
        return [
            await client.get(path),
            await client.get(f"{path}/ready"),
            await client.post(f"{path}/infer", json=REQUEST),
        ]

    metadata, ready, inferred = run(ask)
    assert metadata.json() == {
        "name": NAMES[0],
        "versions": ["1.0.0"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "given", "datatype": "INT64", "shape": [-1, 2]}],
        "outputs": [{"name": "made", "datatype": "INT64", "shape": [-1, 2]}],
    }
    assert (ready.status_code, ready.content) == (200, b"")
    assert inferred.json() == {
        "model_name": NAMES[0],
        "model_version": "1.0.0",
        "outputs": [{"name": "made", "datatype": "INT64", "shape": [1, 2], "data": [2, 4]}],
    }


@pytest.mark.parametrize(
    "name", ["ns_acme/double@production", "ns_acme%2Fdouble%40production", "ns_acme%252Fdouble%2540production"]
)
def test_an_alias_stands_for_an_id_and_answers_name_the_version(name: str) -> None:
    async def ask(client: httpx.AsyncClient, serving: Serving) -> tuple[list[httpx.Response], list[NamedModel]]:
        path = f"/v2/models/{name}"
        sticky = {"X-Mixpeek-Sticky": "user-1"}
        answers = [
            await client.get(path),
            await client.get(f"{path}/ready"),
            await client.post(f"{path}/infer", json=REQUEST, headers=sticky),
            await client.post(f"{path}/versions/1.0.0/infer", json=REQUEST),
            await client.post("/models/ns_acme/double@production", json={"inputs": [[1, 2]]}, headers=sticky),
        ]
        return answers, serving.named

    answers, named = run(ask)
    assert [answer.status_code for answer in answers] == [200] * 5
    assert {answer.headers["X-Mixpeek-Model"] for answer in answers} == {REF.model_id}
    assert (answers[2].json()["model_name"], answers[2].json()["model_version"]) == (NAMES[0], "1.0.0")
    assert answers[4].json()["model"] == NAMES[0]
    assert all(asked.reference == ALIAS for asked in named)
    assert [asked.sticky for asked in named] == [None, None, "user-1", None, "user-1"]
    assert [asked.version for asked in named] == [None, None, None, "1.0.0", None]


@pytest.mark.parametrize("name", ["double@", "@production", "double@a@b", "double@Production", "double@-x"])
def test_what_names_neither_a_model_nor_an_alias(name: str) -> None:
    async def ask(client: httpx.AsyncClient, _: Serving) -> list[httpx.Response]:
        return [
            await client.post(f"/models/ns_acme/{name}", json={"inputs": [[1, 2]]}),
            await client.post(f"/v2/models/ns_acme/{name}/infer", json=REQUEST),
        ]

    assert [answer.status_code for answer in run(ask)] == [404, 404]


def test_bytes_in_and_bytes_out() -> None:
    header = (
        b'{"inputs": [{"name": "given", "datatype": "INT64", "shape": [1, 2], "parameters": {"binary_data_size": 16}}],'
        b' "parameters": {"binary_data_output": true}}'
    )
    tensor = np.array([[3, 4]], dtype="<i8").tobytes()

    async def ask(client: httpx.AsyncClient, _: Serving) -> httpx.Response:
        headers = {"Inference-Header-Content-Length": str(len(header))}
        return await client.post(f"/v2/models/{NAMES[0]}/infer", content=header + tensor, headers=headers)

    answer = run(ask)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["Inference-Header-Content-Length"])
    np.testing.assert_array_equal(np.frombuffer(answer.content[length:], dtype="<i8"), [6, 8])


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (f"/v2/models/{NAMES[0]}/versions/2.0.0/infer", REQUEST, 404),
        ("/v2/models/double/infer", REQUEST, 404),
        ("/v2/models/a/b/c/infer", REQUEST, 404),
        (f"/v2/models/{NAMES[0]}/infer", {"inputs": []}, 422),
    ],
)
def test_errors_are_texts_for_the_protocols_clients(path: str, body: Any, status: int) -> None:
    answer = run(lambda client, _: client.post(path, json=body))
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)
    assert int(answer.headers["Content-Length"]) == len(answer.content)


def test_overload_says_when_to_come_back() -> None:
    async def ask(client: httpx.AsyncClient, serving: Serving) -> list[httpx.Response]:
        serving.failure = OverloadedError("Too much.", retry_after_seconds=3)
        return [
            await client.post(f"/v2/models/{NAMES[0]}/infer", json=REQUEST),
            await client.post(f"/models/{NAMES[0]}", json={"inputs": [[1, 2]]}),
        ]

    protocol, own = run(ask)
    assert [answer.status_code for answer in (protocol, own)] == [429, 429]
    assert [answer.headers["Retry-After"] for answer in (protocol, own)] == ["3", "3"]
    assert (protocol.json()["error"], protocol.json()["code"]) == ("Too much.", "overloaded")
    assert own.json()["error"]["code"] == "overloaded"


def test_a_model_that_is_not_deployed_is_not_ready() -> None:
    async def ask(client: httpx.AsyncClient, serving: Serving) -> httpx.Response:
        serving.failure = ModelNotDeployedError("Deploy it.")
        return await client.get(f"/v2/models/{NAMES[0]}/ready")

    assert run(ask).status_code == 409


def test_a_model_answers_in_its_own_terms() -> None:
    async def ask(client: httpx.AsyncClient, _: Serving) -> list[httpx.Response]:
        return [
            await client.post(f"/models/{NAMES[0]}", json=body)
            for body in ({"inputs": [[1, 2]]}, {"inputs": [[1.5, 2]]}, {"inputs": [[1, 2]], "parameters": {"top_k": 1}})
        ]

    good, wrong, unknown = run(ask)
    assert good.json() == {"outputs": {"made": [[2, 4]]}, "model": NAMES[0]}
    assert wrong.json()["error"]["details"]["field"] == "inputs.given"
    assert (unknown.status_code, unknown.json()["error"]["details"]["field"]) == (422, "parameters")


@pytest.mark.parametrize("path", [f"/models/{NAMES[0]}", f"/v2/models/{NAMES[0]}/infer"])
def test_no_body_is_read_without_a_key_nor_beyond_its_limit(path: str) -> None:
    most = MAX_TENSOR_BODY_BYTES if path.startswith("/v2") else MAX_INFERENCE_BODY_BYTES

    async def ask(client: httpx.AsyncClient, _: Serving) -> list[httpx.Response]:
        large = {"Content-Length": str(most + 1)}
        return [
            await client.post(path, content=b"{}", headers={"Authorization": ""}),
            await client.post(path, content=b"{}", headers=large),
        ]

    assert [answer.status_code for answer in run(ask)] == [401, 413]


def test_the_gateway_says_which_application_is_missing() -> None:
    async def ask() -> httpx.Response:
        async with client_of(ServedElsewhere()) as client:
            return await client.post(f"/models/{NAMES[0]}", json={"inputs": [[1, 2]]})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")
    assert "serve_config.yaml" in answer.json()["error"]["message"]
