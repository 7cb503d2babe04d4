"""Where the pool's models come from: the namespaces, by way of the registry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mixpeek_ray.api.remembered import RememberedAnswers
from mixpeek_ray.core.errors import ModelNotDeployedError, NotFoundError
from mixpeek_ray.core.placement import PoolLimit
from mixpeek_ray.core.records import DeploymentStatus, ModelState, Principal
from mixpeek_ray.registry.calls import call
from mixpeek_ray.registry.state import ModelKey
from mixpeek_ray.servables.base import ServableRef
from mixpeek_ray.serving.placement import servable_ref

# How long the registry's word on a model is believed: what is undeployed or replaced stops answering this soon.
_TRUST_S = 2.0


@dataclass(frozen=True, kw_only=True)
class _Asked:
    organization_id: str
    key: ModelKey


class PoolModels:
    """Finds models; used from the replica's event loop."""

    def __init__(self, registry: Any, *, limit: PoolLimit, timeout_s: float) -> None:
        """``limit``: what the pool serves itself."""
        self._registry = registry
        self._limit = limit
        self._timeout_s = timeout_s
        # By organisation and model: what one may use, another may not even know of.
        self._answers = RememberedAnswers[_Asked, ServableRef](trust_s=_TRUST_S)

    async def find(
        self, principal: Principal, namespace_id: str, model_id: str, *, afresh: bool = False
    ) -> ServableRef:
        """Return a deployed model that ``principal`` may use; ``afresh``: whatever was said a moment ago.

        Raises ``NamespaceNotFoundError``, ``ModelNotFoundError``, ``ModelNotDeployedError``,
        ``ModelQuarantinedError``, ``NotServableError``, ``RegistryUnavailableError``.
        """
        key = ModelKey(namespace_id=namespace_id, model_id=model_id)
        asked = _Asked(organization_id=principal.organization.organization_id, key=key)
        return await self._answers.get(asked, lambda: self._ask(asked, self._answers.last(asked)), afresh=afresh)

    async def gone(self, refs: Iterable[ServableRef]) -> list[ServableRef]:
        """Return which of ``refs`` are deployed no more. Raises ``RegistryUnavailableError``."""
        wanted = {ref.name: ref for ref in refs}
        owners = {answer.name: asked for asked, answer in self._answers.items() if answer.name in wanted}
        gone = []
        for name, ref in wanted.items():
            try:
                # Whoever had it opened has been remembered, unless ten thousand others came since.
                found = await self._ask(owners[name], ref) if name in owners else None
            except (NotFoundError, ModelNotDeployedError):
                found = None
            if found != ref:
                gone.append(ref)
        return gone

    async def _ask(self, asked: _Asked, known: ServableRef | None) -> ServableRef:
        state: ModelState = await call(
            self._registry.get_model.remote(asked.organization_id, asked.key), self._timeout_s
        )
        if known is not None and state.is_coming_back(known.content):
            return known
        return self._usable(state)

    def _usable(self, state: ModelState) -> ServableRef:
        state.check_not_quarantined()
        manifest = state.manifest
        contents = state.contents or manifest.contents
        if state.status is not DeploymentStatus.DEPLOYED or contents is None:
            path = f"/v1/namespaces/{manifest.namespace_id}/models/{manifest.model_id}"
            raise ModelNotDeployedError(
                f"Model {manifest.model_id!a} is {state.status}: deploy it with POST {path}/deploy, and wait until it "
                "is deployed.",
                model_id=manifest.model_id,
            )
        return servable_ref(manifest, contents, self._limit)
