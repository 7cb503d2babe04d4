"""The `openai` package as it is published, against the reference library's vectors."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from mixpeek_ray.families.base import Role, Truncate

TEXTS = ["the quick brown fox", "", "🎉 naïve שלום 日本語", "over-long " * 300, "what is the query?", "lazy dog"]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk_reader", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def reference(tiny_model):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    transformer = Transformer(str(tiny_model("bert")), max_seq_length=64)
    return SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu")


def vectors(answer) -> np.ndarray:
    assert [entry.index for entry in answer.data] == list(range(len(answer.data)))
    return np.array([entry.embedding for entry in answer.data], dtype=np.float32)


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_the_vectors_are_the_references(client, reference, options):
    # Without a format the package asks for base64 and decodes it; who asks for base64 decodes it himself.
    answer = client.embeddings.create(model="dense", input=TEXTS, **options)
    if options.get("encoding_format") == "base64":
        import base64

        found = np.array([np.frombuffer(base64.b64decode(entry.embedding), "<f4") for entry in answer.data])
    else:
        found = vectors(answer)
    np.testing.assert_allclose(found, reference.encode(TEXTS), atol=1e-5)
    assert (answer.object, answer.model, answer.data[0].object) == ("list", "dense", "embedding")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)


def test_texts_and_token_ids_in_all_four_shapes(client, server):
    family = server.model("dense").family
    contents = [item.ids[1:-1].tolist() for item in family.pre(TEXTS, role=Role.DOCUMENT, truncate=Truncate.END)]
    expected = vectors(client.embeddings.create(model="dense", input=TEXTS))
    for place in (0, 2, 5):
        for given in (TEXTS[place], [TEXTS[place]], contents[place], [contents[place]]):
            found = vectors(client.embeddings.create(model="dense", input=given))
            np.testing.assert_allclose(found, expected[[place]], atol=1e-5)
    np.testing.assert_allclose(vectors(client.embeddings.create(model="dense", input=contents)), expected, atol=1e-5)


def test_dimensions_and_what_only_we_have(client):
    def embed(**options):
        return vectors(client.embeddings.create(model="instructed", input="the fox", **options))[0]

    whole, short = embed(), embed(dimensions=8)
    np.testing.assert_allclose(short, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)
    query = embed(extra_body={"input_type": "search_query"})
    np.testing.assert_array_equal(query, embed(extra_body={"input_type": "query", "instruction": "find the fox"}))
    assert np.abs(query - whole).max() > 1e-3
    assert np.abs(query - embed(extra_body={"input_type": "query", "instruction": "find dogs"})).max() > 1e-3
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        embed(dimensions=9)
    assert refused.value.body["details"]["field"] == "dimensions"


def test_many_requests_at_once_in_any_order(client, reference):
    generator = random.Random(4)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "what", "is", "it"]
    requests = [
        [
            " ".join(generator.choices(words, k=generator.randint(0, 90)))
            for _ in range(generator.choice([1, 1, 1, 5, 40]))
        ]
        for _ in range(64)
    ]
    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(lambda texts: client.embeddings.create(model="dense", input=texts), requests))
    for texts, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(vectors(answer), reference.encode(texts), atol=1e-5)


def test_the_packages_own_errors(server):
    def refused(expected, *, key="sk_reader", **request):
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
        with client, pytest.raises(expected) as error:
            client.embeddings.create(**{"model": "dense", "input": "a"} | request)
        return error.value

    assert refused(openai.AuthenticationError, key="sk_nobody").code == "invalid_api_key"
    assert refused(openai.NotFoundError, model="text-embedding-3-small").code == "model_not_found"
    assert refused(openai.UnprocessableEntityError, input=[]).code == "validation_error"
    assert refused(openai.UnprocessableEntityError, encoding_format="hex").code == "validation_error"
