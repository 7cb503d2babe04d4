"""How applications that compute run on Serve: what their replicas have in common, and when there are more of them."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray.serve.config import AutoscalingConfig

from mixpeek_ray.core.records import ResourceRequest
from mixpeek_ray.core.settings import Settings

# Longer than a burst's first second, shorter than what a caller waits for.
_UPSCALE_DELAY_S = 5.0

# Of a model with an application of its own: it computes this many together, and each that waits for a replica holds
# its whole request in memory.
_DEDICATED_ONGOING_REQUESTS, _DEDICATED_QUEUED_REQUESTS = 32, 256
# A replica that is taken away ends with its last request: as long as HAProxy lets anybody wait for an answer, and
# looked for at a pace that gives its CPUs and GPUs back at once.
_DEDICATED_DRAIN_S, _DEDICATED_DRAIN_LOOK_S = 120.0, 0.2

# What `serve.deployment` takes for a replica that computes.
REPLICA_OPTIONS: dict[str, Any] = {
    # The application sheds load itself, by the time that requests would wait.
    "max_ongoing_requests": 10_000,
    # A dead replica is noticed within three periods.
    "health_check_period_s": 1,
    "health_check_timeout_s": 5,
    # The application logs every request itself, with its ids.
    "logging_config": {"enable_access_log": False},
}


class ReplicaArgs(BaseModel):
    """What the `args` of every application that computes may say in `serve_config.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # What a replica asks Ray for. It computes with as many threads, at least one. Six applications awake leave most of
    # two cores to deploys and jobs: they are seldom busy at once.
    num_cpus: float = Field(default=0.1, gt=0)
    # Default: half of the head node's cores.
    max_replicas: int | None = Field(default=None, ge=1)


def scaling_options(
    args: ReplicaArgs, settings: Settings, *, target_ongoing_requests: int, min_replicas: int = 0
) -> dict[str, Any]:
    """Return the options of a deployment that has ``min_replicas`` while nobody uses it, and more when many do."""
    most = args.max_replicas or max(1, (os.cpu_count() or 1) // 2)
    return {
        "autoscaling_config": _autoscaling(settings, target_ongoing_requests, first=min_replicas, most=most),
        "ray_actor_options": {"num_cpus": args.num_cpus},
    }


def dedicated_options(resources: ResourceRequest, settings: Settings) -> dict[str, Any]:
    """Return the options of a deployment whose replicas reserve ``resources``: none while nobody uses it."""
    return {
        "autoscaling_config": _autoscaling(
            settings, _DEDICATED_ONGOING_REQUESTS, first=0, most=settings.dedicated_max_replicas
        ),
        "ray_actor_options": {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "memory": resources.memory_bytes,
        },
        "max_queued_requests": _DEDICATED_QUEUED_REQUESTS,
        "graceful_shutdown_timeout_s": _DEDICATED_DRAIN_S,
        "graceful_shutdown_wait_loop_s": _DEDICATED_DRAIN_LOOK_S,
    }


def _autoscaling(settings: Settings, target_ongoing_requests: int, *, first: int, most: int) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=first,
        initial_replicas=first,
        max_replicas=most,
        target_ongoing_requests=target_ongoing_requests,
        upscale_delay_s=_UPSCALE_DELAY_S,
        downscale_delay_s=settings.model_idle_s,
    )
