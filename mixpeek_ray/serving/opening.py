"""From a deployed model that a replica is to serve to what answers its requests."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from mixpeek_ray.core.errors import ModelNotDeployedError
from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.registry.state import ModelKey
from mixpeek_ray.servables.base import Servable, ServableRef
from mixpeek_ray.servables.pool import LoadedServable
from mixpeek_ray.servables.watched import WatchedServable
from mixpeek_ray.serving.pool_programs import ScriptHosts

# What opening a model imports, most models' all of it.
_LIBRARIES = (
    "transformers", "transformers.models.auto", "transformers.models.bert", "mixpeek_ray.families.build",
    "mixpeek_ray.families.networks.build", "mixpeek_ray.loading.huggingface", "mixpeek_ray.loading.loader",
    "mixpeek_ray.loading.sentence_modules", "mixpeek_ray.servables.build",
)  # fmt: skip


def import_libraries() -> None:
    """Import what models are opened with, so that none of them waits for it; takes seconds.

    From then on the garbage collector passes over these libraries: it is called for each model that is closed, and
    holds the interpreter's lock for 0.2-0.4 s when it looks at all of them.
    """
    for name in _LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


class ServableOpener:
    """Opens models over views of the node's copy of their weights; used from any thread."""

    def __init__(
        self, watch: Callable[[ServableRef], AbstractContextManager[None]], *, device: str | None = None
    ) -> None:
        """``watch``: what every step of a model's code is taken inside of; see ``CrashReporter``.

        ``device``: where torch computes, such as ``cuda``; None: the CPU, over the views themselves.
        """
        self._watch = watch
        self._device = device
        self._programs = ScriptHosts()

    def open(self, ref: ServableRef) -> LoadedServable:
        """Return the model; blocks while its weights are on their way.

        Raises ``ModelNotDeployedError`` when another archive has taken its name, and what ``load_namespace_model`` and
        ``build_servable`` raise.
        """
        with self._watch(ref):
            loaded = self._opened(ref)
        watched = WatchedServable(loaded.servable, lambda: self._watch(ref))
        return LoadedServable(servable=watched, shared_bytes=loaded.shared_bytes)

    def _opened(self, ref: ServableRef) -> LoadedServable:
        from mixpeek_ray.loading.loader import NamespaceModel, find
        from mixpeek_ray.loading.open_model import open_model
        from mixpeek_ray.servables.build import build_servable

        key = ModelKey(namespace_id=ref.namespace_id, model_id=ref.model_id)
        model = find(NamespaceModel(key=key))
        if model.content_id != ref.content:
            raise ModelNotDeployedError(
                f"Model {ref.model_id!a} was replaced by another archive: send the request again.",
                model_id=ref.model_id,
            )
        if ref.kind is ModelKind.TORCHSCRIPT:
            servable: Servable = self._programs.open(model, ref.namespace_id, name=ref.name)
        else:
            # An ONNX session runs where the setting MIXPEEK_ONNX_PROVIDERS says.
            device = None if ref.kind is ModelKind.ONNX else self._device
            servable = build_servable(open_model(model, device), ref)
        return LoadedServable(servable=servable, shared_bytes=model.data.nbytes)
