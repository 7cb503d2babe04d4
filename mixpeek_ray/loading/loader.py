"""``load_namespace_model``: a deployed model's weights as private views, in any process of the cluster."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, OwnerDiedError, RayActorError

from mixpeek_ray.core.errors import (
    NamespaceNotFoundError,
    RegistryUnavailableError,
)
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.formats.packed import view
from mixpeek_ray.loading.private_view import private_view
from mixpeek_ray.registry.calls import call_blocking
from mixpeek_ray.registry.handles import LoadTicket, find_registry
from mixpeek_ray.registry.state import ModelKey

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from mixpeek_ray.formats.packed import WeightIndex

_log = get_logger(__name__)

# How long an answer of the registry is believed: within it, a second load in a process asks nobody.
_TRUST_S = 2.0
# One wait at the registry for weights on their way; short, so that its restart is noticed.
_RESOLVE_WAIT_S = 2.0
# A registry that was killed is back in 0.6 s (measured); asking at this pace finds it soon and costs nothing.
_RETRY_PAUSE_S = 0.1


class _NoRegistryError(RegistryUnavailableError):
    """There is no registry to wait for."""


@dataclass(frozen=True, kw_only=True)
class _Resident:
    """Weights that this process viewed before; weak, so that a forgotten model is not kept in the store."""

    content_id: str
    index: WeightIndex
    data: ReferenceType[NDArray[np.uint8]]
    confirmed_at: float


_residents: dict[ModelKey, _Resident] = {}

# The registry's handle by the job that looked it up; forgotten when a call fails.
_handle: dict[str, Any] = {}

# Read when this module is imported: it takes milliseconds that a load would otherwise pay.
_settings = get_settings()


def load_namespace_model(model_id: str, *, namespace_id: str | None = None) -> OrderedDict[str, torch.Tensor]:
    """Return a deployed model's state dict, its tensors views of the one copy that the node's workers share.

    Any process of the cluster may call it: a Ray job, a task or actor, a Ray Data worker, a Serve replica. Tensors have
    the archive's names, shapes, strides and dtypes, on the CPU. Reading costs no memory of the process; writing to a
    tensor touches only this process's view. ``module.load_state_dict(weights)`` adopts the views without a copy, as
    ``assign=True`` does, so the module takes the checkpoint's dtypes. Every call returns views of its own.

    ``namespace_id`` defaults to the setting ``MIXPEEK_NAMESPACE``. Blocks while the weights are on their way, at most
    ``MIXPEEK_LOAD_TIMEOUT_S``, through restarts of the registry and the loss of nodes.

    Raises ``ModelNotFoundError`` (nothing by that id in the namespace), ``ModelNotDeployedError`` (uploaded only, or
    its deploy failed), ``NamespaceNotFoundError`` (none given or configured, or none by that id),
    ``RegistryUnavailableError`` (no platform on this cluster, or it does not come back in time).
    """
    index, data = _weights(_key(model_id, namespace_id))
    return view(index, private_view(data))


def _key(model_id: str, namespace_id: str | None) -> ModelKey:
    namespace = namespace_id or _settings.namespace
    if namespace is None:
        raise NamespaceNotFoundError(
            "No namespace is given: pass namespace_id=…, or set MIXPEEK_NAMESPACE in the job's runtime environment "
            '(`--runtime-env-json \'{"env_vars": {"MIXPEEK_NAMESPACE": "ns_…"}}\'`).'
        )
    return ModelKey(namespace_id=namespace, model_id=model_id)


def _weights(key: ModelKey) -> tuple[WeightIndex, NDArray[np.uint8]]:
    resident = _residents.get(key)
    if resident is not None and time.monotonic() - resident.confirmed_at < _TRUST_S:
        data = resident.data()
        if data is not None:
            return resident.index, data
    deadline = time.monotonic() + _settings.load_timeout_s
    while True:
        try:
            return _fetch(key, deadline)
        except _NoRegistryError:
            raise
        except (RayActorError, OwnerDiedError, ObjectLostError, GetTimeoutError, RegistryUnavailableError) as error:
            _handle.clear()
            if time.monotonic() >= deadline:
                raise RegistryUnavailableError(
                    f"Model {key.model_id!a} could not be loaded in time: the registry, or the node that holds the "
                    "weights, does not come back. `mixpeek-ray status` shows what runs."
                ) from error
            _log.info("load is tried again", extra={"namespace_id": key.namespace_id, "model_id": key.model_id})
            time.sleep(_RETRY_PAUSE_S)


def _fetch(key: ModelKey, deadline: float) -> tuple[WeightIndex, NDArray[np.uint8]]:
    ticket = _ticket(key, deadline)
    index, data = _residents_data(key, ticket) or ray.get(ticket.weights[0], timeout=_left(deadline))
    _residents[key] = _Resident(
        content_id=ticket.content_id, index=index, data=ref(data), confirmed_at=time.monotonic()
    )
    return index, data


def _residents_data(key: ModelKey, ticket: LoadTicket) -> tuple[WeightIndex, NDArray[np.uint8]] | None:
    resident = _residents.get(key)
    if resident is None or resident.content_id != ticket.content_id:
        return None
    data = resident.data()
    return None if data is None else (resident.index, data)


def _ticket(key: ModelKey, deadline: float) -> LoadTicket:
    """Ask the registry until the weights are there or the deadline has passed."""
    while True:
        registry = _registry()
        timeout_s = _RESOLVE_WAIT_S + _settings.registry_timeout_s
        ticket: LoadTicket | None = call_blocking(registry.resolve.remote(key, _RESOLVE_WAIT_S), timeout_s)
        if ticket is not None:
            return ticket
        if time.monotonic() >= deadline:
            raise RegistryUnavailableError(
                f"Model {key.model_id!a} is still being deployed: try again when its deployment_status is `deployed`."
            )


def _registry() -> Any:
    """Return the registry's handle, looked up once for each connection to a cluster."""
    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    cluster = ray.get_runtime_context().get_job_id()
    if _handle.get(cluster) is None:
        try:
            _handle.clear()
            _handle[cluster] = find_registry()
        except ValueError:
            raise _NoRegistryError(
                "No model registry runs on this Ray cluster: start the platform with `mixpeek-ray up`, and run this "
                "code on the same cluster."
            ) from None
    return _handle[cluster]


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), _RETRY_PAUSE_S)
