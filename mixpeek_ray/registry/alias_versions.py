"""Which versions an alias may name, and which of them may be sent requests now. No Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from mixpeek_ray.core import limits
from mixpeek_ray.core.alias_options import Shadow
from mixpeek_ray.core.aliases import AliasRef, TargetSet, WeightedTarget
from mixpeek_ray.core.errors import (
    ModelNotDeployedError,
    ModelNotFoundError,
    NoPreviousTargetsError,
    ValidationError,
)
from mixpeek_ray.core.records import DeploymentStatus, ModelState
from mixpeek_ray.core.semver import newest_first
from mixpeek_ray.registry.state import ModelCatalog, ModelKey


class AliasVersions:
    """The versions of the models that aliases are under, as the catalog has them at the moment."""

    def __init__(self, catalog: ModelCatalog, *, is_coming_back: Callable[[ModelKey], bool]) -> None:
        """``is_coming_back`` tells of a pending model whether it was deployed before a restart."""
        self._catalog = catalog
        self._is_coming_back = is_coming_back

    def latest(self, ref: AliasRef) -> str:
        """Return the id of the highest version that may be sent requests.

        Raises ``ModelNotFoundError``, ``ModelNotDeployedError``.
        """
        versions = self._of(ref)
        if not versions:
            raise ModelNotFoundError(f"There is no model called {ref.name[:80]!a} in this namespace: upload one first.")
        serving = [state.manifest for state in versions.values() if self._serves(state)]
        if not serving:
            raise ModelNotDeployedError(f"No version of {ref.name!a} is deployed: deploy one first.")
        return newest_first(serving)[0].model_id

    def serves(self, ref: AliasRef, model_id: str) -> bool:
        """Tell whether a version may be sent requests."""
        state = self._of(ref).get(model_id)
        return state is not None and self._serves(state)

    def can_answer(self, ref: AliasRef, wanted: TargetSet) -> bool:
        """Tell whether all that ``wanted`` points to is there, and deployed where it answers."""
        versions = self._of(ref)
        return all(target.model_id in versions for target in wanted.targets) and all(
            self._serves(versions[target.model_id]) for target in wanted.answering()
        )

    def ordered(self, ref: AliasRef, weights: Mapping[str, int]) -> tuple[WeightedTarget, ...]:
        """Return the targets, the highest version first. Raises ``ValidationError`` for what no alias may point to."""
        versions = self._of(ref)
        for model_id, weight in weights.items():
            if model_id not in versions:
                raise ValidationError(
                    f"There is no version {model_id[:128]!a} of {ref.name[:80]!a}: an alias points to versions of the "
                    "model that it is under.",
                    field="targets",
                )
            if not 0 <= weight <= limits.MAX_ALIAS_WEIGHT:
                raise ValidationError(
                    f"A weight is between 0 and {limits.MAX_ALIAS_WEIGHT}, not {weight}.", field="targets"
                )
        if not any(weights.values()):
            raise ValidationError("No target has a weight above 0: no request would be answered.", field="targets")
        ordered = newest_first(versions[model_id].manifest for model_id in weights)
        return tuple(
            WeightedTarget(model_id=manifest.model_id, weight=weights[manifest.model_id]) for manifest in ordered
        )

    def known_shadow(self, ref: AliasRef, shadow: Shadow | None) -> Shadow | None:
        """Return ``shadow``. Raises ``ValidationError`` for a version that there is not."""
        if shadow is not None and shadow.model_id not in self._of(ref):
            raise ValidationError(
                f"There is no version {shadow.model_id[:128]!a} of {ref.name[:80]!a}: a version of the same model "
                "computes in the shadow.",
                field="shadow",
            )
        return shadow

    def without_lost_shadow(self, ref: AliasRef, wanted: TargetSet) -> TargetSet:
        """Return what is wanted without a shadow that was undeployed since: nobody's answer depends on it."""
        if wanted.shadow is None or self.serves(ref, wanted.shadow.model_id):
            return wanted
        return replace(wanted, shadow=None)

    def check_there(self, ref: AliasRef, targets: Iterable[WeightedTarget]) -> None:
        """Return if no earlier target was deleted since. Raises ``NoPreviousTargetsError``."""
        versions = self._of(ref)
        for target in targets:
            if target.model_id not in versions:
                raise NoPreviousTargetsError(
                    f"Version {target.model_id!a}, which {ref.reference!a} pointed to before, was deleted since: PUT "
                    "the targets it should have."
                )

    def check_deployed(self, ref: AliasRef, wanted: TargetSet) -> None:
        """Return if every version that would be sent requests may be. Raises ``ModelNotDeployedError``."""
        versions = self._of(ref)
        asked = [target.model_id for target in wanted.answering()]
        if wanted.shadow is not None:
            asked.append(wanted.shadow.model_id)
        for model_id in asked:
            if not self._serves(versions[model_id]):
                raise ModelNotDeployedError(
                    f"Model {model_id!a} is {versions[model_id].status}, and requests would be sent to it: POST "
                    f"/v1/namespaces/{ref.namespace_id}/models/{model_id}/deploy first.",
                    model_id=model_id,
                )

    def _of(self, ref: AliasRef) -> dict[str, ModelState]:
        states = self._catalog.models(ref.namespace_id)
        return {state.manifest.model_id: state for state in states if state.manifest.name == ref.name}

    def _serves(self, state: ModelState) -> bool:
        if state.status is DeploymentStatus.DEPLOYED:
            return True
        # After a restart a version that was deployed is as good as deployed: its loaders wait for it.
        manifest = state.manifest
        key = ModelKey(namespace_id=manifest.namespace_id, model_id=manifest.model_id)
        return state.status is DeploymentStatus.PENDING and self._is_coming_back(key)
