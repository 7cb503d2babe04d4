"""Text inference with models that are named by an alias."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from mixpeek_ray.api.access import is_plausible_id
from mixpeek_ray.api.alias_resolver import AliasResolver, Chosen
from mixpeek_ray.api.custom_models import MODEL_NOT_FOUND, may_have_custom_models
from mixpeek_ray.api.inference_ports import Computed, RerankRequest, TextInference, TextRequest
from mixpeek_ray.core.aliases import AliasRef, parse_reference
from mixpeek_ray.core.errors import AliasNotFoundError, ModelNotFoundError, NamespaceNotFoundError
from mixpeek_ray.core.records import Principal
from mixpeek_ray.families.base import FloatArray, SparseVector
from mixpeek_ray.serving.shadows import ShadowTraffic

RequestT = TypeVar("RequestT", TextRequest, RerankRequest)
ResultT = TypeVar("ResultT")


class AliasedInference:
    """Implements ``api.inference_ports.TextInference``: chooses a version, lets another one compute with it,
    and perhaps with the one in the shadow."""

    def __init__(self, inner: TextInference, versions: AliasResolver, shadows: ShadowTraffic) -> None:
        self._inner = inner
        self._versions = versions
        self._shadows = shadows

    async def embed(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        """Return one float32 vector [dimensions] an input."""
        return await self._run(self._inner.embed, principal, request)

    async def embed_sparse(self, principal: Principal, request: TextRequest) -> Computed[SparseVector]:
        """Return one sparse vector an input."""
        return await self._run(self._inner.embed_sparse, principal, request)

    async def embed_multi_vector(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        """Return one float32 matrix [tokens, dimensions] an input."""
        return await self._run(self._inner.embed_multi_vector, principal, request)

    async def rerank(self, principal: Principal, request: RerankRequest) -> Computed[float]:
        """Return one score a document, in the documents' order."""
        return await self._run(self._inner.rerank, principal, request)

    async def _run(
        self,
        compute: Callable[[Principal, RequestT], Coroutine[Any, Any, Computed[ResultT]]],
        principal: Principal,
        request: RequestT,
    ) -> Computed[ResultT]:
        ref = _alias(request.model)
        if ref is None:
            return await compute(principal, request)
        if not may_have_custom_models(principal):
            raise ModelNotFoundError(MODEL_NOT_FOUND, field="model")

        async def attempt(chosen: Chosen) -> Computed[ResultT]:
            computed = await compute(principal, replace(request, model=f"{ref.namespace_id}/{chosen.model_id}"))
            if chosen.shadow_id is not None:
                again = replace(request, model=f"{ref.namespace_id}/{chosen.shadow_id}", is_shadow=True)
                self._shadows.offer(again.model, partial(compute, principal, again))
            return computed

        try:
            return await self._versions.answered(principal, ref, request.sticky, attempt)
        except (AliasNotFoundError, NamespaceNotFoundError):
            raise ModelNotFoundError(MODEL_NOT_FOUND, field="model") from None


def _alias(name: str) -> AliasRef | None:
    namespace_id, slash, reference = name.partition("/")
    return parse_reference(namespace_id, reference) if slash and is_plausible_id(namespace_id) else None
