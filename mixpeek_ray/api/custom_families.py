"""What computes a custom model, as the gateway needs to know it to choose who is asked."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mixpeek_ray.api.custom_models import find_custom_model
from mixpeek_ray.api.inference_target import CustomTarget
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.catalog.cards import TASKS, Family
from mixpeek_ray.catalog.custom import custom_family
from mixpeek_ray.core.errors import (
    ModelNotDeployedError,
    ModelNotFoundError,
    RegistryUnavailableError,
    ValidationError,
)
from mixpeek_ray.core.records import DeploymentStatus, Principal

# How long an answer of the registry is believed: as long as the replicas believe theirs, which have the last word.
_TRUST_S = 2.0
# The oldest go first.
_MAX_REMEMBERED = 10_000


@dataclass(frozen=True, kw_only=True)
class _Answer:
    family: Family
    given_at: float


class CustomFamilies:
    """Asks the registry, and remembers what it said: without it, models that answered a moment ago still do."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        # By organisation and model: what one may use, another may not even know of.
        self._answers: dict[tuple[str, CustomTarget], _Answer] = {}

    async def find(self, principal: Principal, target: CustomTarget) -> Family:
        """Return what computes ``target``.

        Raises ``ModelNotFoundError``, ``ModelNotDeployedError``, ``RegistryUnavailableError``, and ``ValidationError``
        for a model of a kind that takes no texts.
        """
        family = await self._family(principal, target)
        if target.output is not None and target.output != TASKS[family]:
            raise ModelNotFoundError(f"Model {target.model} has no output {target.output!a}.", field="feature_uri")
        return family

    async def _family(self, principal: Principal, target: CustomTarget) -> Family:
        asked = (principal.organization.organization_id, target)
        known = self._answers.get(asked)
        if known is not None and time.monotonic() - known.given_at < _TRUST_S:
            return known.family
        try:
            family = await _asked(self._platform, principal, target)
        except RegistryUnavailableError:
            if known is None:
                raise
            return known.family
        self._remember(asked, family)
        return family

    def _remember(self, asked: tuple[str, CustomTarget], family: Family) -> None:
        self._answers.pop(asked, None)
        self._answers[asked] = _Answer(family=family, given_at=time.monotonic())
        if len(self._answers) > _MAX_REMEMBERED:
            del self._answers[next(iter(self._answers))]


async def _asked(platform: Platform, principal: Principal, target: CustomTarget) -> Family:
    state = await find_custom_model(platform, principal, namespace_id=target.namespace_id, model_id=target.model_id)
    if state.status is not DeploymentStatus.DEPLOYED:
        raise ModelNotDeployedError(f"Model {target.model} is {state.status}: deploy it first.")
    family = custom_family(state)
    if family is None:
        raise ValidationError(
            f"Model {target.model} answers no texts here: it must be an embedding or reranking model in Hugging Face "
            "format.",
            field="model",
        )
    return family
