"""The applications of the text models: embeddings (dense, sparse, multi-vector) and reranking.

Each family has an application with a route prefix of its own, so that it scales by itself, down to nothing. All run
this one deployment: weights are views of the node's copy, so any replica can compute any model that a request names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from mixpeek_ray.catalog.cards import Family
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.serving.applications import APPLICATIONS, warm_cards
from mixpeek_ray.serving.ingress import at_root, harden_replica, leave_request_id_to_serve
from mixpeek_ray.serving.scaling import REPLICA_OPTIONS, ReplicaArgs, scaling_options

if TYPE_CHECKING:
    from mixpeek_ray.batching.requests import Computed, RerankRequest, TextRequest
    from mixpeek_ray.core.records import Principal
    from mixpeek_ray.families.base import FloatArray, SparseVector

# A replica computes this many requests together about as fast as one; more of them ask for another replica.
_TARGET_ONGOING_REQUESTS = 64


class TextArgs(ReplicaArgs):
    """The `args` of a text application in `serve_config.yaml`."""

    # Whose application this is: it decides which warm models its first replica loads.
    family: Family


@serve.deployment(**REPLICA_OPTIONS)
@serve.ingress()
class Text:
    """One replica: the HTTP application over a pool of models, and the same engine for the gateway's handle."""

    async def __init__(self, family: Family) -> None:  # type: ignore[misc]  # Serve awaits it
        # What computes is imported here: building the application happens in processes that never compute.
        from mixpeek_ray.serving.text_replica import TextReplica

        harden_replica()
        settings = get_settings()
        self._replica = await TextReplica.connect(
            settings, application=APPLICATIONS[family], warm=warm_cards(settings, family)
        )

    async def __del__(self) -> None:
        # Serve awaits it when it stops a replica that it need not kill; one that did not start has no replica.
        if hasattr(self, "_replica"):
            await self._replica.close()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return leave_request_id_to_serve(at_root(self._replica.create_app()))

    async def embed(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        """Return one float32 vector an input; see ``TextEngine`` for this and what follows."""
        return await self._replica.engine.embed(principal, request)

    async def embed_sparse(self, principal: Principal, request: TextRequest) -> Computed[SparseVector]:
        """Return one sparse vector an input."""
        return await self._replica.engine.embed_sparse(principal, request)

    async def embed_multi_vector(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        """Return one float32 matrix an input."""
        return await self._replica.engine.embed_multi_vector(principal, request)

    async def rerank(self, principal: Principal, request: RerankRequest) -> Computed[float]:
        """Return one score a document."""
        return await self._replica.engine.rerank(principal, request)


def build(args: Mapping[str, Any]) -> Application:
    """Return a family's application, ready to deploy. Raises pydantic's ``ValidationError`` for misspelt ``args``."""
    chosen = TextArgs.model_validate(args)
    settings = get_settings()
    first = 1 if warm_cards(settings, chosen.family) else 0
    deployment: Any = Text
    return deployment.options(
        name=APPLICATIONS[chosen.family],
        **scaling_options(chosen, settings, target_ongoing_requests=_TARGET_ONGOING_REQUESTS, min_replicas=first),
    ).bind(chosen.family)
