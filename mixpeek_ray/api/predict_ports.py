"""What the endpoints of custom models need from whoever computes them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from mixpeek_ray.core.aliases import AliasRef
from mixpeek_ray.core.records import Principal
from mixpeek_ray.servables.base import NamedArrays, Parameters, ServableRef, ServableSpec


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """The model that a request names."""

    namespace_id: str
    # A model's id, or an alias.
    reference: str | AliasRef
    # What makes a caller meet the same version behind an alias again; None: any of them, by weight.
    sticky: str | None = None
    # The version that the request names besides; None: whichever there is.
    version: str | None = None


class DescribedModel(Protocol):
    """A deployed model."""

    @property
    def ref(self) -> ServableRef:
        """Which model it is."""

    @property
    def spec(self) -> ServableSpec:
        """What it takes and returns."""


class ServedModel(DescribedModel, Protocol):
    """A deployed model that computes."""

    async def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return the outputs.

        Raises ``ValidationError`` naming the input that does not fit, ``InputTooLongError``, ``OverloadedError``.
        """


class ModelServing(Protocol):
    """Inference with custom models of every format."""

    def use(self, principal: Principal, named: NamedModel) -> AbstractAsyncContextManager[ServedModel]:
        """Provide a deployed model for one request, answered inside the block whatever becomes of its deployment.

        Raises subclasses of ``MixpeekError`` only: ``NamespaceNotFoundError``, ``ModelNotFoundError`` (also for another
        version than the one that is named), ``AliasNotFoundError``, ``ModelNotDeployedError``, ``NotServableError``,
        ``InvalidWeightsError``, ``OverloadedError``, ``RegistryUnavailableError`` and ``UnavailableError``.
        """

    async def describe(self, principal: Principal, named: NamedModel) -> DescribedModel:
        """Return a deployed model once it is open. Raises as ``use``."""
