"""Inference without models: answers made of the inputs themselves, so that a mixed-up order shows."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixpeek_ray.api.inference_ports import Computed, RerankRequest, TextRequest
from mixpeek_ray.core.records import Principal
from mixpeek_ray.families.base import FloatArray, Role, SparseVector


class FakeInference:
    """Computes from the inputs' lengths; ``requests`` says what was asked, ``failure`` is raised instead."""

    def __init__(self) -> None:
        self.requests: list[TextRequest | RerankRequest] = []
        self.failure: Exception | None = None

    def _enter(self, request: TextRequest | RerankRequest) -> None:
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure

    async def embed(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        self._enter(request)
        return self._computed(request, [_vector(request, text) for text in request.inputs])

    async def embed_sparse(self, principal: Principal, request: TextRequest) -> Computed[SparseVector]:
        self._enter(request)
        indices, values = np.array([1, 30], dtype=np.int32), np.array([0.5, 2.0], dtype=np.float32)
        sparse = [SparseVector(indices=indices + len(text), values=values) for text in request.inputs]
        return self._computed(request, sparse)

    async def embed_multi_vector(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        self._enter(request)
        return self._computed(request, [np.stack([_vector(request, text)] * 2) for text in request.inputs])

    async def rerank(self, principal: Principal, request: RerankRequest) -> Computed[float]:
        self._enter(request)
        scores = [float(len(document)) for document in request.documents]
        return Computed(model=request.model, results=scores, tokens=len(request.documents))

    @staticmethod
    def _computed(request: TextRequest, results: list[Any]) -> Computed[Any]:
        return Computed(model=request.model, results=results, tokens=sum(len(text) for text in request.inputs))


def _vector(request: TextRequest, text: Any) -> FloatArray:
    is_query = float(request.role is Role.QUERY)
    return np.array([len(text), is_query, 0.1, -1.0][: request.dimensions], dtype=np.float32)
