"""The frozen records that travel between layers, processes and the store."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from datetime import datetime

from mixpeek_ray.core import limits
from mixpeek_ray.core.crashes import ModelCrash
from mixpeek_ray.core.errors import InvalidResourcesError, ModelQuarantinedError, UnsupportedFormatError


class ModelFormat(enum.StrEnum):
    """How an archive's weights are encoded."""

    PYTORCH = "pytorch"
    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    HUGGINGFACE = "huggingface"

    @classmethod
    def parse(cls, value: str) -> ModelFormat:
        """Return the format named ``value``; raise ``UnsupportedFormatError`` for any other."""
        try:
            return cls(value)
        except ValueError:
            known = ", ".join(cls)
            raise UnsupportedFormatError(
                f"{value[:80]!a} is not a model format: use one of {known}.", field="model_format"
            ) from None


class DeploymentStatus(enum.StrEnum):
    """Where a model version stands (the wire contract's four words)."""

    NOT_DEPLOYED = "not_deployed"
    PENDING = "pending"
    DEPLOYED = "deployed"
    FAILED = "failed"


class Role(enum.StrEnum):
    """What an API key may do: each role includes the ones before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def allows(self, needed: Role) -> bool:
        """Tell whether a key of this role may do what ``needed`` asks."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class Tier(enum.StrEnum):
    """An organisation's plan; custom models need ``ENTERPRISE``."""

    FREE = "free"
    PRO = "pro"
    ENTERPRISE = "enterprise"


@dataclass(frozen=True, kw_only=True)
class ResourceRequest:
    """CPUs (fractions allowed), whole GPUs and bytes of memory that one worker of a model needs."""

    num_cpus: float = limits.DEFAULT_CPUS
    num_gpus: int = 0
    memory_bytes: int = limits.DEFAULT_MEMORY_BYTES

    def __post_init__(self) -> None:
        _check_range("num_cpus", self.num_cpus, limits.MIN_CPUS, limits.MAX_CPUS)
        _check_range("num_gpus", self.num_gpus, 0, limits.MAX_GPUS)
        _check_range("memory", self.memory_bytes, limits.MIN_MEMORY_BYTES, limits.MAX_MEMORY_BYTES)
        if self.num_gpus != int(self.num_gpus):
            raise InvalidResourcesError(f"num_gpus must be a whole number, not {self.num_gpus}.", field="num_gpus")

    @classmethod
    def from_gigabytes(cls, *, num_cpus: float, num_gpus: float, memory_gb: float) -> ResourceRequest:
        """Return a checked request; ``memory_gb`` counts GiB. Raises ``InvalidResourcesError``."""
        for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus), ("memory_gb", memory_gb)):
            if not math.isfinite(value):
                raise InvalidResourcesError(f"{name} must be a finite number, not {value}.", field=name)
        if num_gpus != int(num_gpus):
            raise InvalidResourcesError(f"num_gpus must be a whole number, not {num_gpus}.", field="num_gpus")
        _check_range("memory_gb", memory_gb, limits.MIN_MEMORY_BYTES / limits.GIB, limits.MAX_MEMORY_BYTES / limits.GIB)
        return cls(num_cpus=num_cpus, num_gpus=int(num_gpus), memory_bytes=int(memory_gb * limits.GIB))


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidResourcesError(f"{name} must be between {low:g} and {high:g}, not {value}.", field=name)


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One file of an archive: its path inside it and its unpacked size."""

    path: str
    size_bytes: int


class ModelKind(enum.StrEnum):
    """What an archive turned out to hold, and so what loading it returns."""

    STATE_DICT = "state_dict"
    TORCHSCRIPT = "torchscript"
    HUGGINGFACE = "huggingface"
    ONNX = "onnx"


@dataclass(frozen=True, kw_only=True)
class TensorSignature:
    """One input or output of a model that describes its own: an axis is a size, a name where it varies, or unknown."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, kw_only=True)
class ArchiveContents:
    """What an inspection found in an archive."""

    files: tuple[FileInfo, ...]
    tensor_count: int
    parameter_count: int
    dtypes: tuple[str, ...]
    # Bytes the weights take in the object store once packed.
    weights_bytes: int
    kind: ModelKind = ModelKind.STATE_DICT
    # The model's class where the archive names one, such as `BertModel`.
    architecture: str | None = None
    # Empty where the format does not tell.
    inputs: tuple[TensorSignature, ...] = ()
    outputs: tuple[TensorSignature, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """One immutable model version, as the store keeps it."""

    namespace_id: str
    model_id: str
    name: str
    version: str
    model_format: ModelFormat
    framework: str | None
    task_type: str | None
    resources: ResourceRequest
    archive_sha256: str
    archive_bytes: int
    created_at: datetime
    # None: an archive too large to be checked before its upload was acknowledged; the first deploy checks it.
    contents: ArchiveContents | None


@dataclass(frozen=True, kw_only=True)
class DeploymentMarker:
    """The durable wish that a model version be deployed; its absence is the wish that it be not."""

    namespace_id: str
    model_id: str
    requested_at: datetime
    # Since it was requested; with as many as `MAX_CRASHES` the model is quarantined.
    crashes: tuple[ModelCrash, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """A model version with everything a caller may know about it now."""

    manifest: ModelManifest
    status: DeploymentStatus
    updated_at: datetime
    deployed_at: datetime | None = None
    # Set when ``status`` is FAILED: the error's code and message.
    failure_code: str | None = None
    failure_message: str | None = None
    # Of the archive's bytes, how many the deploy under way has read.
    bytes_done: int = 0
    # What the last materialization found; falls back to the manifest's.
    contents: ArchiveContents | None = None

    def is_coming_back(self, content: str) -> bool:
        """Tell whether weights with the hash ``content`` are on their way into the cluster again.

        So it is after a restart of the registry: who views them already need not wait for that.
        """
        return self.status is DeploymentStatus.PENDING and self.manifest.archive_sha256 == content

    def check_not_quarantined(self) -> None:
        """Return if the model may be computed, once deployed. Raises ``ModelQuarantinedError``."""
        if self.failure_code == ModelQuarantinedError.code:
            raise ModelQuarantinedError(self.failure_message or "", model_id=self.manifest.model_id)


@dataclass(frozen=True, kw_only=True)
class Organization:
    """A customer: a tier, and namespaces that nobody else sees."""

    organization_id: str
    name: str
    tier: Tier
    created_at: datetime
    # A development organisation makes a namespace the first time it is named.
    auto_create_namespaces: bool = False


@dataclass(frozen=True, kw_only=True)
class Namespace:
    """A container of models that belongs to one organisation."""

    namespace_id: str
    organization_id: str
    name: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A stored key: never the key itself, only its keyed hash."""

    key_id: str
    organization_id: str
    name: str
    role: Role
    # Lower-case hex of HMAC-SHA256(platform secret, key).
    digest: str = field(repr=False)
    created_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who a request acts for, after its key was checked."""

    key_id: str
    organization: Organization
    role: Role


@dataclass(frozen=True, kw_only=True)
class UploadedArchive:
    """An archive that lies under a temporary key, with what was measured while it streamed in."""

    temporary_key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class UploadForm:
    """The checked fields of an upload."""

    name: str
    version: str
    model_format: ModelFormat
    framework: str | None
    task_type: str | None
    resources: ResourceRequest


@dataclass(frozen=True, kw_only=True)
class UploadResult:
    """An accepted upload; ``created`` is False when the same bytes were there already."""

    model: ModelState
    created: bool


@dataclass(frozen=True, kw_only=True)
class DeployResult:
    """A deploy call's outcome; ``cached`` is True when the model was deployed already."""

    model: ModelState
    cached: bool


@dataclass(frozen=True, kw_only=True)
class PlatformHealth:
    """What works now."""

    registry: bool
    object_storage: bool
    task_queue: bool
    object_store_memory: bool
    # "haproxy" or "python-proxy".
    ingress: str
