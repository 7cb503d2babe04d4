"""Deployed custom models answer at their endpoints, as the libraries that made them do."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from servable_cases import LABELS, saved, saved_bart
from tiny_models import MAX_TOKENS, tiny_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertForSequenceClassification,
    BertForTokenClassification,
    pipeline,
)
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from mixpeek_ray.cli.processes import descendants
from tests.integration.conftest import Platform, eventually
from tests.integration.models import archive_of, deploy, tar_gz, upload
from tests.integration.test_formats import GIVEN, onnx_files, small_module

__all__ = ["tiny_model"]

TEXTS = ["the quick brown fox", "", "🎉 naïve שלום 日本語", "over-long " * 300, "what is the query?"]


def served(
    http: httpx.Client, namespace: str, archive: bytes, model_format: str, name: str = "model", **fields: str
) -> str:
    """Upload and deploy a model; return its endpoint."""
    answer = upload(http, namespace, archive, name=name, model_format=model_format, **fields)
    assert answer.status_code == 200, answer.text
    deploy(http, namespace, answer.json()["model_id"])
    document = http.get(f"/v1/namespaces/{namespace}/models/{answer.json()['model_id']}").json()["model"]
    endpoint: str = document["deployment_info"]["endpoint"]
    assert endpoint == answer.json()["endpoint"]
    return endpoint


def served_folder(http: httpx.Client, namespace: str, folder: Path, name: str = "model") -> str:
    files = {f"m/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return served(http, namespace, tar_gz(files), "huggingface", name)


def outputs(http: httpx.Client, endpoint: str, inputs: Any, **parameters: Any) -> Any:
    answer = http.post(endpoint, json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == endpoint.removeprefix("/models/")
    return answer.json()["outputs"]


@pytest.fixture
def source() -> torch.nn.Module:
    torch.manual_seed(5)
    return small_module()


@pytest.fixture
def expected(source: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = source(torch.from_numpy(GIVEN)).numpy()
    return found


@pytest.fixture
def onnx_endpoint(http: httpx.Client, namespace: str, source: torch.nn.Module) -> str:
    return served(http, namespace, tar_gz(onnx_files(source, external=False)), "onnx")


@pytest.fixture
def triton(platform: Platform) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(f"127.0.0.1:{platform.port}") as client:
        yield client


def test_raw_tensors(http: httpx.Client, onnx_endpoint: str, expected: np.ndarray) -> None:
    flat = {"data": GIVEN.ravel().tolist(), "dtype": "float32", "shape": list(GIVEN.shape)}
    for inputs in ({"given": GIVEN.tolist()}, {"given": flat}, GIVEN.tolist()):
        np.testing.assert_allclose(outputs(http, onnx_endpoint, inputs)["result"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"given": [[0.5] * 63]}, "inputs.given"),
        ({"given": [0.5] * 64}, "inputs.given"),
        ({"given": [["a"] * 64]}, "inputs.given"),
        ({"given": [[1e39] * 64]}, "inputs.given"),
        ({"given": [[0.5] * 64, [0.5]]}, "inputs.given"),
        ({"given": [[None] * 64]}, "inputs.given"),
        ({"given": []}, "inputs.given"),
        ({"other": [[0.5] * 64]}, "inputs.other"),
        ({}, "inputs.given"),
        ({"given": {"data": [0.5] * 64, "dtype": "int64"}}, "inputs.given"),
        ({"given": {"data": [0.5] * 64, "shape": [1, 65]}}, "inputs.given"),
    ],
)
def test_inputs_that_do_not_fit_are_named(http: httpx.Client, onnx_endpoint: str, inputs: Any, field: str) -> None:
    answer = http.post(onnx_endpoint, json={"inputs": inputs})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_error"), answer.text
    assert answer.json()["error"]["details"]["field"] == field


def test_text_models(http: httpx.Client, namespace: str, tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    encoder = served_folder(http, namespace, tiny_model("bert"), "encoder")
    reference = SentenceTransformer(str(tiny_model("bert")), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(outputs(http, encoder, TEXTS), reference, atol=1e-5)
    np.testing.assert_allclose(outputs(http, encoder, TEXTS[0]), reference[0], atol=1e-5)

    folder = tiny_model("bert", "classifier")
    ranking = outputs(http, served_folder(http, namespace, folder, "reranker"), {"query": "fox", "documents": TEXTS})
    scores = CrossEncoder(str(folder), device="cpu").predict([("fox", text) for text in TEXTS])
    assert [entry["index"] for entry in ranking] == np.argsort(-scores, kind="stable").tolist()
    np.testing.assert_allclose([entry["relevance_score"] for entry in ranking], sorted(scores)[::-1], atol=1e-5)

    folder = saved(tmp_path / "classifier", BertForSequenceClassification, id2label=LABELS)
    found = outputs(http, served_folder(http, namespace, folder, "classifier"), TEXTS, top_k=2)
    reference = pipeline("text-classification", model=str(folder), top_k=2)
    for row, best in zip(found, reference(TEXTS, truncation=True), strict=True):
        assert [entry["label"] for entry in row] == [entry["label"] for entry in best]
        np.testing.assert_allclose([entry["score"] for entry in row], [entry["score"] for entry in best], atol=1e-5)

    folder = saved(tmp_path / "tagger", BertForTokenClassification, id2label=LABELS)
    found = outputs(http, served_folder(http, namespace, folder, "tagger"), TEXTS)
    for row, tagged in zip(found, pipeline("token-classification", model=str(folder))(TEXTS), strict=True):
        assert [{**entry, "score": 0} for entry in row] == [{**entry, "score": 0} for entry in tagged]

    folder = saved_bart(tmp_path / "writer")
    (made,) = outputs(http, served_folder(http, namespace, folder, "writer"), TEXTS[:1], max_new_tokens=8)
    tokens = AutoTokenizer.from_pretrained(folder)
    given = tokens(TEXTS[:1], truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    written = model.generate(given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=8)
    assert made == {"generated_text": tokens.decode(written[0], skip_special_tokens=True)}


def test_torchscript_runs_in_a_process_of_its_namespace_over_the_nodes_copy(
    platform: Platform, http: httpx.Client, triton: InferenceServerClient, namespace: str
) -> None:
    torch.manual_seed(5)
    # 4 MB: Ray sends what is small with its reply, and shares the rest.
    module = torch.nn.Sequential(torch.nn.Linear(64, 16_384), torch.nn.ReLU(), torch.nn.Linear(16_384, 8)).eval()
    with torch.no_grad():
        expected = module(torch.from_numpy(GIVEN)).numpy()
    program = io.BytesIO()
    torch.jit.save(torch.jit.script(module), program)
    endpoint = served(http, namespace, tar_gz({"model.pt": program.getvalue()}), "pytorch")
    np.testing.assert_allclose(outputs(http, endpoint, {"input": GIVEN.tolist()})["output_0"], expected, atol=1e-5)
    running = programs(platform)
    assert running
    assert all("rw-p" in mapping for pid in running for mapping in shared_mappings(pid))
    assert any(shared_mappings(pid) for pid in running)
    given = InferInput("input", list(GIVEN.shape), "FP32")
    given.set_data_from_numpy(GIVEN)
    headers = {"Authorization": f"Bearer {platform.api_key}"}
    for wanted in (None, [InferRequestedOutput("output_0")]):
        answer = triton.infer(endpoint.removeprefix("/models/"), [given], outputs=wanted, headers=headers)
        np.testing.assert_allclose(answer.as_numpy("output_0"), expected, atol=1e-5)
    wrong = http.post(endpoint, json={"inputs": {"input": GIVEN[:, :3].tolist()}})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "validation_error"), wrong.text
    path = endpoint.replace("/models/", "/v1/namespaces/").replace("/model_", "/models/model_")
    assert http.post(f"{path}/undeploy").status_code == 200
    eventually(lambda: not programs(platform), what="the end of the programs' processes")


def programs(platform: Platform) -> list[int]:
    """Return the processes that run TorchScript."""
    found = [process.pid for process in descendants(platform.state["pid"])]
    return [pid for pid in found if b"script_child" in contents(f"/proc/{pid}/cmdline")]


def shared_mappings(pid: int) -> list[str]:
    """Return where a process maps the object store's files."""
    return [line for line in contents(f"/proc/{pid}/maps").decode().splitlines() if "plasma" in line]


def contents(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def test_a_state_dict_is_not_servable(http: httpx.Client, namespace: str) -> None:
    endpoint = served(http, namespace, archive_of({"weight": torch.ones(3)}), "pytorch")
    answer = http.post(endpoint, json={"inputs": [1]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_servable"), answer.text
    assert "plugin" in answer.json()["error"]["message"]


def test_endpoints_are_their_owners_alone(platform: Platform, http: httpx.Client, onnx_endpoint: str) -> None:
    created = platform.command("keys", "create", "--organization", "strangers", "--tier", "enterprise", "--json")

    body = {"inputs": GIVEN.tolist()}
    with platform.client(json.loads(created.stdout)["api_key"]) as stranger:
        foreign = stranger.post(onnx_endpoint, json=body)
        nothing = stranger.post("/models/ns_nobody/model_1_0_0", json=body)
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (404, "namespace_not_found"), foreign.text
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (404, "namespace_not_found"), nothing.text
    missing = http.post(onnx_endpoint.replace("model_1", "model_2"), json=body)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert httpx.post(f"{platform.url}{onnx_endpoint}", json=body).status_code == 401


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_as_it_is(
    platform: Platform,
    http: httpx.Client,
    triton: InferenceServerClient,
    onnx_endpoint: str,
    expected: np.ndarray,
    binary: bool,
) -> None:
    headers = {"Authorization": f"Bearer {platform.api_key}"}
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    name = onnx_endpoint.removeprefix("/models/")
    given = InferInput("given", list(GIVEN.shape), "FP32")
    given.set_data_from_numpy(GIVEN, binary_data=binary)
    wanted = [InferRequestedOutput("result", binary_data=binary)]
    namespace, model_id = name.split("/")
    alias = http.put(f"/v1/namespaces/{namespace}/aliases/model/production", json={"targets": {model_id: 1}})
    assert alias.status_code == 200, alias.text
    by_alias = f"{namespace}/model@production"
    for shown in (name, name.replace("/", "%2F"), by_alias, by_alias.replace("/", "%2F")):
        assert triton.is_model_ready(shown, headers=headers)
        metadata = triton.get_model_metadata(shown, headers=headers)
        assert (metadata["name"], metadata["versions"]) == (name, ["1.0.0"])
        assert metadata["inputs"] == [{"name": "given", "datatype": "FP32", "shape": [-1, 64]}]
        for version in ("", "1.0.0"):
            answer = triton.infer(shown, [given], model_version=version, outputs=wanted, headers=headers)
            assert (answer.get_response()["model_name"], answer.get_response()["model_version"]) == (name, "1.0.0")
            np.testing.assert_allclose(answer.as_numpy("result"), expected, atol=1e-5)
    answer = triton.infer(name, [given], request_id="mine", headers=headers)
    assert answer.get_response()["id"] == "mine"
    np.testing.assert_allclose(answer.as_numpy("result"), expected, atol=1e-5)
    assert not triton.is_model_ready(name, "2.0.0", headers=headers)
    given.set_shape([1, 192])
    with pytest.raises(InferenceServerException, match="takes") as refusal:
        triton.infer(name, [given], headers=headers)
    assert refusal.value.status() == "422"
    with pytest.raises(InferenceServerException, match="API key"):
        triton.infer(name, [given])


def test_the_protocols_path_with_its_slash_escaped(http: httpx.Client, onnx_endpoint: str) -> None:
    name = onnx_endpoint.removeprefix("/models/").replace("/", "%2F")
    assert http.get(f"/v2/models/{name}/versions/1.0.0/ready").status_code == 200


def test_texts_by_the_protocol(
    http: httpx.Client,
    platform: Platform,
    triton: InferenceServerClient,
    namespace: str,
    tiny_model: Callable[..., Path],
) -> None:
    endpoint = served_folder(http, namespace, tiny_model("bert"))
    given = InferInput("text", [len(TEXTS)], "BYTES")
    given.set_data_from_numpy(np.array(TEXTS, dtype=object))
    headers = {"Authorization": f"Bearer {platform.api_key}"}
    found = triton.infer(endpoint.removeprefix("/models/"), [given], headers=headers).as_numpy("embedding")
    np.testing.assert_allclose(found, outputs(http, endpoint, TEXTS), atol=1e-5)


def test_requests_by_both_protocols_are_counted_exactly(http: httpx.Client, onnx_endpoint: str) -> None:
    name = onnx_endpoint.removeprefix("/models/")
    namespace, model_id = name.split("/")
    tensor = {"name": "given", "datatype": "FP32", "shape": list(GIVEN.shape), "data": GIVEN.ravel().tolist()}
    for _ in range(20):
        assert http.post(onnx_endpoint, json={"inputs": GIVEN.tolist()}).status_code == 200
        assert http.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}).status_code == 200
    for _ in range(7):
        assert http.post(onnx_endpoint, json={"inputs": [["a"]]}).status_code == 422
    # These ask the model for nothing.
    assert http.get(f"/v2/models/{name}").status_code == http.get(f"/v2/models/{name}/ready").status_code == 200

    def figures() -> dict[str, Any]:
        found = http.get("/v1/analytics/inference/performance", params={"model_name": name}).json()
        return found[0] if found and found[0]["requests"] >= 47 else {}

    counted = eventually(figures, what="the figures of 47 requests")
    assert (counted["namespace_id"], counted["model_id"], counted["version"]) == (namespace, model_id, "1.0.0")
    assert (counted["requests"], counted["errors"], counted["items"]) == (47, 7, 40 * len(GIVEN))
    assert counted["error_codes"] == {"validation_error": 7}
    assert 0 < counted["p50_latency_ms"] <= counted["p99_latency_ms"]


def test_undeploy_and_delete_under_load_fail_only_what_came_after(
    platform: Platform, http: httpx.Client, namespace: str, onnx_endpoint: str, source: torch.nn.Module
) -> None:
    before = outputs(http, onnx_endpoint, GIVEN.tolist())["result"]
    other = small_module()
    finished = threading.Event()
    answers: list[list[httpx.Response]] = [[], []]

    def load(found: list[httpx.Response]) -> None:
        with platform.client() as client:
            while not finished.is_set():
                found.append(client.post(onnx_endpoint, json={"inputs": GIVEN.tolist()}))

    threads = [threading.Thread(target=load, args=(found,)) for found in answers]
    for thread in threads:
        thread.start()
    path = onnx_endpoint.replace("/models/", "/v1/namespaces/").replace("/model_", "/models/model_")

    def has_ended(status: int) -> bool:
        return all(found and found[-1].status_code == status for found in answers)

    try:
        eventually(lambda: has_ended(200), what="answers")
        for action, status in (("undeploy", 409), ("deploy", 200), ("undeploy", 409), ("deploy", 200)):
            assert http.post(f"{path}/{action}").status_code == 200
            eventually(lambda status=status: has_ended(status), what=f"status {status}")
        assert http.delete(path).status_code == 200
        eventually(lambda: has_ended(404), what="the end of its answers")
        # The same version with other contents.
        assert served(http, namespace, tar_gz(onnx_files(other, external=False)), "onnx") == onnx_endpoint
        eventually(lambda: has_ended(200), what="answers of the other contents")
        after = outputs(http, onnx_endpoint, GIVEN.tolist())["result"]
        assert http.delete(path).status_code == 200
        eventually(lambda: has_ended(404), what="the end of its answers")
    finally:
        finished.set()
        for thread in threads:
            thread.join()
    for module, found in ((source, before), (other, after)):
        with torch.no_grad():
            np.testing.assert_allclose(found, module(torch.from_numpy(GIVEN)).numpy(), atol=1e-5)
    for found in answers:
        assert {answer.status_code for answer in found} <= {200, 404, 409}, [answer.text for answer in found]
        results = [answer.json()["outputs"]["result"] for answer in found if answer.status_code == 200]
        swapped = next(place for place, result in enumerate(results) if np.allclose(result, after, atol=1e-5))
        np.testing.assert_allclose(results[:swapped], [before] * swapped, atol=1e-5)
        np.testing.assert_allclose(results[swapped:], [after] * (len(results) - swapped), atol=1e-5)


def test_the_endpoints_are_documented(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()["paths"]["/models/{namespace_id}/{model_id}"]["post"]
    fields = described["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert "rerankers" in fields["inputs"]["description"]
