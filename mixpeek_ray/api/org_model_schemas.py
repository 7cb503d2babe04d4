"""The bodies of ``/v1/models``: OpenAI's fields and the wire contract's, in one answer."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from mixpeek_ray.api.schemas import Body, ResourceRequirements
from mixpeek_ray.catalog.availability import Availability
from mixpeek_ray.core.records import ModelFormat

ValidationStatus = Literal["passed", "failed", "pending"]


class UsableModel(Body):
    """A model that can be named in a call: OpenAI's fields, and what else there is to know."""

    id: str = Field(description="What `model` is set to: a built-in model's name, or {namespace}/{model_id}.")
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time in seconds; 0 for built-in models, whose catalog keeps no dates.")
    owned_by: str = Field(description="`mixpeek`, or the organization's id.")
    task: str | None = Field(description="Null for a custom model that answers on no text route.")
    description: str
    availability: Availability
    reason: str | None = Field(description="What to do about it when the model is unavailable.")


class OrgModelListItem(Body):
    """A custom model of the organization."""

    model_id: str
    namespace_id: str
    name: str
    version: str
    description: str | None = None
    model_format: ModelFormat
    framework: str | None
    task_type: str | None
    deployed: bool
    validation_status: ValidationStatus
    created_at: datetime
    updated_at: datetime


class OrgModelListResponse(Body):
    """What can be used, as OpenAI's clients read it (`data`), and the organization's own models (`models`)."""

    object: Literal["list"] = "list"
    data: list[UsableModel]
    success: bool = True
    models: list[OrgModelListItem]
    total: int = Field(description="Of `models`.")
    organization_id: str


class OrgModelDeploymentInfo(Body):
    """Since when a model is deployed."""

    deployed_at: datetime | None = None


class OrgModelDocument(Body):
    """A model in the contract's words; what only uploads have is null for a built-in model."""

    model_id: str
    organization_id: str
    namespace_id: str | None
    name: str
    version: str
    description: str | None
    s3_archive_url: str = Field(description="Names the archive; a built-in model's weights lie elsewhere.")
    model_format: ModelFormat
    model_hash: str = Field(description="SHA-256 of the archive, or a built-in model's pinned revision, or empty.")
    framework: str | None = None
    task_type: str | None
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    resource_requirements: ResourceRequirements
    deployed: bool
    deployment_info: OrgModelDeploymentInfo | None = None
    validation_status: ValidationStatus
    validation_errors: list[str]


class DatedOrgModelDocument(OrgModelDocument):
    """A custom model, which has dates."""

    created_at: datetime
    updated_at: datetime


class BuiltinFacts(Body):
    """What the catalog says of a built-in model."""

    family: str
    aliases: list[str]
    licence: str
    max_tokens: int
    max_inputs: int
    dimensions: int | None = Field(description="Null for a reranker.")


class OrgModelDetailResponse(UsableModel):
    """One model: OpenAI's fields beside the contract's."""

    success: bool = True
    model: DatedOrgModelDocument | OrgModelDocument
    builtin: BuiltinFacts | None = Field(description="Null for a custom model.")
