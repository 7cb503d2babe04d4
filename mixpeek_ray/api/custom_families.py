"""What computes a custom model, as the gateway needs to know it to choose who is asked."""

from __future__ import annotations

from mixpeek_ray.api.custom_models import find_custom_model
from mixpeek_ray.api.inference_target import CustomTarget
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.remembered import RememberedAnswers
from mixpeek_ray.catalog.cards import TASKS, Family
from mixpeek_ray.catalog.custom import custom_family
from mixpeek_ray.core.errors import (
    ModelNotDeployedError,
    ModelNotFoundError,
    ValidationError,
)
from mixpeek_ray.core.records import DeploymentStatus, Principal

# How long an answer of the registry is believed: as long as the replicas believe theirs, which have the last word.
_TRUST_S = 2.0


class CustomFamilies:
    """Asks the registry, and remembers what it said: without it, models that answered a moment ago still do."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        # By organisation and model: what one may use, another may not even know of.
        self._answers = RememberedAnswers[tuple[str, CustomTarget], Family](trust_s=_TRUST_S)

    async def find(self, principal: Principal, target: CustomTarget) -> Family:
        """Return what computes ``target``.

        Raises ``ModelNotFoundError``, ``ModelNotDeployedError``, ``RegistryUnavailableError``, and ``ValidationError``
        for a model of a kind that takes no texts.
        """
        asked = (principal.organization.organization_id, target)
        family = await self._answers.get(asked, lambda: _asked(self._platform, principal, target))
        if target.output is not None and target.output != TASKS[family]:
            raise ModelNotFoundError(f"Model {target.model} has no output {target.output!a}.", field="feature_uri")
        return family


async def _asked(platform: Platform, principal: Principal, target: CustomTarget) -> Family:
    state = await find_custom_model(platform, principal, namespace_id=target.namespace_id, model_id=target.model_id)
    state.check_not_quarantined()
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
