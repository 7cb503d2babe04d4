"""The applications that answer for deployed custom models: their endpoints, and the Open Inference Protocol.

Both run this one deployment, under the two route prefixes of the two protocols. Weights are views of the node's copy,
so any replica can compute any model that a path names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.serving.ingress import at_root, harden_replica, leave_request_id_to_serve
from mixpeek_ray.serving.scaling import REPLICA_OPTIONS, ReplicaArgs, scaling_options

# A replica computes a model's requests together; more of them than this ask for another replica.
_TARGET_ONGOING_REQUESTS = 32


class PoolArgs(ReplicaArgs):
    """The `args` of a pool application in `serve_config.yaml`."""

    # Models that a replica keeps open, and the memory of its own that they may take: what no view is.
    max_models: int = Field(default=500, ge=1)
    max_private_gb: float = Field(default=2.0, gt=0)


@serve.deployment(**REPLICA_OPTIONS)
@serve.ingress()
class Pool:
    """One replica: the HTTP application over the models that were asked for last."""

    async def __init__(self, args: PoolArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        # What computes is imported here: building the application happens in processes that never compute.
        from mixpeek_ray.serving.pool_replica import PoolBounds, PoolReplica

        harden_replica()
        bounds = PoolBounds(max_models=args.max_models, max_private_bytes=int(args.max_private_gb * GIB))
        application = serve.get_replica_context().app_name
        self._replica = await PoolReplica.connect(get_settings(), bounds, application=application)

    async def __del__(self) -> None:
        # Serve awaits it when it stops a replica that it need not kill; one that did not start has no replica.
        if hasattr(self, "_replica"):
            await self._replica.close()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return leave_request_id_to_serve(at_root(self._replica.create_app()))


def build(args: Mapping[str, Any]) -> Application:
    """Return a pool, ready to deploy. Raises pydantic's ``ValidationError`` for misspelt ``args``."""
    chosen = PoolArgs.model_validate(args)
    deployment: Any = Pool
    return deployment.options(
        name="models",
        **scaling_options(chosen, get_settings(), target_ongoing_requests=_TARGET_ONGOING_REQUESTS),
    ).bind(chosen)
