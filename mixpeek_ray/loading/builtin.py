"""``load_builtin_model``: a model of the catalog, its weights views of its node's copy, in any process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixpeek_ray.loading.loader import find
from mixpeek_ray.loading.open_model import open_model

if TYPE_CHECKING:
    from mixpeek_ray.loading.huggingface import HuggingFaceModel


@dataclass(frozen=True, kw_only=True)
class _BuiltinModel:
    name: str

    @property
    def still_coming(self) -> str:
        return f"The weights of {self.name!a} are still being fetched: try again in a minute."

    def ask(self, registry: Any, wait_s: float) -> Any:
        return registry.resolve_builtin.remote(self.name, wait_s)


def load_builtin_model(name: str) -> HuggingFaceModel:
    """Return the built-in model with this name or alias: a ``WeightsSource`` for ``families.build.build_family``.

    Its tensors are in the dtypes that its network computes in, private views of the one copy that the node's workers
    share; the small files beside them are the node's too. Blocks while the registry brings the weights into the
    cluster, at most ``MIXPEEK_LOAD_TIMEOUT_S``, through restarts of the registry. Whoever goes on using the weights
    says so with the registry's ``keep_builtin``; others get a copy of their own after ``MIXPEEK_MODEL_IDLE_S``.

    Raises ``ModelNotFoundError`` (no such name), ``WeightsUnavailableError`` (this site has not been given them, or
    they cannot be used), ``InsufficientCapacityError`` (no node could hold it), ``RegistryUnavailableError`` (no
    platform on this cluster, or it does not come back in time).
    """
    model: HuggingFaceModel = open_model(find(_BuiltinModel(name=name)))
    return model
