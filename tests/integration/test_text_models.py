"""Built-in and custom text models over HTTP, on the session's platform: HAProxy, Serve, the registry, real weights."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cohere
import httpx
import numpy as np
import openai
import pytest
from tiny_models import tiny_colbert, tiny_model

from mixpeek_ray.families.base import Role, Truncate
from mixpeek_ray.families.late_interaction import max_sim
from tests.integration.conftest import Platform, eventually
from tests.integration.models import deploy, upload
from tests.integration.processes import kill, pids
from tests.integration.text_models import provide, reference

__all__ = ["tiny_colbert", "tiny_model"]

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = "ray::ModelRegistry"
TEXTS = ["the quick brown fox", "", "🎉 naïve שלום 日本語", "over-long " * 300, "what is the query?", "lazy dog"]
QUERY = "what is the quick query"
DENSE, SPARSE, MULTI, RERANKER = "tiny-dense", "tiny-sparse", "tiny-colbert", "tiny-reranker"


@pytest.fixture(scope="module")
def folders(platform: Platform, tiny_model: Callable[..., Path], tiny_colbert: Path) -> dict[str, Path]:
    """The models' directories, at hand for the platform."""
    made = {
        DENSE: tiny_model("bert"),
        SPARSE: tiny_model("bert", "masked_lm"),
        MULTI: tiny_colbert,
        RERANKER: tiny_model("bert", "classifier"),
    }
    provide(platform.home.parent / "models", made)
    return made


@pytest.fixture(scope="module")
def families(folders: dict[str, Path]) -> dict[str, Any]:
    """The same models computed in this process."""
    return {name: reference(name, folder) for name, folder in folders.items()}


def computed(family: Any, texts: list[str], **options: Any) -> Any:
    items = family.pre(texts, truncate=Truncate.END, **options)
    return family.post(family.core(items), items)


def embedded(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([entry["embedding"] for entry in answer.json()["data"]], dtype=np.float32)


def test_the_openai_package_as_it_is(platform: Platform, families: dict[str, Any]) -> None:
    with openai.OpenAI(base_url=f"{platform.url}/v1", api_key=platform.api_key, max_retries=0) as client:
        answer = client.embeddings.create(model=DENSE, input=TEXTS)
        listed = [model.id for model in client.models.list()]
        assert client.models.retrieve(DENSE).id == DENSE
    found = np.array([entry.embedding for entry in answer.data], dtype=np.float32)
    np.testing.assert_allclose(found, computed(families[DENSE], TEXTS, role=Role.DOCUMENT), atol=1e-5)
    assert {DENSE, SPARSE, MULTI, RERANKER, "absent"} <= set(listed)


@pytest.mark.parametrize("client_class", [cohere.Client, cohere.ClientV2])
def test_the_cohere_package_as_it_is(platform: Platform, families: dict[str, Any], client_class: Any) -> None:
    client = client_class(api_key=platform.api_key, base_url=platform.url)
    answer = client.rerank(model=RERANKER, query=QUERY, documents=TEXTS, top_n=3)
    family = families[RERANKER]
    items = family.pre(QUERY, TEXTS, truncate=Truncate.END)
    scores = family.post(family.core(items), items)
    best = sorted(range(len(TEXTS)), key=lambda place: -scores[place])[:3]
    assert [result.index for result in answer.results] == best
    np.testing.assert_allclose([result.relevance_score for result in answer.results], sorted(scores)[:-4:-1], atol=1e-5)


def test_dense_sparse_and_multi_vector_in_one_call(http: httpx.Client, families: dict[str, Any]) -> None:
    models = {"dense": DENSE, "sparse": SPARSE, "multi_vector": MULTI}
    answer = http.post("/v1/embeddings/hybrid", json={"input": TEXTS, "models": models, "input_type": "query"})
    assert answer.status_code == 200, answer.text
    dense = computed(families[DENSE], TEXTS, role=Role.QUERY)
    sparse = computed(families[SPARSE], TEXTS)
    multi = computed(families[MULTI], TEXTS, role=Role.QUERY)
    for place, entry in enumerate(answer.json()["data"]):
        np.testing.assert_allclose(entry["dense"], dense[place], atol=1e-5)
        assert entry["sparse"]["indices"] == sparse[place].indices.tolist()
        np.testing.assert_allclose(entry["sparse"]["values"], sparse[place].values, atol=1e-5)
        np.testing.assert_allclose(entry["multi_vector"], multi[place], atol=1e-5)


def test_each_family_has_a_route_and_late_interaction_reranks(http: httpx.Client, families: dict[str, Any]) -> None:
    sparse = http.post("/v1/embeddings/sparse", json={"model": SPARSE, "input": QUERY}).json()["data"][0]["embedding"]
    assert sparse["indices"] == computed(families[SPARSE], [QUERY])[0].indices.tolist()
    multi = http.post("/v1/embeddings/multi-vector", json={"model": MULTI, "input": TEXTS}).json()["data"]
    documents = computed(families[MULTI], TEXTS, role=Role.DOCUMENT)
    for entry, expected in zip(multi, documents, strict=True):
        np.testing.assert_allclose(np.array(entry["embedding"]).reshape(expected.shape), expected, atol=1e-5)
    (query,) = computed(families[MULTI], [QUERY], role=Role.QUERY)
    answer = http.post("/v1/rerank", json={"model": MULTI, "query": QUERY, "documents": TEXTS}).json()
    scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
    expected_scores = [max_sim(query, document) for document in documents]
    np.testing.assert_allclose([scores[place] for place in range(len(TEXTS))], expected_scores, atol=1e-4)


def test_raw_inference_finds_the_model_by_name_and_by_feature(http: httpx.Client, families: dict[str, Any]) -> None:
    (expected,) = computed(families[DENSE], [QUERY], role=Role.DOCUMENT)
    listed = http.get("/v1/feature-extractors").json()
    feature = "mixpeek://text_extractor@v1/tiny_dense_v1"
    assert feature in json.dumps(listed)
    for named in ({"provider": "mixpeek", "model": DENSE}, {"inference_name": DENSE}, {"feature_uri": feature}):
        answer = http.post("/v1/inference", json={**named, "inputs": {"text": QUERY}}).json()
        np.testing.assert_allclose(answer["data"], expected, atol=1e-5)
        assert (answer["provider"], answer["model"]) == ("mixpeek", DENSE)
        assert answer["latency_ms"] > 0
    inputs = {"query": QUERY, "documents": TEXTS}
    scored = http.post("/v1/inference", json={"model": RERANKER, "inputs": inputs})
    assert scored.status_code == 200, scored.text


def test_weights_that_are_not_there_are_a_503_that_says_how_to_provide_them(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"model": "absent", "input": QUERY})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "weights_unavailable")
    assert "MIXPEEK_MODELS_DIR" in answer.json()["error"]["message"]
    assert int(answer.headers["Retry-After"]) > 0
    (listed,) = [model for model in http.get("/v1/models").json()["data"] if model["id"] == "absent"]
    assert listed["availability"] == "unavailable"


def archive(folder: Path) -> bytes:
    """Return a directory as its user would pack it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as opened:
        opened.add(folder, arcname=".", filter=lambda member: member if member.isdir() or member.isreg() else None)
    return packed.getvalue()


def test_a_custom_model_answers_its_owners_alone(
    platform: Platform, http: httpx.Client, namespace: str, tiny_model: Callable[..., Path]
) -> None:
    folder = tiny_model("xlm-roberta")
    assert upload(http, namespace, archive(folder), model_format="huggingface").status_code == 200
    named = {"model": f"{namespace}/model_1_0_0", "input": TEXTS}
    early = http.post("/v1/embeddings", json=named)
    assert (early.status_code, early.json()["error"]["code"]) == (409, "model_not_deployed")
    deploy(http, namespace, "model_1_0_0")
    found = embedded(http.post("/v1/embeddings", json=named))

    from sentence_transformers import SentenceTransformer

    # What sentence-transformers makes of a plain directory: the mean, not normalised.
    np.testing.assert_allclose(found, SentenceTransformer(str(folder), device="cpu").encode(TEXTS), atol=1e-5)
    stranger = platform.command("keys", "create", "--organization", "strangers", "--tier", "enterprise", "--json")
    with platform.client(json.loads(stranger.stdout)["api_key"]) as other:
        refused = other.post("/v1/embeddings", json=named)
        nothing = other.post("/v1/embeddings", json={**named, "model": "ns_nobody/model_1_0_0"})
    assert (refused.status_code, refused.json()["error"]) == (404, nothing.json()["error"])
    assert http.post(f"/v1/namespaces/{namespace}/models/model_1_0_0/undeploy").status_code == 200
    eventually(lambda: http.post("/v1/embeddings", json=named).status_code == 409, what="the end of its answers")


@pytest.fixture
def stopped_registry(platform: Platform) -> Iterator[None]:
    (pid,) = pids(platform, REGISTRY)
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


@pytest.mark.usefixtures("whole_afterwards", "families")
def test_loaded_models_answer_while_the_registry_does_not(http: httpx.Client, request: pytest.FixtureRequest) -> None:
    asked = {"model": DENSE, "input": QUERY}
    before = embedded(http.post("/v1/embeddings", json=asked))
    request.getfixturevalue("stopped_registry")
    for _ in range(5):
        np.testing.assert_array_equal(embedded(http.post("/v1/embeddings", json=asked)), before)


@pytest.mark.usefixtures("whole_afterwards", "families")
def test_no_inference_fails_while_the_registry_is_killed_and_comes_back(
    platform: Platform, http: httpx.Client, namespace: str, tiny_model: Callable[..., Path]
) -> None:
    assert upload(http, namespace, archive(tiny_model("bert")), model_format="huggingface").status_code == 200
    deploy(http, namespace, "model_1_0_0")
    asked = [{"model": model, "input": QUERY} for model in (DENSE, f"{namespace}/model_1_0_0")]
    before = [embedded(http.post("/v1/embeddings", json=body)) for body in asked]
    path = f"/v1/namespaces/{namespace}/models/model_1_0_0"

    def back() -> bool:
        for body, expected in zip(asked, before, strict=True):
            np.testing.assert_array_equal(embedded(http.post("/v1/embeddings", json=body)), expected)
        found = http.get(path)
        return found.status_code == 200 and found.json()["model"]["deployment_status"] == "deployed"

    killed = kill(platform, REGISTRY)
    eventually(lambda: back() and pids(platform, REGISTRY) not in ([], [killed]), timeout_s=60, what="the registry")


@pytest.mark.usefixtures("whole_afterwards", "families")
def test_a_killed_replica_fails_only_what_it_was_computing(platform: Platform, http: httpx.Client) -> None:
    asked = {"model": DENSE, "input": QUERY}
    before = embedded(http.post("/v1/embeddings", json=asked))
    kill(platform, "ray::ServeReplica:embeddings")

    def answered() -> bool:
        answer = http.post("/v1/embeddings", json=asked)
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200 and np.array_equal(embedded(answer), before)

    eventually(answered, timeout_s=60, what="the replica's successor")


@pytest.mark.usefixtures("families")
def test_many_callers_get_their_own_answers(platform: Platform, families: dict[str, Any]) -> None:
    texts = [f"the fox {number} {'jumps ' * (number % 30)}" for number in range(200)]
    expected = computed(families[DENSE], texts, role=Role.DOCUMENT)
    with platform.client() as client, ThreadPoolExecutor(32) as threads:
        answers = threads.map(lambda text: client.post("/v1/embeddings", json={"model": DENSE, "input": text}), texts)
        for answer, vector in zip(answers, expected, strict=True):
            np.testing.assert_allclose(embedded(answer)[0], vector, atol=1e-5)


README_MODELS = {"gte-modernbert-base": DENSE, "splade_v1": SPARSE, "colbertv2": MULTI, "cross-encoder": RERANKER}


@pytest.mark.usefixtures("families")
def test_the_lines_of_the_readme_work_as_written(platform: Platform) -> None:
    section = re.search(r"^## Text models$(.*?)^## ", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    script = "\n".join(re.findall(r"^```bash\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL))
    for written, tiny in README_MODELS.items():
        assert written in script
        script = script.replace(f'"{written}"', f'"{tiny}"')
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=os.environ | {"MIXPEEK_API_URL": platform.url, "MIXPEEK_API_KEY": platform.api_key},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line]
    assert len(answers) == script.count("ask /")
    dense, sparse, multi, ranking, hybrid, scores = answers
    assert len(dense["data"]) == 2
    assert sparse["data"][0]["embedding"]["indices"]
    assert len(multi["data"][0]["embedding"]) == 12
    assert len(ranking["results"]) == 1
    assert hybrid["data"][0].keys() >= {"dense", "sparse", "multi_vector"}
    assert len(scores["data"]) == 2
