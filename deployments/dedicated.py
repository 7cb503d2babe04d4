"""The application of one deployed model that asks for more than the pool has: a GPU, more CPUs or more memory.

It has no route: requests come through the pool, which knows who may use a model, and go on by handle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.serving.scaling import REPLICA_OPTIONS, dedicated_options

if TYPE_CHECKING:
    from mixpeek_ray.servables.base import NamedArrays, OwnApplication, Parameters, ServableRef, ServableSpec


@serve.deployment(**REPLICA_OPTIONS)
class Dedicated:
    """One replica: the model, with the CPUs, GPUs and memory that it asked for."""

    async def __init__(self, ref: ServableRef, own: OwnApplication) -> None:  # type: ignore[misc]  # Serve awaits it
        # What computes is imported here: building the application happens in a process that never computes.
        from mixpeek_ray.serving.dedicated_replica import DedicatedReplica

        self._replica = await DedicatedReplica.open(ref, own, get_settings())

    async def __del__(self) -> None:
        # Serve awaits it when it stops a replica that it need not kill; one that did not start has no replica.
        if hasattr(self, "_replica"):
            await self._replica.close()

    async def describe(self) -> ServableSpec:
        """Return what the model takes and returns; see ``DedicatedReplica`` for this and what follows."""
        return await self._replica.describe()

    async def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return the model's outputs for checked inputs."""
        return await self._replica.compute(inputs, parameters)


def build(ref: ServableRef, own: OwnApplication) -> Application:
    """Return the application ``own`` of the model ``ref``, ready to deploy."""
    deployment: Any = Dedicated
    return deployment.options(name="model", **dedicated_options(own.resources, get_settings())).bind(ref, own)
