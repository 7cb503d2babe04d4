"""The bodies on the wire: the contract's fields, and a few more that clients may ignore."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mixpeek_ray.core import limits
from mixpeek_ray.core.records import DeploymentStatus, ModelFormat, ModelKind, Role, Tier


class Body(BaseModel):
    """What every body on the wire has in common."""

    # `model_id` and the like are the contract's names; pydantic reserves the prefix for its own methods.
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(Body):
    """What went wrong: the name clients switch on, our stable code, and what to do."""

    type: str
    code: str
    message: str
    details: dict[str, Any] | None = None


class ErrorResponse(Body):
    """The answer from status 400 up."""

    success: Literal[False] = False
    status: int
    error: ErrorDetail


class ResourceRequirements(Body):
    """What one worker of a model needs; ``memory`` in bytes."""

    num_cpus: float = Field(default=limits.DEFAULT_CPUS, ge=limits.MIN_CPUS, le=limits.MAX_CPUS)
    num_gpus: int = Field(default=0, ge=0, le=limits.MAX_GPUS)
    memory: int = limits.DEFAULT_MEMORY_BYTES


ServedBy = Literal["pool", "dedicated"]


class DeploymentInfo(Body):
    """How a deployed model is reached."""

    endpoint: str
    base_image: str
    deployed_at: datetime | None = None
    served_by: ServedBy | None = Field(
        default=None,
        description="Who answers at the endpoint: replicas that serve other models too, or an application of the "
        "model's own, with the resources that it asked for. Null: nobody, weights without an architecture.",
    )


class ArchiveFile(Body):
    """A file of an archive and its unpacked size."""

    path: str
    size_bytes: int


class DeployProgress(Body):
    """How much of the archive a deploy under way has read."""

    bytes_done: int
    bytes_total: int


class Failure(Body):
    """Why the last deployment failed."""

    code: str
    message: str


class ModelDocument(Body):
    """Everything about one model version; what an inspection found is null until there was one."""

    model_id: str
    namespace_id: str
    name: str
    version: str
    model_archive_url: str
    model_format: ModelFormat
    model_hash: str
    framework: str | None
    task_type: str | None
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    resource_requirements: ResourceRequirements
    deployed: bool
    deployment_status: DeploymentStatus
    deployment_info: DeploymentInfo | None
    deployment_progress: DeployProgress | None
    failure: Failure | None
    created_at: datetime
    updated_at: datetime
    archive_bytes: int
    files: list[ArchiveFile] | None
    tensor_count: int | None
    parameter_count: int | None
    dtypes: list[str] | None
    weights_bytes: int | None
    kind: ModelKind | None
    architecture: str | None


class ModelDetailResponse(Body):
    """One model."""

    success: bool = True
    model: ModelDocument


class ModelListItem(Body):
    """A model as lists show it; ``endpoint`` is null unless it is deployed."""

    model_id: str
    name: str
    version: str
    latest: bool = Field(description="Whether it is the highest version of its name, deployed or not.")
    model_format: ModelFormat
    framework: str | None
    task_type: str | None
    deployed: bool
    deployment_status: DeploymentStatus
    endpoint: str | None
    created_at: datetime
    updated_at: datetime


class ModelListResponse(Body):
    """A namespace's models, newest first."""

    success: bool = True
    models: list[ModelListItem]
    total: int
    namespace_id: str


class ModelUploadResponse(Body):
    """An accepted upload."""

    success: bool
    model_id: str
    deployment_status: DeploymentStatus
    endpoint: str
    model_archive_url: str


class ModelDeployResponse(Body):
    """Where a deployment stands; ``cached`` when the model was deployed already."""

    success: bool
    model_id: str
    namespace_id: str
    deployment_status: DeploymentStatus
    cached: bool = False
    message: str


class ModelDeleteResponse(Body):
    """A model version is gone."""

    success: bool = True
    model_id: str
    message: str


class NamespaceCreateRequest(Body):
    """A namespace to make."""

    namespace_name: str = Field(description="1 to 64 letters, digits, '-' or '_', beginning with a letter or digit.")


class NamespaceDocument(Body):
    """A container of models that belongs to one organisation."""

    namespace_id: str
    namespace_name: str
    created_at: datetime


class NamespaceListResponse(Body):
    """The organisation's namespaces, by id."""

    success: bool = True
    namespaces: list[NamespaceDocument]
    total: int


class WhoAmIResponse(Body):
    """Whom the key speaks for."""

    success: bool = True
    key_id: str
    organization_id: str
    organization_name: str
    role: Role
    tier: Tier


class HealthData(Body):
    """What works. Names are the contract's; ``vector_store`` and ``analytics`` are no part of this platform."""

    cache: bool = Field(description="Ray's object store, which holds the weights.")
    metadata: bool = Field(description="The model registry.")
    vector_store: bool = Field(default=True, description="Always true: there is none to be down.")
    object_storage: bool = Field(description="The durable store of archives.")
    task_queue: bool = Field(description="Whether tasks can be scheduled.")
    inference: bool = Field(description="Whether models can be served: registry and object store together.")
    analytics: bool | None = Field(default=None, description="Always null: there is none.")


class HealthErrors(Body):
    """One sentence for each thing that is down."""

    cache: str | None = None
    metadata: str | None = None
    vector_store: str | None = None
    object_storage: str | None = None
    task_queue: str | None = None
    inference: str | None = None
    analytics: str | None = None


class HealthResponse(Body):
    """Whether the platform works; answered with 200 also when it does not."""

    status: Literal["OK", "DEGRADED"]
    data: HealthData
    errors: HealthErrors | None = None
    meta: dict[str, Any] | None = None


class LivenessResponse(Body):
    """This replica answers."""

    status: Literal["OK"] = "OK"
