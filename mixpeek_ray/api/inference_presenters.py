"""From computed results to the answers of the embedding and reranking routes."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import orjson
from starlette.responses import Response

from mixpeek_ray.api.inference_body import RerankParameters
from mixpeek_ray.api.inference_ports import Computed
from mixpeek_ray.api.inference_schemas import EncodingFormat, RerankBody
from mixpeek_ray.api.sticky import MODEL_HEADER
from mixpeek_ray.core.ids import new_id
from mixpeek_ray.families.base import FloatArray, SparseVector

Representation = Literal["dense", "sparse", "multi_vector"]

# Documents that Cohere counts as one search.
_DOCUMENTS_A_SEARCH = 100


def present_embeddings(computed: Computed[Any], kind: Representation, encoding: EncodingFormat) -> Response:
    """Return OpenAI's list of embeddings, each written as its kind and ``encoding`` want it."""
    write = _WRITERS[kind]
    data = [
        {"object": "embedding", "index": index, "embedding": write(result, encoding)}
        for index, result in enumerate(computed.results)
    ]
    usage = {"prompt_tokens": computed.tokens, "total_tokens": computed.tokens}
    content = {"object": "list", "data": data, "model": computed.model, "usage": usage}
    return _answer_of(computed, content)


def present_hybrid_embeddings(computed: Mapping[Representation, Computed[Any]], encoding: EncodingFormat) -> Response:
    """Return one entry a text, with each representation that was computed of it."""
    texts = max(len(made.results) for made in computed.values())
    data: list[dict[str, object]] = [{"object": "embedding", "index": index} for index in range(texts)]
    for kind, made in computed.items():
        write = _WRITERS[kind]
        for entry, result in zip(data, made.results, strict=True):
            entry[kind] = write(result, encoding)
    models = {kind: made.model for kind, made in computed.items()}
    usage: dict[str, int] = {kind: made.tokens for kind, made in computed.items()}
    usage["total_tokens"] = sum(usage.values())
    return json_answer({"object": "list", "data": data, "models": models, "usage": usage})


def present_ranking(computed: Computed[float], body: RerankBody, *, api_version: str) -> Response:
    """Return the best documents first, equal ones in the order they were sent, in Cohere's and Jina's shape."""
    searches = math.ceil(len(body.documents) / _DOCUMENTS_A_SEARCH)
    return _answer_of(
        computed,
        {
            "id": new_id("rerank"),
            "model": computed.model,
            "results": ranked(computed.results, body.documents, body),
            "meta": {"api_version": {"version": api_version}, "billed_units": {"search_units": searches}},
            "usage": {"total_tokens": computed.tokens},
        },
    )


def ranked(scores: Sequence[float], documents: Sequence[str], wanted: RerankParameters) -> list[dict[str, object]]:
    """Return the best documents first, equal ones in the order they were sent, as many as are ``wanted``."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    results: list[dict[str, object]] = []
    for index in order[: wanted.top_n]:
        result: dict[str, object] = {"index": index, "relevance_score": scores[index]}
        if wanted.return_documents:
            result["document"] = {"text": documents[index]}
        results.append(result)
    return results


def _answer_of(computed: Computed[Any], content: Mapping[str, object]) -> Response:
    answer = json_answer(content)
    answer.headers[MODEL_HEADER] = answering_model(computed.model)
    return answer


def answering_model(name: str) -> str:
    """Return what ``X-Mixpeek-Model`` calls a model: the id alone of a custom one."""
    return name.rpartition("/")[2]


def json_answer(content: Mapping[str, object]) -> Response:
    """Return ``content`` as JSON; arrays are written as they are, never as Python's numbers."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _vector(vector: FloatArray, encoding: EncodingFormat) -> object:
    return vector if encoding == "float" else _base64(vector)


def _sparse_vector(vector: SparseVector, _encoding: EncodingFormat) -> object:
    return {"indices": vector.indices, "values": vector.values}


def _matrix(matrix: FloatArray, encoding: EncodingFormat) -> object:
    return matrix if encoding == "float" else {"data": _base64(matrix), "shape": matrix.shape}


_WRITERS: dict[Representation, Callable[[Any, EncodingFormat], object]] = {
    "dense": _vector,
    "sparse": _sparse_vector,
    "multi_vector": _matrix,
}


def _base64(numbers: FloatArray) -> str:
    return b64encode(numbers.astype("<f4", copy=False).tobytes()).decode("ascii")
