"""What the embedding and reranking routes answer, as their documentation shows it.

The answers themselves are written by ``inference_presenters``: a model of each number would cost more than the number.
"""

from __future__ import annotations

from typing import Literal

from mixpeek_ray.api.inference_schemas import HybridModels
from mixpeek_ray.api.schemas import Body


class Usage(Body):
    """Tokens of all inputs, special ones included."""

    prompt_tokens: int
    total_tokens: int


class Embedding(Body):
    """One text's vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsResponse(Body):
    """One vector a text, in the texts' order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class SparseVectorDocument(Body):
    """The weights above zero: token ids, ascending, and their weights."""

    indices: list[int]
    values: list[float]


class SparseEmbedding(Body):
    """One text's sparse vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: SparseVectorDocument


class SparseEmbeddingsResponse(Body):
    """One sparse vector a text, in the texts' order."""

    object: Literal["list"] = "list"
    data: list[SparseEmbedding]
    model: str
    usage: Usage


class EncodedMultiVector(Body):
    """A text's vectors as base64, and their shape: tokens and dimensions."""

    data: str
    shape: tuple[int, int]


class MultiVectorEmbedding(Body):
    """One text's vectors."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[list[float]] | EncodedMultiVector


class MultiVectorEmbeddingsResponse(Body):
    """One vector a token, in the texts' order."""

    object: Literal["list"] = "list"
    data: list[MultiVectorEmbedding]
    model: str
    usage: Usage


class HybridEmbedding(Body):
    """One text's representations: those that were asked for."""

    object: Literal["embedding"] = "embedding"
    index: int
    dense: list[float] | str | None = None
    sparse: SparseVectorDocument | None = None
    multi_vector: list[list[float]] | EncodedMultiVector | None = None


class HybridUsage(Body):
    """Tokens of all inputs, by representation and together."""

    dense: int | None = None
    sparse: int | None = None
    multi_vector: int | None = None
    total_tokens: int


class HybridEmbeddingsResponse(Body):
    """All representations of each text, in the texts' order."""

    object: Literal["list"] = "list"
    data: list[HybridEmbedding]
    models: HybridModels
    usage: HybridUsage


class RerankedText(Body):
    """A document's text."""

    text: str


class RerankResult(Body):
    """A document's place among those sent, and its score."""

    index: int
    relevance_score: float
    document: RerankedText | None = None


class RerankApiVersion(Body):
    """Whose shape the answer has."""

    version: str


class RerankBilledUnits(Body):
    """Cohere's measure: a query with up to 100 documents is one."""

    search_units: int


class RerankMeta(Body):
    """What Cohere's clients expect beside the results."""

    api_version: RerankApiVersion
    billed_units: RerankBilledUnits


class RerankUsage(Body):
    """Tokens of all pairs, special ones included."""

    total_tokens: int


class RerankResponse(Body):
    """The best documents first; equal ones in the order they were sent."""

    id: str
    model: str
    results: list[RerankResult]
    meta: RerankMeta
    usage: RerankUsage
