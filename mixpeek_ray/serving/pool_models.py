"""Where the pool's models come from: the namespaces, by way of the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from mixpeek_ray.api.remembered import RememberedAnswers
from mixpeek_ray.core.errors import ModelNotDeployedError, NotFoundError
from mixpeek_ray.core.records import DeploymentStatus, ModelKind, ModelState, Principal
from mixpeek_ray.registry.calls import call
from mixpeek_ray.registry.state import ModelKey
from mixpeek_ray.servables.base import Servable, ServableRef
from mixpeek_ray.servables.build import check_servable
from mixpeek_ray.servables.pool import LoadedServable
from mixpeek_ray.servables.watched import WatchedServable
from mixpeek_ray.serving.pool_programs import ScriptHosts

# How long the registry's word on a model is believed: what is undeployed or replaced stops answering this soon.
_TRUST_S = 2.0


@dataclass(frozen=True, kw_only=True)
class _Asked:
    organization_id: str
    key: ModelKey


class PoolModels:
    """Finds models on the replica's event loop, loads them on threads."""

    def __init__(
        self, registry: Any, *, timeout_s: float, watch: Callable[[ServableRef], AbstractContextManager[None]]
    ) -> None:
        """``watch``: what every step of a model's code is taken inside of; see ``CrashReporter``."""
        self._registry = registry
        self._timeout_s = timeout_s
        self._watch = watch
        # By organisation and model: what one may use, another may not even know of.
        self._answers = RememberedAnswers[_Asked, ServableRef](trust_s=_TRUST_S)
        self._programs = ScriptHosts()

    async def find(self, principal: Principal, namespace_id: str, model_id: str) -> ServableRef:
        """Return a deployed model that ``principal`` may use.

        Raises ``NamespaceNotFoundError``, ``ModelNotFoundError``, ``ModelNotDeployedError``,
        ``ModelQuarantinedError``, ``NotServableError``, ``RegistryUnavailableError``.
        """
        key = ModelKey(namespace_id=namespace_id, model_id=model_id)
        asked = _Asked(organization_id=principal.organization.organization_id, key=key)
        return await self._answers.get(asked, lambda: self._ask(asked, self._answers.last(asked)))

    def load(self, ref: ServableRef) -> LoadedServable:
        """Return the model over views of the node's copy of its weights; blocks while they are on their way.

        Raises what ``load_namespace_model`` and ``build_servable`` raise.
        """
        with self._watch(ref):
            loaded = self._open(ref)
        watched = WatchedServable(loaded.servable, lambda: self._watch(ref))
        return LoadedServable(servable=watched, shared_bytes=loaded.shared_bytes)

    def _open(self, ref: ServableRef) -> LoadedServable:
        from mixpeek_ray.loading.loader import NamespaceModel, find
        from mixpeek_ray.loading.open_model import open_model
        from mixpeek_ray.servables.build import build_servable

        deployed = find(NamespaceModel(key=ModelKey(namespace_id=ref.namespace_id, model_id=ref.model_id)))
        if ref.kind is ModelKind.TORCHSCRIPT:
            servable: Servable = self._programs.open(deployed, ref.namespace_id, name=ref.name)
        else:
            servable = build_servable(open_model(deployed), ref)
        return LoadedServable(servable=servable, shared_bytes=deployed.data.nbytes)

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
        return _usable(state)


def _usable(state: ModelState) -> ServableRef:
    state.check_not_quarantined()
    manifest = state.manifest
    contents = state.contents or manifest.contents
    if state.status is not DeploymentStatus.DEPLOYED or contents is None:
        raise ModelNotDeployedError(
            f"Model {manifest.model_id!a} is {state.status}: deploy it with POST "
            f"/v1/namespaces/{manifest.namespace_id}/models/{manifest.model_id}/deploy, and wait until it is deployed.",
            model_id=manifest.model_id,
        )
    ref = ServableRef(
        namespace_id=manifest.namespace_id,
        model_id=manifest.model_id,
        version=manifest.version,
        kind=contents.kind,
        content=manifest.archive_sha256,
        task_type=manifest.task_type,
    )
    check_servable(ref.kind, ref.name)
    return ref
