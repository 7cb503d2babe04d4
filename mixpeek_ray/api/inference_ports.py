"""What the inference routes need from whoever computes the models, without knowing how it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mixpeek_ray.core.records import Principal
from mixpeek_ray.families.base import FloatArray, Role, SparseVector, TextInput, Truncate

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class Computed(Generic[ResultT]):
    """What a model made of a request's inputs, in their order."""

    # The name that the model answers to: a built-in model's own, or ``{namespace}/{model_id}``.
    model: str
    results: Sequence[ResultT]
    # Of all inputs, special ones included.
    tokens: int


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """Texts for one embedding model."""

    # A built-in model's name or alias, or ``{namespace}/{model_id}``.
    model: str
    inputs: Sequence[TextInput]
    role: Role = Role.DOCUMENT
    truncate: Truncate = Truncate.END
    # For models whose prompt has one; None: the model's own.
    instruction: str | None = None
    # For dense models that were trained for shorter vectors; None: the model's own.
    dimensions: int | None = None


@dataclass(frozen=True, kw_only=True)
class RerankRequest:
    """A query and the documents that are to be scored against it."""

    # A reranker, or a late-interaction model.
    model: str
    query: str
    documents: Sequence[str]
    truncate: Truncate = Truncate.END


class TextInference(Protocol):
    """Inference with built-in and custom text models.

    Every method raises subclasses of ``MixpeekError`` only: ``ModelNotFoundError`` (no such model, or one in a
    namespace that is not the principal's), ``ModelNotDeployedError``, ``ValidationError`` (a model of another family,
    what the model does not take, too many inputs), ``InputTooLongError``, ``WeightsUnavailableError`` and
    ``RegistryUnavailableError`` (503), ``OverloadedError`` (429).
    """

    async def embed(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        """Return one float32 vector [dimensions] an input."""

    async def embed_sparse(self, principal: Principal, request: TextRequest) -> Computed[SparseVector]:
        """Return one sparse vector an input."""

    async def embed_multi_vector(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        """Return one float32 matrix [tokens, dimensions] an input."""

    async def rerank(self, principal: Principal, request: RerankRequest) -> Computed[float]:
        """Return one score a document, in the documents' order."""
