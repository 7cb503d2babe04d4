"""The `cohere` package as it is published, against the reference library's scores."""

from __future__ import annotations

import cohere
import numpy as np
import pytest

QUERY = "what is the quick query"
DOCUMENTS = ["the lazy dog", "what is the quick query", "", "🎉 日本語", "over-long " * 300]


@pytest.fixture
def client(server):
    return cohere.Client(api_key="sk_reader", base_url=server.url)


@pytest.fixture(scope="session")
def expected(tiny_model):
    import torch
    from sentence_transformers import CrossEncoder

    folder = str(tiny_model("bert", "classifier"))
    reference = CrossEncoder(folder, max_length=64, activation_fn=torch.nn.Sigmoid(), device="cpu")
    return reference.predict([(QUERY, document) for document in DOCUMENTS])


def test_the_scores_are_the_references_and_the_best_come_first(client, expected):
    answer = client.rerank(model="reranker", query=QUERY, documents=DOCUMENTS)
    scores = [result.relevance_score for result in answer.results]
    assert scores == sorted(scores, reverse=True)
    order = [result.index for result in answer.results]
    np.testing.assert_allclose(scores, expected[order], atol=1e-5)
    assert sorted(order) == list(range(len(DOCUMENTS)))
    assert all(result.document is None for result in answer.results)
    assert answer.id
    assert answer.meta.api_version.version == "1"
    assert answer.meta.billed_units.search_units == 1


def test_the_best_few_with_their_texts(client):
    documents = [{"text": text, "title": "ignored"} if place % 2 else text for place, text in enumerate(DOCUMENTS)]
    whole = client.rerank(model="reranker", query=QUERY, documents=DOCUMENTS)
    few = client.rerank(model="reranker", query=QUERY, documents=documents, top_n=2, return_documents=True)
    assert [result.index for result in few.results] == [result.index for result in whole.results[:2]]
    assert [result.document.text for result in few.results] == [DOCUMENTS[result.index] for result in few.results]
    more = client.rerank(model="reranker", query=QUERY, documents=DOCUMENTS, top_n=1_000)
    assert len(more.results) == len(DOCUMENTS)


def test_a_late_interaction_model_ranks_by_what_it_embeds(client, server):
    def matrices(input_type: str, texts: list[str]) -> list[np.ndarray]:
        body = {"model": "multi", "input": texts, "input_type": input_type}
        with server.client() as http:
            answer = http.post("/v1/embeddings/multi-vector", json=body).json()
        return [np.array(entry["embedding"]) for entry in answer["data"]]

    (query,) = matrices("query", [QUERY])
    scores = np.array([(query @ document.T).max(axis=1).sum() for document in matrices("document", DOCUMENTS)])
    answer = client.rerank(model="multi", query=QUERY, documents=DOCUMENTS)
    order = [result.index for result in answer.results]
    np.testing.assert_allclose([result.relevance_score for result in answer.results], scores[order], atol=1e-4)
    assert (np.diff(scores[order]) <= 1e-6).all()


def test_the_packages_own_errors(client):
    with pytest.raises(cohere.NotFoundError):
        client.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS)
    with pytest.raises(cohere.UnprocessableEntityError) as refused:
        client.rerank(model="reranker", query=QUERY, documents=[])
    assert refused.value.body["error"]["details"]["validation_errors"][0]["loc"] == ["body", "documents"]
