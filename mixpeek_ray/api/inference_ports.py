"""What the inference routes need from whoever computes the models, without knowing how it is done."""

from __future__ import annotations

from typing import Protocol

from mixpeek_ray.batching.requests import Computed, RerankRequest, TextRequest
from mixpeek_ray.core.records import Principal
from mixpeek_ray.families.base import FloatArray, SparseVector


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


__all__ = ["Computed", "RerankRequest", "TextInference", "TextRequest"]
