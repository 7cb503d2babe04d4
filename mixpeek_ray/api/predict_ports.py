"""What the endpoints of custom models need from whoever computes them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from mixpeek_ray.core.records import Principal
from mixpeek_ray.servables.base import NamedArrays, Parameters, ServableRef, ServableSpec


class ServedModel(Protocol):
    """A deployed model that computes."""

    @property
    def ref(self) -> ServableRef:
        """Which model it is."""

    @property
    def spec(self) -> ServableSpec:
        """What it takes and returns."""

    async def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return the outputs.

        Raises ``ValidationError`` naming the input that does not fit, ``InputTooLongError``, ``OverloadedError``.
        """


class ModelServing(Protocol):
    """Inference with custom models of every format."""

    def use(self, principal: Principal, namespace_id: str, model_id: str) -> AbstractAsyncContextManager[ServedModel]:
        """Provide a deployed model, which answers inside the block whatever becomes of its deployment.

        Raises subclasses of ``MixpeekError`` only: ``NamespaceNotFoundError``, ``ModelNotFoundError``,
        ``ModelNotDeployedError``, ``NotServableError``, ``InvalidWeightsError``, ``OverloadedError``,
        ``RegistryUnavailableError`` and ``UnavailableError``.
        """
