"""The text applications by name, and how the gateway reaches the one that a body asks for."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve

from mixpeek_ray.batching.requests import Computed, RerankRequest, TextRequest
from mixpeek_ray.catalog.cards import Family, ModelCard
from mixpeek_ray.catalog.catalog import get_catalog
from mixpeek_ray.core.records import Principal
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.families.base import FloatArray, SparseVector
from mixpeek_ray.serving.handles import HANDLE_FAILURES, platform_error

# As in serve_config.yaml.
APPLICATIONS = {
    Family.DENSE: "embeddings",
    Family.SPARSE: "sparse-embeddings",
    Family.LATE_INTERACTION: "multi-vector-embeddings",
    Family.RERANK: "rerank",
}


class TextApplications:
    """Implements ``api.inference_ports.TextInference`` by way of the family applications' replicas."""

    def __init__(self) -> None:
        self._handles: dict[Family, Any] = {}

    async def embed(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        """Return one float32 vector [dimensions] an input."""
        result: Computed[FloatArray] = await self._call(Family.DENSE, "embed", principal, request)
        return result

    async def embed_sparse(self, principal: Principal, request: TextRequest) -> Computed[SparseVector]:
        """Return one sparse vector an input."""
        result: Computed[SparseVector] = await self._call(Family.SPARSE, "embed_sparse", principal, request)
        return result

    async def embed_multi_vector(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        """Return one float32 matrix [tokens, dimensions] an input."""
        family = Family.LATE_INTERACTION
        result: Computed[FloatArray] = await self._call(family, "embed_multi_vector", principal, request)
        return result

    async def rerank(self, principal: Principal, request: RerankRequest) -> Computed[float]:
        """Return one score a document, in the documents' order."""
        result: Computed[float] = await self._call(Family.RERANK, "rerank", principal, request)
        return result

    async def _call(self, family: Family, method: str, principal: Principal, request: Any) -> Any:
        try:
            handle = await self._handle(family)
            return await getattr(handle, method).remote(principal, request)
        except HANDLE_FAILURES as error:
            raise platform_error(error, APPLICATIONS[family]) from None

    async def _handle(self, family: Family) -> Any:
        if family not in self._handles:
            self._handles[family] = await asyncio.to_thread(serve.get_app_handle, APPLICATIONS[family])
        return self._handles[family]


def warm_cards(settings: Settings, family: Family) -> tuple[ModelCard, ...]:
    """Return the models of a family that are to be loaded from the start. Raises ``ModelNotFoundError``."""
    cards = (get_catalog().find(name) for name in settings.warm_model_names)
    return tuple(card for card in cards if card.family is family)
