"""``load_namespace_model``: a deployed model, its weights private views, in any process of the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import ReferenceType, ref

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, OwnerDiedError, RayActorError

from mixpeek_ray.core.aliases import AliasRef, WeightedTarget, choose, parse_reference, random_point
from mixpeek_ray.core.errors import (
    NamespaceNotFoundError,
    RegistryUnavailableError,
)
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.loading.open_model import DeployedModel, open_model
from mixpeek_ray.registry.calls import call_blocking
from mixpeek_ray.registry.handles import LoadTicket, find_registry
from mixpeek_ray.registry.state import ModelKey

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from mixpeek_ray.formats.base import Companion
    from mixpeek_ray.formats.packed import WeightIndex

_log = get_logger(__name__)

ResultT = TypeVar("ResultT")

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
    kind: ModelKind
    index: WeightIndex
    data: ReferenceType[NDArray[np.uint8]]
    companions: tuple[Companion, ...]
    confirmed_at: float

    def model(self) -> DeployedModel | None:
        """Return the model if something in this process still uses its weights."""
        data = self.data()
        if data is None:
            return None
        return DeployedModel(
            content_id=self.content_id, kind=self.kind, index=self.index, data=data, companions=self.companions
        )


class Subject(Protocol):
    """A model that a process may load: hashable, and equal to whatever names the same one."""

    @property
    def name(self) -> str:
        """What messages and logs call it."""

    @property
    def still_coming(self) -> str:
        """What to say of weights that do not arrive in time."""

    def ask(self, registry: Any, wait_s: float) -> Any:
        """Return the reference of the registry's answer: a ``LoadTicket``, or None after ``wait_s``."""


@dataclass(frozen=True, kw_only=True)
class NamespaceModel:
    """A custom model."""

    key: ModelKey

    @property
    def name(self) -> str:
        """Its id."""
        return self.key.model_id

    @property
    def still_coming(self) -> str:
        """What to do about a deploy under way."""
        return f"Model {self.name!a} is still being deployed: try again when its deployment_status is `deployed`."

    def ask(self, registry: Any, wait_s: float) -> Any:
        """Ask for the ticket of a deployed model."""
        return registry.resolve.remote(self.key, wait_s)


_residents: dict[Subject, _Resident] = {}

# The registry's handle by the job that looked it up; forgotten when a call fails.
_handle: dict[str, Any] = {}

# Read when this module is imported: it takes milliseconds that a load would otherwise pay.
_settings = get_settings()


def load_namespace_model(
    model_id: str, *, namespace_id: str | None = None, device: str | torch.device | None = None
) -> Any:
    """Return a deployed model, its weights views of the one copy that the node's workers share.

    Any process of the cluster may call it: a Ray job, a task or actor, a Ray Data worker, a Serve replica. What comes
    back depends on what was uploaded:

    - a state dict, in ``pytorch`` or ``safetensors``: an ``OrderedDict`` of tensors with the archive's names, shapes,
      strides and dtypes. ``module.load_state_dict(weights)`` adopts the views without a copy, as ``assign=True`` does,
      so the module takes the checkpoint's dtypes.
    - TorchScript: a ``torch.jit.ScriptModule``.
    - ``huggingface``: a ``HuggingFaceModel`` with ``state_dict``, ``config``, ``path`` and ``load()``.
    - ``onnx``: an ``onnxruntime.InferenceSession``.

    Reading weights costs no memory of the process; writing to a tensor touches only this process's view. Every call
    returns views of its own. With ``device`` (such as ``"cuda"``) tensors are copied there instead; ONNX models run
    where the setting ``MIXPEEK_ONNX_PROVIDERS`` says.

    ``model_id`` may be an alias, ``my-model@production``: each call then means one of its versions, at random by their
    weights; ``my-model@latest`` is the highest version that is deployed.

    ``namespace_id`` defaults to the setting ``MIXPEEK_NAMESPACE``. Blocks while the weights are on their way, at most
    ``MIXPEEK_LOAD_TIMEOUT_S``, through restarts of the registry and the loss of nodes.

    Raises ``ModelNotFoundError`` (nothing by that id in the namespace), ``AliasNotFoundError`` (no such alias),
    ``ModelNotDeployedError`` (uploaded only, or its deploy failed), ``NamespaceNotFoundError`` (none given or
    configured, or none by that id), ``RegistryUnavailableError`` (no platform on this cluster, or it does not come
    back in time), ``ValidationError`` (a device for a model that takes none).
    """
    return open_model(find(NamespaceModel(key=_version(_key(model_id, namespace_id)))), device)


def _key(model_id: str, namespace_id: str | None) -> ModelKey:
    namespace = namespace_id or _settings.namespace
    if namespace is None:
        raise NamespaceNotFoundError(
            "No namespace is given: pass namespace_id=…, or set MIXPEEK_NAMESPACE in the job's runtime environment "
            '(`--runtime-env-json \'{"env_vars": {"MIXPEEK_NAMESPACE": "ns_…"}}\'`).'
        )
    return ModelKey(namespace_id=namespace, model_id=model_id)


def _version(key: ModelKey) -> ModelKey:
    """Return the version that ``key`` means: itself, or one of those that its alias points to."""
    alias = parse_reference(key.namespace_id, key.model_id)
    if alias is None:
        return key
    targets = _patiently(key.model_id, lambda _: _targets(alias))
    return ModelKey(namespace_id=key.namespace_id, model_id=choose(targets, random_point()))


def _targets(alias: AliasRef) -> Sequence[WeightedTarget]:
    answer = _registry().resolve_alias.remote(alias)
    targets: Sequence[WeightedTarget] = call_blocking(answer, _settings.registry_timeout_s)
    return targets


def find(subject: Subject) -> DeployedModel:
    """Return the model as the object store holds it; blocks and raises as ``load_namespace_model`` says."""
    resident = _residents.get(subject)
    if resident is not None and time.monotonic() - resident.confirmed_at < _TRUST_S:
        model = resident.model()
        if model is not None:
            return model
    return _patiently(subject.name, lambda deadline: _fetch(subject, deadline))


def _patiently(name: str, attempt: Callable[[float], ResultT]) -> ResultT:
    """Return what ``attempt`` returns, given a deadline, trying again while the registry or a node comes back."""
    deadline = time.monotonic() + _settings.load_timeout_s
    while True:
        try:
            return attempt(deadline)
        except _NoRegistryError:
            raise
        except (RayActorError, OwnerDiedError, ObjectLostError, GetTimeoutError, RegistryUnavailableError) as error:
            _handle.clear()
            if time.monotonic() >= deadline:
                raise RegistryUnavailableError(
                    f"Model {name!a} could not be loaded in time: the registry, or the node that holds the "
                    "weights, does not come back. `mixpeek-ray status` shows what runs."
                ) from error
            _log.info("load is tried again", extra={"model_id": name})
            time.sleep(_RETRY_PAUSE_S)


def _fetch(subject: Subject, deadline: float) -> DeployedModel:
    ticket = _ticket(subject, deadline)
    model = _resident_model(subject, ticket) or _get(ticket, deadline)
    _residents[subject] = _Resident(
        content_id=model.content_id,
        kind=model.kind,
        index=model.index,
        data=ref(model.data),
        companions=model.companions,
        confirmed_at=time.monotonic(),
    )
    return model


def _get(ticket: LoadTicket, deadline: float) -> DeployedModel:
    weights, companions = ticket.refs
    index, data = ray.get(weights, timeout=_left(deadline))
    # A state dict has none; asking for them would double the time of its load.
    beside = () if ticket.kind is ModelKind.STATE_DICT else ray.get(companions, timeout=_left(deadline))
    return DeployedModel(content_id=ticket.content_id, kind=ticket.kind, index=index, data=data, companions=beside)


def _resident_model(subject: Subject, ticket: LoadTicket) -> DeployedModel | None:
    resident = _residents.get(subject)
    return resident.model() if resident is not None and resident.content_id == ticket.content_id else None


def _ticket(subject: Subject, deadline: float) -> LoadTicket:
    """Ask the registry until the weights are there or the deadline has passed."""
    while True:
        registry = _registry()
        timeout_s = _RESOLVE_WAIT_S + _settings.registry_timeout_s
        ticket: LoadTicket | None = call_blocking(subject.ask(registry, _RESOLVE_WAIT_S), timeout_s)
        if ticket is not None:
            return ticket
        if time.monotonic() >= deadline:
            raise RegistryUnavailableError(subject.still_coming)


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
