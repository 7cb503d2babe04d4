"""The inference routes: what they answer, what they refuse and which field they blame, and whom they let in."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mixpeek_ray.api.inference_body import RerankParameters
from mixpeek_ray.api.inference_presenters import ranked
from mixpeek_ray.families.base import Role, Truncate

EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"
SPARSE, MULTI, HYBRID = f"{EMBEDDINGS}/sparse", f"{EMBEDDINGS}/multi-vector", f"{EMBEDDINGS}/hybrid"
TEXTS = ["the quick brown fox", "", "🎉 naïve שלום", "what is the query?"]
DENSE = {"model": "dense", "input": "a"}
RANKING = {"model": "reranker", "query": "a", "documents": ["b"]}
ROUTES = {
    EMBEDDINGS: DENSE,
    SPARSE: {"model": "sparse", "input": "a"},
    MULTI: {"model": "multi", "input": "a"},
    HYBRID: {"models": {"dense": "dense"}, "input": "a"},
    RERANK: RANKING,
}


@pytest.fixture
def http(server):
    with server.client() as client:
        yield client


def data(answer) -> list[dict]:
    assert answer.status_code == 200, answer.text
    entries = answer.json()["data"]
    assert [entry["index"] for entry in entries] == list(range(len(entries)))
    return entries


def error_of(answer) -> dict:
    body = answer.json()
    assert set(body) == {"success", "status", "error"}
    assert (body["success"], body["status"]) == (False, answer.status_code)
    assert answer.headers["x-request-id"]
    return body["error"]


def numbers(written: object) -> np.ndarray:
    """Return the numbers of an embedding, however it is written."""
    if isinstance(written, str):
        return np.frombuffer(base64.b64decode(written), "<f4")
    if isinstance(written, list):
        return np.array(written)
    if "data" in written:
        return numbers(written["data"]).reshape(written["shape"])
    return np.array([written["indices"], written["values"]])


def peak_kib() -> int:
    """Return the most memory this process held since its peak was reset."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


def direct(server, name: str, texts: list[str], **options) -> list:
    """Return what the family itself makes of ``texts``."""
    family = server.model(name).family
    items = family.pre(texts, truncate=Truncate.END, **options)
    return list(family.post(family.core(items), items))


def test_sparse_embeddings_are_the_familys(server, http):
    answer = http.post(SPARSE, json={"model": "sparse", "input": TEXTS, "input_type": "query"})
    for entry, expected in zip(data(answer), direct(server, "sparse", TEXTS), strict=True):
        assert entry["embedding"]["indices"] == expected.indices.tolist()
        np.testing.assert_allclose(entry["embedding"]["values"], expected.values, atol=1e-5)


@pytest.mark.parametrize(("input_type", "role"), [("query", Role.QUERY), ("search_document", Role.DOCUMENT)])
def test_multi_vector_embeddings_are_the_familys(server, http, input_type, role):
    body = {"model": "multi", "input": TEXTS, "input_type": input_type}
    expected = direct(server, "multi", TEXTS, role=role)
    for entry, matrix in zip(data(http.post(MULTI, json=body)), expected, strict=True):
        np.testing.assert_allclose(entry["embedding"], matrix, atol=1e-5)
    for entry, matrix in zip(data(http.post(MULTI, json=body | {"encoding_format": "base64"})), expected, strict=True):
        np.testing.assert_allclose(numbers(entry["embedding"]), matrix, atol=1e-5)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_one_call_makes_all_representations(http, encoding):
    options = {"input": TEXTS, "input_type": "query"}
    encoded = options | {"encoding_format": encoding}
    answer = http.post(
        HYBRID, json=encoded | {"models": {"dense": "dense", "sparse": "sparse", "multi_vector": "multi"}}
    )
    alone = {
        "dense": data(http.post(EMBEDDINGS, json=encoded | {"model": "dense"})),
        "sparse": data(http.post(SPARSE, json=options | {"model": "sparse"})),
        "multi_vector": data(http.post(MULTI, json=encoded | {"model": "multi"})),
    }
    for index, entry in enumerate(data(answer)):
        for kind, entries in alone.items():
            np.testing.assert_allclose(numbers(entry[kind]), numbers(entries[index]["embedding"]), atol=1e-5)
    usage = answer.json()["usage"]
    assert usage["total_tokens"] == usage["dense"] + usage["sparse"] + usage["multi_vector"]
    assert answer.json()["models"] == {"dense": "dense", "sparse": "sparse", "multi_vector": "multi"}
    (entry,) = data(http.post(HYBRID, json={"input": "a", "models": {"sparse": "sparse"}}))
    assert set(entry) == {"object", "index", "sparse"}


def test_equal_documents_stay_in_the_order_they_were_sent():
    ranking = ranked([0.5, 0.9, 0.5, 0.9], ["a", "b", "c", "d"], RerankParameters(top_n=3, return_documents=True))
    assert [(result["index"], result["document"]) for result in ranking] == [
        (1, {"text": "b"}),
        (3, {"text": "d"}),
        (0, {"text": "a"}),
    ]


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        (EMBEDDINGS, {"input": []}, ["input"]),
        (EMBEDDINGS, {"input": 5}, ["input"]),
        (EMBEDDINGS, {"input": None}, ["input"]),
        (EMBEDDINGS, {"input": {"text": "a"}}, ["input"]),
        (EMBEDDINGS, {"input": ["a", 5]}, ["input", 1]),
        (EMBEDDINGS, {"input": [1, True]}, ["input", 1]),
        (EMBEDDINGS, {"input": [1.5]}, ["input", 0]),
        (EMBEDDINGS, {"input": [-1]}, ["input", 0]),
        (EMBEDDINGS, {"input": [float("nan")]}, ["input", 0]),
        (EMBEDDINGS, {"input": [[1], ["a"]]}, ["input", 1, 0]),
        (EMBEDDINGS, {"input": [[1], [10**9]]}, ["input", 1]),
        (EMBEDDINGS, {"input": [[1], [10**30]]}, ["input", 1]),
        (EMBEDDINGS, {"input": ["a", "b" * 400_001]}, ["input", 1]),
        (EMBEDDINGS, {"input": ["a", "the fox " * 99], "truncate": "none"}, ["input", 1]),
        (EMBEDDINGS, {"input": ["a"] * 2_049}, ["input"]),
        (EMBEDDINGS, {"encoding_format": "hex"}, ["encoding_format"]),
        (EMBEDDINGS, {"input_type": "classification"}, ["input_type"]),
        (EMBEDDINGS, {"truncate": "middle"}, ["truncate"]),
        (EMBEDDINGS, {"dimensions": 7}, ["dimensions"]),
        (EMBEDDINGS, {"dimensions": 0}, ["dimensions"]),
        (EMBEDDINGS, {"dimensions": float("nan")}, ["dimensions"]),
        (EMBEDDINGS, {"instruction": "find it"}, ["instruction"]),
        (EMBEDDINGS, {"model": "reranker"}, ["model"]),
        (EMBEDDINGS, {"model": None}, ["model"]),
        (EMBEDDINGS, {"imput": "a"}, ["imput"]),
        (SPARSE, {"dimensions": 8}, ["dimensions"]),
        (SPARSE, {"instruction": "find it"}, ["instruction"]),
        (SPARSE, {"encoding_format": "base64"}, ["encoding_format"]),
        (SPARSE, {"input": [[10**9]]}, ["input", 0]),
        (MULTI, {"input": [[1, 2]]}, ["input", 0]),
        (HYBRID, {"models": {}}, ["models"]),
        (HYBRID, {"models": {"dance": "dense"}}, ["models", "dance"]),
        (HYBRID, {"models": {"dense": "dense", "sparse": "dense"}}, ["models.sparse"]),
        (HYBRID, {"models": {"sparse": "sparse"}, "dimensions": 8}, ["dimensions"]),
        (RERANK, {"documents": []}, ["documents"]),
        (RERANK, {"documents": "b"}, ["documents"]),
        (RERANK, {"documents": ["b", {"txt": "c"}]}, ["documents", 1]),
        (RERANK, {"documents": ["b", "the fox " * 99], "truncate": "none"}, ["documents", 1]),
        (RERANK, {"documents": ["b", "c" * 400_001]}, ["documents", 1]),
        (RERANK, {"query": None}, ["query"]),
        (RERANK, {"query": "a" * 400_001}, ["query"]),
        (RERANK, {"top_n": 0}, ["top_n"]),
        (RERANK, {"model": "dense"}, ["model"]),
    ],
)
def test_what_is_not_allowed_is_refused_and_named(http, path, body, place):
    answer = http.post(path, content=json.dumps(ROUTES[path] | body))
    error = error_of(answer)
    assert (answer.status_code, error["type"]) == (422, "ValidationError")
    assert ["body", *place] in [problem["loc"] for problem in error["details"]["validation_errors"]]
    assert len(error["details"]["validation_errors"]) == 1 or "imput" in body or "dance" in str(body)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b"\xff", b"[" * 9_999, b'{"input": "\\ud800"}', b'{"input": "\\udc00\\ud800"}'],
)
def test_a_body_that_is_no_json_object_is_refused(http, path, content):
    answer = http.post(path, content=content)
    assert (answer.status_code, error_of(answer)["code"]) == (422, "validation_error")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its peak of memory")
@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"model":"dense","input":[' + b'"a",' * 1_000_000 + b'"a"]}', 422),
        (b'{"model":"dense","input":[' + b"[]," * 400_000 + b"[]]}", 422),
        (b'{"model":"dense","input":[' + b"[[[[[[[[[]]]]]]]]]," * 500_000 + b"[]]}", 413),
        (b'{"model":"dense","input":[' + b"7," * 1_000_000 + b'"a"]}', 422),
        (b'{"model":"dense","input":[' + b"7," * 5_000_000 + b"7]}", 413),
        (b'{"model":"dense","input":"a"' + b"".join(b',"%d":1' % n for n in range(1_000_000)) + b"}", 200),
        (b'{"model":"dense","input":"' + b"a" * 10_000_000 + b'"}', 422),
        (b'{"model":"dense","input":"' + b"a" * 17_000_000 + b'"}', 413),
    ],
    ids=["texts", "lists", "nested lists", "ids", "values", "fields", "long text", "long body"],
)
def test_a_giant_request_takes_bounded_memory(http, content, status):
    http.post(EMBEDDINGS, json=DENSE)
    Path("/proc/self/clear_refs").write_text("5")
    before_kib = peak_kib()
    answer = http.post(EMBEDDINGS, content=content)
    grown_mib = (peak_kib() - before_kib) / 1024
    assert answer.status_code == status, answer.text[:500]
    assert grown_mib < 256
    assert len(answer.content) < 2_000


@pytest.mark.parametrize("path", ROUTES)
def test_only_post_and_only_with_a_key(server, http, path):
    for method in ("GET", "PUT", "DELETE"):
        answer = http.request(method, path)
        assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
    head = http.head(path)
    assert (head.status_code, head.content) == (405, b"")
    with server.client(key=None) as stranger:
        answer = stranger.post(path, json=ROUTES[path])
        assert (answer.status_code, error_of(answer)["code"]) == (401, "unauthenticated")
    with server.client(key="sk_nobody") as stranger:
        answer = stranger.post(path, json=ROUTES[path])
        assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
    assert error_of(http.get(path + "/absent"))["code"] == "not_found"


def test_another_organisations_model_looks_like_none(http):
    mine = http.post(EMBEDDINGS, json={"model": "ns_acme/mine_1_0_0", "input": "a"})
    assert mine.json()["model"] == "ns_acme/mine_1_0_0"
    for name in ("ns_other/theirs_1_0_0", "ns_acme/absent_1_0_0", "absent", "../../etc", "\u202e" * 300):
        answers = [
            http.post(path, json=body | ({"models": {"dense": name}} if path == HYBRID else {"model": name}))
            for path, body in ROUTES.items()
        ]
        assert {answer.status_code for answer in answers} == {404}
        (message,) = {error_of(answer)["message"] for answer in answers}
        assert {error_of(answer)["code"] for answer in answers} == {"model_not_found"}
        assert message == "There is no such model: GET /v1/models lists those there are."
    assert error_of(answers[3])["details"]["field"] == "models.dense"
