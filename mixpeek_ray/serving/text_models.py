"""Where a replica's text models come from: the catalog and the namespaces, both by way of the registry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mixpeek_ray.api.access import is_plausible_id
from mixpeek_ray.api.custom_models import MODEL_NOT_FOUND, may_have_custom_models
from mixpeek_ray.api.remembered import RememberedAnswers
from mixpeek_ray.batching.pool import ModelRef
from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.catalog.catalog import Catalog
from mixpeek_ray.core.errors import (
    ModelNotDeployedError,
    ModelNotFoundError,
    NotFoundError,
    ValidationError,
)
from mixpeek_ray.core.records import DeploymentStatus, ModelKind, ModelState, Principal
from mixpeek_ray.registry.calls import call
from mixpeek_ray.registry.state import ModelKey

if TYPE_CHECKING:
    from mixpeek_ray.families.weights import WeightsSource

# How long the registry's word on a custom model is believed: what is undeployed or replaced stops answering this soon.
_TRUST_S = 2.0
_BUILTIN = "builtin"


class ReplicaModels:
    """Implements ``batching.pool.ModelSource``; used from the replica's event loop, loads on threads."""

    def __init__(self, registry: Any, catalog: Catalog, *, timeout_s: float) -> None:
        self._registry = registry
        self._catalog = catalog
        self._timeout_s = timeout_s
        # By organisation and model: what one may use, another may not even know of.
        self._answers = RememberedAnswers[tuple[str, ModelKey], ModelRef](trust_s=_TRUST_S)

    async def find(self, principal: Principal, name: str) -> ModelRef:
        """Return which model ``principal`` means by ``name``: a built-in one, or ``{namespace}/{model_id}``.

        Raises ``ModelNotFoundError``, ``ModelNotDeployedError``, ``ModelQuarantinedError``, ``ValidationError``,
        ``RegistryUnavailableError``.
        """
        namespace_id, slash, model_id = name.partition("/")
        try:
            return builtin_ref(self._catalog.find(name))
        except ModelNotFoundError:
            if not slash:
                raise
        if not (is_plausible_id(namespace_id) and is_plausible_id(model_id) and may_have_custom_models(principal)):
            raise ModelNotFoundError(MODEL_NOT_FOUND, field="model")
        return await self._find_custom(principal, ModelKey(namespace_id=namespace_id, model_id=model_id))

    def load(self, ref: ModelRef) -> tuple[ModelCard, WeightsSource]:
        """Return the model's card and its weights as views of the node's copy; blocks while they are on their way."""
        if ref.content == _BUILTIN:
            from mixpeek_ray.loading.builtin import load_builtin_model

            return self._catalog[ref.name], load_builtin_model(ref.name)
        from mixpeek_ray.families.describe import describe
        from mixpeek_ray.loading.loader import load_namespace_model

        namespace_id, _, model_id = ref.name.partition("/")
        source: WeightsSource = load_namespace_model(model_id, namespace_id=namespace_id)
        return describe(source, ref.name), source

    async def _find_custom(self, principal: Principal, key: ModelKey) -> ModelRef:
        asked = (principal.organization.organization_id, key)
        return await self._answers.get(asked, lambda: self._ask(asked))

    async def _ask(self, asked: tuple[str, ModelKey]) -> ModelRef:
        try:
            state: ModelState = await call(self._registry.get_model.remote(*asked), self._timeout_s)
        except NotFoundError:
            raise ModelNotFoundError(MODEL_NOT_FOUND, field="model") from None
        known = self._answers.last(asked)
        if known is not None and state.is_coming_back(known.content):
            return known
        return _usable(state, asked[1])


def _usable(state: ModelState, key: ModelKey) -> ModelRef:
    state.check_not_quarantined()
    contents = state.contents or state.manifest.contents
    if state.status is not DeploymentStatus.DEPLOYED:
        raise ModelNotDeployedError(
            f"Model {key.model_id!a} is {state.status}: deploy it with POST "
            f"/v1/namespaces/{key.namespace_id}/models/{key.model_id}/deploy, and wait until it is deployed.",
            field="model",
        )
    if contents is None or contents.kind is not ModelKind.HUGGINGFACE:
        raise ValidationError(
            f"Model {key.model_id!a} is no Hugging Face directory: only embedding models and rerankers uploaded as "
            "`huggingface` answer here.",
            field="model",
        )
    return ModelRef(name=f"{key.namespace_id}/{key.model_id}", content=state.manifest.archive_sha256)


def builtin_ref(card: ModelCard) -> ModelRef:
    """Return what a built-in model is known by in a pool."""
    return ModelRef(name=card.name, content=_BUILTIN)


def builtin_names(refs: Iterable[ModelRef]) -> list[str]:
    """Return the names of the built-in models among ``refs``."""
    return [ref.name for ref in refs if ref.content == _BUILTIN]
