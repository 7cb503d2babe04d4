"""The applications that answer for deployed custom models: their endpoints, and the Open Inference Protocol.

Both run this one deployment, under the two route prefixes of the two protocols. Weights are views of the node's copy,
so any replica can compute any model that a path names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from starlette.types import ASGIApp

from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.serving.ingress import at_root, harden_replica, leave_request_id_to_serve

# A replica computes a model's requests together; more of them than this ask for another replica.
_TARGET_ONGOING_REQUESTS = 32
# Longer than a burst's first second, shorter than what a caller waits for.
_UPSCALE_DELAY_S = 5.0


class PoolArgs(BaseModel):
    """The `args` of a pool application in `serve_config.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # What a replica asks Ray for. It computes with as many threads, at least one.
    num_cpus: float = Field(default=0.25, gt=0)
    # Default: half of the head node's cores.
    max_replicas: int | None = Field(default=None, ge=1)
    # Models that a replica keeps open, and the memory of its own that they may take: what no view is.
    max_models: int = Field(default=500, ge=1)
    max_private_gb: float = Field(default=2.0, gt=0)


@serve.deployment(
    # The application sheds load itself, by the time that requests would wait.
    max_ongoing_requests=10_000,
    # A dead replica is noticed within three periods.
    health_check_period_s=1,
    health_check_timeout_s=5,
    # The application logs every request itself, with its ids.
    logging_config={"enable_access_log": False},
)
@serve.ingress()
class Pool:
    """One replica: the HTTP application over the models that were asked for last."""

    async def __init__(self, args: PoolArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        # What computes is imported here: building the application happens in processes that never compute.
        from mixpeek_ray.serving.pool_replica import PoolBounds, PoolReplica

        harden_replica()
        bounds = PoolBounds(max_models=args.max_models, max_private_bytes=int(args.max_private_gb * GIB))
        self._replica = await PoolReplica.connect(get_settings(), bounds)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return leave_request_id_to_serve(at_root(self._replica.create_app()))


def build(args: Mapping[str, Any]) -> Application:
    """Return a pool, ready to deploy. Raises pydantic's ``ValidationError`` for misspelt ``args``."""
    chosen = PoolArgs.model_validate(args)
    deployment: Any = Pool
    return deployment.options(
        name="models",
        autoscaling_config=AutoscalingConfig(
            min_replicas=0,
            initial_replicas=0,
            max_replicas=chosen.max_replicas or max(1, (os.cpu_count() or 1) // 2),
            target_ongoing_requests=_TARGET_ONGOING_REQUESTS,
            upscale_delay_s=_UPSCALE_DELAY_S,
            downscale_delay_s=get_settings().model_idle_s,
        ),
        ray_actor_options={"num_cpus": chosen.num_cpus},
    ).bind(chosen)
